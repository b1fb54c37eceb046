"""Processes that train together: what they must agree on, what they add up, and how they leave together.

All of it goes through `Engine.sum_over_ranks`, and costs nothing where there is a single process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import __version__
from imagenet_pipeline.config import Recipe, options, require_even_batch
from imagenet_pipeline.engines import Engine, Totals
from imagenet_pipeline.errors import BadRecipe, WorkerLost
from imagenet_pipeline.networks.catalog import file_copy, is_custom
from imagenet_pipeline.records.manifest import DataSet


def require_agreement(engine: Engine, facts: Mapping[str, str]) -> None:
    """Raise BadRecipe, on every rank the same, where a fact is not everywhere what it is on rank 0. Collective.

    The message names the first such fact and the ranks that differ.
    """
    if engine.ranks == 1:
        return
    # Ranks that do not speak of the same facts could not compare them.
    program = {"the version of this program": "\n".join((__version__, *facts))}
    for stated in (program, facts):
        for fact, ranks in _differing(engine, stated).items():
            raise BadRecipe(
                f"{fact} differs from that of rank 0",
                where=f"rank {', '.join(map(str, ranks))} of {engine.ranks}",
                advice="start every process with the same recipe, records, run folder and programs",
            )


OF_ONE_RANK = ("network", "records", "devices", "initial.weights", "distillation.teacher", "loader.threads",
               "loader.prefetch", "loader.cache", "loader.cache_gb")  # fmt: skip
"""Recipe keys in which processes that train together may differ; the files they name are compared by content."""


def facts_of(recipe: Recipe, data: DataSet, engine: Engine) -> dict[str, str]:
    """List what all processes that train a recipe together must have alike, by a name for the user."""
    name = recipe.whole_network
    # A file may have another path in each process.
    network = file_copy(name, len(data.classes)) if is_custom(name) else repr(name)
    facts = {f"recipe key {key!r}": repr(value) for key, value in options(recipe) if key not in OF_ONE_RANK}
    return facts | {
        "recipe key 'network'": network,
        "the engine": f"{engine.name} {engine.versions} {engine.precision}",
        "the records' content": data.digest,
    }


def _differing(engine: Engine, facts: Mapping[str, str]) -> dict[str, list[int]]:
    table = np.zeros((engine.ranks, len(facts)))
    table[engine.rank] = [_number(fact) for fact in facts.values()]
    table = engine.sum_over_ranks(table.ravel()).reshape(table.shape)
    ranks = {fact: np.flatnonzero(column != column[0]) for fact, column in zip(facts, table.T, strict=True)}
    return {fact: [int(rank) for rank in those] for fact, those in ranks.items() if len(those)}


def _number(fact: str) -> float:
    # 48 bits of a digest: whole numbers that a float64 holds exactly.
    return float(int.from_bytes(hashlib.sha256(fact.encode()).digest()[:6], "big"))


def require_even_shares(recipe: Recipe, engine: Engine) -> None:
    """Raise BadRecipe where a batch cannot be cut evenly into ranks (of whole pairs, to mix) and their parts."""
    mixes = recipe.augmentation.mixes
    require_even_batch(recipe.images_per_step, engine.ranks, recipe.accumulation, mixes=mixes)


def agreed(engine: Engine, *flags: bool) -> tuple[bool, ...]:
    """Each flag as on any rank: true everywhere once it is true somewhere. Collective."""
    if engine.ranks == 1:
        return flags
    return tuple(bool(count) for count in engine.sum_over_ranks(np.array(flags, np.float64)))


def reduced(engine: Engine, totals: Totals) -> Totals:
    """The totals of all ranks, which made equally many batches: these are added up batch by batch. Collective."""
    if engine.ranks == 1:
        return totals
    numbers: npt.NDArray[np.float64] = np.array([totals.images, totals.rank1_hits, totals.rank5_hits], np.float64)
    summed = engine.sum_over_ranks(np.concatenate([numbers, totals.step_losses, totals.step_figures.ravel()]))
    images, rank1_hits, rank5_hits = summed[:3].astype(int).tolist()
    losses, figures = np.split(summed[3:], [len(totals.step_losses)])
    return Totals(images, rank1_hits, rank5_hits, losses, figures.reshape(-1, 2))


@contextmanager
def together(engine: Engine) -> Iterator[None]:
    """Run a block that only some ranks do, as rank 0 its writing: an error in it ends all ranks here. Collective.

    Raises WorkerLost on the ranks that had no error of their own.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        (any_failed,) = agreed(engine, failed)
    if any_failed:
        raise WorkerLost("another process of this run has failed", advice="its own message says why")


def settle(engine: Engine) -> None:
    """Give every device what a checkpoint would hold. Collective.

    Each has running statistics of its own, and what is saved is their mean: so a run goes on as its restart would.
    """
    if len(engine.device_names) > 1 or engine.ranks > 1:
        values, optimizer_state = engine.values(), engine.optimizer_state()
        engine.set_values(values)
        engine.set_optimizer_state(optimizer_state)
