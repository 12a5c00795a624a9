"""A real HTTP server that takes what apprise sends as JSON."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

CANARY = "c4nary-s3cret"


class Receiver:
    """What arrived, and where to send it; the address holds a secret."""

    def __init__(self, port: int) -> None:
        self.url = f"json://me:{CANARY}@127.0.0.1:{port}/{CANARY}"
        self.messages: list[dict[str, Any]] = []

    def titles(self) -> list[str]:
        return [message["title"] for message in self.messages]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
