#!/usr/bin/env python
"""List a project's trained versions with metrics and acceptance, and switch between them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.versions import main

if __name__ == "__main__":
    main()
