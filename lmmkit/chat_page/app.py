"""The requests of the page of `lmmkit chat --web`, and what they do."""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from lmmkit.chat_page.guard import Guard
from lmmkit.chat_page.session import MOST_BYTES, MOST_TEXT, ChatSession, Refused
from lmmkit.report.page import source_hash, template_text

PAGE = Path(__file__).with_name("page.html")


def chat_app(session: ChatSession, token: str) -> Guard:
    """Returns the app that serves the page of a session under /TOKEN/."""
    handlers = _Handlers(session)
    routes = [
        Route("/", handlers.page),
        Route("/state", handlers.state),
        Route("/images", handlers.add_image, methods=["POST"]),
        Route("/images/{number:int}", handlers.preview),
        Route("/images/{number:int}/remove", handlers.remove_image, methods=["POST"]),
        Route("/ask", handlers.ask, methods=["POST"]),
        Route("/stop", handlers.stop, methods=["POST"]),
        Route("/reset", handlers.reset, methods=["POST"]),
        Route("/attention/{turn:int}", handlers.attention),
    ]
    app = Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers={Refused: _refused})
    return Guard(app, token=token, policy=policy_of(page_text()))


class _Handlers:
    """Answers the requests. Those that are no coroutines run in threads."""

    def __init__(self, session: ChatSession):
        self._session = session

    def page(self, request: Request) -> Response:
        return HTMLResponse(page_text())

    def state(self, request: Request) -> Response:
        return JSONResponse(self._session.state())

    async def add_image(self, request: Request) -> Response:
        data = await body_of(request, MOST_BYTES)
        return JSONResponse({"image": await run_in_threadpool(self._session.add_image, data)})

    def preview(self, request: Request) -> Response:
        return Response(self._session.preview(request.path_params["number"]), media_type="image/webp")

    def remove_image(self, request: Request) -> Response:
        self._session.remove_image(request.path_params["number"])
        return JSONResponse({})

    async def ask(self, request: Request) -> Response:
        text, turns = question_in(await body_of(request, MOST_TEXT))
        return StreamingResponse(
            self._answer_lines(text, turns), media_type="application/x-ndjson; charset=utf-8"
        )

    async def _answer_lines(self, text: str, turns: int) -> AsyncIterator[str]:
        """Yields lines of JSON: parts of the answer, then how many turns there are, or a problem."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue()

        def put(line: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        def work() -> None:
            try:
                put(self._session.ask(text, turns, lambda part: put({"part": part})))
            except Refused as error:
                put({"problem": error.text})
            except Exception as error:
                traceback.print_exc()
                put({"problem": f"the answer failed, the terminal has more: {type(error).__name__}: {error}"})
            finally:
                put(None)

        working = loop.run_in_executor(None, work)
        try:
            while (line := await lines.get()) is not None:
                yield json.dumps(line) + "\n"
        finally:
            if not working.done():  # the page is gone
                self._session.stop()

    def stop(self, request: Request) -> Response:
        self._session.stop()
        return JSONResponse({})

    def reset(self, request: Request) -> Response:
        self._session.reset()
        return JSONResponse({})

    def attention(self, request: Request) -> Response:
        return JSONResponse({"images": self._session.attention(request.path_params["turn"])})


async def body_of(request: Request, most: int) -> bytes:
    """Returns the body of a request. Raises `Refused` as soon as it is known to have more than `most` bytes."""
    too_large = Refused(413, f"more than {most:,} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


def question_in(body: bytes) -> tuple[str, int]:
    """Returns a question, and the number of turns before it. Raises `Refused` for what is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    text, turns = (value.get("text"), value.get("turns")) if isinstance(value, dict) else (None, None)
    if not isinstance(text, str) or not text.strip() or type(turns) is not int:
        raise Refused(400, "no question")
    return text.strip(), turns


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"problem": error.text}, error.status)


@cache
def page_text() -> str:
    """Returns the page, with the files that it shares with the pages of reports in their places."""
    own = PAGE.read_text(encoding="utf-8")
    return re.sub(r"\{\{ ([\w.]+) \}\}", lambda found: template_text(found[1]), own)


def policy_of(page: str) -> str:
    """Returns the content security policy of the page: its own style and scripts, by their hashes, images and requests
    of its own address, and nothing else."""
    styles, scripts = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {' '.join(map(source_hash, styles))}; "
        f"script-src {' '.join(map(source_hash, scripts))}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
