"""Frozen layers, rates of their own, decay of weights alone: what each means, and the same on both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_pipeline.config import OptimizerRecipe
from imagenet_pipeline.engines import Engine
from imagenet_pipeline.engines.optimizer_state import ParameterGroup, depths, parameter_groups
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks import catalog
from imagenet_pipeline.networks.layers import (
    Activation,
    BatchNorm,
    Constant,
    Conv,
    Dense,
    Dropout,
    Elementwise,
    Flatten,
    GlobalAveragePool,
    Graph,
    Reshape,
    Residual,
    Sequential,
    Tap,
    Transpose,
    stack,
)
from imagenet_pipeline.networks.shapes import parameters

Array = np.ndarray[Any, Any]
MakeEngine = Callable[..., Engine]
MakeBatch = Callable[..., tuple[Any, Any]]
Difference = Callable[[dict[str, Array], dict[str, Array]], float]

ENGINES = ["gluon", "pytorch"]
RECIPE = OptimizerRecipe()
SHAPES = {
    "stem.conv.weight": (4, 3, 3, 3),
    "stem.norm.weight": (4,),
    "stem.norm.running_mean": (4,),
    "stage1.unit1.conv.weight": (4, 4, 1, 1),
    "stage1.unit2.conv.weight": (4, 4, 1, 1),
    "stage10.conv.weight": (4, 4, 1, 1),
    "classifier.weight": (7, 4),
    "classifier.bias": (7,),
}


def head() -> Tap:
    return Tap(stack(pool=GlobalAveragePool(), flatten=Flatten(), classifier=Dense(7)), 0.3)


BODY = stack(conv=Conv(6, 3, pad=1, bias=False), norm=BatchNorm(momentum=0.5), prelu=Activation("prelu"))
NETWORK = stack(
    stem=BODY, tap=head(), stage1=Residual(BODY), relu=Activation("relu"), flatten=Flatten(), classifier=Dense(7)
)
PLAIN: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "precision": "float64"}


def test_a_beginning_is_whole_words() -> None:
    found = parameter_groups(SHAPES, RECIPE, frozen=["stem", "stage1"], rates={"stage1": 0.1})
    assert [name for name, one in found.items() if one.frozen] == [*SHAPES][:5]
    assert [name for name, one in found.items() if one.rate != 1] == [*SHAPES][3:5]
    assert found["stage10.conv.weight"] == ParameterGroup()
    assert [name for name, one in found.items() if one.is_head] == ["classifier.weight", "classifier.bias"]


def test_the_longest_rate_that_fits_counts() -> None:
    rates = {"stage1.unit1": 0.5, "stage1": 0.1, "stage1.unit1.conv": 2.0, "classifier": 3.0}
    found = parameter_groups(SHAPES, RECIPE, rates=rates)
    assert [one.rate for one in found.values()] == [1, 1, 1, 2, 0.1, 1, 3, 3]


def test_without_decay_all_arrays_of_one_dimension_do_not_decay() -> None:
    found = parameter_groups(SHAPES, OptimizerRecipe(decay_all=False))
    assert [name for name, one in found.items() if not one.decays] == [n for n in SHAPES if len(SHAPES[n]) == 1]
    assert all(one.decays for one in parameter_groups(SHAPES, RECIPE).values())


def test_scales_decay_and_biases_do_not_as_with_mxnets_module() -> None:
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.weight": (4,), "norm.bias": (4,), "act.slope": (4,), "conv.bias": (4,)}
    found = parameter_groups(shapes, OptimizerRecipe(decay_all="scales"))
    assert [name for name, group in found.items() if group.decays] == ["conv.weight", "norm.weight", "act.slope"]
    gluon_s = parameter_groups({"f.1.gamma": (4,), "f.1.beta": (4,)}, OptimizerRecipe(decay_all="scales"))
    assert [name for name, group in gluon_s.items() if group.decays] == ["f.1.gamma"]


def test_positions_and_tokens_are_no_matrices() -> None:
    """Those of our networks and of timm's, which its `no_weight_decay` spares; what a layer calls weights is one."""
    shapes = {"tokens.positions.value": (5, 4), "pos_embed": (1, 5, 4), "cls_token": (1, 1, 4), "proj.weight": (4, 4)}
    shapes |= {"blocks.0.attn.relative_position_bias_table": (9, 2), "rnn.weight_ih_l0": (4, 4), "norm.weight": (4,)}
    found = parameter_groups(shapes, OptimizerRecipe(decay_all=False))
    matrices = ["proj.weight", "rnn.weight_ih_l0"]
    assert [name for name, group in found.items() if group.decays] == matrices
    assert [name for name, group in found.items() if not group.as_vector] == [*matrices, "norm.weight"]


TOKENS = stack(
    conv=Conv(4, 4, stride=4), row=Reshape((4, -1)), turned=Transpose((1, 0)),
    tokens=Graph((("positions", Constant((4, 4))), ("sum", Elementwise("add"))), ((), ("", "positions"))),
    dense=Dense(6, last_axis=True), flatten=Flatten(), classifier=Dense(7),
)  # fmt: skip


def tokens_of(make_engine: MakeEngine, make_batch: MakeBatch, engine: str, steps: int, **keys: Any) -> Engine:
    made = make_engine(TOKENS, size=8, engine=engine, precision="float64", momentum=0.9, **keys)
    positions = np.linspace(-2, 2, 16).reshape(4, 4)
    made.set_values({**made.values(), "tokens.positions.value": positions})
    for step in range(steps):
        made.train_batch(*make_batch(6, step, 8), 0.1, seed=step)
    return made


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("option", "without"),
    [
        ({"name": "muon", "weight_decay": 0.1}, {"name": "adamw", "weight_decay": 0.1}),
        ({"max_norm": 0.5, "weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"max_norm": 0.5, "weight_decay": 0.1, "nesterov": True}, {"weight_decay": 0.1, "nesterov": True}),
        ({"weight_decay": 0.1, "decay_all": False}, {"weight_decay": 0.0}),
    ],
    ids=["muon", "max_norm", "max_norm of a written rule", "decay_all"],
)
def test_what_acts_on_matrices_leaves_positions_alone(
    make_engine: MakeEngine,
    make_batch: MakeBatch,
    difference: Difference,
    option: dict[str, Any],
    without: dict[str, Any],
    engine: str,
) -> None:
    """In a step, which moves the matrices by the option and the positions as without it."""
    one, other = (tokens_of(make_engine, make_batch, engine, 1, **keys).values() for keys in (option, without))
    assert difference({"": one["tokens.positions.value"]}, {"": other["tokens.positions.value"]}) < 1e-12
    assert difference({"": one["dense.weight"]}, {"": other["dense.weight"]}) > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_positions_are_clipped_as_a_single_unit(make_engine: MakeEngine, make_batch: MakeBatch, engine: str) -> None:
    """Brock et al. 2021, equation 3, of the whole array."""
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    before = tokens_of(make_engine, make_batch, engine, 0).values()["tokens.positions.value"]
    moves = []
    for share in (0.0, 1e-3):
        made = make_engine(TOKENS, size=8, engine=engine, precision="float64", clip_share=share, **plain)
        made.set_values({**made.values(), "tokens.positions.value": before})
        made.train_batch(*make_batch(6, 0, 8), 1.0, seed=0)
        moves.append(before - made.values()["tokens.positions.value"])
    longest = 1e-3 * np.linalg.norm(before)
    assert np.linalg.norm(moves[0]) > longest
    np.testing.assert_allclose(moves[1], moves[0] * longest / np.linalg.norm(moves[0]), rtol=1e-9)


def test_a_parameter_outside_every_layer_goes_by_its_own_name() -> None:
    shapes = {"cls_token": (1, 1, 8), "head.weight": (7, 8)}
    assert parameter_groups(shapes, RECIPE, frozen=["cls_token"])["cls_token"].frozen


words = st.lists(st.sampled_from(["a", "b", "ab", "1"]), min_size=1, max_size=3).map(".".join)


@given(st.sets(words, min_size=1), st.data())
def test_beginnings_are_those_of_lists_of_words(layers: set[str], data: st.DataObject) -> None:
    beginnings = sorted({".".join(one.split(".")[:count]) for one in layers for count in (1, 2, 3)})
    rates = data.draw(st.dictionaries(st.sampled_from(beginnings), st.sampled_from([0.1, 0.5, 2.0])))
    found = parameter_groups({f"{layer}.weight": (2, 2) for layer in layers}, RECIPE, rates=rates)
    for layer in layers:
        fitting = [one for one in rates if layer.split(".")[: len(one.split("."))] == one.split(".")]
        assert found[f"{layer}.weight"].rate == (rates[max(fitting, key=lambda one: one.count("."))] if fitting else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ["stag1"]}, r"transfer.frozen: no layer .* begins with 'stag1'; did you mean stage1\?"),
        ({"frozen": ["stage"]}, r"begins with 'stage'; did you mean stage1\?"),
        ({"rates": {"stage1.unti2": 2.0}}, r"transfer.rates: .*'stage1.unti2'; did you mean stage1.unit2\?"),
        ({"frozen": ["classifier.bias"]}, r"begins with 'classifier.bias'; did you mean classifier\?"),
        ({"frozen": [""]}, "no layer with parameters begins with ''; the verb networks lists them"),
        ({"frozen": ["stem", "stage1", "stage10", "classifier"]}, r"nothing is left to train; found stem, stage1"),
    ],
)
def test_names_that_fit_nothing_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecipe, match=message) as caught:
        parameter_groups(SHAPES, RECIPE, **options)
    assert "\n" not in str(caught.value)


def walk(engine: Engine, make_batch: MakeBatch, steps: int, size: int = 8) -> Engine:
    for step in range(steps):
        engine.train_batch(*make_batch(6, step, size), 0.02, seed=step)
    return engine


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_layers_stay_to_the_last_bit(make_engine: MakeEngine, make_batch: MakeBatch, engine: str) -> None:
    frozen, optimizer = ("stem", "tap"), {"weight_decay": 0.1, "l1": 0.1, "max_norm": 0.5}
    made = make_engine(NETWORK, size=8, engine=engine, frozen=frozen, average_decay=0.9, **optimizer)
    before = made.values()
    after, means = walk(made, make_batch, 3).values(), made.averages()
    for name in before:
        stays = name.startswith(("stem.", "tap."))
        assert (after[name].tobytes() == before[name].tobytes()) == stays, name
        assert not stays or means[name].tobytes() == before[name].tobytes(), name
    slots = {name.partition("/")[2] for name in made.optimizer_state() if name.startswith("velocity/")}
    assert slots == {name for name in before if "running" not in name}


@pytest.mark.gluon
def test_no_gradient_is_computed_for_frozen_layers(make_engine: MakeEngine, make_batch: MakeBatch) -> None:
    gluon, pytorch = (
        walk(make_engine(NETWORK, size=8, engine=name, frozen=("stem",)), make_batch, 1) for name in ENGINES
    )
    without = [{name for name, one in gluon._trained.items() if one.grad_req == "null"}]  # type: ignore[attr-defined]
    without.append({name for name, one in pytorch._trained.items() if one.grad is None})  # type: ignore[attr-defined]
    stem = {"stem.conv.weight", "stem.norm.weight", "stem.norm.bias", "stem.prelu.slope"}
    assert without == [stem, stem]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_normalisation_goes_by_its_running_statistics(
    make_engine: MakeEngine, make_batch: MakeBatch, engine: str
) -> None:
    """So with all of them frozen a step has the loss that scoring has."""
    values = walk(make_engine(NETWORK, size=8, engine=engine, **PLAIN), make_batch, 3).values()
    made = make_engine(NETWORK, size=8, engine=engine, values=values, frozen=("stem.norm", "stage1.norm"), **PLAIN)
    losses = []
    for call in (made.score_batch, lambda *batch: made.train_batch(*batch, 0.1, seed=0)):
        call(*make_batch(6, 9, 8))
        losses.append(made.totals().loss)
    # MXNet keeps running statistics in float32.
    assert losses[1] == pytest.approx(losses[0], rel=1e-7)


@pytest.mark.gluon
@pytest.mark.parametrize("frozen", [("stem",), ("stage1", "tap"), ("stem.norm", "classifier"), ("stem", "stage1")])
def test_both_engines_move_what_is_not_frozen_alike(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, frozen: tuple[str, ...]
) -> None:
    """In float64, three steps, taps and statistics included."""
    moves = []
    for engine in ENGINES:
        made = make_engine(NETWORK, size=8, engine=engine, frozen=frozen, precision="float64")
        before = made.values()
        after = walk(made, make_batch, 3).values()
        moves.append({name: after[name] - before[name] for name in after if (after[name] != before[name]).any()})
    weights = [{name: move for name, move in one.items() if "running" not in name} for one in moves]
    assert difference(*weights) < 1e-9
    assert difference(*moves) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_of_frozen_layers_stays(make_engine: MakeEngine, make_batch: MakeBatch, engine: str) -> None:
    network = stack(block=stack(conv=Conv(4, 3), drop=Dropout(0.5)), flatten=Flatten(), classifier=Dense(7))

    def trained(seed: int) -> bytes:
        made = make_engine(network, size=8, engine=engine, frozen=("block",))
        made.train_batch(*make_batch(6, 0, 8), 0.1, seed=seed)
        return made.values()["classifier.weight"].tobytes()

    assert trained(1) == trained(1) != trained(2)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layers_rate_is_a_factor(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str
) -> None:
    """Of one plain step, decay and l1 included; of max_norm, which holds after it, it is none."""
    optimizer = {**PLAIN, "weight_decay": 0.1, "l1": 0.1}
    moves = []
    for rates in ({}, {"stem": 0.25, "stage1.norm": 4.0}):
        made = make_engine(NETWORK, size=8, engine=engine, rates=rates, **optimizer)
        before = made.values()
        after = walk(made, make_batch, 1).values()
        moves.append({name: after[name] - before[name] for name in after if "running" not in name})
    factors = {name: 0.25 if name.startswith("stem.") else 4 if "stage1.norm" in name else 1 for name in moves[0]}
    assert difference(moves[1], {name: factors[name] * move for name, move in moves[0].items()}) < 1e-12


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("engine", ENGINES)
def test_decay_of_weights_alone(make_engine: MakeEngine, make_batch: MakeBatch, engine: str, precision: str) -> None:
    """In one step at rate 1 it subtracts weight_decay * w + l1 * sign(w), of weights alone."""
    moves = []
    for optimizer in ({}, {"weight_decay": 0.125, "decay_all": False}, {"weight_decay": 0.125}):
        made = make_engine(NETWORK, size=8, engine=engine, **{**PLAIN, "precision": precision, **optimizer})
        before = made.values()
        made.train_batch(*make_batch(6, 0, 8), 1.0, seed=0)
        after = made.values()
        moves.append({name: after[name] - before[name] for name in after if "running" not in name})
    for name in moves[0]:
        decay, decay_of_all = (moves[0][name] - one[name] for one in moves[1:])
        expected = 0.125 * before[name]
        np.testing.assert_allclose(decay, expected if expected.ndim > 1 else 0 * expected, atol=1e-5)
        np.testing.assert_allclose(decay_of_all, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "count", "some"),
    [
        ("resnet18", 10, {"stem.norm": 0, "stage1.unit1.norm2": 1, "stage2.unit1.conv2": 3, "stage4.unit2.conv2": 8}),
        ("resnet18_v2", 10, {"input": 0, "stem.conv": 0, "stage1.unit1.norm1": 1, "norm": 8}),
        ("vgg16_bn", 16, {"block1.conv1": 0, "block1.norm1": 0, "block1.conv2": 1, "dense1": 13}),
        ("googlenet", 15, {"conv1.conv": 0, "inception3a.branch3.expand.conv": 3, "inception3a.branch1.conv": 3}),
        ("densenet121", 63, {"stem.norm": 0, "block1.unit6.new.conv2": 6, "transition1.norm": 7, "norm": 61}),
        ("squeezenet1_0", 10, {"fire2.squeeze": 1, "fire2.expand.three.conv": 1}),
        ("vit_small_patch16_224", 14, {"patches.conv": 0, "block1.attention.inputs": 1, "block12.mlp.dense2": 12}),
    ],
)
def test_the_depth_of_layers_is_that_of_units(network: str, count: int, some: dict[str, int]) -> None:
    shapes = {name: one.shape for name, one in parameters(catalog.build(network, 7), (3, 224, 224)).items()}
    found = depths(shapes)
    assert set(found.values()) == set(range(count))
    assert {layer: found[f"{layer}.weight"] for layer in some} == some
    assert found["classifier.weight"] == count - 1


def test_the_depth_of_layers_of_a_zoo() -> None:
    """timm's names of a transformer and of a ResNet."""
    names = ["cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.norm1.weight"]
    names += ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "norm.weight", "head.weight", "head.bias"]
    shapes = {name: (4,) if name.endswith(("bias", "norm1.weight", "norm.weight")) else (4, 4) for name in names}
    assert list(depths(shapes).values()) == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    resnet = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "layer1.0.conv1.weight": (4, 4, 3, 3), "fc.bias": (7,)}
    assert list(depths(resnet).values()) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ("stem.0 stages.0.blocks.0.conv_dw stages.0.blocks.0.mlp.fc1 stages.0.blocks.1.mlp.fc1 stages.1.downsample.1 "
         "stages.1.blocks.0.mlp.fc1 head.fc", [0, 1, 1, 2, 3, 4, 5]),
        ("conv_stem blocks.0.0.conv_dw blocks.1.0.conv_pw blocks.1.0.se.conv_reduce blocks.1.1.conv_pw classifier",
         [0, 1, 2, 2, 3, 4]),
        ("features.conv0 features.denseblock1.denselayer1.conv1 features.denseblock1.denselayer2.conv1 "
         "features.transition1.conv classifier", [0, 1, 2, 3, 4]),
        ("features.0 features.4.0.body.0 features.4.0.downsample.0 features.4.1.body.0 output", [0, 1, 1, 2, 3]),
        ("features.0 features.7.0.0 features.7.1.0 features.7.1.1 output", [0, 1, 1, 1, 2]),
        ("conv1 layer1.0.conv1 layer1.0.downsample.0 stage2.0.branches.0.0.conv1 stage2.0.branches.1.0.conv1 head",
         [0, 1, 1, 2, 2, 3]),
    ],
    ids=["convnext", "efficientnet", "densenet", "GluonCV's resnet", "GluonCV's inception", "hrnet"],
)  # fmt: skip
def test_the_depth_of_layers_of_a_zoo_is_that_of_units(layers: str, wanted: list[int]) -> None:
    """Names of timm and GluonCV, counted by hand; branches are a single module."""
    assert list(depths({f"{layer}.weight": (4, 4) for layer in layers.split()}).values()) == wanted


def test_layer_decay_is_a_power_of_the_depth_from_the_head_times_other_rates() -> None:
    """By the rule of BEiT's `get_layer_scale`: decay ** (deepest - depth)."""
    found = parameter_groups(SHAPES, RECIPE, frozen=["stem"], rates={"stage1.unit2": 0.5}, layer_decay=0.8)
    assert [round(one.rate, 12) for one in found.values()] == [0.4096] * 3 + [0.512, 0.32, 0.8, 1, 1]
    assert found["stem.conv.weight"].frozen


def test_a_network_without_layers_has_a_single_depth() -> None:
    assert depths({"a": (3,), "b": (2, 2)}) == {"a": 0, "b": 0}
    assert depths({}) == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_layer_decay_is_a_factor_of_the_step(
    make_engine: MakeEngine, make_batch: MakeBatch, difference: Difference, engine: str
) -> None:
    moves = []
    for layer_decay in (1.0, 0.5):
        made = make_engine(NETWORK, size=8, engine=engine, layer_decay=layer_decay, **PLAIN)
        before = made.values()
        after = walk(made, make_batch, 1).values()
        moves.append({name: after[name] - before[name] for name in after if "running" not in name})
    powers = {"stem": 0.125, "tap": 0.25, "stage1": 0.5, "classifier": 1.0}
    wanted = {name: powers[name.partition(".")[0]] * move for name, move in moves[0].items()}
    assert difference(moves[1], wanted) < 1e-12


def network_of(width: int) -> Sequential:
    return stack(flatten=Flatten(), first=Dense(width), relu=Activation("relu"), last=Dense(7))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_fits_nothing_is_the_engines_error_too(make_engine: MakeEngine, engine: str) -> None:
    with pytest.raises(BadRecipe, match=r"'lsat'; did you mean last\?"):
        make_engine(network_of(3), size=4, engine=engine, rates={"lsat": 0.1})
