"""Refuses requests of other pages and other machines, and gives each answer the headers of a page that loads nothing.

A page of another site may send requests to this machine's own addresses, and with a name of its own for such an address
(DNS rebinding) it may read the answers. So three things must fit: the token of the address, which only the terminal
shows; the host, which is this machine under one of its own names; and, where a browser sends it, the origin.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?")  # any port: of a tunnel too
READING = ("GET", "HEAD")


class Guard:
    """Passes requests to `app` that come from its own page. `policy`: its content security policy."""

    def __init__(self, app: ASGIApp, *, token: str, policy: str):
        self._app, self._token = app, token
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        assert scope["type"] == "http", "the server has no other protocol"
        problem = self._problem(scope["method"], scope["path"], Headers(scope=scope).getlist)
        passed = JSONResponse({"problem": problem}, 403) if problem else self._app
        await passed(scope, receive, send_with_headers)

    def _problem(self, method: str, path: str, values: Callable[[str], list[str]]) -> str | None:
        """Returns why a request is refused; None if it is not."""
        token = path.split("/")[1] if path.startswith("/") else ""
        hosts, origins = values("host"), values("origin")
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            return "the page is served to this machine only, under 127.0.0.1 or localhost"
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            return "the address lacks the token that `lmmkit chat --web` printed at this start"
        if any(origin != f"http://{hosts[0]}" for origin in origins) or (
            method not in READING and len(origins) != 1
        ):
            return "the request is not from the page itself"
        return None
