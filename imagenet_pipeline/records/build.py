"""The build of a data set from a plan: shards made in parallel, each once, by any executor.

What is finished is on disk (a marker a shard in `OUT/.building`), so a killed build goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, Damaged, first_few
from imagenet_pipeline.records import finish, image, repair
from imagenet_pipeline.records.manifest import BUILDING, MANIFEST, Manifest
from imagenet_pipeline.records.pieces import Steps, pieces_of, steps_of
from imagenet_pipeline.records.plan import Plan, require_apart
from imagenet_pipeline.records.prepare import Interpolation, ResizeMode, Resizing
from imagenet_pipeline.records.shard import ShardTask, unpacked_file
from imagenet_pipeline.records.tasks import Progress, Task, executor_for, make, run_tasks

SHARD_IMAGES = 8192
SHARD_LIMIT = 100_000
MEAN_IMAGES, FEWEST_MEAN_IMAGES = 256, 100
"""Images of train, about, that mean and deviation are of with `no_mean`: a tenth of them within these bounds."""

log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class BuildOptions:
    """The form in which images are stored, and the number of processes that do it.

    resize: short edge in pixels, 0 keeps the size; resize_mode and interpolation are those of `Resizing`.
    quality: JPEG 1..100. pass_through: resize nothing, keep the bytes of every plain 8-bit JPEG or PNG. shards: files
    of the train split (default a file per 8192 images; other splits in proportion). workers: processes, default a
    process per core. max_rejects: more unusable images stop the build. keep_damaged: store images part of whose picture
    is lost, too. no_mean: take mean and deviation from a sample; another photo that keeps its bytes is not decoded, its
    header and its end are looked at.
    """

    resize: int = 256
    quality: int = 95
    pass_through: bool = False
    shards: int | None = None
    workers: int | None = None
    max_rejects: int = 0
    keep_damaged: bool = False
    no_mean: bool = False
    resize_mode: ResizeMode = "shorter"
    interpolation: Interpolation = "area"

    def __post_init__(self) -> None:
        limits = {"resize": (0, 16_384), "quality": (1, 100), "max_rejects": (0, 2**31)}
        optional = {"shards": (1, SHARD_LIMIT), "workers": (1, 4096)}
        for name, (lowest, highest) in (limits | optional).items():
            value = getattr(self, name)
            if not (lowest <= value <= highest if value is not None else name in optional):
                raise BadInput(f"{name} is out of range", expected=f"{lowest}..{highest}", found=value)
        others = self._other_resizing
        if others and (self.pass_through or not self.resize):
            reason = "with pass_through" if self.pass_through else "with resize 0, which keeps all sizes"
            raise BadInput(f"{next(iter(others))} has no effect {reason}", found=next(iter(others.values())))

    @property
    def _other_resizing(self) -> dict[str, str]:
        """The mode and the filter of resizing, where they are not the default."""
        chosen, default = Resizing(self.resize, self.resize_mode, self.interpolation), Resizing(self.resize)
        mode = {"resize_mode": chosen.mode} if chosen.mode != default.mode else {}
        return mode | ({"interpolation": chosen.interpolation} if chosen.interpolation != default.interpolation else {})

    @property
    def stored(self) -> dict[str, Any]:
        """The options that decide the bytes."""
        stored = {name: getattr(self, name) for name in ("resize", "quality", "pass_through", "shards")}
        # Named where they are used alone: data sets without them stay what they are.
        flags = {name: True for name in ("keep_damaged", "no_mean") if getattr(self, name)}
        return stored | flags | self._other_resizing


@dataclass(frozen=True)
class BuildSummary:
    """The outcome of a build: records and rejects per split, and what was done to the images, by kind.

    `folder` is an address, text, where the data set was made into object storage.
    Of a data set that was there already: the files that were damaged and are `remade`, and the photos whose size or
    time has `changed` since they were stored.
    """

    folder: Path | str
    records: dict[str, int]
    rejected: dict[str, int]
    actions: dict[str, int]
    classes: int
    bytes: int
    already_built: bool
    remade: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def build(
    plan: Plan,
    out: Path,
    options: BuildOptions,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> BuildSummary:
    """Make the data set of `plan` in the folder `out`, or finish a build that was begun there.

    `progress(done, total)` is called with image counts about twice a second. `executor` may be any
    concurrent.futures executor whose workers see the same files (`tasks.reached` has Dask's); by default local
    processes.
    Of a finished data set in `out` what is damaged or missing is made again, to the same bytes.
    Raises BadInput (another data set is in `out`, too many rejects, photos of damaged shards have changed),
    OutOfRoom, WorkerLost.
    """
    out = Path(out).absolute()
    require_apart(plan, out)
    manifest = manifest_there(plan, out, options.stored)
    with files.explaining(out):
        if manifest is None:
            _require_folders(plan)
            _build(plan, out, options, progress, executor)
            summary = summarise(out, already_built=False)
        else:
            remade = _mend(plan, out, manifest, options, progress, executor)
            changed = _changed_photos(plan, out, options)
            summary = replace(summarise(out, already_built=True), remade=remade, changed=changed)
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    return summary


def summarise(out: Path, already_built: bool) -> BuildSummary:
    """The summary of a finished data set, from its manifest."""
    manifest = Manifest.read(out)
    actions: dict[str, int] = {}
    for split in manifest.splits.values():
        for name, count in split.actions.items():
            actions[name] = actions.get(name, 0) + count
    return BuildSummary(
        folder=out,
        records={name: split.records for name, split in manifest.splits.items()},
        rejected={name: split.rejected for name, split in manifest.splits.items()},
        actions=actions,
        classes=manifest.classes,
        bytes=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        already_built=already_built,
    )


def _build(plan: Plan, out: Path, options: BuildOptions, progress: Progress | None, executor: Executor | None) -> None:
    versions = image.library_versions()
    key = shard_key(plan, options, versions)
    with claimed(out, claim_key(plan, options, versions)) as building:
        shards = shard_tasks(plan, out, building, options, key)
        repair.restore_markers(out, shards)
        steps = list(map(steps_of, shards))
        unpack(plan, building, steps)
        make_shards(out, options, steps, progress, executor)
        finish.write_data_set(plan, out, shards, options.stored, versions)


def unpack(plan: Plan, building: Path, steps: Sequence[Steps]) -> None:
    """Write what files of the plan hold compressed into the building folder, where a shard is to be made from them.

    What is there already, of the same file, stays. Raises OutOfRoom, and BadInput for what cannot be read.
    """
    if not any(shard.pending for shard in steps):
        return
    for name, write in plan.unpack.items():
        target = unpacked_file(building, name)
        try:
            changed_ns = (plan.root / name).stat().st_mtime_ns
        except OSError as error:
            raise BadInput(f"cannot be read ({error.strerror})", where=plan.root / name) from error
        if not target.exists() or target.stat().st_mtime_ns != changed_ns:
            with files.whole_file(target, durable=False) as stream:
                write(stream)
            os.utime(target, ns=(changed_ns, changed_ns))


def make_shards(
    out: Path,
    options: BuildOptions,
    steps: Sequence[Steps],
    progress: Progress | None,
    executor: Executor | None,
    kept: int | None = None,
) -> None:
    """Make the shards that are not finished. Raises BadInput at too many rejects, OutOfRoom, WorkerLost.

    There must be room in `out` for so many of them (`kept`), by default all, and twice for one that is joined.
    """
    tasks = [task for shard in steps for task in shard.tasks]
    pending = [task for shard in steps for task in shard.pending]
    unmade = [shard for shard, _, unfinished in steps if unfinished][:kept]
    joined = max((shard for shard in unmade if len(pieces_of(shard)) > 1), key=lambda shard: shard.images, default=None)
    files.check_free_space(out, _estimated_bytes(options, [*unmade, joined] if joined else unmade))
    with executor_for(options.workers, executor, pending) as pool:
        rejected = run_tasks(make, tasks, pending, pool, options.max_rejects, progress)
    if rejected > options.max_rejects:
        raise too_many(out, tasks, rejected, options.max_rejects)


def _mend(
    plan: Plan,
    out: Path,
    manifest: Manifest,
    options: BuildOptions,
    progress: Progress | None,
    executor: Executor | None,
) -> list[str]:
    """Make what is damaged or missing of a finished data set again; the names of those files.

    It is made beside the data set and put where it belongs only where its bytes are those of the manifest.
    """
    damage = repair.find_damage(out, manifest, progress)
    if not damage:
        return []
    log.warning("%s: damaged or missing: %s; made again from the photos", out, first_few(damage))
    _require_folders(plan)
    versions = image.library_versions()
    key = shard_key(plan, options, versions)
    with claimed(out, claim_key(plan, options, versions)) as building:
        remade = building / "remade"
        tasks = [replace(task, folder=remade) for task in shard_tasks(plan, out, building, options, key)]
        wanted = repair.shards_to_remake(out, manifest, damage, tasks)
        steps = list(map(steps_of, wanted))
        unpack(plan, building, steps)
        # A photo that was stored and cannot be used now shows in the bytes: that is what decides here.
        make_shards(out, replace(options, max_rejects=2**31), steps, progress, executor)
        if repair.needs_markers(manifest, damage):
            finish.write_data_set(plan, remade, tasks, options.stored, manifest.versions)
        repair.put_back(out, remade, manifest, damage, wanted)
    return sorted(damage)


def _changed_photos(plan: Plan, out: Path, options: BuildOptions) -> list[str]:
    """Paths of the photos whose size or time is not what it was when they were stored; none where the root is gone."""
    if not Path(plan.root).is_dir():
        return []
    return repair.changed_since(out, shard_tasks(plan, out, out / BUILDING, options, key=""))


def _require_folders(plan: Plan) -> None:
    for folder in (".", *plan.folders):
        if not (plan.root / folder).is_dir():
            raise BadInput("no such folder", where=plan.root / folder, advice="images are looked for there")


def shard_key(plan: Plan, options: BuildOptions, versions: Mapping[str, str]) -> str:
    """The key of a shard's marker: what decides its bytes, and where its photos are."""
    # The root decides what is read, but not a byte of the manifest: the same photos may lie anywhere.
    return digest_of([plan.digest, options.stored, dict(versions), os.path.realpath(plan.root)])


def claim_key(plan: Plan, options: BuildOptions, versions: Mapping[str, str]) -> str:
    """The key of an unfinished build."""
    # A build that damaged photos have stopped goes on with --keep-damaged, or without --no-mean, as its error says:
    # its shards are made anew.
    return shard_key(plan, replace(options, keep_damaged=False, no_mean=False), versions)


def manifest_there(plan: Plan, out: Path, stored: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a finished data set of this plan, stored so; None where there is none, or an unfinished build.

    Raises BadInput where another data set is in `out`.
    """
    if not (out / MANIFEST).exists():
        return None
    try:
        manifest = Manifest.read(out)
    except Damaged as error:
        log.warning("%s: the data set is made again", error.args[0].partition(";")[0])
        return None
    if (manifest.plan, manifest.options) != (plan.digest, stored):
        raise BadInput(
            "the folder holds another data set already (other images, labels or options)",
            where=out,
            advice="choose another folder, or remove this folder",
        )
    return manifest


@contextlib.contextmanager
def claimed(out: Path, key: str) -> Iterator[Path]:
    """Hold OUT/.building for this process alone. Raises BadInput where another build is, by its `key`, unfinished."""
    building = out / BUILDING
    with files.claim(building / "lock", out, "building"):
        begun = building / "build.json"
        if begun.exists() and files.read_json(begun) != key:
            raise BadInput(
                "the folder holds an unfinished build of another plan, another root, other options or library versions",
                where=out,
                advice=f"run that build again to finish it, or remove {building}",
            )
        files.remove_parts(out)
        files.remove_parts(building)
        files.write_json(begun, key)
        try:
            yield building
        finally:
            files.remove_parts(out)  # of workers that were killed: nobody writes here now


def shard_tasks(plan: Plan, out: Path, building: Path, options: BuildOptions, key: str) -> list[ShardTask]:
    """Divide a plan into the shards that `options` ask for."""
    tasks = []
    for split, images in plan.splits.items():
        shards = _shard_count(plan, split, options)
        edges = [len(images) * i // shards for i in range(shards + 1)]
        for i, (start, end) in enumerate(pairwise(edges)):
            task = ShardTask(
                key=key,
                name=split if shards == 1 else f"{split}-{i:05d}-of-{shards:05d}",
                split=split,
                folder=out,
                building=building,
                root=Path(plan.root).absolute(),
                follow_links=plan.follow_links,
                first_number=start,
                paths=images.paths[start:end],
                labels=images.labels[start:end].tolist(),
                spans=None if images.spans is None else images.spans[start:end].tolist(),
                archive=plan.archive,
                unpacked=bool(plan.unpack),
                resize=options.resize,
                quality=options.quality,
                pass_through=options.pass_through,
                keep_damaged=options.keep_damaged,
                mean_every=_mean_every(plan, split, options),
                resize_mode=options.resize_mode,
                interpolation=options.interpolation,
            )
            tasks.append(task)
    return tasks


def _mean_every(plan: Plan, split: str, options: BuildOptions) -> int:
    """The number of images of a split to one that counts for mean and deviation; beside train the first alone does."""
    if not options.no_mean:
        return 1
    count = len(plan.splits[split])
    counts = split == "train" or "train" not in plan.splits
    if not counts:
        return count
    return max(1, min(10, count // FEWEST_MEAN_IMAGES), count // MEAN_IMAGES)


def _shard_count(plan: Plan, split: str, options: BuildOptions) -> int:
    count = len(plan.splits[split])
    if options.shards is None:
        return math.ceil(count / SHARD_IMAGES)
    largest = len(plan.splits.get("train", plan.splits[split]))
    if options.shards > largest:
        raise BadInput("more shards than images", expected=f"<= {largest}", found=options.shards)
    return min(count, max(1, round(options.shards * count / largest)))


def too_many(out: Path, tasks: Sequence[Task], rejected: int, max_rejects: int) -> BadInput:
    """The error at too many rejects, once their list is written."""
    _, path, reason = next(finish.rejects(tasks))
    damaged = sum(reason.startswith(image.DAMAGED) for _, _, reason in finish.rejects(tasks))
    take = f", or store what is damaged and can be decoded ({damaged:,} of them) with --keep-damaged" if damaged else ""
    return BadInput(
        "too many images cannot be used",
        where=finish.write_rejects(out, tasks),
        expected=f"at most {max_rejects}",
        found=f"{rejected} so far, first {path} ({reason})",
        advice=f"see that list for the reasons; mend the images, or allow more with --max-rejects{take}",
    )


def _estimated_bytes(options: BuildOptions, pending: Sequence[ShardTask]) -> int:
    """Room the pending shards will need, from the sizes of up to 200 of their images; never far too much."""
    total = sum(len(task.paths) for task in pending)
    images = ((task, number) for task in pending for number in range(len(task.paths)))
    sizes = []
    for task, number in islice(images, 0, None, max(1, total // 200)):
        with contextlib.suppress(OSError):
            sizes.append(task.spans[number][1] if task.spans else (task.root / task.paths[number]).stat().st_size)
    if not sizes:
        return 0
    mean_bytes = sum(sizes) / len(sizes)
    if options.resize and not options.pass_through:
        square = 0.5 * options.resize**2  # quality 95 takes more than half a byte a pixel
        mean_bytes = min(mean_bytes, square) if options.resize_mode == "shorter" else square
    return int(mean_bytes * total)


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
