"""POST /predict: photos in, their most probable classes out."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request

from imagenet_pipeline.records.image import Rejected
from imagenet_pipeline.serving.answers import Answers
from imagenet_pipeline.serving.batches import Batches, Outcome
from imagenet_pipeline.serving.service import Service
from imagenet_pipeline.serving.uploads import FORM, Photo, Refused, Uploads, media_type, photos_in


@dataclass(frozen=True)
class _Begun:
    """A photo that waits for its outcome, or the reason why it cannot be read."""

    name: str
    outcome: asyncio.Future[Outcome] | None
    damage: str = ""
    reason: str = ""


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
        return list(await asyncio.gather(*(_begin(answers, batches, photo) for photo in photos))), began


async def _begin(answers: Answers, batches: Batches, photo: Photo) -> _Begun:
    try:
        outcome, damage = await batches.begin(partial(answers.view, photo.data))
    except Rejected as reason:
        return _Begun(photo.name, None, reason=str(reason))
    return _Begun(photo.name, outcome, damage)


async def _answered(answers: Answers, photo: _Begun, top: int) -> dict[str, Any]:
    if photo.outcome is None:
        return {"error": photo.reason}
    row = await photo.outcome
    if not isinstance(row, np.ndarray):
        raise row
    damage = {"warning": photo.damage} if photo.damage else {}
    return {"predictions": answers.choices(row, top), **damage}


def _top(request: Request, usual: int) -> int:
    text = request.query_params.get("top", str(usual))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise Refused(422, f"top={text[:20]}: expected a number of classes, 1 or more.")
    return int(text[:9])
