"""The static files. Their paths contain a hash of the content, so that a browser loads each version only once."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from aiohttp import web

from listener.web.page.headers import NEVER_CHANGES

_FOLDER = Path(__file__).parent / "static"
_SERVED = (".css", ".js", ".svg", ".png", ".ico", ".woff2")


class Assets:
    """The files below ``folder``, read once."""

    def __init__(self, prefix: str, folder: Path = _FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in _SERVED
        }
        hashes = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in self._files.items()}
        self._urls = {name: f"{prefix}/static/{hashes[name]}/{name}" for name in self._files}
        self._prefix = prefix

    def url(self, name: str) -> str:
        """The URL of a file, such as app.css or vendor/htmx.min.js. Raises KeyError if it does not exist."""
        return self._urls[name]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answers GET /static/HASH/NAME; with 404 if the hash is not that of the content."""
        name = request.match_info["name"]
        if self._urls.get(name) != request.path:
            raise web.HTTPNotFound
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        charset = "utf-8" if name.endswith((".css", ".js", ".svg")) else None
        headers = {"Cache-Control": NEVER_CHANGES}
        return web.Response(body=self._files[name], headers=headers, content_type=kind, charset=charset)
