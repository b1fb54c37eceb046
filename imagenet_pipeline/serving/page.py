"""The page and the one question it asks, over Starlette and uvicorn.

Not Gradio: 6.31 refuses the Pillow (13) that reads every image header here, brings 340 MB in 50 packages, and keeps
uploads on the disk. This page of three files asks nothing of any other machine, which its Content-Security-Policy makes
sure of, and a photo is never written anywhere.
"""

from __future__ import annotations

import asyncio
import html
import os
import socket
import string
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from imagenet_pipeline.errors import BadRecipe, PipelineError
from imagenet_pipeline.records.image import FILE_LIMIT_BYTES, Rejected
from imagenet_pipeline.serving.answers import Answers

UPLOADS_AT_ONCE = 2
"""The others wait: with the limit on a file this bounds the memory."""
UPLOAD_SECONDS = 60.0
LOOPBACK = ("127.0.0.1", "localhost")
_HERE = Path(__file__).parent
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class _TooLarge(Exception):
    pass


def page_app(answers: Answers, host: str = "127.0.0.1") -> Starlette:
    """The application: GET / is the page; POST /look, a photo as its body, is the answer or the `error` in JSON.

    Served on loopback it answers to this machine's own names alone, so that no page from elsewhere gets at it.
    """
    page = _page(answers)
    turn = asyncio.Semaphore(UPLOADS_AT_ONCE)
    thread = ThreadPoolExecutor(1, "look")  # an engine looks at one picture at a time, always from the same thread

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=_SECURITY)

    async def look(request: Request) -> Response:
        async with turn:
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    data = await _body(request)
                answer = await asyncio.get_running_loop().run_in_executor(thread, answers.answer, data)
            except ClientDisconnect:
                return Response(status_code=400)
            except (_TooLarge, Rejected, PipelineError, MemoryError, TimeoutError) as error:
                return _refusal(error)
            return JSONResponse(answer)

    files = Mount("/files", StaticFiles(directory=_HERE / "files"))
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))] if host in LOOPBACK else []
    return Starlette(routes=[Route("/", show), Route("/look", look, methods=["POST"]), files], middleware=guard)


def listen(host: str, port: int) -> socket.socket:
    """A socket on this address, port 0 for any that is free. Raises BadRecipe where there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        advice = "take another --port (0: any that is free) or --host"
        raise BadRecipe(f"no page can be served here ({reason})", where=f"{host}:{port}", advice=advice) from error


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM; what was asked by then is answered within three seconds."""
    config = uvicorn.Config(
        app, lifespan="off", log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])


async def _body(request: Request) -> bytes:
    """The upload. One that is too large is read to its end, so that the sender hears why, and not kept."""
    kept: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        kept.append(chunk)
        if size > FILE_LIMIT_BYTES:
            kept.clear()
    if size > FILE_LIMIT_BYTES:
        raise _TooLarge
    return b"".join(kept)


def _refusal(error: Exception) -> JSONResponse:
    match error:
        case _TooLarge():
            said, status = f"This file is too large: more than {FILE_LIMIT_BYTES >> 20} MB.", 413
        case Rejected():
            said, status = str(error), 415
        case TimeoutError():
            said, status = "The upload took too long.", 408
        case MemoryError():
            said, status = "There is too little memory for this photo.", 503
        case _:
            said, status = str(error), 500
    return JSONResponse({"error": said}, status)


def _page(answers: Answers) -> str:
    classifier, classes = answers.classifier, answers.classifier.classes
    state = classifier.checkpoint.state
    facts = {
        "run": classifier.run.resolve().name,
        "network": f"{state.network}, epoch {state.epoch}, {state.input_size} pixels",
        "count": f"{len(classes):,}",
        "classes": ", ".join(classes.names),
        "asks": "emotions" if answers.reader else f"the {min(answers.top, len(classes))} most probable classes",
        "limit": str(FILE_LIMIT_BYTES),
    }
    template = string.Template((_HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute({name: html.escape(value) for name, value in facts.items()})
