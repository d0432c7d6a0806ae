#!/usr/bin/env python
"""Follow one drawn box through a video and write a prediction; the last line of stdout is JSON."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.track_box import main

if __name__ == "__main__":
    main()
