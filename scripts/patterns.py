#!/usr/bin/env python
"""Inspect, search, export and import a project's pattern bank, and switch its mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.patterns import main

if __name__ == "__main__":
    main()
