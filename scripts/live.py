#!/usr/bin/env python
"""Label cameras while they run and show them in the browser; the last line of stdout is JSON."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.live import main

if __name__ == "__main__":
    main()
