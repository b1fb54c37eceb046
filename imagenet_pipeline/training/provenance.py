"""Where a run's numbers come from: recipe, data, versions and hardware of each start, for the journal."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import imagenet_pipeline
from imagenet_pipeline import files
from imagenet_pipeline.config import Recipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.loading.benchmark import processor_name
from imagenet_pipeline.loading.loader import available_processors
from imagenet_pipeline.records.manifest import DataSet
from imagenet_pipeline.training.schedule import highest_rate


def provenance(recipe: Recipe, data: DataSet, engine: Engine) -> dict[str, Any]:
    """What a start or resume event says of data, versions and hardware."""
    return {
        "engine": engine.name,
        "versions": {
            "imagenet_pipeline": imagenet_pipeline.__version__,
            "python": platform.python_version(),
            **engine.versions,
        },
        "devices": list(engine.device_names),
        "threads": engine.threads,
        "ranks": engine.ranks,
        "precision": engine.precision,
        "hardware": hardware(),
        "data_digest": data.digest,
        "learning_rate": highest_rate(recipe),
    }


def recipe_told(run: Path, recipe: Recipe) -> dict[str, Any]:
    """What an event says of the recipe, defaults included, once it is written into the run folder."""
    return {"recipe": recipe.model_dump(mode="json"), "recipe_digest": files.sha256_of(run / "recipe.toml")}


def hardware() -> dict[str, Any]:
    """This machine; its GPUs, where an engine uses some, are among the event's `devices`."""
    return {
        "processor": processor_name(),
        "processors": available_processors(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
    }
