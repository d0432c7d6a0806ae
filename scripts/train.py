#!/usr/bin/env python
"""Fine-tune a project's detector on its annotations. Workers do it; this command shows progress."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.train import main

if __name__ == "__main__":
    main()
