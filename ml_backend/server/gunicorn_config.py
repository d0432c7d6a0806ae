"""Settings of gunicorn: ``gunicorn --config python:ml_backend.server.gunicorn_config --bind 127.0.0.1:9090``.

One process with threads suffices, since requests only look up and enqueue, and it keeps one set of metrics.
"""

from __future__ import annotations

from ml_backend.server.slow_clients import THREADS

wsgi_app = "ml_backend.wsgi:app"
worker_class = "ml_backend.server.gunicorn_worker.BufferingWorker"
threads = THREADS
#: Open connections, most of which are idle or slow. Many systems let a process open a thousand files.
worker_connections = 500
#: Seconds; longer than the pause between two requests of a page or of a monitor.
keepalive = 30
#: Seconds for which a stopping process finishes requests; less than process managers wait until they kill it.
graceful_timeout = 5
#: Its socket would be created in the home folder.
control_socket_disable = True
