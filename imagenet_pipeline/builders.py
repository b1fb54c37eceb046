"""Builders of records by name: those shipped, those of other packages, and the plans they make of their options."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from imagenet_pipeline.errors import BadRecipe, did_you_mean
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.registry import Registry

if TYPE_CHECKING:
    from imagenet_pipeline.records.build import BuildOptions, BuildSummary
    from imagenet_pipeline.records.plan import Plan

AnyPath = str | os.PathLike[str]
Builder = Callable[..., "Plan"]
"""Turns metadata into a plan. Its parameters are the builder's options; `out` is the folder of the data set."""

_NAMES = (
    "imagenet", "imagenet-test", "folder", "list", "csv", "digits", "mnist", "cifar", "fer2013", "ckplus", "records",
    "parquet", "webdataset", "tfrecord",
)  # fmt: skip
_FILES = {"list": "listing", "csv": "csv_labels", "imagenet-test": "imagenet_test"}
SHIPPED_BUILDERS = {name: _FILES.get(name, name) for name in _NAMES}
"""The file of each builder, by the name of its command."""
STORED: dict[str, dict[str, Any]] = {
    name: {"resize": 0, "pass_through": True} for name in ("mnist", "cifar", "fer2013", "ckplus")
}
"""Storage of a builder's images that differs from the default: small pictures keep every pixel."""
BUILDERS: Registry[Builder] = Registry(
    "builder",
    "builders",
    {},
    kind=Callable,  # type: ignore[arg-type]
    modules={name: f"imagenet_pipeline.record_builders.{module}:plan" for name, module in SHIPPED_BUILDERS.items()},
)


def register_builder(name: str, plan: Builder) -> None:
    """Make a builder of records available as `build(name, ...)` and as `imagenet-pipeline build NAME`.

        def plan(root: Path, every: int = 1, out: Path | None = None) -> Plan:
            '''Build from a folder, every so many images of it.'''

        ip.register_builder("mine", plan)

    The options of the command line, and its help, are the function's parameters and docstring. Another package offers
    a builder as an entry point of the group `imagenet_pipeline.builders`. The same name again replaces it. Raises
    BadRecipe for the name of a builder that is shipped.
    """
    BUILDERS.register(name, plan)


def plan_of(builder: str, out: AnyPath, options: Mapping[str, Any], others: Sequence[str] = ()) -> Plan:
    """Have a builder make its plan with these options; text becomes a Path where it takes a Path.

    With the option train_val_fraction that share of train is cut out as train_val, whatever the builder.
    Raises BadRecipe for an option it has not, that is missing, or that is no word it knows. `others` are options that
    `build` has besides, for advice.
    """
    from imagenet_pipeline.record_builders import archived, cutting
    from imagenet_pipeline.records.put import working_folder

    function, where = BUILDERS.get(builder, where="build"), f"build {builder}"
    parameters, hints, options = options_of(function), hints_of(function), dict(options)
    train_val_fraction = options.pop("train_val_fraction", 0.0)
    for name, value in options.items():
        if name not in parameters:
            names = [*parameters, *others]
            advice = did_you_mean(name, names, f"there are {', '.join(names)}")
            raise BadRecipe(f"the builder has no option {name!r}", where=where, advice=advice)
        words = get_args(hints.get(name)) if get_origin(hints.get(name)) is Literal else (value,)
        if value not in words:
            raise BadRecipe(f"no such {name}", where=where, expected=" or ".join(map(str, words)), found=value)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise BadRecipe(f"the option {name!r} is missing", where=where)
    given = {name: _as_path(value, hints.get(name)) for name, value in options.items()}
    place = working_folder(out)
    given |= {"out": place} if "out" in inspect.signature(function).parameters else {}
    plan = archived.planned(function, given, place, where, looks_into_photos=builder not in SHIPPED_BUILDERS)
    return cutting.with_train_val(plan, train_val_fraction) if train_val_fraction else plan


def options_of(builder: Builder) -> dict[str, inspect.Parameter]:
    """The parameters of a builder that are its options: all that have a name, but `out`."""
    parameters = inspect.signature(builder).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named and name != "out"}


def hints_of(function: Callable[..., Any], annotated: bool = False) -> dict[str, Any]:
    """The types of a function's parameters, `annotated` or not; none where a name is for type checkers alone."""
    annotations = {name: hint for name, hint in inspect.get_annotations(function).items() if name != "return"}
    try:
        owner, names = types.SimpleNamespace(__annotations__=annotations), getattr(function, "__globals__", {})
        return get_type_hints(owner, names, include_extras=annotated)
    except NameError:
        return {}


def store(plan: Plan, out: AnyPath, options: BuildOptions, executor: Executor | None = None) -> BuildSummary:
    """Make the data set of a plan, with a progress bar."""
    from imagenet_pipeline.records.put import store as store_records

    with Bar("build", "images") as bar:
        return store_records(plan, out, options, bar.show, executor)


def _as_path(value: Any, hint: Any) -> Any:
    """The value, text as a Path where the parameter is a Path."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return Path(value) if isinstance(value, str) and Path in kinds else value
