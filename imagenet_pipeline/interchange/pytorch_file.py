"""Files of torch.save (`.pth`, `.pt`) read without torch and without unpickling: state dicts, nothing else.

Since torch 1.6 the file is a ZIP archive that compresses nothing: NAME/data.pkl says what there is, NAME/data/KEY are
the numbers of each storage, NAME/byteorder their order. Before, it is a row of pickles (a magic number, a version, the
system, the value, the storages' keys), then every storage: its count as u64 and its numbers. A tensor is a view of
a storage: offset, shape and strides, in numbers. (torch/serialization.py, torch/_utils.py.)
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput, first_few
from imagenet_pipeline.interchange.pickles import Maker, Name, instance_of, read_pickle

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""The pickle of the magic number that files before torch 1.6 begin with."""
ARCHIVE_START = b"PK\x03\x04"
PICKLE, BYTE_ORDER, TORCHSCRIPT = "data.pkl", "byteorder", "constants.pkl"
BFLOAT16 = "bfloat16"
STORAGES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": BFLOAT16, "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexDouble": "c16", "ComplexFloat": "c8",
}  # fmt: skip
UNTYPED = {"uint16": "u2", "uint32": "u4", "uint64": "u8"}
"""Types that torch gives no storages of their own."""
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
    "complex128", *UNTYPED,
)  # fmt: skip
MOST_AXES = 32
MOST_NUMBERS = 2**59
MOST_COPIES = 4
"""The arrays' bytes for each of the file: tensors may share a storage, as tied weights do."""
WRAPPERS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "net")
"""Keys under which training programs save the state dict, the averaged weights first, which they evaluate.

Under another key it is found where no other dictionary there has tensors.
"""
DEEPEST = 3
"""Dictionaries around a state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Words that DataParallel, torch.compile and Lightning put before every name."""
AVERAGED = "n_averaged"
"""torch's count of the weights that an AveragedModel has seen."""

AnyArray = npt.NDArray[Any]
log = logging.getLogger("imagenet_pipeline")


@dataclass(frozen=True)
class _Storage:
    key: str
    kind: str
    """A type of NumPy's, or BFLOAT16."""
    count: int
    first: int = 0
    """Offset in the storage of this key, in numbers: old files have views."""


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


Contents = Callable[[_Storage], memoryview]


def read_pytorch(path: Path) -> dict[str, AnyArray]:
    """Every tensor of a file's state dict by name, in the file's order and types; bfloat16 becomes float32.

    A state dict may be the value itself or stand in a training program's dictionary, its names behind "module.".
    Raises BadInput for a file that holds anything but tensors and plain values (which it names), is compressed, damaged
    or cut short, or whose tensors reach outside their storage. Memory is bounded by the file's size.
    """
    with files.regular_file(path) as (stream, size):
        is_legacy = stream.read(len(LEGACY_START)) == LEGACY_START
        stream.seek(0)
        try:
            value, contents, order = _legacy(stream.read(), path) if is_legacy else _archive(stream, size, path)
        except BadInput as error:
            raise _explained(error) from None
        tensors = _state_dict(value, path)
        _require_bounded(tensors, size, path)
        return {name: _array(name, tensor, contents, order, path) for name, tensor in tensors.items()}


def is_pytorch(path: Path) -> bool:
    """Tell a file of torch.save's from others, by its first bytes or the names in its archive."""
    with files.regular_file(path) as (stream, _):
        start = stream.read(len(LEGACY_START))
        if not start.startswith(ARCHIVE_START):
            return start == LEGACY_START
        try:
            with _explaining_damage(path):
                names = zipfile.ZipFile(stream).namelist()
        except BadInput:  # cut off, perhaps: torch's first member is its pickle
            stream.seek(0)
            return PICKLE.encode() in stream.read(300)
    return any(name.rpartition("/")[2] == PICKLE for name in names)


def _explained(error: BadInput) -> BadInput:
    """The error with the advice for those who saved a whole model, whose class the pickle names."""
    if error.what.startswith(("holds torch.nn", "holds torchvision", "holds timm", "holds __main__")):
        advice = "a whole model was saved: save model.state_dict() where its program runs"
        return BadInput(error.what, where=error.where, found=error.found, advice=advice)
    return error


def _archive(stream: BinaryIO, size: int, path: Path) -> tuple[Any, Contents, str]:
    """The value of an archive, what reads its storages, and their byte order, "<" or ">"."""
    members = _Members(stream, size, path)
    value, _ = read_pickle(memoryview(members.read(PICKLE)), path, KNOWN, lambda key: _storage(key, path))
    order = members.read(BYTE_ORDER).decode("latin-1") if BYTE_ORDER in members.names else "little"
    if order not in ("little", "big"):
        raise BadInput("the archive names an unknown byte order", where=path, found=repr(order[:20]))
    return value, lambda storage: members.numbers(storage.key), "<" if order == "little" else ">"


class _Members:
    """The members of an archive, each read once, and together no longer than the file."""

    def __init__(self, stream: BinaryIO, size: int, path: Path) -> None:
        self._path = path
        self._left = size
        self._numbers: dict[str, memoryview] = {}
        with _explaining_damage(path):
            self._archive = zipfile.ZipFile(stream)
        self.names = {name.partition("/")[2]: name for name in self._archive.namelist()}
        if TORCHSCRIPT in self.names:
            advice = "save model.state_dict() where its program runs"
            raise BadInput("a TorchScript archive, whose code is not run here", where=path, advice=advice)

    def numbers(self, key: str) -> memoryview:
        if key not in self._numbers:
            self._numbers[key] = memoryview(self.read(f"data/{key}"))
        return self._numbers[key]

    def read(self, name: str) -> bytes:
        if name not in self.names:
            raise BadInput(f"the archive has no {name[:80]!a}", where=self._path, advice="copy or download it again")
        member = self._archive.getinfo(self.names[name])
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise BadInput(f"{name[:80]!a} is compressed, which torch.save does to nothing", where=self._path)
        self._left -= member.file_size
        if self._left < 0:
            raise BadInput("the archive's members are larger than the archive", where=self._path)
        with _explaining_damage(self._path):
            return self._archive.read(member)


@contextlib.contextmanager
def _explaining_damage(path: Path) -> Iterator[None]:
    try:
        yield
    # What zipfile raises for damage of all kinds; RuntimeError where a member says that it is encrypted.
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        reason = ascii(str(error))[1:-1][:120]
        raise BadInput(f"the archive is damaged ({reason})", where=path, advice="copy or download it again") from error


def _legacy(content: bytes, path: Path) -> tuple[Any, Contents, str]:
    """The value of a file of before torch 1.6, what gives its storages, and their byte order."""
    rest = memoryview(content)[len(LEGACY_START) :]
    storages: dict[str, _Storage] = {}

    def remembered(key: object) -> _Storage:
        storage = _storage(key, path)
        root = storages.setdefault(storage.key, replace(storage, first=0))
        if root.kind != storage.kind:
            raise BadInput("a storage has two types", where=path, found=f"{root.kind} and {storage.kind}")
        return storage

    values = []
    for persistent in (None, None, remembered, None):  # version, system, value, keys of the storages
        value, length = read_pickle(rest, path, KNOWN, persistent)
        values.append(value)
        rest = rest[length:]
    _, system, value, keys = values
    if not isinstance(system, dict) or not isinstance(keys, list):
        raise BadInput("the file is damaged", where=path, advice="copy or download it again")
    contents = _numbers_behind(rest, keys, storages, path)
    return value, lambda storage: contents[storage.key], "<" if system.get("little_endian", True) else ">"


def _numbers_behind(
    rest: memoryview, keys: list[Any], storages: Mapping[str, _Storage], path: Path
) -> dict[str, memoryview]:
    """Every storage of an old file, in the order of its keys."""
    contents: dict[str, memoryview] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in contents:
            raise BadInput("the file holds numbers of no tensor", where=path)
        needed = storage.count * _item_bytes(storage.kind)
        if len(rest) < 8 + needed:
            raise BadInput("the file ends before its numbers do", where=path, advice="copy or download it again")
        if struct.unpack("<Q", rest[:8])[0] != storage.count:
            raise BadInput("a storage has another length than its tensors say", where=path, expected=storage.count)
        contents[key] = rest[8 : 8 + needed]
        rest = rest[8 + needed :]
    missing = storages.keys() - contents.keys()
    if missing:
        raise BadInput("the numbers of a tensor are missing", where=path, found=first_few(sorted(missing)))
    return contents


def _storage(key: object, path: Path) -> _Storage:
    """The storage that a persistent id refers to."""
    match key:
        case ("storage", Name(text), str(place), _, int(count), *view) if 0 <= count < MOST_NUMBERS:
            kind = _KINDS_OF_STORAGES.get(text)
            if kind is None:
                raise BadInput("a storage has a type that weights do not have", where=path, found=text)
            match view:
                case [] | [None]:
                    return _Storage(place, kind, count)
                case [(str(), int(first), int(length))] if first >= 0 and 0 <= length <= count - first:
                    return _Storage(place, kind, count, first)
    raise BadInput("the pickle refers to something that is no storage", where=path)


def _dictionary(arguments: tuple[Any, ...]) -> object:
    """An OrderedDict: empty, its items to follow, or as Python 2 made it, of a list of pairs."""
    match arguments:
        case ():
            return {}
        case (list(pairs),) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            if all(isinstance(key, str) for key, _ in pairs):
                return dict(pairs)
    raise ValueError


def _tensor(arguments: tuple[Any, ...]) -> object:
    """`torch._utils._rebuild_tensor_v2`: a view of a storage."""
    match arguments:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), _, *metadata):
            fits = _are_counts((offset, *shape, *strides)) and len(shape) == len(strides) <= MOST_AXES
            if fits and math.prod(max(1, length) for length in shape) < MOST_NUMBERS and not _changes(metadata):
                return _Tensor(storage, storage.kind, storage.first + offset, shape, strides)
    raise ValueError


def _tensor_of_type(arguments: tuple[Any, ...]) -> object:
    """`torch._utils._rebuild_tensor_v3`: a view of bytes, of the type named behind the others' arguments."""
    match arguments:
        case (_Storage() as storage, offset, shape, strides, grad, hooks, Name(text), *metadata):
            kind = UNTYPED.get(text.removeprefix("torch."))
            if kind is not None:
                typed = _Storage(storage.key, kind, storage.count // int(kind[1]))
                return _tensor((typed, offset, shape, strides, grad, hooks, *metadata))
    raise ValueError


def _parameter(arguments: tuple[Any, ...]) -> object:
    """`torch._utils._rebuild_parameter`: the tensor itself."""
    match arguments:
        case (_Tensor() as tensor, bool(), *_):
            return tensor
    raise ValueError


def _are_counts(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < MOST_NUMBERS for number in numbers)


def _changes(metadata: list[Any]) -> bool:
    """True where a view's numbers are others than the storage's: negated, or conjugate."""
    return any(entry is not None and (not isinstance(entry, dict) or any(entry.values())) for entry in metadata)


_KINDS_OF_STORAGES = {f"torch.{name}Storage": kind for name, kind in STORAGES.items()}
_KINDS_OF_STORAGES["torch.storage.UntypedStorage"] = "u1"
KNOWN: dict[str, Maker | None] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": lambda arguments: {},
    "torch._utils._rebuild_tensor": lambda arguments: _tensor((*arguments, False, None)),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": lambda arguments: tuple(arguments[0]) if arguments and isinstance(arguments[0], tuple) else (),
    **dict.fromkeys(_KINDS_OF_STORAGES),
    **dict.fromkeys(f"torch.{name}" for name in DTYPES),
    **dict.fromkeys(("builtins.dict", "__builtin__.dict")),
    # What training programs save beside the state dict: their options, and figures that NumPy computed.
    **{
        name: instance_of(name)
        for name in (
            "argparse.Namespace", "torch.device", "numpy.dtype", "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar", "_codecs.encode", "pathlib.PosixPath", "pathlib.WindowsPath",
        )
    },
}  # fmt: skip
"""Every name that a file may hold. The functions are ours; those that make an `Instance` leave it in pieces."""


def _state_dict(value: Any, path: Path) -> dict[str, _Tensor]:
    """The tensors of the state dict in a value, without the prefix that all of them have."""
    trail: list[str] = []
    while isinstance(value, dict) and len(trail) < DEEPEST and (wrapper := _wrapper(value)) is not None:
        value = value[wrapper]
        trail.append(wrapper)
    tensors = {}
    if isinstance(value, dict):
        tensors = {name: item for name, item in value.items() if isinstance(item, _Tensor) and name != AVERAGED}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        found = first_few([str(name) for name in value]) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise BadInput("the file holds no state dict", where=path, expected="tensors by name", found=found)
    if trail:
        log.info("%s: the weights are those of its %s", path, " in ".join(map(repr, reversed(trail))))
    return _without_prefixes(tensors)


def _wrapper(value: dict[Any, Any]) -> str | None:
    """The key of a program's dictionary under which the state dict stands; None where this is it."""
    inner = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, dict)}
    known = next((name for name in WRAPPERS if name in inner), None)
    with_tensors = [name for name, item in inner.items() if any(isinstance(entry, _Tensor) for entry in item.values())]
    return known or (with_tensors[0] if len(with_tensors) == 1 else None)


def _without_prefixes(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    while (prefix := next((start for start in PREFIXES if all(map(_beginning(start), tensors))), None)) is not None:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _beginning(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def _item_bytes(kind: str) -> int:
    return 2 if kind == BFLOAT16 else np.dtype(kind).itemsize


def _require_bounded(tensors: Mapping[str, _Tensor], size: int, path: Path) -> None:
    """Raise BadInput where the arrays would take far more memory than the file: many views of the same numbers."""
    needed = sum(math.prod(tensor.shape) * _item_bytes(tensor.kind) for tensor in tensors.values())
    if needed > MOST_COPIES * size:
        found = f"{needed:,} bytes of arrays in a file of {size:,}"
        raise BadInput("the tensors share their numbers beyond measure", where=path, found=found)


def _array(name: str, tensor: _Tensor, contents: Contents, order: str, path: Path) -> AnyArray:
    """The numbers of a tensor, in the machine's byte order."""
    count = math.prod(tensor.shape)
    if not count:
        return np.zeros(tensor.shape, "f4" if tensor.kind == BFLOAT16 else tensor.kind)
    stored = np.dtype(order + ("u2" if tensor.kind == BFLOAT16 else tensor.kind))
    content = contents(tensor.storage)
    room = min(tensor.storage.count, len(content) // stored.itemsize)
    last = tensor.offset + sum(
        (length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if last >= room or count > room:
        found = f"shape {tensor.shape}, strides {tensor.strides} from {tensor.offset:,} on, in {room:,} numbers"
        raise BadInput(f"the tensor {name[:80]!a} reaches outside its storage", where=path, found=found)
    numbers = np.frombuffer(content, stored, room)[tensor.offset :]
    strides = [stride * stored.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
    if tensor.kind == BFLOAT16:  # the upper half of the float32 of the same value
        return np.asarray(np.left_shift(view, 16, dtype=np.uint32)).view(np.float32)
    return view.astype(stored.newbyteorder("="), copy=False)
