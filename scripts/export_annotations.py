#!/usr/bin/env python
"""Write annotations.json: every box with its time, label, pixels and origin."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.export_annotations import main

if __name__ == "__main__":
    main()
