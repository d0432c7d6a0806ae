#!/usr/bin/env python
"""Render a video with boxes for browsers, from annotations, a prediction, or a model run now."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.render_video import main

if __name__ == "__main__":
    main()
