#!/usr/bin/env python
"""List suspicious moments of annotations and predictions; the last line of stdout is JSON."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.check_annotations import main

if __name__ == "__main__":
    main()
