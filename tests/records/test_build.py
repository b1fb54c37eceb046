"""Building: the same bytes whatever the workers, what is finished stays, what is wrong is said."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, OutOfRoom, WorkerLost
from imagenet_pipeline.records import image
from imagenet_pipeline.records.build import BuildOptions, build
from imagenet_pipeline.records.classes import ClassTable
from imagenet_pipeline.records.image import decode_rgb
from imagenet_pipeline.records.lists import read_list
from imagenet_pipeline.records.manifest import read_data_set
from imagenet_pipeline.records.plan import Images, Plan
from imagenet_pipeline.records.reader import RecordSet
from imagenet_pipeline.records.verify import verify

Kill = Callable[[Plan, Path, BuildOptions], None]
OPTIONS = BuildOptions(resize=32, shards=2, workers=1)


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files but the kept markers, which know where and when the photos were."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "markers.txt"
    }


def test_a_built_data_set_is_whole_and_complete(data_set: Path, small_plan: Plan) -> None:
    shards = [f"train-0000{i}-of-00002" for i in range(2)] + ["val", "test"]
    expected = {f"{name}.{end}" for name in shards for end in ("rec", "idx")}
    expected |= {"train.lst", "val.lst", "test.lst", "classes.json", "mean.json", "manifest.json", "rejects.csv"}
    assert set(contents(data_set)) == expected
    assert verify(data_set).whole
    found = read_data_set(data_set)
    assert found.counts == {"train": 18, "val": 6, "test": 6}
    assert found.classes == small_plan.classes
    assert found.manifest.splits["train"].actions == {"kept": 5, "resized": 13}


def test_mean_and_deviation_are_those_of_the_stored_training_pixels(data_set: Path) -> None:
    with RecordSet.open(data_set, "train") as records:
        images = [decode_rgb(records.read(i).image).reshape(-1, 3) for i in range(len(records))]
    pixels = np.concatenate(images).astype(np.float64)
    found = read_data_set(data_set)
    assert found.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert found.std == pytest.approx(pixels.std(axis=0), rel=1e-12)
    assert json.loads((data_set / "mean.json").read_text())["pixels"] == len(pixels)


def test_the_bytes_do_not_depend_on_workers_or_executor(data_set: Path, small_plan: Plan, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = build(small_plan, tmp_path / "two", replace(OPTIONS, workers=2), lambda *call: calls.append(call))
    assert summary.records == {"train": 18, "val": 6, "test": 6}
    assert calls[-1] == (30, 30)
    with ThreadPoolExecutor(3) as threads:
        build(small_plan, tmp_path / "threads", replace(OPTIONS, workers=3), executor=threads)
    assert contents(tmp_path / "two") == contents(tmp_path / "threads") == contents(data_set)


def test_a_second_run_is_done_at_once_and_another_build_is_refused(
    data_set: Path, small_plan: Plan, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(data_set, tmp_path / "set"))
    before = contents(out)
    assert build(small_plan, out, replace(OPTIONS, workers=7)).already_built
    with pytest.raises(BadInput, match="the folder holds another data set"):
        build(small_plan, out, replace(OPTIONS, quality=90))
    assert contents(out) == before


def test_photos_of_another_root_are_never_mixed_in(
    small_plan: Plan, tmp_path: Path, inline: Executor, photos: Path, build_killed: Kill, data_set: Path
) -> None:
    build_killed(small_plan, tmp_path / "out", OPTIONS)
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    with pytest.raises(BadInput, match=r"unfinished build .* another root"):
        build(replace(small_plan, root=other), tmp_path / "out", OPTIONS, executor=inline)
    (tmp_path / "same").symlink_to(photos)
    build(replace(small_plan, root=tmp_path / "same"), tmp_path / "out", OPTIONS, executor=inline)
    assert contents(tmp_path / "out") == contents(data_set)


def test_a_data_set_is_not_built_among_its_images(small_plan: Plan, photos: Path) -> None:
    with pytest.raises(BadInput, match="images are"):
        build(small_plan, photos, OPTIONS)
    with pytest.raises(BadInput, match="images are"):
        build(replace(small_plan, walked=True), photos / "out", OPTIONS)
    assert not (photos / "out").exists()


def test_finished_shards_are_not_made_again(
    small_plan: Plan, tmp_path: Path, inline: Executor, data_set: Path, build_killed: Kill
) -> None:
    out = tmp_path / "set"

    build_killed(small_plan, out, OPTIONS)
    with pytest.raises(BadInput, match="unfinished build of another"):
        build(small_plan, out, replace(OPTIONS, quality=90), executor=inline)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.rec")}
    (out / "val.rec").write_bytes(b"cut")
    assert not build(small_plan, out, OPTIONS, executor=inline).already_built
    made_again = {path.name for path in out.glob("*.rec") if path.stat().st_mtime_ns != times[path.name]}
    assert made_again == {"val.rec"}
    assert contents(out) == contents(data_set)


def test_only_one_process_builds_in_a_folder(small_plan: Plan, tmp_path: Path, inline: Executor) -> None:
    messages = []

    def build_again(*_: int) -> None:
        with pytest.raises(BadInput) as caught:
            build(small_plan, tmp_path, OPTIONS, executor=inline)
        messages.append(str(caught.value))

    build(small_plan, tmp_path, OPTIONS, build_again, executor=inline)
    assert "another process is building here" in messages[0]


def test_shards_are_many_or_one(small_plan: Plan, tmp_path: Path, inline: Executor) -> None:
    build(small_plan, tmp_path / "one", BuildOptions(), executor=inline)
    assert sorted(path.name for path in (tmp_path / "one").glob("*.rec")) == ["test.rec", "train.rec", "val.rec"]
    build(small_plan, tmp_path / "many", BuildOptions(shards=18), executor=inline)
    assert len(list((tmp_path / "many").glob("train-*-of-00018.rec"))) == 18
    assert len(list((tmp_path / "many").glob("val-*-of-00006.rec"))) == 6
    with pytest.raises(BadInput, match="more shards than images"):
        build(small_plan, tmp_path / "more", BuildOptions(shards=19), executor=inline)


@pytest.fixture
def spoilt_plan(photos: Path, small_plan: Plan, tmp_path: Path) -> Plan:
    """`small_plan` with a truncated, a missing, an HTML and an outside image among train."""
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "2.jpg").write_bytes((root / "2.jpg").read_bytes()[:-30])
    (root / "5.jpg").unlink()
    (root / "11.jpg").write_text("<html>404</html>")
    (root / "12.jpg").unlink()
    (root / "12.jpg").symlink_to("/etc/hostname")
    return replace(small_plan, root=root)


def test_too_many_rejects_stop_the_build_and_are_listed(
    spoilt_plan: Plan, tmp_path: Path, inline: Executor, photos: Path, data_set: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        BadInput, match=r"rejects\.csv: too many images .* at most 0; found 2 so far, first 2\.jpg \(.*truncated"
    ):
        build(spoilt_plan, out, OPTIONS, executor=inline)
    rows = list(csv.reader((out / "rejects.csv").read_text().splitlines()))
    assert [row[:2] for row in rows] == [["split", "path"], ["train", "2.jpg"], ["train", "5.jpg"]]
    assert not (out / "manifest.json").exists()
    for name in ("2.jpg", "5.jpg", "11.jpg", "12.jpg"):
        (spoilt_plan.root / name).unlink(missing_ok=True)
        shutil.copy(photos / name, spoilt_plan.root / name)
    build(spoilt_plan, out, OPTIONS, executor=inline)
    assert contents(out) == contents(data_set)


def test_rejects_within_the_budget_are_left_out_and_counted(
    spoilt_plan: Plan, tmp_path: Path, inline: Executor
) -> None:
    out = tmp_path / "out"
    summary = build(spoilt_plan, out, replace(OPTIONS, max_rejects=4), executor=inline)
    assert (summary.records["train"], summary.rejected["train"]) == (14, 4)
    reasons = {path: reason for _, path, reason in csv.reader((out / "rejects.csv").read_text().splitlines())}
    assert "truncated" in reasons["2.jpg"]
    assert reasons["5.jpg"] == "file is missing"
    assert "HTML" in reasons["11.jpg"]
    assert "outside" in reasons["12.jpg"]
    assert {row.index for row in read_list(out / "train.lst")} == set(range(18)) - {2, 5, 11, 12}
    assert verify(out).whole
    with RecordSet.open(out, "train") as records:
        assert len(records) == 14


def test_damaged_photos_are_rejects_or_kept_and_counted(
    photos: Path, small_plan: Plan, tmp_path: Path, inline: Executor, data_set: Path
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    for name in ("2.jpg", "20.jpg"):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) - 40] + b"\xff\xd9")
    plan = replace(small_plan, root=root)
    with pytest.raises(
        BadInput, match=r"first 2\.jpg \(damaged: .*premature end.* damaged .*1 of them.* --keep-damaged"
    ):
        build(plan, tmp_path / "strict", OPTIONS, executor=inline)
    summary = build(plan, tmp_path / "lax", replace(OPTIONS, max_rejects=2), executor=inline)
    assert summary.rejected == {"train": 1, "val": 1, "test": 0}
    rows = list(csv.reader((tmp_path / "lax" / "rejects.csv").read_text().splitlines()))
    assert [(split, path) for split, path, _ in rows[1:]] == [("train", "2.jpg"), ("val", "20.jpg")]
    keeping = replace(OPTIONS, keep_damaged=True)
    summary = build(plan, tmp_path / "all", keeping, executor=inline)
    assert (summary.actions["damaged"], summary.rejected) == (2, {"train": 0, "val": 0, "test": 0})
    assert verify(tmp_path / "all").whole
    with pytest.raises(BadInput, match="the folder holds another data set"):
        build(plan, tmp_path / "all", OPTIONS, executor=inline)
    build(small_plan, tmp_path / "whole", keeping, executor=inline)
    records = [name for name in contents(data_set) if name.endswith((".rec", ".idx"))]
    whole = contents(tmp_path / "whole")
    assert {name: whole[name] for name in records} == {name: contents(data_set)[name] for name in records}


def test_a_split_without_a_single_image_is_an_error(tmp_path: Path, small_plan: Plan, inline: Executor) -> None:
    plan = replace(small_plan, splits={**small_plan.splits, "val": Images(["none.jpg"], np.zeros(1, np.int64))})
    with pytest.raises(BadInput, match="no image of val"):
        build(plan, tmp_path, replace(OPTIONS, max_rejects=9), executor=inline)


def test_a_class_lost_altogether_is_an_error(tmp_path: Path, small_plan: Plan, inline: Executor) -> None:
    paths = [f"{i}.gone" if i % 3 == 1 else f"{i}.jpg" for i in range(18)]
    train = Images(paths, small_plan.splits["train"].labels)
    plan = replace(small_plan, splits={**small_plan.splits, "train": train})
    with pytest.raises(BadInput, match=r"rejects\.csv: no training image of the class dog can be used"):
        build(plan, tmp_path, replace(OPTIONS, max_rejects=9), executor=inline)


def test_a_missing_folder_is_said_at_once(small_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        build(replace(small_plan, folders=("Data",)), tmp_path, OPTIONS)


@pytest.mark.parametrize(
    "options", [{"resize": -1}, {"quality": 0}, {"shards": 0}, {"workers": 0}, {"max_rejects": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="out of range"):
        BuildOptions(**options)


def test_a_lost_worker_is_named_and_the_rest_is_kept(small_plan: Plan, tmp_path: Path, data_set: Path) -> None:
    def kill(*_: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(WorkerLost, match="shards in work: train-0000"):
        build(small_plan, tmp_path / "out", OPTIONS, kill)
    build(small_plan, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(data_set)


def test_too_little_room_is_said_before_anything_is_made(
    small_plan: Plan, tmp_path: Path, inline: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OutOfRoom, match="10 bytes free"):
        build(small_plan, tmp_path, OPTIONS, executor=inline)
    assert not list(tmp_path.glob("*.rec"))


def test_out_of_memory_in_a_worker_is_out_of_room(
    small_plan: Plan, tmp_path: Path, inline: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("imagenet_pipeline.records.shard._write_records", exhausted)
    with pytest.raises(OutOfRoom, match="out of memory"):
        build(small_plan, tmp_path, OPTIONS, executor=inline)


def test_real_photos_are_shrunk_to_the_short_edge(
    unpacked: Callable[[str], Path], tmp_path: Path, inline: Executor
) -> None:
    root = unpacked("imagenet_samples_300.tar")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPEG"))[:20]
    classes = ClassTable("list", tuple(map(str, range(20))), tuple(map(str, range(20))))
    build(Plan(root, {"train": Images(names, np.arange(20))}, classes), tmp_path, BuildOptions(), executor=inline)
    with RecordSet.open(tmp_path, "train") as records:
        edges = [min(decode_rgb(records.read(i).image).shape[:2]) for i in range(20)]
    assert max(edges) == 256


def test_a_build_that_damaged_photos_stopped_goes_on_with_keep_damaged(
    spoilt_plan: Plan, tmp_path: Path, inline: Executor
) -> None:
    photo = spoilt_plan.root / "0.jpg"
    content = photo.read_bytes()
    photo.write_bytes(content[: len(content) // 2] + b"\xff\xd9")
    with pytest.raises(BadInput, match="--keep-damaged"):
        build(spoilt_plan, tmp_path / "out", replace(OPTIONS, max_rejects=4), executor=inline)
    options = replace(OPTIONS, max_rejects=4, keep_damaged=True)
    assert build(spoilt_plan, tmp_path / "out", options, executor=inline).actions["damaged"] == 1
    build(spoilt_plan, tmp_path / "at once", options, executor=inline)
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


def test_without_the_mean_the_records_are_the_same_and_a_tenth_is_decoded(
    small_plan: Plan, tmp_path: Path, inline: Executor, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagenet_pipeline.records.build.FEWEST_MEAN_IMAGES", 1)
    plain = replace(OPTIONS, pass_through=True)
    build(small_plan, tmp_path / "with", plain, executor=inline)
    decoded: list[bytes] = []
    monkeypatch.setattr(image, "decode_rgb", lambda data, *rest: decoded.append(data) or decode_rgb(data, *rest))
    build(small_plan, tmp_path / "without", replace(plain, no_mean=True), executor=inline)
    with_mean, without = contents(tmp_path / "with"), contents(tmp_path / "without")
    assert {name for name in with_mean if with_mean[name] != without[name]} == {"mean.json", "manifest.json"}
    numbers = [("train", 0), ("train", 10), ("val", 0), ("test", 0)]
    assert decoded == [(small_plan.root / small_plan.splits[split].paths[i]).read_bytes() for split, i in numbers]
    statistics = json.loads((tmp_path / "without" / "mean.json").read_text())
    pixels = np.concatenate([decode_rgb(data).reshape(-1, 3) for data in decoded[:2]]).astype(np.float64)
    assert list(statistics["mean"].values()) == pytest.approx(pixels.mean(axis=0)[::-1], rel=1e-12)
    assert (statistics["images"], statistics["pixels"]) == (2, len(pixels))
    assert read_data_set(tmp_path / "without").manifest.options["no_mean"] is True
    resized = replace(OPTIONS, no_mean=True)
    build(small_plan, tmp_path / "resized", resized, executor=inline)
    records = [name for name in contents(data_set) if name.endswith((".rec", ".idx"))]
    assert [contents(tmp_path / "resized")[name] for name in records] == [contents(data_set)[name] for name in records]
    with pytest.raises(BadInput, match="the folder holds another data set"):
        build(small_plan, tmp_path / "resized", OPTIONS, executor=inline)


def test_without_the_mean_what_is_cut_short_is_found_and_lost_pixels_are_left_to_verify(
    small_plan: Plan, tmp_path: Path, inline: Executor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagenet_pipeline.records.build.FEWEST_MEAN_IMAGES", 1)
    plan = replace(small_plan, root=Path(shutil.copytree(photos, tmp_path / "photos")))
    for name, end in (("3.jpg", b""), ("4.jpg", b"\xff\xd9")):
        data = (plan.root / name).read_bytes()
        (plan.root / name).write_bytes(data[:-40] + end)
    options = replace(OPTIONS, pass_through=True, no_mean=True, max_rejects=9)
    build(plan, tmp_path / "set", options, executor=inline)
    rows = list(csv.reader((tmp_path / "set" / "rejects.csv").read_text().splitlines()))
    assert [row[1] for row in rows[1:]] == ["3.jpg"]
    assert "truncated" in rows[1][2]
    (lost,) = verify(tmp_path / "set").problems
    assert (lost.record, lost.what[:17]) == (3, "image is damaged ")
    assert verify(tmp_path / "set", decode=False).problems == []
    (plan.root / "0.jpg").write_bytes(b"")
    (plan.root / "10.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"no image of the sample .* build without --no-mean"):
        build(plan, tmp_path / "none", options, executor=inline)
