"""Words of `devices`, the engine that GPUs are asked of, and the end of a device's memory. GPUs are feigned."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline import engines
from imagenet_pipeline.config import Recipe, load_recipe
from imagenet_pipeline.engines import Blueprint, Engine, devices, launch_ranks
from imagenet_pipeline.engines.devices import naming_memory, parse_devices, require_gpus, tell_automatic
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, is_out_of_memory
from imagenet_pipeline.networks.layers import Dense, Flatten, Sequential, stack
from imagenet_pipeline.training.engine_setup import with_engine

REPOSITORY = Path(__file__).resolve().parents[2]
LINEAR = stack(flatten=Flatten(), classifier=Dense(7))
MakeEngine = Callable[..., Engine]


def test_gpu_all_is_every_gpu_there_is() -> None:
    assert parse_devices("gpu:all", 3, "") == ("gpu", ["0", "1", "2"])
    assert parse_devices("gpu:all", 0, "") == ("gpu", ["0"])  # which is then said not to be there


@pytest.fixture
def feigned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`feigned(gluon=0, pytorch=4)`: both engines are installed and see so many GPUs."""

    def feign(**seen: int) -> None:
        monkeypatch.setattr(engines, "is_installed", lambda _: True)
        monkeypatch.setattr(devices, "is_installed", lambda _: True)
        monkeypatch.setattr(engines, "may_have_gpus", lambda: any(seen.values()))
        monkeypatch.setattr(engines, "gpus_seen", seen.__getitem__)
        monkeypatch.setattr(devices, "gpus_seen", seen.__getitem__)

    return feign


@pytest.mark.parametrize(
    ("words", "seen", "line"),
    [
        (["0"], {"gluon": 0, "pytorch": 1}, "no GPU that MXNet can use (a reason); engine=pytorch can use 1 GPU"),
        (["0", "3"], {"gluon": 2, "pytorch": 4}, "3; found 2 GPUs that MXNet can use; engine=pytorch can use 4"),
        (["0", "3"], {"gluon": 2, "pytorch": 2}, "can use; devices=gpu:all takes all there are, devices=cpu"),
        (["0"], {"gluon": 0, "pytorch": 0}, "gpu': there is no GPU that MXNet can use (a reason); devices=cpu"),
    ],
)  # fmt: skip
def test_the_engine_that_sees_the_gpus_is_named(
    words: list[str], seen: dict[str, int], line: str, feigned: Callable[..., None]
) -> None:
    feigned(**seen)
    with pytest.raises(BadRecipe) as raised:
        require_gpus("gpu", words, "gluon", seen["gluon"], lambda: "a reason")
    assert line in str(raised.value)
    require_gpus("gpu:0", ["0"], "gluon", 1, lambda: "")


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "config" / "imagenet").glob("*.toml")), ids=lambda file: file.stem
)
def test_shipped_recipes_run_on_gpus_that_mxnet_does_not_know(file: Path, feigned: Callable[..., None]) -> None:
    feigned(gluon=0, pytorch=8)
    for overrides in ({}, {"devices": "auto"}, {"devices": "gpu:all"}):
        assert with_engine(load_recipe(file, overrides)).engine == "pytorch"


def test_auto_takes_the_engine_that_sees_a_gpu(feigned: Callable[..., None]) -> None:
    recipe = Recipe(network="lenet", records="", devices="auto")
    chosen = []
    for seen in ({"gluon": 0, "pytorch": 2}, {"gluon": 2, "pytorch": 2}, {"gluon": 0, "pytorch": 0}):
        feigned(**seen)
        chosen.append(with_engine(recipe).engine)
    assert chosen == ["pytorch", "gluon", "gluon"]


def test_what_auto_leaves_idle_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        return "the driver is missing"

    tell_automatic.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            for shows_gpus in (True, False):
                monkeypatch.setattr(devices, "may_have_gpus", lambda shown=shows_gpus: shown)
                tell_automatic("pytorch", 4, missing)
                tell_automatic("gluon" if shows_gpus else "pytorch", 0, missing)
                tell_automatic("pytorch", 1, missing)
    assert caplog.messages == [
        "devices=auto: 1 of 4 GPUs; devices=gpu:all takes them all",
        "devices=auto: the CPU, since MXNet can use no GPU of this machine (the driver is missing)",
    ]


@pytest.mark.pytorch
@pytest.mark.parametrize(("gpus", "launched"), [(1, []), (2, ["gpu:all"])])
def test_gpu_all_launches_a_rank_for_each_of_several(
    gpus: int, launched: list[str], feigned: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    feigned(gluon=gpus, pytorch=gpus)
    asked: list[str] = []
    launch = importlib.import_module("imagenet_pipeline.engines.pytorch.launch")
    monkeypatch.setattr(launch, "launch", lambda devices, words: asked.append(devices))
    assert launch_ranks("pytorch", "gpu:all", ["train"]) is bool(launched)
    assert not launch_ranks("gluon", "gpu:all", ["train"])
    assert asked == launched


@pytest.mark.pytorch
@pytest.mark.parametrize(
    ("cuda", "fault", "reason"),
    [
        (None, None, "is built without CUDA"),
        ("12.8", "Found no NVIDIA driver on your system. Please check", "the NVIDIA driver is missing"),
        ("12.8", "The NVIDIA driver on your system is too old (found version 11040).", "too old for CUDA 12.8"),
        ("12.8", "CUDA unknown error", "the driver says: CUDA unknown error"),
        ("12.8", None, "there is none"),
    ],
)
def test_the_reason_why_pytorch_has_no_gpu(
    cuda: str | None, fault: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = importlib.import_module("imagenet_pipeline.engines.pytorch.runtime")

    def init() -> None:
        if fault:
            raise RuntimeError(fault)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtime.torch.version, "cuda", cuda)
    monkeypatch.setattr(runtime.torch.cuda, "init", init)
    monkeypatch.setattr(runtime.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BadRecipe, match=reason):
        runtime.parse_device("gpu")
    if cuda:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert runtime.why_no_gpu() == "CUDA_VISIBLE_DEVICES hides them"


def test_the_reason_why_mxnet_has_no_gpu(mx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = importlib.import_module("imagenet_pipeline.engines.gluon.runtime")

    def broken() -> int:
        raise mx.base.MXNetError("Traceback\nMXNetError: CUDA driver version is insufficient")

    def features(there: bool) -> Any:
        return lambda: type("Features", (), {"is_enabled": lambda self, name: there})()

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(mx.runtime, "Features", features(False))
    assert "is built without CUDA: pip install 'imagenet-pipeline[gluon-cu112]'" in runtime.why_no_gpu()
    monkeypatch.setattr(mx.runtime, "Features", features(True))
    monkeypatch.setattr(mx.context, "num_gpus", broken)
    assert runtime.gpu_count() == 0
    assert runtime.why_no_gpu().endswith("missing or too old: MXNetError: CUDA driver version is insufficient")
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 3)
    monkeypatch.setattr(runtime, "_is_known", lambda number: number < 1)
    assert runtime.gpu_count() == 1
    monkeypatch.setattr(runtime, "_is_known", lambda number: False)
    assert runtime.gpu_count() == 0
    assert "the GPU is newer" in runtime.why_no_gpu()


@pytest.mark.gluon
def test_gluon_refuses_tf32_by_name(make_engine: MakeEngine) -> None:
    with pytest.raises(BadRecipe, match="precision = 'tf32': the gluon engine"):
        make_engine(LINEAR, engine="gluon", precision="tf32")


@pytest.mark.parametrize(
    ("said", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 9 GiB", True),
        ("CUDA error: out of memory", True),
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you", True),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("Traceback\n  File cpu_device_storage.h, line 74\nMXNetError: Failed to allocate CPU Memory", True),
        ("MXNetError: Check failed: e == cudaSuccess (2 vs. 0) : cudaMalloc retry failed: out of memory", True),
        ("std::bad_alloc", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
        ("Connection closed by peer", False),
    ],
)  # fmt: skip
def test_frameworks_say_in_many_words_that_memory_is_out(said: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) is is_memory
    assert not is_out_of_memory(ValueError(said))
    assert not is_out_of_memory(OutOfRoom(said))
    assert is_out_of_memory(MemoryError())


@naming_memory
class Full:
    """As much of an engine as its memory takes; work that does not fit fails late, as MXNet's does."""

    name = "pytorch"
    device_names: tuple[str, ...] = ("gpu:0 (A100)", "gpu:1 (A100)")
    precision = "float32"

    def __init__(self, blueprint: Blueprint, values: Any) -> None:
        if values is None:
            raise RuntimeError("CUDA out of memory.")

    def train_batch(self, images: Any, labels: Any, learning_rate: float, seed: int, teacher: Any = None) -> None:
        if len(images) == 1:
            raise BadInput("out of memory", where="an error of ours")

    def score_batch(self, images: Any, labels: Any) -> None:
        raise MemoryError

    def totals(self) -> None:
        raise RuntimeError("CUDA out of memory.")

    def values(self) -> None:
        raise RuntimeError("another fault")


def blueprint(**keys: Any) -> Blueprint:
    recipe = Recipe(network="", records="", devices="gpu:0,1", **keys)
    return Blueprint(Sequential(()), 8, (0.0,) * 3, (1.0,) * 3, recipe)


def images(count: int) -> Any:
    return np.zeros((count, 8, 8, 3), np.uint8)


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(OutOfRoom) as raised:
        call()
    assert raised.value.exit_code == 5
    return str(raised.value)


def test_out_of_memory_says_how_much_was_asked_and_what_to_lower() -> None:
    engine = Full(blueprint(accumulation=2), {})
    engine.train_batch(images(48), None, 0.1, 0)
    assert message(engine.totals) == (
        "gpu:0 (A100), gpu:1 (A100): out of memory; found 12 images of 8x8 pixels on each device; lower batch_size or "
        "input.size, or take precision=bfloat16, or keep the batch with accumulation=4, which computes it in so many "
        "parts"
    )
    assert message(lambda: engine.score_batch(images=images(48), labels=None)).endswith(
        "found 24 images of 8x8 pixels on each device; lower batch_size, or take precision=bfloat16"
    )
    with pytest.raises(RuntimeError, match="another fault"):
        engine.values()
    with pytest.raises(BadInput, match="an error of ours"):
        engine.train_batch(images(1), None, 0.1, 0)
    assert message(lambda: Full(blueprint(), None)) == (
        "gpu:0 (A100), gpu:1 (A100): out of memory before the first batch; take a smaller network"
    )


def test_a_single_image_cannot_be_fewer() -> None:
    engine = Full(blueprint(), {})
    engine.device_names, engine.precision = ("cpu",), "bfloat16"
    assert message(lambda: engine.score_batch(images(1), None)) == (
        "cpu: out of memory; found 1 image of 8x8 pixels on the device; free some of it"
    )


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_an_absurd_batch_is_out_of_memory(engine: str, make_engine: MakeEngine) -> None:
    """Half a petabyte that takes no memory until it is copied."""
    made = make_engine(LINEAR, engine=engine)
    absurd = np.broadcast_to(np.zeros((), np.uint8), (2**40, 12, 12, 3))
    said = message(lambda: made.logits(absurd))
    assert "out of memory; found 1,099,511,627,776 images of 12x12 pixels on the device; lower batch_size" in said
    assert made.logits(images(2)[:, :1, :1].repeat(12, 1).repeat(12, 2)).shape == (2, 7)  # it lives on
