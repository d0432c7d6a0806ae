#!/usr/bin/env python
"""Pre-annotate one video offline and write a Label Studio prediction; the last line of stdout is JSON."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.predict_video import main

if __name__ == "__main__":
    main()
