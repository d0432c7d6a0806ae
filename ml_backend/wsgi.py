"""WSGI entry point; for gunicorn see :mod:`ml_backend.server.gunicorn_config`."""

from __future__ import annotations

import logging
import sys

from ml_backend.core.errors import BackendError
from ml_backend.core.private_files import keep_files_private
from ml_backend.core.settings import get_settings
from ml_backend.server.app import create_app
from ml_backend.server.exposure import check_exposure

#: gunicorn ends, instead of starting the process again, when one exits so.
_BOOT_ERROR = 3

try:
    settings = get_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    check_exposure(settings)
    keep_files_private(settings.data_dir)
    app = create_app(settings)
except BackendError as error:
    print(error, file=sys.stderr)
    sys.exit(_BOOT_ERROR)
app.extensions["services"].warm_up()
