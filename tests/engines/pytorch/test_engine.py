"""The PyTorch engine beside the Gluon engine; precisions, devices, compilation, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from imagenet_pipeline.config import LossRecipe, Recipe
from imagenet_pipeline.engines import Blueprint, Engine
from imagenet_pipeline.engines.pytorch import engine as pytorch_engine
from imagenet_pipeline.engines.pytorch import runtime as pytorch_runtime
from imagenet_pipeline.engines.pytorch.engine import require_own_normalisation
from imagenet_pipeline.engines.pytorch.runtime import choose_precision, listed_devices, parse_device
from imagenet_pipeline.engines.pytorch.runtime import torch as pytorch
from imagenet_pipeline.engines.zoos import ZooNetwork
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Concat,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    LocalResponseNorm,
    Pool,
    Residual,
    Sequential,
    Tap,
    stack,
    without_taps,
)
from imagenet_pipeline.processes import RankedProcess, available_processors

Array = np.ndarray[Any, Any]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[dict[str, Array], dict[str, Array]], float]
torch: Any = pytorch
CPU = torch.device("cpu")
LINEAR = stack(flatten=Flatten(), classifier=Dense(7))


def head(weight: float) -> Tap:
    return Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(7)), weight)


TAPPED = stack(
    conv1=Conv(6, 3, pad=1, bias=False),
    norm=BatchNorm(momentum=0.5),
    relu=Activation("relu"),
    tap1=head(0.3),
    unit=Residual(stack(conv=Conv(6, 3, pad=1), prelu=Activation("prelu"))),
    relu2=Activation("relu"),
    branches=Concat((("elu", Activation("elu")), ("pool", Pool("max", 3, 1, 1)), ("conv", Conv(2, 1, groups=2)))),
    tap2=Tap(
        stack(pool=Pool("average", 4, 4), flat=Flatten(), dense=Dense(9, bias=False), norm=BatchNorm(), top=Dense(7)),
        2.0,
    ),
    pool=Pool("average", 3, 2, 1),
    tanh=Activation("tanh"),
    flatten=Flatten(),
    classifier=Dense(7),
)  # fmt: skip


def with_weight(network: Sequential, weight: float) -> Sequential:
    """The same, every tap of this weight."""
    return Sequential(
        tuple(
            (name, dataclasses.replace(item, weight=weight) if isinstance(item, Tap) else item)
            for name, item in network.items
        )
    )


def step(engine: Engine, batch: tuple[Any, Any]) -> dict[str, Array]:
    """How one step at rate 1 moves every value; the gradient, but for running statistics."""
    before = engine.values()
    engine.train_batch(*batch, 1.0, seed=0)
    return {name: before[name] - value for name, value in engine.values().items()}


PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "precision": "float64"}


@pytest.mark.gluon
@pytest.mark.parametrize("loss", [LossRecipe(), LossRecipe(label_smoothing=0.1), LossRecipe(kind="hinge")], ids=str)
def test_both_engines_agree_on_logits_losses_gradients_and_statistics(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, loss: LossRecipe
) -> None:
    batch = make_batch(5)
    gluon, pytorch = (make_engine(TAPPED, engine=name, loss=loss, **PLAIN) for name in ("gluon", "pytorch"))
    logits = {"logits": gluon.logits(batch[0])}
    assert logits["logits"].dtype == np.float64
    assert difference({"logits": pytorch.logits(batch[0])}, logits) < 1e-12
    moves = [step(engine, batch) for engine in (pytorch, gluon)]
    trained = [{name: value for name, value in one.items() if "running" not in name} for one in moves]
    assert difference(*trained) < 1e-9
    assert difference(*moves) < 1e-6  # MXNet keeps running statistics in float32
    assert pytorch.totals().step_losses == pytest.approx(gluon.totals().step_losses, rel=1e-12)
    for engine in (pytorch, gluon):
        engine.score_batch(*batch)
    assert pytorch.totals().step_losses == pytest.approx(gluon.totals().step_losses, rel=1e-6)


@pytest.mark.gluon
def test_both_engines_agree_on_response_normalisation(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference
) -> None:
    """In float32 only: MXNet's refuses float64."""
    network = stack(
        conv=Conv(7, 3), relu=Activation("relu"), norm=LocalResponseNorm(5, 0.5), flatten=Flatten(), top=Dense(7)
    )
    optimizer = {**PLAIN, "precision": "float32"}
    moves = [step(make_engine(network, engine=name, **optimizer), make_batch(5)) for name in ("gluon", "pytorch")]
    assert difference(*moves) < 2e-5


@pytest.mark.parametrize("engine", ["gluon", "pytorch"])
def test_taps_add_their_losses_to_the_gradient_and_to_nothing_else(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str
) -> None:
    batch = make_batch(5)
    engines = [make_engine(with_weight(TAPPED, weight), engine=engine, **PLAIN) for weight in (0.0, 1.0, 0.25)]
    without, whole, quarter = (step(one, batch) for one in engines)
    names = [name for name in without if "running" not in name]
    added = {name: whole[name] - without[name] for name in names}
    for name in names:
        np.testing.assert_allclose(4 * (quarter[name] - without[name]), added[name], rtol=1e-9, atol=1e-13)
    assert min(np.abs(added[name]).max() for name in names if name.startswith(("conv1", "norm", "tap"))) > 1e-3
    assert not any(added[name].any() for name in names if name.startswith("classifier"))

    values = make_engine(TAPPED, engine=engine, **PLAIN).values()
    bare = without_taps(TAPPED)
    main = make_engine(bare, engine=engine, values={n: v for n, v in values.items() if "tap" not in n}, **PLAIN)
    trunk = step(main, batch)
    assert difference({name: without[name] for name in trunk}, trunk) < 1e-12
    losses = [one.totals().step_losses for one in (*engines, main)]
    assert np.ptp(losses) < 1e-12 * losses[0][0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_equal_runs_give_equal_bytes(make_engine: MakeEngine, make_batch: MakeBatch, precision: str) -> None:
    skip_without(precision)
    network = Sequential((*TAPPED.items[:-1], ("drop", Dropout(0.5)), *TAPPED.items[-1:]))

    def trained() -> list[bytes]:
        engine = make_engine(network, engine="pytorch", precision=precision)
        for seed in range(3):
            engine.train_batch(*make_batch(6, seed), 0.1, seed)
        values = {**engine.values(), **engine.optimizer_state(), "losses": engine.totals().step_losses}
        return [value.tobytes() for value in values.values()]

    assert trained() == trained()


def test_images_are_not_copied_and_may_be_read_only(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    engine: Any = make_engine(LINEAR, engine="pytorch")
    images, labels = make_batch(3)
    assert np.shares_memory(engine._put(images).numpy(), images)
    engine.score_batch(images, labels)
    images.flags.writeable = labels.flags.writeable = False
    engine.score_batch(images, labels)
    engine.score_batch(images[:, :, ::-1], labels)
    losses = engine.totals().step_losses
    assert losses[0] == losses[1] != losses[2]


def skip_without(precision: str) -> None:
    try:
        choose_precision(precision, CPU)
    except BadRecipe:
        pytest.skip(f"this CPU has no fast {precision}")


def test_bfloat16_trains_as_float32_does(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    skip_without("bfloat16")
    engines = [make_engine(TAPPED, engine="pytorch", precision=one) for one in ("float32", "bfloat16")]
    for _ in range(30):
        for engine in engines:
            engine.train_batch(*make_batch(8), 0.02, seed=0)
    full, half = (engine.totals().step_losses for engine in engines)
    assert engines[1].precision == "bfloat16"
    assert all(value.dtype == np.float32 for value in engines[1].values().values())
    assert 0 < abs(half[0] - full[0]) < 0.02 * full[0]
    assert half[-1] < 0.5 * half[0]
    assert engines[1].logits(make_batch(8)[0]).dtype == np.float32


def test_the_constant_scale_of_float16_leaves_the_gradient_as_it_is(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, difference: Difference
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: True)
    full, half = (
        step(make_engine(LINEAR, size=4, engine="pytorch", **{**PLAIN, "precision": one}), make_batch(5, size=4))
        for one in ("float32", "float16")
    )
    assert 0 < difference(half, full) < 0.02


@pytest.mark.parametrize(
    ("amx", "avx512", "maker", "chosen"),
    [
        (True, False, "Intel(R) Xeon(R)", "bfloat16"),
        (False, True, "AMD EPYC", "bfloat16"),
        (False, True, "Intel(R) Xeon(R)", "float32"),
        (False, False, "AMD EPYC", "float32"),
    ],
)
def test_auto_takes_bfloat16_where_a_processor_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, maker: str, chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(pytorch_runtime, "processor_name", lambda: maker)
    assert choose_precision("auto", CPU) == chosen


@pytest.mark.parametrize(("capability", "chosen"), [((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_auto_takes_bfloat16_where_a_gpu_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda", 0)) == chosen


def test_a_precision_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False)
    with pytest.raises(BadRecipe, match=r"precision = 'float16': no fast float16 on this CPU; precision=auto takes"):
        choose_precision("float16", CPU)
    with pytest.raises(BadRecipe, match=r"precision = 'tf32': tf32 is for NVIDIA GPUs since Ampere; found a CPU"):
        choose_precision("tf32", CPU)


def test_a_precision_is_asked_of_the_very_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (7, 5)][device.index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ["H100", "Tesla T4"][device.index])
    assert [choose_precision("auto", device) for device in (newer, older)] == ["bfloat16", "float32"]
    for precision in ("bfloat16", "tf32"):
        assert choose_precision(precision, newer) == precision
        with pytest.raises(BadRecipe, match=rf"no fast {precision} on gpu:1 \(Tesla T4\)"):
            choose_precision(precision, older)
    assert choose_precision("float16", older) == "float16"


def test_tf32_is_in_force_while_its_engine_computes(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flags() -> set[bool]:
        return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}

    full = make_engine(LINEAR, size=4, engine="pytorch", **PLAIN)
    monkeypatch.setattr(pytorch_engine, "choose_precision", lambda *_: "tf32")
    rounded = make_engine(LINEAR, size=4, engine="pytorch", **PLAIN)
    rounded.train_batch(*make_batch(4, size=4), 0.1, seed=0)
    assert flags() == {True}
    assert {value.dtype for value in rounded.values().values()} == {np.dtype(np.float32)}
    full.score_batch(*make_batch(4, size=4))
    assert flags() == {False}


@pytest.mark.parametrize(
    "devices",
    [
        "tpu",
        "mps",
        "cpu:x",
        "cpu:-1",
        "cpu:0,0",
        "cpu:",
        "gpu:",
        "gpu:a",
        "cpu:all",
        "auto:all",
        "",
        "cpu,gpu",
        "CPU:²",
    ],
)
def test_a_devices_word_that_means_nothing_is_refused(devices: str) -> None:
    with pytest.raises(BadRecipe, match=r"cannot be read; expected auto, cpu, gpu, gpu:all, cpu:0,1 or"):
        parse_device(devices)


def test_devices_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("auto") == parse_device("gpu") == parse_device("gpu:0") == torch.device("cuda", 0)
    assert parse_device("gpu:1") == torch.device("cuda", 1)
    assert parse_device("cpu") == parse_device("cpu:0") == CPU
    assert listed_devices("gpu:all") == ("gpu", ["0", "1"])
    with pytest.raises(BadRecipe, match=r"a process for each device, and only one process runs; take devices=gpu:0"):
        parse_device("gpu:0,1")
    with pytest.raises(BadRecipe, match=r"no device number 2; found 2 GPUs"):
        parse_device("gpu:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert parse_device("auto") == CPU
    with pytest.raises(BadRecipe, match=r"devices = 'gpu': there is no GPU that PyTorch can use .*; devices=cpu runs"):
        parse_device("gpu")
    with pytest.raises(BadRecipe, match=r"no device number 1; found the one device cpu:0"):
        parse_device("cpu:1")


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    ranks = [RankedProcess(rank, 4, rank % 2, 2, launched=True) for rank in range(4)]  # two on each of two machines
    for devices, numbers in {"auto": [0, 1], "gpu": [0, 1], "gpu:3,1": [3, 1]}.items():
        assert [parse_device(devices, rank).index for rank in ranks] == numbers * 2
    assert (
        [parse_device("cpu:0,1", rank) for rank in ranks] == [parse_device("cpu", rank) for rank in ranks] == [CPU] * 4
    )
    for devices in ("gpu:0", "gpu:0,1,2", "cpu:0"):
        with pytest.raises(
            BadRecipe,
            match=r"the number of devices differs from the number of processes on this machine; expected 2, as many as",
        ):
            parse_device(devices, ranks[0])
    with pytest.raises(BadRecipe, match=r"no device number 4; found 4 GPUs"):
        parse_device("gpu:0,4", ranks[0])  # on every rank, not only on that which would use it
    with pytest.raises(BadRecipe, match=r"no device number 64; found cpu:0 to cpu:63, a process each"):
        parse_device("cpu:0,64", ranks[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadRecipe, match=r"no device number 1; found 1 GPU that"):
        parse_device("auto", ranks[1])


class Streams:
    """A GPU's streams as `torch.cuda` has them, which list what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: self._copying())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None, raising=False)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        self.calls.append("copy")
        yield

    def wait_stream(self, stream: Any) -> None:
        self.calls.append("step waits")

    def record_event(self) -> Any:
        self.calls.append("event")
        return self

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def test_a_gpu_s_copies_are_awaited_before_a_call_returns(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls alone, for want of a GPU: steps wait for copies, Python for the batch and an older step."""
    engine: Any = make_engine(LINEAR, engine="pytorch")
    streams = engine._copies = Streams(monkeypatch)
    put = ["copy", "step waits"] * 2
    for number in range(4):
        engine.train_batch(*make_batch(5), 0.1, 0)
        old_step = ["synchronize"] if number >= 2 else []
        assert streams.calls == [*put, "event", *old_step, "synchronize"]
        streams.calls.clear()
    read = engine.issue_logits(make_batch(5)[0])
    assert streams.calls == ["copy", "step waits", "event", "synchronize"]
    assert read().shape == (5, 7)
    assert streams.calls[4:] == ["synchronize"]


def test_memory_to_copy_from_that_cannot_be_had_is_a_memory_error(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = make_engine(LINEAR, engine="pytorch")
    assert engine.host_array((2, 3), np.float32).shape == (2, 3)
    engine._copies = Streams(monkeypatch)
    with pytest.raises(MemoryError):  # here for want of CUDA
        engine.host_array((2, 3), np.uint8)


@pytest.fixture
def any_algorithms() -> Iterator[None]:
    yield
    pytorch_runtime.choose_algorithms(False)


@pytest.mark.usefixtures("any_algorithms")
def test_an_operator_that_is_not_deterministic_is_named(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    engine: Any = make_engine(TAPPED, engine="pytorch")
    engine._deterministic = True  # as on a GPU
    plain = make_engine(TAPPED, engine="pytorch")
    for each in (engine, plain):
        each.train_batch(*make_batch(5), 0.1, 0)
    assert torch.are_deterministic_algorithms_enabled() is False
    assert {name: value.tobytes() for name, value in engine.values().items()} == {
        name: value.tobytes() for name, value in plain.values().items()
    }

    def put(module: Any, inputs: Any, output: Any) -> None:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))

    engine._layers["relu"].register_forward_hook(put)
    plain._layers["relu"].register_forward_hook(put)  # type: ignore[attr-defined]
    with pytest.raises(BadRecipe, match=r"deterministic = true: PyTorch has no deterministic algorithm for put_ on"):
        engine.train_batch(*make_batch(5), 0.1, 0)
    plain.train_batch(*make_batch(5), 0.1, 0)


def test_a_gpu_gets_a_compiled_step_as_a_graph(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def compile(network: Any, dynamic: bool, mode: str | None) -> Any:
        calls.append(mode)
        return lambda x: calls.append("step") or network(x)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("begin"))
    for graphs in (True, False):
        engine: Any = make_engine(LINEAR, engine="pytorch")
        engine._compile, engine._graphs = True, graphs or engine._graphs
        for _ in range(2):
            engine.train_batch(*make_batch(5), 0.1, 0)
    assert calls == ["reduce-overhead", "begin", "step", "begin", "step", None, "step", "step"]


def test_compilation_needs_a_compiler(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch_runtime.shutil, "which", lambda name: None)
    with pytest.raises(BadRecipe, match=r"compile = true needs the compiler g\+\+; install it"):
        make_engine(LINEAR, engine="pytorch", compile=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_network_trains_as_an_eager_one(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference
) -> None:
    if pytorch_runtime.shutil.which("g++") is None:
        pytest.skip("no g++")
    engines = [make_engine(TAPPED, engine="pytorch", precision="float64", compile=one) for one in (False, True)]
    for seed in range(2):
        for engine in engines:
            engine.train_batch(*make_batch(5, seed), 0.1, seed)
    assert difference(engines[1].values(), engines[0].values()) < 1e-9


def test_a_compiler_that_fails_is_one_line(
    make_engine: MakeEngine, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CXX=/bin/false; a process that has compiled before keeps its compiler, so no real one here."""
    if pytorch_runtime.shutil.which("g++") is None:
        pytest.skip("no g++")

    def failing(_: Any) -> Any:
        raise torch._inductor.exc.InductorError(RuntimeError("C++ compile error\n\n\x1b[2J" + 900 * "x"), None)

    monkeypatch.setattr(torch, "compile", lambda network, dynamic, mode: failing)
    engine = make_engine(LINEAR, engine="pytorch", compile=True)
    with pytest.raises(BadRecipe, match=r"compile = true: the step cannot be compiled \(.*compile=false") as caught:
        engine.train_batch(*make_batch(5), 0.1, 0)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_all_processors_are_used_unless_told_otherwise() -> None:
    words = "from imagenet_pipeline.engines.pytorch.runtime import torch; print(torch.get_num_threads())"
    for setting, wanted in (({}, available_processors()), ({"OMP_NUM_THREADS": "1"}, 1)):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", words], env={**environment, **setting}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == wanted


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_computing_threads_wait_briefly_unless_told_otherwise(setting: dict[str, str], wanted: str | None) -> None:
    environment = dict(setting)
    with pytorch_runtime.waiting_briefly(environment):
        assert environment.get("GOMP_SPINCOUNT") == wanted
    assert environment == setting


def test_a_zoos_network_is_not_normalised_over_ranks() -> None:
    recipe = Recipe(network="timm:resnet18", records="", sync_batch_norm=True)
    blueprint = Blueprint(ZooNetwork("timm", "resnet18", 5), 32, (0.0,) * 3, (1.0,) * 3, recipe)
    with pytest.raises(BadRecipe, match=r"sync_batch_norm = true: the normalisations of a zoo's .* timm:resnet18"):
        require_own_normalisation(blueprint)
