"""What a step does to each parameter besides the update rule: how fast it moves, if it decays, if it moves at all."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.errors import BadRecipe, first_few


@dataclass(frozen=True)
class Treatment:
    """`rate` is a factor of the learning rate; `decays` says whether weight_decay and l1 act.

    A frozen array does not move. Where it is a running statistic its layer normalises by it, in training too.
    """

    rate: float = 1.0
    decays: bool = True
    frozen: bool = False


def treatments(
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerRecipe,
    frozen: Iterable[str] = (),
    rates: Mapping[str, float] | None = None,
) -> dict[str, Treatment]:
    """The treatment of every parameter and running statistic of a network, given their shapes by name.

    `frozen` and `rates` name layers by the beginnings of their paths, whole words of them: "stage1" is stage1.unit1
    and not stage10. Of several rates that fit the longest name counts. Without `decay_all` arrays of one dimension
    do not decay. Raises BadRecipe for a name no layer begins with, and where every layer is frozen.
    """
    frozen, rates = tuple(frozen), dict(rates or {})
    layers = {name: name.rpartition(".")[0] or name for name in shapes}
    for key, names in (("transfer.frozen", frozen), ("transfer.rates", rates)):
        _require_layers(key, names, set(layers.values()))
    found = {
        name: Treatment(
            rates[max(fitting, key=len)] if (fitting := [one for one in rates if _begins(one, layer)]) else 1.0,
            optimizer.decay_all or len(shapes[name]) > 1,
            any(_begins(one, layer) for one in frozen),
        )
        for name, layer in layers.items()
    }
    if all(treatment.frozen for treatment in found.values()):
        advice = "leave out one of its layers"
        raise BadRecipe("nothing is left to train", where="transfer.frozen", found=first_few(frozen), advice=advice)
    return found


def _begins(beginning: str, layer: str) -> bool:
    return layer == beginning or layer.startswith(f"{beginning}.")


def _require_layers(key: str, names: Iterable[str], layers: Collection[str]) -> None:
    for name in names:
        if any(_begins(name, layer) for layer in layers):
            continue
        beginnings = [".".join(words[:count]) for words in map(_words, layers) for count in range(1, len(words) + 1)]
        near = difflib.get_close_matches(name, dict.fromkeys(beginnings), n=1)
        advice = f"did you mean {near[0]}?" if near else "the verb networks lists them"
        raise BadRecipe(f"no layer with parameters begins with {name!r}", where=key, advice=advice)


def _words(layer: str) -> list[str]:
    return layer.split(".")
