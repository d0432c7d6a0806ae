#!/usr/bin/env python
"""Erase what was made of a project's videos and annotations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.erase_project import main

if __name__ == "__main__":
    main()
