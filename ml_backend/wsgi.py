"""WSGI entry point: ``gunicorn --threads 16 --workers 1 ml_backend.wsgi:app``.

One process with threads suffices, since requests only look up and enqueue, and it keeps one set of metrics.
"""

from __future__ import annotations

import logging

from ml_backend.core.settings import get_settings
from ml_backend.server.app import create_app

logging.basicConfig(level=get_settings().log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

app = create_app()
app.extensions["services"].warm_up()
