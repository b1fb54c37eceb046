"""The page and the addresses it asks, and those for programs, over Starlette and uvicorn.

Not Gradio: 6.31 refuses the Pillow (13) that reads every image header here, brings 340 MB in 50 packages, and keeps
uploads on the disk. This page of three files asks nothing of any other machine, which its Content-Security-Policy makes
sure of, and a photo is never written anywhere.
"""

from __future__ import annotations

import html
import string
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from imagenet_pipeline.errors import OutOfRoom, PipelineError
from imagenet_pipeline.records.image import FILE_LIMIT_BYTES, Rejected
from imagenet_pipeline.serving import openapi
from imagenet_pipeline.serving.address import LOOPBACK_NAMES
from imagenet_pipeline.serving.answers import Answers
from imagenet_pipeline.serving.predicting import predict
from imagenet_pipeline.serving.service import Service
from imagenet_pipeline.serving.uploads import Refused, Uploads

_HERE = Path(__file__).parent
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Not "no-referrer", with which some browsers hide the page's own origin from `_from_elsewhere`.
    "Referrer-Policy": "same-origin",
}
_LATER = {"Retry-After": "1"}


def page_app(service: Service, names: Sequence[str] = LOOPBACK_NAMES) -> Starlette:
    """The application: GET / is the page; POST /look, a photo as its body, is what the page shows of it, in JSON.

    For programs POST /predict, GET /health and GET /openapi.json, which describes them. Errors are an `error` in JSON.
    It answers to these names of its host alone (see `own_names`), to any where there are none. No photo is taken from
    another site's page.
    """
    uploads, described = Uploads(), openapi.description()

    async def show(_: Request) -> Response:
        return _page(service)

    async def look(request: Request) -> dict[str, Any]:
        with service.work() as (answers, _):
            async with uploads.body(request) as data:
                return await service.alone(answers.answer, data)

    async def tell_classes(request: Request) -> dict[str, Any]:
        return await predict(service, uploads, request)

    async def tell_health(_: Request) -> Response:
        ready = service.status == "ready"
        return JSONResponse(service.health(), 200 if ready else 503, None if ready else _LATER)

    async def tell_description(_: Request) -> Response:
        return JSONResponse(described)

    routes = [
        Route("/", show),
        Route("/look", _answering(look), methods=["POST"]),
        Route("/predict", _answering(tell_classes), methods=["POST"]),
        Route("/health", tell_health),
        Route("/openapi.json", tell_description),
        Mount("/files", StaticFiles(directory=_HERE / "files")),
    ]
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(names))] if names else []
    return Starlette(
        routes=routes,
        middleware=guard,
        exception_handlers={HTTPException: _no_such, Exception: _failed},
        lifespan=lambda _: service.running(),
    )


async def _no_such(request: Request, error: Exception) -> Response:
    """The answer to an address that is not here, or is not asked by this method."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    what = "is asked by another method" if status == 405 else "is not here"
    said = f"{request.url.path[:80]} {what}; /openapi.json describes what is."
    return JSONResponse({"error": said}, status, headers)


async def _failed(*_: object) -> Response:
    """The answer where an engine fails otherwise than for memory; the server writes its error to the log."""
    return JSONResponse({"error": "This could not be computed; the log of the service says why."}, 500)


def _answering(answer: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers in JSON what `answer` gives, or why it is refused."""

    async def endpoint(request: Request) -> Response:
        if _from_elsewhere(request):
            return JSONResponse({"error": "Another site's page may not ask here."}, 403)
        try:
            return JSONResponse(await answer(request))
        except ClientDisconnect:
            return Response(status_code=400)
        except (Refused, Rejected, PipelineError, MemoryError) as error:
            return _refusal(error)

    return endpoint


def _from_elsewhere(request: Request) -> bool:
    """True where another site's page asks: browsers say so themselves, and from where."""
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _refusal(error: Exception) -> JSONResponse:
    match error:
        case Refused():
            said, status = str(error), error.status
        case Rejected():
            said, status = str(error), 415
        case MemoryError() | OutOfRoom():
            said, status = "There is too little memory for this photo.", 503
        case _:
            said, status = str(error), 500
    return JSONResponse({"error": said}, status, _LATER if status == 503 else None)


def _page(service: Service) -> Response:
    """The page; until the run is open, one that says so and asks again by itself."""
    answers = service.answers
    if answers is None:
        return HTMLResponse(_filled("warming.html", {"run": service.name}), 503, _SECURITY | _LATER)
    return HTMLResponse(_filled("page.html", _facts(answers)), headers=_SECURITY)


def _facts(answers: Answers) -> dict[str, str]:
    classes = answers.classifier.classes
    return {
        "run": answers.about["name"],
        "network": answers.title,
        "count": f"{len(classes):,}",
        "classes": ", ".join(classes.names),
        "asks": "emotions" if answers.reader else f"the {min(answers.top, len(classes))} most probable classes",
        "limit": str(FILE_LIMIT_BYTES),
    }


def _filled(name: str, facts: dict[str, str]) -> str:
    template = string.Template((_HERE / name).read_text(encoding="utf-8"))
    return template.substitute({key: html.escape(value) for key, value in facts.items()})
