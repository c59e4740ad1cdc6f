"""The application on Flask's development server, to debug it or to see what it lacks. Not for production."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from werkzeug.serving import make_server

from deploylab.serving import worker
from deploylab.serving.listener import Listener
from deploylab.serving.worker import Work


def run(work: Work, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`ServerError`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line for each request
    app = worker.start(work)
    server = make_server(listener.host, listener.port, app, threaded=True, fd=listener.fileno())

    def leave() -> None:
        listener.stop_admitting()
        listener.wait_until_accepted(1.0)
        work.leave()
        app.app.service.drain(work.limits.timeout_s)
        server.shutdown()

    def stop(*_: Any) -> None:
        threading.Thread(target=leave).start()  # shutdown() waits for the loop that this handler interrupts

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.serve_forever(poll_interval=0.1)
