#!/usr/bin/env python3
"""Check this installation and print how to fix problems: python scripts/doctor.py [--json]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.doctor.__main__ import main

if __name__ == "__main__":
    main()
