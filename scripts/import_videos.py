#!/usr/bin/env python
"""Import videos into a Label Studio project, transcoded for browsers if needed, with their frame rates."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.import_videos import main

if __name__ == "__main__":
    main()
