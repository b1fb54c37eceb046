"""Files of torch.save read without torch: equal to what torch reads, bounded, and nothing executed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.pytorch_file import LEGACY_START, read_pytorch
from imagenet_pipeline.interchange.weights import read_weights

torch = pytest.importorskip("imagenet_pipeline.engines.pytorch.runtime").torch

REAL = ("float64", "float32", "float16", "bfloat16")
WHOLE = ("int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64")


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def saved(value: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def read(path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    return read_pytorch(path)


def message(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
    return str(caught.value)


def tensors(seed: int) -> dict[str, Any]:
    """Tensors of all kinds: types, views, shared storages, none."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    base = torch.randn(4, 5, 6, 7, generator=generator)
    for number in range(draw.randint(1, 6)):
        shape = [draw.randint(0, 4) for _ in range(draw.randint(0, 4))]
        kind = draw.choice((*REAL, *WHOLE))
        plain = (100 * torch.rand(shape, generator=generator)).to(getattr(torch, kind))
        made[f"layer{number}.{kind}"] = torch.nn.Parameter(plain) if kind in REAL and draw.random() < 0.5 else plain
    made["view"] = base[1:, ::2, draw.randint(0, 2)]
    made["turned"] = base.permute(2, 0, 3, 1)
    made["last"] = base.to(memory_format=torch.channels_last)
    made["tied"] = base
    return made


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans())
def test_tensors_are_those_that_were_saved(tmp_path_factory: pytest.TempPathFactory, seed: int, legacy: bool) -> None:
    given = tensors(seed)
    if legacy:  # which has no storages for these
        given = {name: tensor for name, tensor in given.items() if "uint16" not in name and "uint32" not in name}
        given = {name: tensor for name, tensor in given.items() if "uint64" not in name}
    found = read(tmp_path_factory.getbasetemp() / "w.pth", saved(given, legacy))
    assert list(found) == list(given)
    for name, tensor in given.items():
        wanted = tensor.detach()
        wanted = (wanted.float() if wanted.dtype == torch.bfloat16 else wanted).numpy()
        assert found[name].dtype == wanted.dtype, name
        np.testing.assert_array_equal(found[name], wanted)


def network() -> Any:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state, module: state,
        lambda state, module: dict(state),
        lambda state, module: {"state_dict": state, "epoch": 3, "best_acc1": torch.tensor(0.5)},
        lambda state, module: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state, module: {
            "model": {name: 0 * tensor for name, tensor in state.items()},
            "model_ema": {
                "n_averaged": torch.tensor(3),
                **{f"module.module.{name}": tensor for name, tensor in state.items()},
            },
            "optimizer": torch.optim.SGD(module.parameters(), 0.1, momentum=0.9).state_dict(),
            "accuracy": np.float64(0.5),
        },
        lambda state, module: {"step": 3, "my weights": state, "options": {"rate": 0.1}},
        lambda state, module: {"state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=[
        "state dict",
        "dict",
        "PyTorch's example",
        "DataParallel",
        "torchvision's references",
        "another key",
        "Lightning",
    ],
)
def test_a_state_dict_is_found_where_programs_put_it(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    module = network()
    (tmp_path / "w.pth").write_bytes(saved(wrap(module.state_dict(), module), legacy))
    found = read_weights(tmp_path / "w.pth")
    assert list(found) == [name for name in module.state_dict() if "num_batches" not in name]
    for name, array in found.items():
        np.testing.assert_array_equal(array, module.state_dict()[name].numpy())


def test_what_was_taken_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(tmp_path / "w.pth", saved({"model": {"state_dict": network().state_dict()}, "model_ema": None}))
    assert caplog.messages == [f"{tmp_path / 'w.pth'}: the weights are those of its 'state_dict' in 'model'"]


def test_the_programs_options_are_left_in_pieces(tmp_path: Path) -> None:
    import argparse

    options = argparse.Namespace(lr=0.1, output=Path("out"), device=torch.device("cpu"))
    value = {"args": options, "state_dict": {"a": torch.ones(2)}}
    np.testing.assert_array_equal(read(tmp_path / "w.pth", saved(value))["a"], [1, 1])


@pytest.mark.parametrize("name", ["w.pth", "w.params", "w.safetensors", "w.npz"])
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_executed_whatever_the_file_is_called(tmp_path: Path, name: str, legacy: bool) -> None:
    value = {"a": torch.ones(2), "b": Command(tmp_path / "made")}
    says = message(tmp_path / name, saved(value, legacy))
    assert says == f"{tmp_path / name}: holds posix.system, which no file of weights has: nothing was executed"
    assert "not a file of weights" in message(tmp_path / name, pickle.dumps(value["b"]))
    assert not (tmp_path / "made").exists()


def test_a_whole_model_is_refused_with_advice(tmp_path: Path) -> None:
    for legacy in (False, True):
        says = message(tmp_path / "w.pth", saved(network(), legacy))
        assert "holds torch.nn.modules.container.Sequential, which no file of weights has: nothing was executed" in says
        assert says.endswith("a whole model was saved: save model.state_dict() where its program runs")
    stream = io.BytesIO()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(network()), stream)
    assert "a TorchScript archive" in message(tmp_path / "w.pth", stream.getvalue())


def test_what_stands_beside_another_dictionary_of_tensors_is_unclear(tmp_path: Path) -> None:
    state = network().state_dict()
    says = message(tmp_path / "w.pth", saved({"generator": state, "discriminator": state}))
    assert says.endswith("no state dict; expected tensors by name; found generator, discriminator (2 in all)")


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in members.items():
            made.writestr(f"archive/{name}", content)
    return stream.getvalue()


class Pieces(pickle.Pickler):
    """Writes a pickle of tensors as torch would, whatever they claim."""

    def persistent_id(self, item: Any) -> Any:
        return item.id if isinstance(item, Stored) else None


class Stored:
    def __init__(self, *id: Any) -> None:
        self.id = id


class View:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


def forged(
    offset: Any = 0,
    shape: Any = (2,),
    strides: Any = (1,),
    count: Any = 4,
    stored: bytes = bytes(16),
    kind: Any = torch.FloatStorage,
    metadata: tuple[Any, ...] = (),
) -> bytes:
    stream = io.BytesIO()
    view = View(Stored("storage", kind, "0", "cpu", count), offset, shape, strides, False, {}, *metadata)
    Pieces(stream, 2).dump({"a": view})
    return archive({"data.pkl": stream.getvalue(), "data/0": stored})


def test_the_forger_can_write_what_is_read(tmp_path: Path) -> None:
    found = read(tmp_path / "w.pth", forged(1, (2, 1), (2, 9), stored=np.arange(4, dtype="<f4").tobytes()))
    np.testing.assert_array_equal(found["a"], [[1], [3]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (forged(shape=(5,)), "reaches outside its storage"),
        (forged(offset=3), "reaches outside its storage"),
        (forged(strides=(4,)), "reaches outside its storage"),
        (forged(stored=bytes(4)), "reaches outside its storage"),
        (forged(shape=(1000, 1000), strides=(0, 0)), "beyond measure"),
        (forged(shape=(5,), strides=(0,)), "reaches outside its storage"),
        (forged(shape=(2**62,), strides=(0,)), "damaged"),
        (forged(shape=(0, 2**40, 2**40), strides=(0, 0, 0)), "damaged"),
        (forged(shape=(1,) * 33, strides=(1,) * 33), "damaged"),
        (forged(shape=(-1,)), "damaged"),
        (forged(offset=-1), "damaged"),
        (forged(shape=(2, 2)), "damaged"),
        (forged(shape=(2.0,)), "damaged"),
        (forged(shape=[2]), "damaged"),
        (forged(metadata=({"neg": True},)), "damaged"),
        (forged(count=2**62), "refers to something that is no storage"),
        (forged(count=-1), "refers to something that is no storage"),
        (forged(kind=torch.Size), "a storage has a type that weights do not have; found torch.Size"),
        (archive({"data.pkl": pickle.dumps({"a": 1}, 2)}), "holds no state dict; expected tensors by name; found a"),
        (archive({"data.pkl": pickle.dumps([1], 2)}), "holds no state dict; expected tensors by name; found a list"),
        (archive({"data.pkl": b""}), "ends before it is whole"),
        (archive({"data.pkl": forged()}, zipfile.ZIP_DEFLATED), "'data.pkl' is compressed"),
        (archive({"data.pkl": pickle.dumps({}, 2), "byteorder": b"odd"}), "unknown byte order"),
        (archive({"other": b""}), "a ZIP archive that neither torch.save nor NumPy made"),
        (forged()[:-30], "the archive is damaged"),
        (LEGACY_START, "the pickle ends before it is whole"),
        (LEGACY_START + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + pickle.dumps({}, 2) + b"N.", "damaged"),
    ],
)
def test_what_reaches_too_far_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in message(tmp_path / "w.pth", content)


def test_a_missing_storage_is_named(tmp_path: Path) -> None:
    content = forged().replace(b"archive/data/0", b"archive/data/1")
    assert "the archive has no 'data/0'; copy or download it again" in message(tmp_path / "w.pth", content)


def test_a_few_numbers_cannot_become_a_giant(tmp_path: Path) -> None:
    """Ten thousand views of the same megabyte are refused before anything is allocated."""
    stream = io.BytesIO()
    storage = Stored("storage", torch.FloatStorage, "0", "cpu", 2**18)
    views = {f"a{number}": View(storage, 0, (2**18,), (1,), False, {}) for number in range(10_000)}
    Pieces(stream, 2).dump(views)
    content = archive({"data.pkl": stream.getvalue(), "data/0": bytes(2**20)})
    assert "share their numbers beyond measure" in message(tmp_path / "w.pth", content)


def test_archives_whose_members_overlap_are_no_larger_than_the_file(tmp_path: Path) -> None:
    """Many entries of the directory point to the same megabyte."""
    stream, numbers = io.BytesIO(), bytes(2**20)
    made = {
        f"a{number}": View(Stored("storage", torch.FloatStorage, f"{number}", "cpu", 2**18), 0, (1,), (1,), False, {})
        for number in range(50)
    }
    Pieces(stream, 2).dump(made)
    content = archive({"data.pkl": stream.getvalue(), "data/0": numbers, **{f"data/{n}": b"" for n in range(1, 50)}})
    directory = content.index(b"PK\x01\x02")
    entries = content[directory:].split(b"PK\x01\x02")[1:]
    first = next(entry for entry in entries if entry[42:].startswith(b"archive/data/0"))
    forged_entries = [
        first[:42] + entry[42:] if entry[42:].startswith(b"archive/data/") else entry for entry in entries
    ]
    content = content[:directory] + b"".join(b"PK\x01\x02" + entry for entry in forged_entries)
    assert "damaged" in message(tmp_path / "w.pth", content) or "larger than the archive" in message(
        tmp_path / "w.pth", content
    )


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.booleans())
def test_damage_gives_equal_arrays_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, seed: int, legacy: bool
) -> None:
    draw = random.Random(seed)
    given = {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "b": torch.nn.Parameter(torch.ones(3)),
        "c": torch.ones(2, 2).T,
    }
    content = bytearray(saved(given, legacy))
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.2:
        del content[draw.randrange(len(content)) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(BadInput):
        found = read_weights(path)
        assert sum(array.nbytes for array in found.values()) <= 4 * len(content)
        if not legacy:  # whose numbers have no checksum
            for array in found.values():
                assert any(np.array_equal(array.ravel(), tensor.detach().numpy().ravel()) for tensor in given.values())


def test_the_order_of_bytes_is_the_files(tmp_path: Path) -> None:
    given = {"a": torch.arange(3.0), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}
    with zipfile.ZipFile(io.BytesIO(saved(given))) as made:
        members = {name.partition("/")[2]: made.read(name) for name in made.namelist()}
    turned = {**members, "byteorder": b"big"}
    turned["data/0"] = np.frombuffer(members["data/0"], "<f4").byteswap().tobytes()
    turned["data/1"] = np.frombuffer(members["data/1"], "<u2").byteswap().tobytes()
    found = read(tmp_path / "w.pth", archive(turned))
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    np.testing.assert_array_equal(found["b"], [1.5, -2])


def test_arrays_that_lie_in_order_are_what_was_read(tmp_path: Path) -> None:
    """A file of a gigabyte needs no second one."""
    assert not read(tmp_path / "w.pth", saved({"a": torch.ones(10, 10)}))["a"].flags.owndata


def of_python_2(items: list[tuple[str, bytes]]) -> bytes:
    """A pickle of Python 2 of an OrderedDict: texts of bytes, and the pairs in a list for the constructor."""
    pairs = b"".join(b"]" + b"(U" + bytes([len(name)]) + name.encode() + value + b"e" for name, value in items)
    return b"\x80\x02ccollections\nOrderedDict\n](" + pairs + b"e\x85R."


def rebuilt(key: str, count: int, function: str, more: bytes) -> bytes:
    """A call of one of torch's functions for a vector of float32 that is all of a storage."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU" + bytes([len(key)]) + key.encode() + b"U\x03cpu"
    storage += b"K" + bytes([count]) + b"NtQ"
    view = b"K\x00K" + bytes([count]) + b"\x85K\x01\x85"
    return f"ctorch._utils\n{function}\n(".encode() + storage + view + more + b"tR"


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    """torchvision's first files: `_rebuild_tensor` without flags, or with them."""
    empty = b"ccollections\nOrderedDict\n)R"
    items = [
        ("a", rebuilt("7", 3, "_rebuild_tensor", b"")),
        ("b", rebuilt("8", 1, "_rebuild_tensor_v2", b"\x89" + empty)),
    ]
    system = pickle.dumps({"little_endian": True}, 2)
    keys = b"\x80\x02](U\x018U\x017e."
    numbers = struct.pack("<Qf", 1, 9) + struct.pack("<Qfff", 3, 0, 1, 2)
    content = LEGACY_START + pickle.dumps(1001, 2) + system + of_python_2(items) + keys + numbers
    found = read(tmp_path / "w.pth", content)
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    np.testing.assert_array_equal(found["b"], [9])
    assert "the file ends before its numbers do" in message(tmp_path / "w.pth", content[:-4])
    longer = content.replace(struct.pack("<Q", 3), struct.pack("<Q", 2))
    assert "another length" in message(tmp_path / "w.pth", longer)
    missing = content.replace(keys, b"\x80\x02](U\x018e.")
    assert "the numbers of a tensor are missing; found 7" in message(tmp_path / "w.pth", missing)
    foreign = content.replace(keys, b"\x80\x02](U\x019e.")
    assert "numbers of no tensor" in message(tmp_path / "w.pth", foreign)
