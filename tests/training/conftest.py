"""A recipe that trains on scikit-learn's digits in seconds, and a plain engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from imagenet_pipeline.engines import Blueprint, Totals
from imagenet_pipeline.errors import WorkerLost
from imagenet_pipeline.training import engine_setup, loop
from imagenet_pipeline.training.loop import train
from imagenet_pipeline.training.resume import open_run

RECIPE = """
network = "lenet"
records = "{records}"
epochs = 4
batch_size = 120
devices = "cpu"

[input]
size = 28

[augmentation]
crop = "random"
pad = 2
flip = 0
brightness = 0.2

[optimizer]
learning_rate = 0.05

[schedule]
kind = "cosine"

[loader]
threads = 0
"""


@pytest.fixture(scope="session")
def recipe(digits_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet at 28 pixels, 4 epochs of 9 steps."""
    path = tmp_path_factory.mktemp("recipe") / "digits.toml"
    path.write_text(RECIPE.format(records=digits_records))
    return path


class Group:
    """Threads that stand for the processes of a group; a rank that ends leaves the others with WorkerLost."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.own = threading.local()
        self._changed = threading.Condition()
        self._gone: set[int] = set()
        self._calls = [0] * ranks
        self._given: dict[int, dict[int, Any]] = {}

    def sum(self, numbers: Any) -> Any:
        rank = self.own.rank
        with self._changed:
            given = self._given.setdefault(self._calls[rank], {})
            self._calls[rank] += 1
            given[rank] = numbers.copy()
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(given) == self.ranks or self._gone - given.keys(), timeout=60)
            if len(given) < self.ranks:
                raise WorkerLost("a rank is gone")
            return np.sum([given[one] for one in range(self.ranks)], axis=0)

    def leave(self) -> None:
        with self._changed:
            self._gone.add(self.own.rank)
            self._changed.notify_all()


class PlainEngine:
    """Softmax regression on coarse pixels, sgd with momentum and dropout, in NumPy. See `engines.Engine`.

    Gradients are rounded to a grid, so that their sums are exact: any number of ranks computes the same bits.
    """

    name = "plain"
    versions: ClassVar[dict[str, str]] = {"plain": "1"}
    device_names = ("plain(0)",)
    precision = "float64"
    threads = 1
    host_array = staticmethod(np.empty)
    built: ClassVar[list[Blueprint]] = []
    """What engines were built from since the test began."""

    def __init__(self, blueprint: Blueprint, values: Any, group: Group) -> None:
        self._blueprint, self._group = blueprint, group
        self.rank, self.ranks = group.own.rank, group.ranks
        own = "regression" in values
        self._weight = values["regression"].copy() if own else np.zeros((blueprint.network.items[-1][1].units, 147))
        self._speed: Any = None
        self._average, self._steps = self._weight.copy(), 0
        self._rows: list[Any] = []
        self.built.append(blueprint)

    def train_batch(self, images: Any, labels: Any, learning_rate: float, seed: int, teacher: Any = None) -> None:
        seen = np.random.default_rng(seed).random(147) < 0.9
        features = self._features(images) * seen
        shares = self._shares(features)
        self._remember(shares, labels)
        shares[np.arange(len(labels)), labels] -= 1
        each = shares[:, :, None] * features[:, None, :]
        total = self._group.sum(np.round(each * 2.0**20).sum(0)) / 2.0**20
        if self._blueprint.frozen:
            return
        self._speed = 0.9 * (0.0 if self._speed is None else self._speed) + total / (len(labels) * self.ranks)
        self._weight = self._weight - learning_rate * self._speed
        if self._blueprint.recipe.average_decay:
            self._steps += 1
            decay = min(self._blueprint.recipe.average_decay, self._steps / (self._steps + 9))
            self._average = decay * self._average + (1 - decay) * self._weight

    def score_batch(self, images: Any, labels: Any) -> None:
        self._remember(self._shares(self._features(images)), labels)

    def logits(self, images: Any) -> Any:
        return np.log(self._shares(self._features(images)))

    def totals(self) -> Totals:
        rows, self._rows = np.array(self._rows, np.float64).reshape(-1, 4), []
        counts = [int(count) for count in rows.sum(0)[:3]]
        return Totals(*counts, rows[:, 3])

    def sum_over_ranks(self, numbers: Any) -> Any:
        return self._group.sum(numbers)

    def values(self) -> Any:
        self._group.sum(np.zeros(1))  # collective
        return {"regression": self._weight.copy()}

    def averages(self) -> Any:
        self._group.sum(np.zeros(1))
        return {"regression": (self._average if self._blueprint.recipe.average_decay else self._weight).copy()}

    def set_values(self, values: Any) -> None:
        self._weight = values["regression"].copy()

    def optimizer_state(self) -> Any:
        self._group.sum(np.zeros(1))
        state = {} if self._speed is None else {"speed": self._speed.copy()}
        if self._blueprint.recipe.average_decay:
            state |= {"average/regression": self._average.copy(), "average_steps": np.array([self._steps])}
        return state

    def set_optimizer_state(self, state: Any) -> None:
        self._speed = state["speed"].copy() if "speed" in state else None
        if "average_steps" in state:
            self._average, self._steps = state["average/regression"].copy(), int(state["average_steps"][0])

    def _features(self, images: Any) -> Any:
        side = images.shape[1] // 7
        cells = images[:, : 7 * side, : 7 * side].reshape(len(images), 7, side, 7, side, 3)
        return cells.mean((2, 4)).reshape(len(images), -1) / 255

    def _shares(self, features: Any) -> Any:
        # Row by row: a matrix product may round by how many rows there are.
        scores = np.array([(self._weight * row).sum(1) for row in features])
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def _remember(self, shares: Any, labels: Any) -> None:
        order = np.argsort(-shares, axis=1, kind="stable")[:, :5]
        hits = order == labels[:, None]
        losses = -np.log(shares[np.arange(len(labels)), labels])
        # On a grid as well: a loss added up over ranks is then the loss of one.
        loss = np.round(losses * 2.0**20).sum() / 2.0**20
        self._rows.append([len(labels), hits[:, 0].sum(), hits.any(1).sum(), loss])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Group]:
    """`plain(ranks)`: from here on runs have plain engines, of a group of so many."""

    def use(ranks: int = 1) -> Group:
        group = Group(ranks)
        group.own.rank = 0
        PlainEngine.built.clear()
        monkeypatch.setattr(
            engine_setup, "create_engine", lambda name, blueprint, values: PlainEngine(blueprint, values, group)
        )
        return group

    return use


@pytest.fixture
def engine(plain: Callable[[int], Group]) -> type[PlainEngine]:
    """Runs have this engine."""
    plain(1)
    return PlainEngine


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with killed_at(step):` training dies in here, just before that step of the run is taken."""
    rate = loop.learning_rate

    @contextmanager
    def dying(last: int) -> Iterator[None]:
        def learning_rate(recipe: Any, step: int, *words: Any) -> float:
            if step == last:
                raise Killed
            return rate(recipe, step, *words)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "learning_rate", learning_rate)
            with pytest.raises(Killed):
                yield

    return dying


class Asked:
    """Stands for Interruption, which only a main thread can have: asked for after so many questions."""

    def __init__(self, questions: int) -> None:
        self._left = questions

    @property
    def asked(self) -> bool:
        self._left -= 1
        return self._left < 0

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def asked_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with asked_after(3):` a training in here is asked to stop after so many questions."""

    @contextmanager
    def asking(questions: int) -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(loop, "Interruption", lambda _: Asked(questions))
            yield

    return asking


@pytest.fixture
def go_together(plain: Callable[[int], Group], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`go_together(ranks, recipe, folder, resume, **overrides)`: what each rank's `train` gave, or its error.

    An override may be a function of the rank. `asked` is rank -> steps after which it is asked to stop.
    """

    def go(
        ranks: int,
        recipe: Path,
        folder: Path,
        resume: str | None = None,
        asked: dict[int, int] | None = None,
        **overrides: Any,
    ) -> list[Any]:
        group, ends = plain(ranks), [None] * ranks
        monkeypatch.setattr(loop, "Interruption", lambda _: Asked((asked or {}).get(group.own.rank, 10**9)))

        def live(rank: int) -> None:
            group.own.rank = rank
            own = {k.replace("__", "."): v(rank) if callable(v) else v for k, v in overrides.items()}
            try:
                ends[rank] = train(open_run(recipe, own, folder, resume))
            except Exception as error:
                ends[rank] = error
            finally:
                if isinstance(ends[rank], Exception):
                    group.leave()

        threads = [threading.Thread(target=live, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends

    return go
