"""Files of weights: what is read, what is refused, and a training that starts from one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.interchange.network_symbol import symbol_names
from imagenet_pipeline.interchange.params import write_params
from imagenet_pipeline.interchange.weights import read_weights, starting_values, without_normalisation
from imagenet_pipeline.networks.initial import initial_values
from imagenet_pipeline.networks.layers import BatchNorm, Conv, Dense, Flatten, GlobalAveragePool, Tap, stack

Arrays = dict[str, np.ndarray[Any, Any]]
NETWORK = stack(
    conv=Conv(4, 3),
    auxiliary=Tap(stack(flatten=Flatten(), dense=Dense(2)), 0.3),
    norm=BatchNorm(),
    pool=GlobalAveragePool(),
    flatten=Flatten(),
    classifier=Dense(2),
)
SHAPE = (3, 6, 6)
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([0.5, -2.0], np.float16)}


def safetensors_file(header: dict[str, Any] | bytes, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def one(kind: str, shape: list[int], content: bytes, name: str = "a") -> bytes:
    return safetensors_file({name: {"dtype": kind, "shape": shape, "data_offsets": [0, len(content)]}}, content)


def refused(path: Path, content: bytes) -> str:
    """The message, one line, with which the file is refused."""
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 800
    return message


def test_safetensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(
        save({**ARRAYS, "a.double": np.array([1 / 3]), "a.none": np.zeros((0, 2), np.float32)})
    )
    found = read_weights(tmp_path / "w")
    assert {name: array.dtype.name for name, array in found.items()} == {
        "a.weight": "float32",
        "a.bias": "float32",
        "a.double": "float64",
        "a.none": "float32",
    }
    np.testing.assert_array_equal(found["a.weight"], ARRAYS["a.weight"])
    np.testing.assert_array_equal(found["a.bias"], [0.5, -2.0])
    assert found["a.none"].shape == (0, 2)


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(one("BF16", [2], np.array([0x3F80, 0xC020], "<u2").tobytes()))
    np.testing.assert_array_equal(read_weights(tmp_path / "w")["a"], np.array([1.0, -2.5], np.float32))
    (tmp_path / "w").write_bytes(one("BF16", [], np.array(0xC020, "<u2").tobytes()))
    assert read_weights(tmp_path / "w")["a"] == np.float32(-2.5)


def test_counters_of_batches_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save({**ARRAYS, "norm.num_batches_tracked": np.array(7)}))
    assert set(read_weights(tmp_path / "w")) == set(ARRAYS)


def test_params_are_known_by_their_content(tmp_path: Path) -> None:
    write_params(tmp_path / "w.safetensors", ARRAYS)
    found = read_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(found["a.weight"], ARRAYS["a.weight"])
    assert found["a.bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a file of weights"),
        (b"PK\x03\x04" + bytes(100), "found a ZIP archive that neither torch.save nor NumPy made"),
        (b"\x80\x02}q\x00." + bytes(20), "found a Python pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "found an HDF5 file"),
        (save(ARRAYS)[:-1], "damaged"),
        (save(ARRAYS) + b"\0", "damaged"),
        (struct.pack("<Q", 2**60) + b"{" + bytes(50), "damaged"),
        (one("F32", [2**62, 4], b""), "damaged"),
        (one("F32", [1] * 65, bytes(4)), "an impossible shape"),
        (one("F32", [0, 2**60, 2**60], b""), "an impossible shape"),
        (one("F32", [0, 2**63], b""), "an impossible shape"),
        (one("F32", [2**40, 2**23, 0], b""), "an impossible shape"),
        (one("F32", [2], b"1234"), "damaged"),
        (safetensors_file(b"{" * 50_000), "damaged"),
        (one("I32", [1], b"1234"), "type that weights do not have"),
        (one("I64", [1], bytes(8)), "holds no real numbers"),
        (one("F32", [1], np.array([np.nan], "<f4").tobytes()), "infinities or NaN"),
        (one("BF16", [1], b"\x80\x7f"), "infinities or NaN"),
        (one("F64", [1], np.array([1e300], "<f8").tobytes()), "infinities or NaN"),
        (one("F32", [1], bytes(4), "a\n\x1b[2J"), "cannot be the name of a parameter"),
        (one("F32", [1], bytes(4), "a" * 10_000), "cannot be the name of a parameter"),
        (one("F32", [1], bytes(4), ""), "cannot be the name of a parameter"),
        (one("\x1b[2J" * 999, [1], bytes(4)), "damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in refused(tmp_path / "w", content)


def test_a_number_without_axes_keeps_its_shape(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save({"gain": np.array(0.5, np.float32)}))
    assert read_weights(tmp_path / "w")["gain"].shape == ()


def test_a_file_that_is_not_there_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadInput, match="cannot be read"):
            read_weights(path)


@given(st.integers(0, 2**32))
def test_damage_gives_weights_or_one_line(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(save(ARRAYS))
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(BadInput):
        assert sum(array.size for array in read_weights(path).values()) <= len(content)


@pytest.fixture
def drawn() -> Arrays:
    return initial_values(NETWORK, SHAPE, "msra", 1)


def starts(path: Path, drawn: Arrays, arrays: Arrays) -> Arrays:
    path.write_bytes(save(arrays))
    return starting_values(path, read_weights(path), NETWORK, SHAPE, drawn)


def test_a_network_starts_from_the_file_alone(tmp_path: Path, drawn: Arrays) -> None:
    given = initial_values(NETWORK, SHAPE, "msra", 2)
    found = starts(tmp_path / "w", drawn, given)
    assert list(found) == list(drawn)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)


def test_auxiliary_classifiers_that_the_file_lacks_are_drawn(tmp_path: Path, drawn: Arrays) -> None:
    given = {
        name: array
        for name, array in initial_values(NETWORK, SHAPE, "msra", 2).items()
        if not name.startswith("auxiliary")
    }
    found = starts(tmp_path / "w", drawn, given)
    np.testing.assert_array_equal(found["auxiliary.dense.weight"], drawn["auxiliary.dense.weight"])
    np.testing.assert_array_equal(found["conv.weight"], given["conv.weight"])


def test_our_mxnet_export_is_a_start_too_and_says_how_it_was_fed(tmp_path: Path, drawn: Arrays) -> None:
    given = initial_values(NETWORK, SHAPE, "msra", 2)
    theirs = {new: given[ours] for ours, new in symbol_names(NETWORK, SHAPE).items()}
    theirs["arg:normalisation_mean"] = np.array([123.5, 117, 104], np.float32).reshape(1, 3, 1, 1)
    theirs["arg:normalisation_std"] = np.full((1, 3, 1, 1), 58.25, np.float32)
    write_params(tmp_path / "w", theirs)
    arrays, normalisation = without_normalisation(tmp_path / "w", read_weights(tmp_path / "w"))
    assert normalisation == ((123.5, 117, 104), (58.25,) * 3)
    found = starting_values(tmp_path / "w", arrays, NETWORK, SHAPE, drawn)
    np.testing.assert_array_equal(found["norm.running_var"], given["norm.running_var"])
    np.testing.assert_array_equal(found["classifier.weight"], given["classifier.weight"])


def test_names_and_shapes_that_differ_are_listed(tmp_path: Path, drawn: Arrays) -> None:
    given = {**drawn, "classifier.weight": np.zeros((9, 4), np.float32), "other": np.zeros(1, np.float32)}
    del given["conv.bias"]
    with pytest.raises(BadInput) as caught:
        starts(tmp_path / "w", drawn, given)
    for words in ("conv.bias missing", "other not in this", "(9, 4), not (2, 4)", str(tmp_path / "w"), "3 in all"):
        assert words in str(caught.value)


def test_another_graph_s_names_are_shown_beside_the_network_s(tmp_path: Path, drawn: Arrays) -> None:
    values = [drawn[name] for name in symbol_names(NETWORK, SHAPE)]
    write_params(tmp_path / "w", {f"arg:fire{number}_weight": value for number, value in enumerate(values)})
    with pytest.raises(BadInput) as caught:
        starting_values(tmp_path / "w", read_weights(tmp_path / "w"), NETWORK, SHAPE, drawn)
    assert str(caught.value) == (
        f"{tmp_path / 'w'}: the arrays are not named like this network's parameters; expected conv.weight, conv.bias, "
        "norm.weight, ... (8 in all); found arg:fire0_weight, arg:fire1_weight, arg:fire2_weight, ... (8 in all); "
        "import it with its -symbol.json, then give RUN/checkpoints/epoch-0000/weights.safetensors"
    )
    with pytest.raises(BadInput, match=r"found a\.bias, a\.weight \(2 in all\)$"):
        starts(tmp_path / "w", drawn, ARRAYS)


def test_as_many_classes_as_the_file_has_are_needed(tmp_path: Path, drawn: Arrays) -> None:
    more = {"classifier.weight": np.zeros((9, 4), np.float32), "classifier.bias": np.zeros(9, np.float32)}
    with pytest.raises(BadInput) as caught:
        starts(tmp_path / "w", drawn, {**drawn, **more, "auxiliary.dense.bias": more["classifier.bias"]})
    assert str(caught.value) == (
        f"{tmp_path / 'w'}: the last layer was trained for another number of classes; expected 2; found 9; "
        "initial.new_head=true starts that layer anew and takes the others"
    )


def test_a_new_head_is_drawn_and_the_rest_is_the_file_s(tmp_path: Path, drawn: Arrays) -> None:
    head = [name for name in drawn if name.startswith(("classifier", "auxiliary"))]
    others = {"classifier.weight": np.zeros((9, 4), np.float32), "classifier.bias": np.zeros(9, np.float32)}
    given = {**initial_values(NETWORK, SHAPE, "msra", 2), **others}
    (tmp_path / "w").write_bytes(save(given))
    for content in (given, {name: array for name, array in given.items() if name not in head}):
        (tmp_path / "w").write_bytes(save(content))
        found = starting_values(tmp_path / "w", read_weights(tmp_path / "w"), NETWORK, SHAPE, drawn, head)
        assert list(found) == list(drawn)
        for name, array in found.items():
            np.testing.assert_array_equal(array, drawn[name] if name in head else given[name])


def test_a_new_head_excuses_nothing_else(tmp_path: Path, drawn: Arrays) -> None:
    (tmp_path / "w").write_bytes(save({**drawn, "conv.weight": np.zeros((5, 3, 3, 3), np.float32)}))
    with pytest.raises(BadInput, match=r"conv\.weight has shape \(5, 3, 3, 3\), not \(4, 3, 3, 3\) \(1 in all\)"):
        starting_values(
            tmp_path / "w",
            read_weights(tmp_path / "w"),
            NETWORK,
            SHAPE,
            drawn,
            ["classifier.weight", "classifier.bias"],
        )


def test_a_folder_is_met_with_the_file_in_it(tmp_path: Path, drawn: Arrays) -> None:
    with pytest.raises(
        BadInput,
        match=r": a folder is not a file of weights; give the file RUN/checkpoints/EPOCH/weights\.safetensors$",
    ):
        read_weights(tmp_path)


def test_a_scale_that_the_network_does_not_have_must_be_1(tmp_path: Path) -> None:
    network = stack(norm=BatchNorm(scale=False), flatten=Flatten(), classifier=Dense(2))
    given = initial_values(network, SHAPE, "msra", 2)
    (tmp_path / "w").write_bytes(save(given))
    assert (
        starting_values(tmp_path / "w", read_weights(tmp_path / "w"), network, SHAPE, given)["norm.weight"] == 1
    ).all()
    (tmp_path / "w").write_bytes(save({**given, "norm.weight": np.array([1, 1, 1.5], np.float32)}))
    with pytest.raises(BadInput, match=r"w: norm\.weight scales a normalisation that has no scale; expected 1"):
        starting_values(tmp_path / "w", read_weights(tmp_path / "w"), network, SHAPE, given)
