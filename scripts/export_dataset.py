#!/usr/bin/env python
"""Export annotated videos as a dataset, or import a dataset of another tool to Label Studio."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ml_backend.cli.commands.export_dataset import main

if __name__ == "__main__":
    main()
