"""An HTTP server for objects in memory: with ranges or without, tagged or not, and one that changes them."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote


class Objects:
    """What is served, and how.

    Attributes:
        data: By name.
        tag: The tag of all of them; ``None``: they have none.
        ranges: Whether a part can be had.
        asked: The ranges asked for, as they came.
    """

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.tag: str | None = '"1"'
        self.ranges = True
        self.asked: list[str | None] = []
        self.url = ""


@contextmanager
def serving() -> Iterator[Objects]:
    """Serve on a free port until the block ends."""
    objects = Objects()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            data, asked = objects.data.get(unquote(self.path).lstrip("/")), self.headers.get("Range")
            if body:
                objects.asked.append(asked)
            if data is None:
                return self.send(404, b"", body=False)
            if self.headers.get("If-Match", objects.tag) != objects.tag:
                return self.send(412, b"", body=False)
            if asked is None or not objects.ranges:
                return self.send(200, data, body=body)
            start, end = map(int, asked.removeprefix("bytes=").split("-"))
            part = data[start : end + 1]
            return self.send(206, part, body=body, within=f"bytes {start}-{start + len(part) - 1}/{len(data)}")

        def send(self, code: int, data: bytes, *, body: bool, within: str | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            for name, value in (("ETag", objects.tag), ("Content-Range", within)):
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is none."""

    server = Server(("127.0.0.1", 0), Handler)
    objects.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
