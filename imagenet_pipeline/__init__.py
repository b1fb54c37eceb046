"""From folders of photos to a trained, evaluated image classifier at ImageNet scale.

The names below are the package's face for programs; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagenet_pipeline.api import build as build
    from imagenet_pipeline.api import evaluate as evaluate
    from imagenet_pipeline.api import loader as loader
    from imagenet_pipeline.api import predict as predict
    from imagenet_pipeline.api import train as train
    from imagenet_pipeline.builders import register_builder as register_builder
    from imagenet_pipeline.config import Recipe as Recipe
    from imagenet_pipeline.config import load_recipe as load_recipe
    from imagenet_pipeline.networks.catalog import register_network as register_network
    from imagenet_pipeline.optimizers import register_optimizer as register_optimizer
    from imagenet_pipeline.records.reader import RecordSet as RecordSet
    from imagenet_pipeline.training.loggers import register_logger as register_logger

__version__ = "0.1.0"

_HOMES = {
    "build": "api",
    "train": "api",
    "evaluate": "api",
    "predict": "api",
    "loader": "api",
    "load_recipe": "config",
    "Recipe": "config",
    "RecordSet": "records.reader",
    "register_network": "networks.catalog",
    "register_builder": "builders",
    "register_optimizer": "optimizers",
    "register_logger": "training.loggers",
}
"""The module of each public name."""
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
