"""POST /predict: photos in, their most probable classes out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.serving.answers import Answers
from imagenet_pipeline.serving.batches import Batches, Outcome
from imagenet_pipeline.serving.service import Service
from imagenet_pipeline.serving.uploads import FORM, Photo, Refused, Uploads, media_type, photos_in


@dataclass(frozen=True)
class _Begun:
    """A photo that waits for its outcome, or what its decoding raised."""

    name: str
    outcome: asyncio.Future[Outcome] | Exception
    damage: str = ""


async def predict(service: Service, uploads: Uploads, request: Request) -> dict[str, Any]:
    """Answer a request as `openapi.description` says.

    Raises Refused with its status, and what the engine raised for a photo that came alone.
    """
    with service.work() as (answers, batches):
        top = _top(request, answers.top)
        kind, boundary = media_type(request.headers.get("content-type"))
        begun, began = await _begun(answers, batches, uploads, request, (kind, boundary))
        photos = [await _answered(answers, photo, top) for photo in begun]
    head = {"model": answers.about, "seconds": round(time.perf_counter() - began, 6)}
    if kind == FORM:
        if all("error" in photo for photo in photos):
            raise Refused(400, f"{begun[0].name}: {photos[0]['error']}")
        return {**head, "photos": [{"file": photo.name, **said} for photo, said in zip(begun, photos, strict=True)]}
    (photo,) = photos
    if "error" in photo:
        raise Refused(400, photo["error"])
    return {**head, **photo}


async def _begun(
    answers: Answers, batches: Batches, uploads: Uploads, request: Request, kind: tuple[str, str]
) -> tuple[list[_Begun], float]:
    """The photos of a request, decoded, and when they had arrived; their bytes are let go as this returns."""
    async with uploads.body(request) as body:
        began = time.perf_counter()
        photos = await asyncio.to_thread(photos_in, body, *kind)
        outcomes = batches.reserve(len(photos))
        begins = (_begin(answers, batches, *each) for each in zip(photos, outcomes, strict=True))
        return list(await asyncio.gather(*begins)), began


async def _begin(answers: Answers, batches: Batches, photo: Photo, outcome: asyncio.Future[Outcome]) -> _Begun:
    """Begin a photo. Never raises of its own: the request would go, and leave the form's other photos behind."""
    try:
        return _Begun(photo.name, outcome, await batches.begin(partial(answers.view, photo.data), outcome))
    except Rejected as reason:
        return _Begun(photo.name, Rejected(str(reason)))  # the traceback would keep the photo's bytes
    except Exception as error:
        return _Begun(photo.name, error)


async def _answered(answers: Answers, photo: _Begun, top: int) -> dict[str, Any]:
    row = photo.outcome if isinstance(photo.outcome, Exception) else await photo.outcome
    if isinstance(row, Rejected):
        return {"error": str(row)}
    if isinstance(row, Exception):
        raise row
    damage = {"warning": photo.damage} if photo.damage else {}
    return {"predictions": answers.choices(row, top), **damage}


def _top(request: Request, usual: int) -> int:
    text = request.query_params.get("top", str(usual))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise Refused(422, f"top={text[:20]}: expected a number of classes, 1 or more.")
    return int(text[:9])
