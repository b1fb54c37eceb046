"""The description of the addresses for programs, as OpenAPI 3.1 has it.

By hand: one address for photos and one for orchestrators are a page of it. FastAPI would write the same out of types,
but reads forms by python-multipart, which puts files on the disk; here no photo is written anywhere.
"""

from __future__ import annotations

from typing import Any

from imagenet_pipeline import __version__
from imagenet_pipeline.records.image import FILE_LIMIT_BYTES
from imagenet_pipeline.serving.uploads import BYTES, FORM, JSON, PARTS_A_FORM, PHOTOS_A_REQUEST

Schema = dict[str, Any]


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _refusal(description: str) -> dict[str, Any]:
    return _answer(description, _reference("Error"))


TEXT: Schema = {"type": "string"}
FILE: Schema = {**TEXT, "format": "binary"}
COUNT: Schema = {"type": "integer", "minimum": 0}
PREDICTIONS: Schema = {"type": "array", "items": _reference("Prediction"), "description": "The most probable first."}
SCHEMAS: dict[str, Schema] = {
    "Prediction": _object(
        {
            "class": {**TEXT, "description": "The class's id: a WordNet id, a folder's name, ..."},
            "name": {**TEXT, "description": "The class's name, for people."},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        }
    ),
    "Model": _object(
        {"name": TEXT},
        {
            "network": TEXT,
            "checkpoint": TEXT,
            "engine": {"enum": ["gluon", "pytorch", "onnxruntime"]},
            "devices": {"type": "array", "items": TEXT},
            "precision": TEXT,
            "classes": COUNT,
        },
    ),
    "Answer": _object(
        {
            "model": _reference("Model"),
            "seconds": {"type": "number", "description": "From the photo's arrival to its answer."},
            "predictions": PREDICTIONS,
        },
        {"warning": {**TEXT, "description": "The photo is damaged, and could be read all the same."}},
    ),
    "Answers": _object(
        {
            "model": _reference("Model"),
            "seconds": {"type": "number"},
            "photos": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _object({"file": TEXT, "predictions": PREDICTIONS}, {"warning": TEXT}),
                        _object({"file": TEXT, "error": TEXT}),
                    ]
                },
            },
        }
    ),
    "Error": _object({"error": {**TEXT, "description": "The reason, in a line."}}),
    "Health": _object(
        {"status": {"enum": ["warming", "ready", "draining"]}, "model": _reference("Model")},
        {
            "waiting": {**COUNT, "description": "Photos that wait for their answers."},
            "answered": {**COUNT, "description": "Photos answered so far."},
        },
    ),
}
_BODY = {
    "required": True,
    "content": {
        "image/*": {},
        BYTES: {},
        FORM: {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": FILE}}}},
        JSON: {"schema": _object({"image": {**TEXT, "contentEncoding": "base64"}})},
    },
}
_TOP = {
    "name": "top",
    "in": "query",
    "description": "How many classes to name; by default as `serve --top` says.",
    "schema": {"type": "integer", "minimum": 1},
}


def description() -> dict[str, Any]:
    """The document of GET /openapi.json."""
    several = f"A form has one file or several, up to {PHOTOS_A_REQUEST}, in fields of any name."
    late = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "imagenet-pipeline serve", "version": __version__},
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "The most probable classes of a photo, or of each photo of a form",
                    "description": f"JPEG, PNG, WebP, BMP or TIFF, known by its bytes; turned as its EXIF tag says. {several}",  # noqa: E501
                    "parameters": [_TOP],
                    "requestBody": _BODY,
                    "responses": {
                        "200": _answer(
                            "The answer; to a form a list of them",
                            {"oneOf": [_reference("Answer"), _reference("Answers")]},
                        ),
                        "400": _refusal("No image, one of no use, or a damaged one; of a form, all of them"),
                        "403": _refusal("Another site's page asks"),
                        "408": _refusal("The photo took too long to arrive"),
                        "413": _refusal(
                            f"More than {FILE_LIMIT_BYTES:,} bytes, {PHOTOS_A_REQUEST} photos or {PARTS_A_FORM} parts"
                        ),
                        "415": _refusal("A Content-Type that is none of these"),
                        "422": _refusal("Not the JSON or the form expected, or a `top` that is no number"),
                        "500": _refusal("The engine failed, or the network's output is no number"),
                        "503": _refusal("Warming up, ending, too many at once, or too little memory")
                        | {"headers": late},
                    },
                }
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether photos are taken, by which model, and how many wait",
                    "responses": {
                        "200": _answer("Ready", _reference("Health")),
                        "503": _answer("Warming up or draining", _reference("Health")) | {"headers": late},
                    },
                }
            },
        },
        "components": {"schemas": SCHEMAS},
    }
