"""Operator calls and host time of an optimizer's step over ResNet-50's 161 arrays, every rule and option.

    python benchmarks/optimizers.py [--engine pytorch|gluon] [--contexts 1] [--side 4] [--steps 9] [--json]

"ours" is the engine's optimizer, "each" the written rule of `imagenet_pipeline/optimizers.py` on one array after the
other, "theirs" the framework's own optimizer of that name, where it has one
(on Gluon gluon.Trainer with the nearest). Host time is what Python and the framework
take to issue a step, so every side of an array is cut to `--side` numbers, which cost next to nothing to compute;
`--side 0` leaves the arrays whole. Steps of the three alternate in one process, and the best of each counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines.optimizer_state import OptimizerState
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.shapes import parameters
from imagenet_pipeline.optimizers import OPTIMIZERS, clip_factor, limited_norm, with_l1, within_share
from imagenet_pipeline.processes import processor_name

Shapes = dict[str, tuple[int, ...]]
Act = Callable[[], None]
NAMES = ("ours", "each", "theirs")
RATE = 1e-3
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd, nesterov": {"nesterov": True},
    "sgd, momentum 0": {"momentum": 0.0},
    "sgd, clip_norm": {"clip_norm": 1.0},
    "sgd, l1": {"l1": 1e-5},
    "sgd, max_norm": {"max_norm": 2.0},
    "sgd, clip_share": {"clip_share": 0.01},
    "sgd, lookahead": {"lookahead_steps": 5},
    "sgd, decay_all=false": {"decay_all": False},
    "lamb, all of them": {"name": "lamb", "clip_norm": 1.0, "l1": 1e-5, "max_norm": 2.0, "decay_all": False},
}
TORCH_OPTIM = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "radam": "RAdam",
}
VARIANTS: dict[str, dict[str, Any]] = {name: {"name": name} for name in OPTIMIZERS.names()} | OPTIONS


def main() -> None:
    arguments = parse()
    shapes = resnet50(arguments.side)
    rows = [
        {"variant": name}
        | measured(ENGINES[arguments.engine](OptimizerRecipe(**options), shapes, arguments), arguments)
        for name, options in VARIANTS.items()
    ]
    result = {"processor": processor_name(), "arrays": len(shapes)} | vars(arguments) | {"rows": rows}
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if arguments.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="pytorch", choices=list(ENGINES))
    parser.add_argument("--contexts", type=int, default=1, help="copies of the arrays, each on a context of its own")
    parser.add_argument("--side", type=int, default=4, help="longest side of an array; 0 leaves them whole")
    parser.add_argument("--steps", type=int, default=9, help="measured steps of each")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.engine == "pytorch" and arguments.contexts != 1:
        parser.error("on pytorch every device has a process of its own: --contexts 1")
    return arguments


def resnet50(side: int) -> Shapes:
    """The shapes of its trained arrays, no side longer than `side`."""
    described = parameters(catalog.build("resnet50", 1000), (3, 224, 224)).items()
    whole = {name: tuple(parameter.shape) for name, parameter in described if parameter.trainable}
    return {name: tuple(min(size, side or size) for size in shape) for name, shape in whole.items()}


def values(shapes: Shapes) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def on_pytorch(recipe: OptimizerRecipe, shapes: Shapes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of the three on one CPU, and how to count the operator calls of a step."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from imagenet_pipeline.engines.pytorch.optimizer import Optimizer

    class Counted(TorchDispatchMode):  # type: ignore[misc]
        calls: int = 0

        def __torch_dispatch__(self, call: Any, kinds: Any, given: Any = (), named: Any = None) -> Any:
            self.calls += 1
            return call(*given, **(named or {}))

    def tensors(wanted: dict[str, Any]) -> dict[str, Any]:
        made = {name: torch.tensor(value) for name, value in wanted.items()}
        return {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in made.items()
        }

    def with_gradients() -> dict[str, Any]:
        weights, gradients = tensors(values(shapes)), tensors(values(shapes))
        for name, weight in weights.items():
            weight.requires_grad_().grad = gradients[name]
        return weights

    def count(step: Act) -> int:
        with Counted() as counted:
            step()
        return int(counted.calls)

    ours, each, theirs = with_gradients(), with_gradients(), with_gradients()
    optimizer = Optimizer(recipe, ours)
    steps = {
        "ours": lambda: optimizer.update(RATE),
        "each": torch.no_grad()(one_by_one(recipe, each, torch.zeros_like, torch.Tensor.copy_)),
    }
    if recipe.name in TORCH_OPTIM:
        momentum = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} if recipe.name == "sgd" else {}
        steps["theirs"] = getattr(torch.optim, TORCH_OPTIM[recipe.name])(
            theirs.values(), lr=RATE, weight_decay=recipe.weight_decay, foreach=True, **momentum
        ).step
    return {"steps": steps, "count": count, "finish": lambda: None}


def one_by_one(
    recipe: OptimizerRecipe, weights: dict[str, Any], zeros: Callable[[Any], Any], write: Callable[[Any, Any], Any]
) -> Act:
    """The written rule, and what a recipe adds to it, on one tensor after the other; `write(weight, moved)`."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    state = OptimizerState(recipe, shapes, None)
    slots = {name: tuple(zeros(weight) for _ in state.rule.slots) for name, weight in weights.items()}

    def step() -> None:
        state.count()
        gradients = {name: weight.grad for name, weight in weights.items()}
        if recipe.clip_norm:
            length = sum((gradient * gradient).sum() for gradient in gradients.values()) ** 0.5
            gradients = {name: gradient * clip_factor(length, recipe.clip_norm) for name, gradient in gradients.items()}
        for name, weight in weights.items():
            numbers = state.step(name, RATE)
            gradient = gradients[name]
            if recipe.clip_share and not numbers.is_head:
                gradient = within_share(weight, gradient, recipe.clip_share)
            gradient = with_l1(weight, gradient, numbers.recipe.l1)
            moved, slots[name] = state.rule.update(weight, gradient, slots[name], numbers)
            write(weight, limited_norm(moved, recipe.max_norm) if recipe.max_norm else moved)

    return step


GLUON_TRAINER: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("adam", {}),
    "adamw": ("adam", {}),
    "adamax": ("adamax", {}),
    "nadam": ("nadam", {}),
    "rmsprop": ("rmsprop", {}),
    "adagrad": ("adagrad", {}),
    "adadelta": ("adadelta", {}),
    "lamb": ("lamb", {}),
    "lars": ("lars", {"momentum": 0.9}),
}
"""MXNet's name for an optimizer like ours, or the nearest: it has no AdamW, clipping, l1 or limited norm of its own."""


def on_gluon(recipe: OptimizerRecipe, shapes: Shapes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of the three on CPU contexts, and how to count Python's calls into MXNet in a step."""
    from imagenet_pipeline.engines.gluon.optimizer import Optimizer
    from imagenet_pipeline.engines.gluon.runtime import mx

    contexts = [mx.cpu(index) for index in range(arguments.contexts)]
    library = mx.base._LIB
    calls = [0]

    def counted(function: Any) -> Any:
        def call(*given: Any) -> Any:
            calls[0] += 1
            return function(*given)

        return call

    for name in ("MXImperativeInvokeEx", "MXInvokeCachedOpEx"):
        setattr(library, name, counted(getattr(library, name)))

    def made() -> dict[str, Any]:
        found = {name: mx.gluon.Parameter(name.replace(".", "_"), shape=shape) for name, shape in shapes.items()}
        for name, value in values(shapes).items():
            found[name].initialize(ctx=contexts)
            found[name].set_data(mx.nd.array(value))
            for gradient in found[name].list_grad():
                gradient[:] = mx.nd.array(value)
        return found

    def count(step: Act) -> int:
        calls[0] = 0
        step()
        return calls[0]

    ours, each, theirs = made(), made(), made()
    rates = iter(RATE * (1 + 1e-5 * step) for step in range(10**6))  # as with a schedule, every step has another
    optimizer = Optimizer(recipe, ours, contexts)
    name, options = GLUON_TRAINER.get(recipe.name, ("nag" if recipe.nesterov else "sgd", {"momentum": recipe.momentum}))
    options = {"learning_rate": RATE, "wd": recipe.weight_decay} | options
    trainer = mx.gluon.Trainer(list(theirs.values()), name, options, kvstore=None, update_on_kvstore=False)
    weights = [weight for parameter in theirs.values() for weight in parameter.list_data()]

    def their_step() -> None:
        trainer.set_learning_rate(next(rates))
        for weight in weights:
            weight._fresh_grad = True  # as after a backward pass
        trainer.update(1)

    copies = ({name: parameter.data(context) for name, parameter in each.items()} for context in contexts)
    on_contexts = [
        one_by_one(recipe, own, mx.nd.zeros_like, lambda weight, moved: moved.copyto(weight)) for own in copies
    ]
    steps = {
        "ours": lambda: optimizer.update(next(rates), 1),
        "each": lambda: [step() for step in on_contexts],
        "theirs": their_step,
    }
    return {"steps": steps, "count": count, "finish": mx.nd.waitall}


ENGINES = {"pytorch": on_pytorch, "gluon": on_gluon}


def measured(subject: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Calls, and milliseconds of the best step, of each."""
    steps: dict[str, Act] = subject["steps"]
    for step in (*steps.values(), *steps.values()):
        step()
    subject["finish"]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.steps):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(1000 * (time.perf_counter() - started))
            subject["finish"]()
    return {
        name: {"calls": subject["count"](step), "host_ms": round(min(times[name]), 2)} for name, step in steps.items()
    }


def table(result: dict[str, Any]) -> str:
    head = (
        f"{result['engine']} on {result['processor']}, {result['contexts']} contexts; {result['arrays']} arrays, sides "
        f"to {result['side'] or 'whatever they are'}; best of {result['steps']} steps"
    )
    lines = [head, f"{'':22}" + "".join(f"{name + ' calls':>14}{'ms':>9}" for name in NAMES)]
    for row in result["rows"]:
        found = [row.get(name, {"calls": "", "host_ms": ""}) for name in NAMES]
        lines.append(f"{row['variant']:22}" + "".join(f"{each['calls']:>14}{each['host_ms']:>9}" for each in found))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
