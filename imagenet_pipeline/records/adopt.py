"""A data set of record files that other programs wrote: brought as they are, every image decoded once, and listed.

Their bytes, order and numbers stay. `FILE.rec.samples` beside each says, a line a sample, where its frame lies, the
CRC32C of that, its class, the number it carries, and the photo's name where that is known: with it such records are
read and checked like ours. What is finished is in `OUT/.building`, as in any build.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, BadRecipe, Damaged, first_few, printable
from imagenet_pipeline.progress import Bar
from imagenet_pipeline.records import finish, image, recordio, repair
from imagenet_pipeline.records.build import (
    BuildOptions,
    BuildSummary,
    claimed,
    digest_of,
    manifest_there,
    summarise,
    too_many,
)
from imagenet_pipeline.records.foreign import Damage, RecordFile, RecordsPlan, state_of
from imagenet_pipeline.records.manifest import BUILDING, MANIFEST, ForeignShard, Manifest, Shard, Split
from imagenet_pipeline.records.prepare import examine
from imagenet_pipeline.records.reader import Numbers
from imagenet_pipeline.records.shard import ColourSums
from imagenet_pipeline.records.tasks import (
    Progress,
    Task,
    executor_for,
    make,
    note_progress,
    require_wanted,
    run_tasks,
)

BESIDE = ("classes.json", "mean.json", "rejects.csv")
WITHOUT_IMAGE = "without-image"
"""The action that counts records that have no image and are no samples."""
LARGEST_NUMBER = 2**63 - 1
STRETCH_IMAGES = 512
"""Samples that a worker looks at in one go: few enough that all cores are busy with a small file."""
_DEFAULT = BuildOptions()
_PIECE_BYTES = 2**24
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""Answers where a file cannot be linked: another file system or one without links, a file of somebody else's."""

log = logging.getLogger("imagenet_pipeline")


def adopt(
    plan: RecordsPlan,
    out: Path,
    options: BuildOptions,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> BuildSummary:
    """Make the data set of `plan` in the folder `out`, or finish that, or mend it; of `options` how images are judged.

    Raises as `build`, and BadRecipe for options that would change the images.
    """
    out = Path(out).absolute()
    stored = stored_options(options)
    _require_untouched(options)
    _require_names_free(plan, out)
    manifest = _manifest_there(plan, out, stored)
    with files.explaining(out):
        if manifest is None:
            with claimed(out, _claim(plan)) as building:
                _bring_all(plan, out, building)
                tasks = _examine(plan, out, building, options, progress, executor)
                _write(plan, out, tasks, stored, image.library_versions())
            summary = summarise(out, already_built=False)
        else:
            remade = _mend(plan, out, manifest, options, progress, executor)
            summary = replace(summarise(out, already_built=True), remade=remade)
        shutil.rmtree(out / BUILDING, ignore_errors=True)
    return summary


def stored_options(options: BuildOptions) -> dict[str, Any]:
    """The options that decide what an adopted data set is: the bytes of its images are given."""
    return {"keep_damaged": True} if options.keep_damaged else {}


@dataclass(frozen=True)
class Stretch(Task):
    """Samples of a record file that lie together, for a worker to look at, and the damage met between."""

    file: Path
    rows: range
    positions: Numbers
    starts: Numbers
    ends: Numbers
    damage: Sequence[Damage]
    keep_damaged: bool

    @property
    def images(self) -> int:
        """Number of its samples."""
        return len(self.rows)

    @property
    def first_file(self) -> Path:
        """The record file."""
        return self.file

    def make(self) -> int:
        """Look at every sample and write the marker; returns how many are rejected, damaged frames included."""
        image.calm()
        self.notes.unlink(missing_ok=True)
        checksums: list[int | None] = []
        rejects = [(-1, f"{self.file.name}/{found.position}", found.reason) for found in self.damage]
        actions: Counter[str] = Counter()
        colours = ColourSums()
        with files.open_regular(self.file) as stream:
            columns = (self.rows, self.positions.tolist(), self.starts.tolist(), self.ends.tolist())
            for done, (row, position, start, end) in enumerate(zip(*columns, strict=True)):
                note_progress(self, done)
                framed = files.read_at(stream.fileno(), end - start, start)
                try:
                    actions.update(_look(framed, self.keep_damaged, colours))
                    checksums.append(recordio.checksum(framed))
                except (image.Rejected, Damaged) as reason:
                    rejects.append((row, f"{self.file.name}/{position}", str(reason)))
                    checksums.append(None)
        require_wanted(self)
        found = {"checksums": checksums, "rejects": rejects, "actions": dict(actions), "colours": vars(colours)}
        files.write_json(self.marker, {"key": self.key, **found})
        return len(rejects)


@dataclass(frozen=True)
class WholeFile(Task):
    """The digest of a record file, which a worker makes while others look at its images."""

    file: Path

    @property
    def first_file(self) -> Path:
        """The record file."""
        return self.file

    def make(self) -> int:
        """Write the marker; rejects nothing."""
        found = {"sha256": files.sha256_of(self.file), "rejects": []}
        require_wanted(self)
        files.write_json(self.marker, {"key": self.key, **found})
        return 0


Work = Stretch | WholeFile


def _look(framed: bytes, keep_damaged: bool, colours: ColourSums) -> tuple[str, ...]:
    """Decode the image in a frame and count its pixels; what there is to say of it. Raises Rejected, Damaged."""
    record = recordio.unpack(recordio.read_frame(framed)[0])
    if record.number > LARGEST_NUMBER:
        raise image.Rejected(f"the record number {record.number} is beyond 63 bits")
    header, pixels, damage = examine(record.image, keep_damaged)
    colours.add(pixels)
    return ("kept", *header.traits, *damage)


def _claim(plan: RecordsPlan) -> str:
    return digest_of([plan.digest, [os.path.realpath(file.path) for file in plan.by_name.values()]])


def _tasks(plan: RecordsPlan, out: Path, building: Path, keep_damaged: bool) -> list[Work]:
    tasks: list[Work] = []
    facts = [plan.digest, keep_damaged, image.library_versions()]
    for split, names in plan.names.items():
        for name in names:
            file = plan.by_name[name]
            key = digest_of([facts, file.state])
            tasks.append(WholeFile(key, f"{name}-sha256", split, building, out / name))
            for start in range(0, len(file), STRETCH_IMAGES):
                part = slice(start, min(start + STRETCH_IMAGES, len(file)))
                task = Stretch(
                    key=key,
                    name=f"{name}-{part.start}-{part.stop}",
                    split=split,
                    building=building,
                    file=out / name,
                    rows=range(part.start, part.stop),
                    positions=file.positions[part],
                    starts=file.starts[part],
                    ends=file.ends[part],
                    damage=() if start else file.damage,
                    keep_damaged=keep_damaged,
                )
                tasks.append(task)
    return tasks


def _examine(
    plan: RecordsPlan,
    out: Path,
    building: Path,
    options: BuildOptions,
    progress: Progress | None,
    executor: Executor | None,
) -> list[Work]:
    """Do what is not done yet of the tasks. Raises BadInput at too many rejects, and where a file has changed."""
    tasks = _tasks(plan, out, building, options.keep_damaged)
    pending = [task for task in tasks if not _is_done(task)]
    with executor_for(options.workers, executor, pending) as pool:
        rejected = run_tasks(make, tasks, pending, pool, options.max_rejects, progress)
    if rejected > options.max_rejects:
        raise too_many(out, tasks, rejected, options.max_rejects)
    for file in plan.by_name.values():
        if state_of(file.path) != file.state:
            raise BadInput("the record file changed while it was read", where=file.path, advice="build again")
    return tasks


def _is_done(task: Work) -> bool:
    try:
        marker = files.read_json(task.marker)
        return bool(marker["key"] == task.key and not marker["rejects"])
    except (Damaged, KeyError, TypeError):
        return False


def _write(
    plan: RecordsPlan, out: Path, tasks: Sequence[Work], stored: Mapping[str, Any], versions: Mapping[str, str]
) -> None:
    """Write everything beside the records, from the markers; the manifest last."""
    markers = {task.name: files.read_json(task.marker) for task in tasks}
    looked = {
        split: [task for task in tasks if task.split == split and isinstance(task, Stretch)] for split in plan.names
    }
    splits = {}
    for split, stretches in looked.items():
        checksums = [*chain(*(markers[stretch.name]["checksums"] for stretch in stretches))]
        finish.require_kept(plan, split, [row for row, kept in enumerate(checksums) if kept is not None], out, tasks)
        shards: list[Shard | ForeignShard] = [*_shards(plan, split, out, checksums, markers)]
        actions: Counter[str] = Counter()
        for stretch in stretches:
            actions.update(markers[stretch.name]["actions"])
        actions[WITHOUT_IMAGE] = sum(file.without_image for file in plan.record_files[split])
        splits[split] = Split(
            records=sum(shard.records for shard in shards),
            rejected=sum(len(markers[stretch.name]["rejects"]) for stretch in stretches),
            shards=shards,
            actions=dict(+actions),
        )
    plan.classes.write(out / "classes.json")
    counted = looked.get("train") or [*chain(*looked.values())]
    files.write_json(out / "mean.json", finish.statistics_of([markers[stretch.name] for stretch in counted]))
    finish.write_rejects(out, tasks)
    Manifest(
        plan=plan.digest,
        source={**plan.source, **plan.remarks},
        options=dict(stored),
        versions=dict(versions),
        classes=len(plan.classes),
        class_table=plan.classes.digest,
        splits=splits,
        files={name: files.sha256_of(out / name) for name in BESIDE},
        labels=list(plan.original_labels),
    ).write(out)


def _shards(
    plan: RecordsPlan, split: str, out: Path, checksums: Sequence[int | None], markers: Mapping[str, Any]
) -> Iterator[ForeignShard]:
    """Write the list of samples of each file of a split, and describe the file."""
    first = 0
    for name in plan.names[split]:
        file = plan.by_name[name]
        own = slice(first, first + len(file))
        first = own.stop
        beside = out / f"{name}.samples"
        with files.whole_file(beside) as stream:
            stream.writelines(_sample_lines(file, checksums[own], plan.splits[split].labels[own].astype("int64")))
        yield ForeignShard(
            file=name,
            records=sum(checksum is not None for checksum in checksums[own]),
            bytes=file.state[0],
            sha256=markers[f"{name}-sha256"]["sha256"],
            index_sha256=files.sha256_of(beside),
            foreign=True,
        )


def _sample_lines(file: RecordFile, checksums: Sequence[int | None], classes: Numbers) -> Iterator[bytes]:
    names = file.names or repeat("")
    columns = (file.starts, file.ends - file.starts, checksums, classes, file.numbers, names)
    for start, size_bytes, checksum, label, number, name in zip(*columns, strict=False):
        if checksum is not None:
            yield f"{start}\t{size_bytes}\t{checksum}\t{label}\t{number}\t{name}\n".encode()


def _require_untouched(options: BuildOptions) -> None:
    own = ("resize", "resize_mode", "interpolation", "quality", "shards", "no_mean")
    changing = [name for name in own if getattr(options, name) != getattr(_DEFAULT, name)]
    if changing:
        raise BadRecipe("record files are taken as they are", where="build records", found=f"the option {changing[0]}")


def _manifest_there(plan: RecordsPlan, out: Path, stored: Mapping[str, Any]) -> Manifest | None:
    try:
        return manifest_there(plan, out, stored)
    except BadInput as error:
        if not plan.in_place:
            raise
        # Its own advice, to remove the folder, would take the records along.
        advice = f"remove {', '.join((MANIFEST, *BESIDE))} and *.samples there (not the .rec), and build again"
        raise BadInput(error.what, where=out, advice=advice) from error


def _require_names_free(plan: RecordsPlan, out: Path) -> None:
    """Raise BadInput where files of the names to be written are there already, and no data set of ours is."""
    if (out / BUILDING).is_dir() or _is_our_manifest(out / MANIFEST):
        return
    names = [MANIFEST, *BESIDE, *(f"{name}.samples" for name in plan.by_name)]
    there = [name for name in (*names, *(() if plan.in_place else plan.by_name)) if os.path.lexists(out / name)]
    if there:
        inside = any(os.path.realpath(file.path.parent) == os.path.realpath(out) for file in plan.by_name.values())
        advice = "choose another --out"
        if inside and not plan.in_place:
            advice += ", or give --adopt, which leaves the record files where they are"
        what = "the folder holds files that the data set would overwrite"
        raise BadInput(what, where=out, found=first_few(there), advice=advice)


def _is_our_manifest(path: Path) -> bool:
    try:
        return b'"imagenet-pipeline records ' in files.read_regular(path)
    except OSError:
        return False


def _bring_all(plan: RecordsPlan, out: Path, building: Path) -> None:
    if plan.in_place:
        return
    for name, file in plan.by_name.items():
        _bring(file, out / name, building / f"{name}.copy")


def _bring(file: RecordFile, target: Path, part: Path) -> None:
    """Make `target` a hard link to a record file, or a copy where it cannot be linked, unless it is that already."""
    source = os.path.realpath(file.path)
    if target.exists() and (os.path.samefile(source, target) or state_of(target) == file.state):
        return
    try:
        part.with_suffix(".link").unlink(missing_ok=True)
        os.link(source, part.with_suffix(".link"))
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        log.info("%s: copied from %s, as it cannot be linked there (%s)", target, printable(source), error.strerror)
        _copy(Path(source), part)
        os.utime(part, ns=(file.state[1], file.state[1]))
        files.adopt(part, target)
    else:
        files.rename(part.with_suffix(".link"), target)
        log.info("%s: a hard link to %s: the same file, which takes no room again", target, printable(source))


def _copy(source: Path, part: Path) -> None:
    """Copy a file, going on with what an earlier try left; what is there already is compared, not trusted."""
    size_bytes = source.stat().st_size
    there = part.stat().st_size if part.exists() else 0
    files.check_free_space(part.parent, size_bytes - min(there, size_bytes))
    part.touch()
    with files.open_regular(source) as old, open(part, "r+b") as new, Bar("copy", "bytes") as bar:
        while piece := old.read(_PIECE_BYTES):
            offset = new.tell()
            if new.read(len(piece)) != piece:
                new.seek(offset)
                new.write(piece)
            bar.show(new.tell(), size_bytes)
        new.truncate()


def _mend(
    plan: RecordsPlan,
    out: Path,
    manifest: Manifest,
    options: BuildOptions,
    progress: Progress | None,
    executor: Executor | None,
) -> list[str]:
    """Bring damaged record files again, and make what is damaged beside them; the names of those files.

    Raises BadInput, with nothing changed, where a record file is not what it was.
    """
    damage = repair.find_damage(out, manifest, progress)
    if not damage:
        return []
    log.warning("%s: damaged or missing: %s; made again from the record files", out, first_few(damage))
    digests = manifest.files | {shard.index_file: shard.index_sha256 for shard in manifest.shards}
    with claimed(out, _claim(plan)) as building:
        for shard in manifest.shards:
            if shard.file in damage:
                _bring_again(plan, shard.file, shard.sha256, out, building)
        if not damage.isdisjoint(digests):
            remade = building / "remade"
            tasks = _examine(plan, out, building, replace(options, max_rejects=2**31), progress, executor)
            _write(plan, remade, tasks, manifest.options, manifest.versions)
            for name in damage.intersection(digests):
                if files.sha256_of(remade / name) != digests[name]:
                    found = f"libraries {image.library_versions()}, then {manifest.versions}"
                    raise BadInput("made again it has other bytes than it had", where=out / name, found=found)
                files.rename(remade / name, out / name)
    return sorted(damage)


def _bring_again(plan: RecordsPlan, name: str, sha256: str, out: Path, building: Path) -> None:
    file = plan.by_name[name]
    if files.sha256_of(file.path) != sha256:
        raise BadInput(
            "the record file has changed since the data set was made of it",
            where=file.path,
            advice="bring the file back as it was, or remove what was made beside it and build again",
        )
    (out / name).unlink(missing_ok=True)
    _bring(file, out / name, building / f"{name}.copy")
