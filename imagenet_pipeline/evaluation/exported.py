"""An exported ONNX file as a classifier: what its notes say of the network, and ONNX Runtime in the engine's place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from imagenet_pipeline.config import Recipe, pair
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.errors import BadInput, BadRecipe
from imagenet_pipeline.evaluation.predict import Classifier, open_classifier
from imagenet_pipeline.interchange.export import Stated, stated_in
from imagenet_pipeline.interchange.onnx_runtime import INPUT, OUTPUT, OnnxScorer
from imagenet_pipeline.processes import available_processors
from imagenet_pipeline.training.checkpoint import Checkpoint, State

log = logging.getLogger("imagenet_pipeline")

ENDING = ".onnx"
IMAGES_TOGETHER = 32
"""Images that are computed at once, as no recipe says it."""


def open_run_or_export(source: Path, which: str = "best", overrides: dict[str, object] | None = None) -> Classifier:
    """A run's checkpoint, as `open_classifier` opens it, or an ONNX file that `export` wrote (see `open_export`).

    Raises BadRecipe for a checkpoint or recipe keys where there is a file.
    """
    if source.suffix.lower() != ENDING:
        return open_classifier(source, which, overrides)
    if overrides or which != "best":
        found = ", ".join(overrides or ()) or f"--checkpoint {which}"
        raise BadRecipe("an ONNX file has no checkpoints and no recipe", where=source, found=found)
    return open_export(source)


def open_export(path: Path) -> Classifier:
    """An ONNX file that `export` wrote, computed by ONNX Runtime: neither engine is needed, nor the run.

    Classifies alone: it has no gradients. Raises BadInput for a file without the exporter's notes, or which they do
    not fit, BadRecipe where onnxruntime is not installed.
    """
    scorer = OnnxScorer(path, threads=available_processors())
    content = scorer.notes
    stated = stated_in(content)
    if stated is None:
        raise BadInput(
            "the file does not say its classes, mean, std and crop",
            where=path,
            expected="an ONNX file that `export` wrote",
            advice=f"`imagenet-pipeline import --onnx {path} --out RUN --classes FILE` makes it a run",
        )
    _require_fit(scorer, stated, path)
    scorer.normalisation = stated.normalisation if stated.raw else None
    checkpoint = Checkpoint(path, _state(stated, scorer), {}, {}, str(content.get("weights_digest", "")))
    recipe = Recipe(network=stated.network, records="", devices="cpu", batch_size=IMAGES_TOGETHER)
    if stated.temperature != 1.0:
        log.info("probabilities are those at temperature %.3f, which the file holds", stated.temperature)
    # The part of an engine that a classifier asks for.
    return Classifier(path, recipe, checkpoint, cast(Engine, scorer), stated.classes, stated.temperature)


def _state(stated: Stated, scorer: OnnxScorer) -> State:
    classes, (mean, std) = stated.classes, stated.normalisation
    return State(
        epoch=0,
        step=0,
        network=stated.network,
        input_size=stated.size,
        classes=classes.ids,
        class_names=classes.names,
        class_order=classes.order,
        mean=mean,
        std=std,
        data_digest="",
        engine=scorer.name,
        versions=scorer.versions,
        crop_fraction=stated.crop_fraction,
        label_kind=classes.label_kind,
    )


def _require_fit(scorer: OnnxScorer, stated: Stated, path: Path) -> None:
    """Raise BadInput where the graph has other inputs and outputs than its notes say."""
    expected = {INPUT: [stated.channels, *pair(stated.size)], OUTPUT: [len(stated.classes)]}
    found = {name: shape[1:] for name, shape in scorer.shapes.items()}
    if found != expected:
        raise BadInput("the file's notes are not of its graph", where=path, expected=expected, found=found)
