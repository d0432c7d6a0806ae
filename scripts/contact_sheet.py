#!/usr/bin/env python
"""Draw a contact sheet of a label's exemplars."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.contact_sheet import main

if __name__ == "__main__":
    main()
