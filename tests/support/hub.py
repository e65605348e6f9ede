"""A server on the loopback address that acts like the Hugging Face hub, with one repository, and fails on request."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY, COMMIT = "monologg/kobert", "f89943434bd5ebaf7be828a30587161a44a5d02c"
TAG_COMMIT = "1" * 40
PATIENCE = {
    "HF_HUB_ETAG_TIMEOUT": "100",
    "HF_HUB_DOWNLOAD_TIMEOUT": "100",
}  # Seconds; the machine may be busy.
BRANCHES = {"main": COMMIT, "v1": TAG_COMMIT}
LARGE = (".safetensors", ".bin", ".msgpack", ".model")  # Suffixes of files that the hub stores in Git LFS.


class Hub(ThreadingHTTPServer):
    """Serve `files` and record the requests. `fault` makes the server fail."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.fault: str | None = None  # "401", "503", "cut", "cut once", "wrong bytes" or "wrong size".
        self.faulty = ""  # Suffix of the files that "cut" and "wrong" affect.
        self.requests: list[tuple[str, str]] = []  # Method and path of each request.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """Return the names of the files whose content was requested."""
        return {path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path}


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a hub that serves `files` within the block."""
    with Hub(files) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    """Make a file's entry in the listing of the hub: its hash in git, and its SHA-256 if it is in Git LFS."""
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
    stored = pointer if name.endswith(LARGE) else data
    oid = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
    lfs = {"lfs": {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}} if name.endswith(LARGE) else {}
    return {"type": "file", "path": name, "size": len(data), "oid": oid, **lfs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if self.server.fault in ("401", "503"):
            self._answer(int(self.server.fault), b"no")
        elif path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path.strip("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            if (repository, commit) == (REPOSITORY, COMMIT) and name in self.server.files:
                self._file(name)
            else:
                self._answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def _model(self, path: str) -> None:
        kind = "/tree/" if "/tree/" in path else "/revision/"
        repository, _, revision = path.partition(kind)
        commit = BRANCHES.get(revision, revision)
        if repository != REPOSITORY:
            self._answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif commit not in BRANCHES.values():
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif kind == "/tree/":
            self._answer(
                200, json.dumps([_tree_entry(name, data) for name, data in self.server.files.items()]).encode()
            )
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            body = {"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            self._answer(200, json.dumps(body).encode())

    def _file(self, name: str) -> None:
        data = body = self.server.files[name]
        fault = self.server.fault if name.endswith(self.server.faulty) else None
        if fault == "wrong bytes":
            body = data[:-1] + bytes([data[-1] ^ 1])
        elif fault == "wrong size":
            body = data + b"!"
        cut = self.command == "GET" and fault in ("cut", "cut once")
        if cut and fault == "cut once":
            self.server.fault = None
        etag, length = hashlib.sha256(data).hexdigest(), str(len(body))
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{etag}"', "X_Linked_Etag": f'"{etag}"', "X_Linked_Size": length}
        self._answer(200, body[: len(body) // 2] if cut else body, **headers, Content_Length=length)
        self.close_connection = cut or self.close_connection
