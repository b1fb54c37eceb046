"""Builds that are killed before their end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pytest

from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.plan import Plan
from imagenet_pipeline.records.shard import ShardTask, make_shard


@pytest.fixture
def build_killed(monkeypatch: pytest.MonkeyPatch, inline: Executor) -> Callable[[Plan, Path, BuildOptions], None]:
    """Builds that are killed when all shards are made and nothing beside them is written."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    def build_and_kill(plan: Plan, out: Path, options: BuildOptions) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("imagenet_pipeline.records.finish.write_data_set", fail)
            with pytest.raises(KeyboardInterrupt):
                build(plan, out, options, executor=inline)

    return build_and_kill


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards and pieces that are made, as they are made."""
    names: list[str] = []

    def noted(task: ShardTask) -> int:
        names.append(task.name)
        return make_shard(task)

    monkeypatch.setattr("imagenet_pipeline.records.shard.make_shard", noted)
    return names
