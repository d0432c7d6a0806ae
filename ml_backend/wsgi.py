"""Entry for gunicorn: ``gunicorn --threads 16 --workers 1 ml_backend.wsgi:app``.

One process with threads: requests only look up and enqueue, and one process keeps one set of metrics.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from ml_backend.app import create_app
from ml_backend.settings import get_settings

logging.basicConfig(level=get_settings().log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

app = create_app()


def _send_listeners_home(number: int) -> None:
    """When the server is told to end, streams end at once; it would wait for them in vain."""
    before = signal.getsignal(number)

    def end(signum: int, frame: FrameType | None) -> None:
        app.extensions["listeners"].closing.set()
        if callable(before):
            before(signum, frame)

    signal.signal(number, end)


if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        if callable(signal.getsignal(number)):
            _send_listeners_home(number)
# Events that were written down before the last stop are handed over now.
app.extensions["services"].events.start()
app.extensions["services"].warm_up()
