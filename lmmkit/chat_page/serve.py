"""Serves the page of `lmmkit chat --web` on the loopback address."""

from __future__ import annotations

import secrets
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from lmmkit.chat_page.app import chat_app
from lmmkit.chat_page.session import ChatSession
from lmmkit.errors import MachineError
from lmmkit.errors.commands import CHAT_PORT

LOOPBACK = "127.0.0.1"
MOST_REQUESTS = 64  # at the same time


def serve(session: ChatSession, *, port: int, on_address: Callable[[str], None]) -> None:
    """Serves the page until SIGINT, then raises `KeyboardInterrupt`, or SIGTERM, then raises `SystemExit`: so what the
    caller has opened is closed.

    Args:
        session: the conversation.
        port: of the loopback address; 0 for any free one.
        on_address: called with the address of the page, which has a new token at each start.
    """
    token = secrets.token_urlsafe(24)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with listening(port) as listener:
            on_address(f"http://{LOOPBACK}:{listener.getsockname()[1]}/{token}/")
            server_of(session, token).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def listening(port: int) -> socket.socket:
    """Returns a socket on a port of the loopback address. Raises `MachineError` if the system does not give it."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen()  # who has the address may connect before the server accepts
    except OSError as error:
        listener.close()
        raise MachineError(CHAT_PORT.at(f"--port {port}", got=error.strerror or str(error))) from error
    return listener


class StoppingServer(uvicorn.Server):
    """Stops the answer of a session when it is asked to exit, so that no request is cancelled."""

    def __init__(self, config: uvicorn.Config, session: ChatSession):
        super().__init__(config)
        self._session = session

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._session.stop()
        super().handle_exit(sig, frame)


def server_of(session: ChatSession, token: str) -> StoppingServer:
    """Returns the server. It does the same with any set of packages, and logs no requests: these have the token."""
    config = uvicorn.Config(
        chat_app(session, token), loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, limit_concurrency=MOST_REQUESTS,
    )  # fmt: skip
    return StoppingServer(config, session)
