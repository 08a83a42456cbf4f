"""What the server lets through: the routes that the page needs, uploads within limits, and files that were uploaded.

Gradio serves more than this page uses: it fetches URLs for its users, runs functions of components, records videos. All
that is shut here, in front of it, whatever a later release adds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_JSON_BYTES = 256 << 10
MAX_KEPT_BYTES = 2 << 30  # of uploads and results together
FORM_BYTES = 64 << 10  # of an upload beyond its file

_API = "/gradio_api"
_READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?)/?|/(static|assets)/.+"
    rf"|{_API}/(info|theme\.css|startup-events|queue/data|queue/status|upload_progress|app_id|login_check|user)/?"
    rf"|{_API}/(heartbeat/[^/]+|call/(v2/)?[^/]+/[^/]+|file=(?!\w{(2,)}:|//).+)"
)
_WRITE = re.compile(rf"{_API}/(upload|queue/join|cancel|reset|(run|call|call/v2)/[^/]+)/?")

# The page runs its own scripts and asks nobody else for anything; Gradio's templates need eval and inline scripts.
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """Stands before the page's application; refuses in words, and adds headers to all answers."""

    def __init__(self, app: App, folder: Path, upload_bytes: int) -> None:
        """
        Args:
            folder: where uploads and results lie.
            upload_bytes: the largest file.
        """
        self._app = app
        self._folder = folder.resolve()
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        status, reason = self._refusal(scope)
        if not reason and scope["method"] == "POST" and not _is_upload(scope):
            body = await _read(receive)
            status, reason = self._refusal_of(body)
            receive = _given(body, receive)
        if reason:
            await _answer(send, status, reason)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str]:
        """The status and the reason why a request is refused before its body is read; "" if it is not."""
        path, method = str(scope["path"]), scope["method"]
        root = str(scope.get("root_path", ""))
        path = path[len(root) :] or "/" if root and path.startswith(root) else path
        allowed = {"GET": _READ, "HEAD": _READ, "POST": _WRITE}.get(method)
        if allowed is None or not allowed.fullmatch(path):
            return 404, f"{method} {path} is not part of this page."
        if method != "POST":
            return 200, ""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "Requests must say their length."
        limit = self._upload_bytes + FORM_BYTES if _is_upload(scope) else MAX_JSON_BYTES
        if int(length) > limit:
            return 413, f"The request has {int(length)} bytes; at most {limit} are taken."
        if _is_upload(scope) and _bytes_below(self._folder) + int(length) > MAX_KEPT_BYTES:
            return 507, "The server holds as many pictures as it can. Try again in some minutes."
        return 200, ""

    def _refusal_of(self, body: bytes) -> tuple[int, str]:
        """As `_refusal`, for what the body of a call says."""
        try:
            content = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return 400, "The request is not valid json."
        for path in _paths(content):
            if not isinstance(path, str) or not self._is_upload_path(path):
                return 400, "Only pictures that were uploaded here can be used: no addresses, no files of the server."
        return 200, ""

    def _is_upload_path(self, path: str) -> bool:
        try:
            return not re.match(r"\w{2,}:", path) and Path(path).resolve().is_relative_to(self._folder)
        except (OSError, ValueError):
            return False


def _is_upload(scope: MutableMapping[str, Any]) -> bool:
    return str(scope["path"]).rstrip("/").endswith(f"{_API}/upload")


def _paths(content: Any) -> Iterator[Any]:
    """Whatever stands as `path` anywhere in a body; a nesting too deep for json was refused before."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield item["path"]
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _bytes_below(folder: Path) -> int:
    return sum(
        os.stat(os.path.join(place, file)).st_size
        for place, _, files in os.walk(folder)
        for file in files
        if os.path.exists(os.path.join(place, file))
    )


async def _read(receive: Receive) -> bytes:
    """The body of a request whose length was found small enough."""
    body, more = b"", True
    while more and len(body) <= MAX_JSON_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return body


def _given(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
