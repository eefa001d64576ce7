"""A server on 127.0.0.1 that answers as the hub does, as far as huggingface_hub asks here: a folder per repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """OWNER/REPO below `root`; `asked` are the paths of requests, `gated` the repositories that want a token."""

    root: Path
    asked: list[str]
    gated: set[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        folder = self.root / repo
        if repo in self.gated:
            self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        elif not folder.is_dir():
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif api and "tree" in parts:
            files = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in _files(folder)
            ]
            self._send(200, json.dumps(files).encode(), body, {})
        elif api:
            about = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
            about["siblings"] = [{"rfilename": name} for name, _ in _files(folder)]
            self._send(200, json.dumps(about).encode(), body, {})
        elif (file := folder / "/".join(parts[4:])).is_file() and parts[2] == "resolve":
            self._send(200, file.read_bytes(), body, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[type[Hub]]:
    """The server's class while it runs; its address is `Hub.url`."""

    class Here(Hub):
        asked: list[str] = []  # noqa: RUF012
        gated: set[str] = set()  # noqa: RUF012
        url = ""

    Here.root = root
    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    Here.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
