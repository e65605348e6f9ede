"""The server of the demo: one page and one JSON endpoint on the loopback address."""

import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

PAGE = Path(__file__).with_name("demo.html")
MAX_BYTES = 2**16  # Upper bound on the size of a request.
HTTP_PORT = 80  # Browsers leave this port out of Host and Origin.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class DemoServer(ThreadingHTTPServer):
    """Answer `GET /` with the page, and `POST /explain` with the result of `explain` for its JSON `{"text": ...}`.

    Args:
        explain: Returns what the page shows of a text. It is called for one request at a time.
        port: Port of the loopback address; 0 takes any free one.
    """

    daemon_threads = True

    def __init__(self, explain: Callable[[str], dict[str, Any]], port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.explain, self.lock = explain, Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, except for a client that has left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer

    def log_message(self, *_: object) -> None:
        """Print nothing, so that no text is logged."""

    def _is_own_origin(self) -> bool:
        """Tell whether the request comes from our own page; guards against cross-site requests and DNS rebinding."""
        port = "" if self.server.server_port == HTTP_PORT else f":{self.server.server_port}"
        own = [f"{name}{port}" for name in ("127.0.0.1", "localhost")]
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in own and (origin is None or origin.removeprefix("http://") in own)

    def _send(self, status: int, body: str, content_type: str) -> None:
        encoded = body.encode()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": content_type, "Content-Length": str(len(encoded))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def do_GET(self) -> None:
        if not self._is_own_origin():
            self._send(403, "only requests of the demo's own page are answered", "text/plain")
        elif self.path == "/":
            self._send(200, PAGE.read_text(encoding="utf-8"), "text/html; charset=utf-8")
        else:
            self._send(404, "no such page", "text/plain")

    def do_POST(self) -> None:
        if not self._is_own_origin() or self.headers.get_content_type() != "application/json":
            self._send(403, "only requests of the demo's own page are answered", "text/plain")
            return
        try:
            body = self.rfile.read(min(max(0, int(self.headers.get("Content-Length", 0))), MAX_BYTES))
            text = str(json.loads(body)["text"])
            text.encode()  # Half of a surrogate pair raises.
        except (ValueError, KeyError, TypeError, RecursionError):
            self._send(400, f'expected {{"text": ...}} of at most {MAX_BYTES} bytes', "text/plain")
            return
        with self.server.lock:
            answer = self.server.explain(text)
        self._send(200, json.dumps(answer, ensure_ascii=False), "application/json; charset=utf-8")
