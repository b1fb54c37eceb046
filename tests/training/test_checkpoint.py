"""Checkpoints: whole or not there, proven when read, pruned without losing the best."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadRecipe, Damaged, OutOfRoom
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layer_file import NetworkFile, network_text
from imagenet_pipeline.training.checkpoint import (
    State,
    find_checkpoint,
    has_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
    set_aside_later,
)

STATE = State(
    epoch=1, step=10, network="lenet", input_size=28, classes=("n1", "n2"), class_names=("cat", "dög"),
    class_order="wnid", mean=(1.5, 2.5, 3.1), std=(1.0, 2.0, 3.0), data_digest="abc", engine="gluon",
    versions={"mxnet": "1.9.1"},
)  # fmt: skip
WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}
OPTIMIZER = {"displacement/a.bias": np.full(2, 1e-30), "learning_rate": np.array([0.1])}
FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")


def save(run: Path, epoch: int, rank1: float | None = None, step: int | None = None) -> Path:
    metrics = {} if rank1 is None else {"validation_rank1": rank1}
    partial = {} if step is None else {"images": 3.0}
    state = replace(STATE, epoch=epoch, step=step or 10 * epoch, metrics=metrics, partial=partial)
    return save_checkpoint(run, state, WEIGHTS, OPTIMIZER)


def there(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, STATE, {**WEIGHTS, "turned": WEIGHTS["a.weight"].T}, OPTIMIZER)
    assert folder == tmp_path / "checkpoints" / "epoch-0001"
    assert sorted(os.listdir(folder)) == sorted(FILES)
    loaded = load_checkpoint(folder)
    assert loaded.state == STATE
    assert loaded.state.class_table.names == ("cat", "dög")
    assert (loaded.weights["turned"] == WEIGHTS["a.weight"].T).all()
    for name, value in OPTIMIZER.items():
        assert loaded.optimizer[name].tobytes() == value.tobytes()
        assert loaded.optimizer[name].dtype == value.dtype
    assert loaded.weights_digest == files.sha256_of(folder / "weights.safetensors")


def test_no_optimizer_state_is_a_state(tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path, STATE, WEIGHTS, {})).optimizer == {}


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    assert [(first / name).read_bytes() for name in FILES] == [(second / name).read_bytes() for name in FILES]


def test_a_network_that_is_a_file_is_copied_and_proven_too(tmp_path: Path) -> None:
    source = tmp_path / "mine.json"
    source.write_text(network_text(NetworkFile("mine", 28, catalog.build("lenet", 5))))
    state = replace(STATE, network=str(source))
    folder = save_checkpoint(tmp_path / "a", state, WEIGHTS, OPTIMIZER)
    source.unlink()
    assert sorted(os.listdir(folder)) == sorted([*FILES, "network.json"])
    assert json.loads((folder / "state.json").read_text())["network"] == "network.json"
    moved = Path(shutil.move(folder, tmp_path / "epoch-0001"))
    loaded = load_checkpoint(moved).state
    assert (loaded.network, loaded.network_name) == (str(moved / "network.json"), "mine")
    assert catalog.build(loaded.network, 2) == catalog.build("lenet", 2), "the copy has the checkpoint's classes"
    again = save_checkpoint(tmp_path / "b", loaded, WEIGHTS, OPTIMIZER)
    assert all((again / name).read_bytes() == (moved / name).read_bytes() for name in (*FILES, "network.json"))
    content = bytearray((moved / "network.json").read_bytes())
    content[len(content) // 2] ^= 1
    (moved / "network.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"network\.json: the file has changed"):
        load_checkpoint(moved)


@pytest.mark.parametrize("network", ["../mine.json", "/etc/mine.json", "other.json"])
def test_a_checkpoint_names_no_file_outside_itself(network: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").write_text((folder / "state.json").read_text().replace("lenet", network))
    sums = "".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in FILES[:3])
    (folder / "SHA256SUMS").write_text(sums)
    with pytest.raises(Damaged, match=r"not a checkpoint of this version .* is not network\.json"):
        load_checkpoint(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_damage(tmp_path: Path, name: str, place: float, bit: int) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    folder = save(tmp_path, 1)
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / name).write_bytes(content)
    if name == "SHA256SUMS":
        # A flip in the white space of the list may go unnoticed; then what is loaded is what was saved.
        try:
            assert load_checkpoint(folder).state == replace(STATE, epoch=1)
        except Damaged as error:
            assert str(folder) in str(error)  # noqa: PT017
    else:
        with pytest.raises(Damaged, match=rf"{name}: the file has changed since it was written"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_damage(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(Damaged):
        load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(Damaged, match=name):
        load_checkpoint(folder)


def test_a_state_of_another_version_is_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    for content in ('{"epoch": 1}', "[]", "5"):
        (folder / "state.json").write_text(content)
        sums = "".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in FILES[:3])
        (folder / "SHA256SUMS").write_text(sums)
        with pytest.raises(Damaged, match="not a checkpoint of this version"):
            load_checkpoint(folder)
        prune(tmp_path, 3)
        assert folder.exists()


def test_an_array_without_axes_comes_back_so(tmp_path: Path) -> None:
    scalar = {"gain": np.array(2.5, np.float32)}
    loaded = load_checkpoint(save_checkpoint(tmp_path, STATE, {**WEIGHTS, **scalar}, scalar))
    assert loaded.weights["gain"].shape == loaded.optimizer["gain"].shape == ()
    assert loaded.weights["gain"] == 2.5


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, STATE, {**WEIGHTS, "a.bias": np.array([1, np.nan], np.float32)}, OPTIMIZER)
    with pytest.raises(Damaged, match=r"epoch-0001: a\.bias holds infinities or NaN; take another checkpoint"):
        load_checkpoint(folder)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Change a file and its digest with it."""
    (folder / name).write_bytes(content)
    sums = "".join(f"{files.sha256_of(folder / name)}  {name}\n" for name in FILES[:3])
    (folder / "SHA256SUMS").write_text(sums)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": "big"},
        {"input_size": 0},
        {"input_size": 2**40},
        {"epoch": "x"},
        {"epoch": True},
        {"step": -1},
        {"step": 1.5},
        {"partial": 5},
        {"partial": {"images": "x"}},
        {"metrics": []},
        {"classes": [1, 2]},
        {"classes": "ab"},
        {"classes": []},
        {"mean": [1.0, 2.0]},
        {"mean": [1.0, 2.0, float("nan")]},
        {"std": [1.0, 0.0, 1.0]},
        {"crop_fraction": 0},
        {"versions": {"mxnet": 1}},
        {"network": None},
        {"more\x1b[2J": 1},
    ],
    ids=str,
)
def test_a_state_of_other_types_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = save(tmp_path, 1)
    state = json.loads((folder / "state.json").read_bytes())
    rewrite(folder, "state.json", json.dumps({**state, **wrong}).encode())
    with pytest.raises(Damaged, match="epoch-0001: not a checkpoint of this version") as caught:
        load_checkpoint(folder)
    assert next(iter(wrong)).encode("unicode_escape").decode() in str(caught.value)
    assert str(caught.value).isprintable()


def test_whole_numbers_among_the_metrics_stay_whole(tmp_path: Path) -> None:
    state = replace(STATE, metrics={"epoch": 1, "train_loss": 2.0})
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, WEIGHTS, {})).state.metrics
    assert [type(value) for value in loaded.values()] == [int, float]


@pytest.mark.parametrize("shape", [[1] * 65, [0, 2**60, 2**60], [0, 2**63], [2**40, 2**23, 0]], ids=str)
def test_shapes_no_array_can_have_are_damage(tmp_path: Path, shape: list[int]) -> None:
    folder = save(tmp_path, 1)
    size = 4 * (0 not in shape)
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    rewrite(folder, "weights.safetensors", len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(Damaged, match="not a checkpoint of this version"):
        load_checkpoint(folder)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("operation", ["rename", "fsync", "mkdir"])
def test_a_kill_while_saving_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    earlier = save(tmp_path, 1)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the dead do not clean up
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert find_checkpoint(tmp_path, "latest") == earlier
    load_checkpoint(earlier)
    files.remove_parts(tmp_path / "checkpoints")
    assert there(tmp_path) == ["epoch-0001"]


def test_a_kill_while_pruning_leaves_whole_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch in range(1, 5):
        save(tmp_path, epoch, rank1=epoch)

    def die(folder: Path, *_: object, **__: object) -> None:
        (Path(folder) / "state.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            prune(tmp_path, 1)
    prune(tmp_path, 1)
    load_checkpoint(find_checkpoint(tmp_path, "latest"))


def test_a_full_disk_is_out_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage: Callable[[Any], Any] = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
    with pytest.raises(OutOfRoom, match="epoch-0002: not enough free disk space"):
        save(tmp_path, 2)
    assert there(tmp_path) == ["epoch-0001"]


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    for epoch, rank1 in enumerate([10, 70, 30, 40, 50], 1):
        save(tmp_path, epoch, rank1)
        prune(tmp_path, 2)
    assert there(tmp_path) == ["best", "epoch-0002", "epoch-0004", "epoch-0005", "latest"]
    assert (tmp_path / "checkpoints" / "best").resolve().name == "epoch-0002"
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "epoch-0005"
    assert find_checkpoint(tmp_path, "best").name == "epoch-0002"


def test_the_first_of_equals_is_the_best(tmp_path: Path) -> None:
    for epoch, rank1 in enumerate([10, 70, 70, 30, 70], 1):
        save(tmp_path, epoch, rank1)
    assert find_checkpoint(tmp_path, "best").name == "epoch-0002"


def test_without_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path, "best").name == "epoch-0002"
    prune(tmp_path, 1)
    assert there(tmp_path) == ["epoch-0002", "latest"]


def test_a_checkpoint_inside_an_epoch_is_the_latest_until_the_epoch_is_done(tmp_path: Path) -> None:
    save(tmp_path, 2, 50)
    inside = save(tmp_path, 2, step=25)
    assert inside.name == "epoch-0002-step-00000025"
    assert find_checkpoint(tmp_path, "latest") == inside
    assert find_checkpoint(tmp_path, "2").name == "epoch-0002"
    prune(tmp_path, 1)
    assert there(tmp_path) == ["best", "epoch-0002", "epoch-0002-step-00000025", "latest"]
    save(tmp_path, 3, 40)
    prune(tmp_path, 1)
    assert there(tmp_path) == ["best", "epoch-0002", "epoch-0003", "latest"]


def test_epochs_are_ordered_by_number(tmp_path: Path) -> None:
    for epoch in (9999, 10000):
        save(tmp_path, epoch)
    assert find_checkpoint(tmp_path, "latest").name == "epoch-10000"


@pytest.mark.parametrize("which", ["3", "-1", "last", "1.0", "", "\u00b2", "9" * 5000])
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, which: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.raises(BadRecipe, match="expected latest, best or one of 1, 2"):
        find_checkpoint(tmp_path, which)


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    with pytest.raises(BadRecipe, match="the folder holds no checkpoint"):
        find_checkpoint(tmp_path, "latest")
    save(tmp_path, 1)
    assert has_checkpoint(tmp_path)


def test_later_checkpoints_are_set_aside_in_numbered_branches(tmp_path: Path) -> None:
    for number in (1, 2):
        kept = save(tmp_path, 1)
        assert set_aside_later(tmp_path, kept) is None
        save(tmp_path, 1, step=15)
        save(tmp_path, 2)
        branch = set_aside_later(tmp_path, kept)
        assert branch == tmp_path / "checkpoints" / f"branch-{number:02d}"
        assert sorted(os.listdir(branch)) == ["epoch-0001-step-00000015", "epoch-0002"]
        assert find_checkpoint(tmp_path, "latest") == kept
        load_checkpoint(branch / "epoch-0002")


OTHER_WEIGHTS = {name: value + 1 for name, value in WEIGHTS.items()}


def copy_over(run: Path, source: str, target: str) -> Path:
    place = run / "checkpoints" / target
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run / "checkpoints" / source, place)
    return place


def test_a_folder_named_after_another_checkpoint_is_refused_and_never_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch, rank1 in ((1, 20.0), (3, 70.0), (15, 50.0)):
        save(tmp_path, epoch, rank1)
    wrong = copy_over(tmp_path, "epoch-0003", "epoch-0015")
    message = (
        r"epoch-0015: the folder has the name of another checkpoint; expected epoch-0015; found epoch-0003; "
        r"take another checkpoint: the best that is whole is that of epoch 3$"
    )
    with pytest.raises(Damaged, match=message):
        load_checkpoint(find_checkpoint(tmp_path, "15"))
    (tmp_path / "checkpoints" / "link").symlink_to("epoch-0015")
    with pytest.raises(Damaged, match="has the name of another"):
        load_checkpoint(tmp_path / "checkpoints" / "link")
    copy_over(tmp_path, "epoch-0003", "epoch-0001")
    assert find_checkpoint(tmp_path, "best").name == "epoch-0003"
    assert "epoch-0001: the folder has the name of another" in caplog.text
    prune(tmp_path, 1)
    assert wrong.exists()
    assert (
        load_checkpoint(Path(shutil.copytree(tmp_path / "checkpoints/epoch-0003", tmp_path / "mine"))).state.epoch == 3
    )


@pytest.mark.parametrize("what", ["another epoch", "other weights", "another state", "a part", "a file", "a lost link"])
def test_a_save_never_leaves_anything_but_its_own(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    state = replace(STATE, epoch=2, step=20)
    target = save_checkpoint(tmp_path / "other", state, OTHER_WEIGHTS, OPTIMIZER) if what == "other weights" else None
    save(tmp_path, 1, 30.0)
    place = tmp_path / "checkpoints" / "epoch-0002"
    match what:
        case "another epoch":
            copy_over(tmp_path, "epoch-0001", "epoch-0002")
        case "other weights":
            shutil.copytree(str(target), place)
        case "another state":
            save_checkpoint(tmp_path, replace(state, mean=(0.0, 0.0, 0.0)), WEIGHTS, OPTIMIZER)
        case "a part":
            (save(tmp_path, 2) / "weights.safetensors").unlink()
        case "a file":
            place.write_text("mine")
        case _:
            place.symlink_to("nowhere")
    assert save_checkpoint(tmp_path, state, WEIGHTS, OPTIMIZER) == place
    loaded = load_checkpoint(place)
    assert loaded.state == state
    assert (loaded.weights["a.bias"] == WEIGHTS["a.bias"]).all()
    assert os.path.lexists(tmp_path / "checkpoints" / "branch-01" / "epoch-0002")
    assert caplog.text.count("was there with other content, which is kept in") == 1


def test_a_checkpoint_that_is_there_to_the_byte_is_not_written_again(tmp_path: Path) -> None:
    inode = save(tmp_path, 1).stat().st_ino
    assert save(tmp_path, 1).stat().st_ino == inode
    assert there(tmp_path) == ["epoch-0001"]


def test_a_branch_takes_a_number_nobody_has(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)
    for name in ("branch-01", "branch-7", "branch-x"):
        (tmp_path / "checkpoints" / name / "epoch-0002").mkdir(parents=True)
    save(tmp_path, 2)
    assert set_aside_later(tmp_path, kept) == tmp_path / "checkpoints" / "branch-08"


@pytest.mark.parametrize("name", FILES)
def test_only_what_is_read_must_be_whole(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for epoch, rank1 in enumerate([10, 30, 20], 1):
        save(tmp_path, epoch, rank1)
    prune(tmp_path, "all")
    (tmp_path / "checkpoints" / "epoch-0001" / name).write_bytes(b"x")
    assert load_checkpoint(find_checkpoint(tmp_path, "best")).state.epoch == 2
    assert load_checkpoint(find_checkpoint(tmp_path, "latest")).state.epoch == 3
    prune(tmp_path, 1)
    unread = name in ("state.json", "SHA256SUMS")
    assert ("epoch-0001" in caplog.text) == unread
    assert ("epoch-0001" in there(tmp_path)) == unread


@pytest.mark.parametrize("name", FILES)
def test_where_the_best_is_damaged_the_next_best_whole_one_is_named(tmp_path: Path, name: str) -> None:
    for epoch, rank1 in enumerate([10, 30, 50, 40, 20], 1):
        save(tmp_path, epoch, rank1)
    prune(tmp_path, "all")
    (tmp_path / "checkpoints" / "epoch-0003" / name).write_bytes(b"x")
    (tmp_path / "checkpoints" / "epoch-0004" / "weights.safetensors").write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(Damaged, match=r"epoch-0003.*; take another .*: the best that is whole is that of epoch 2$"):
            load_checkpoint(find_checkpoint(tmp_path, "best"))
        prune(tmp_path, "all")
