"""Recipes: what is read, what is refused, and that no option appears or vanishes unnoticed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagenet_pipeline import config
from imagenet_pipeline.config import (
    OptimizerRecipe,
    Recipe,
    load_recipe,
    option_names,
    override_words,
    parse_overrides,
    read_recipe,
    reading,
    recipe_keys,
    recipe_text,
)
from imagenet_pipeline.config.optimization import fitted_drops
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.rewriting import _changes
from imagenet_pipeline.optimizers import OPTIMIZERS

PACKAGE = Path(config.__file__).parents[1]

# The words users write into recipes: change this list only on purpose, and say so in CHANGELOG.md.
OPTIONS = [
    "network", "records", "engine", "epochs", "steps", "batch_size", "seed", "devices", "precision", "compile",
    "deterministic", "accumulation", "gradient_compression", "sync_batch_norm", "average_decay", "input.size",
    "input.height", "input.width", "input.channels", "input.crop_fraction", "input.evaluation_size",
    "input.start_size", "input.grow_epochs", "input.transform", "input.transform_images", "input.transform_epsilon",
    "input.transform_components", "augmentation.crop", "augmentation.area", "augmentation.aspect",
    "augmentation.flip", "augmentation.flip_vertical", "augmentation.rotation_degrees", "augmentation.shear",
    "augmentation.zoom", "augmentation.shift", "augmentation.pad", "augmentation.brightness", "augmentation.contrast",
    "augmentation.saturation", "augmentation.lighting", "augmentation.hue", "augmentation.fill",
    "augmentation.policy", "augmentation.policy_changes", "augmentation.policy_magnitude", "augmentation.erasing",
    "augmentation.mixup", "augmentation.cutmix", "augmentation.mix_epochs", "network_options.dropout",
    "network_options.activation", "network_options.normalisation", "network_options.width", "network_options.depth",
    "network_options.stem", "network_options.squeeze_excitation", "network_options.blur_pool",
    "network_options.stochastic_depth", "initial.kind", "initial.bias", "initial.weights", "initial.new_head",
    "initial.mean", "initial.std", "initial.zero_last_scale", "transfer.frozen", "transfer.rates",
    "transfer.layer_decay", "distillation.teacher", "distillation.kind", "distillation.temperature",
    "distillation.share", "distillation.scores", "loss.kind", "loss.label_smoothing", "loss.threshold", "loss.gamma",
    "loss.margin", "loss.delta", "loss.class_weights", "optimizer.name", "optimizer.learning_rate",
    "optimizer.momentum", "optimizer.nesterov", "optimizer.beta1", "optimizer.beta2", "optimizer.decay",
    "optimizer.epsilon", "optimizer.trust", "optimizer.weight_decay", "optimizer.l1", "optimizer.decay_all",
    "optimizer.clip_norm", "optimizer.reference_batch_size", "optimizer.max_norm", "optimizer.clip_share",
    "optimizer.lookahead_steps", "optimizer.lookahead_share", "optimizer.sam_radius", "schedule.kind",
    "schedule.drops", "schedule.factor", "schedule.power", "schedule.decay", "schedule.warmup_epochs",
    "schedule.start_share", "schedule.end_share", "schedule.flat_share", "schedule.period_epochs",
    "schedule.period_factor", "schedule.patience_epochs", "schedule.figure", "stopping.patience_epochs",
    "stopping.figure", "stopping.min_delta", "stopping.restore_best", "checkpoint.keep", "checkpoint.every_steps",
    "checkpoint.every_minutes", "log.loggers", "log.pictures", "log.pictures_every_steps", "loader.threads",
    "loader.prefetch", "loader.window_shards", "loader.order", "loader.repeats", "loader.cache", "loader.cache_gb",
]  # fmt: skip


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return write(tmp_path, 'network = "lenet"\nrecords = "data"\n')


def test_the_options_are_these() -> None:
    assert option_names() == OPTIONS


def attributes_read() -> set[str]:
    """Every attribute read anywhere in the package outside config."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_every_option_has_a_reader() -> None:
    read = attributes_read() | _changes((3, 8, 8)).keys()  # the options of a network go by their names
    assert {name for name in OPTIONS if name.split(".")[-1] not in read} == set()


def constants_read(source: str) -> dict[str, set[str]]:
    """For every function of a source, the keys of the optimizer's recipe it reads, by itself or by what it calls."""
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    keys = set(OptimizerRecipe.model_fields)

    def read(name: str) -> set[str]:
        nodes = list(ast.walk(functions[name]))
        own = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & keys
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        return own.union(*map(read, (called - {name}) & functions.keys()))

    return {name: read(name) for name in functions}


def test_an_optimizer_takes_the_keys_its_rule_reads_and_no_other() -> None:
    read = constants_read((PACKAGE / "optimizers.py").read_text())
    fields = OptimizerRecipe.model_fields
    for name in OPTIMIZERS.names():
        keys = OPTIMIZERS.get(name).keys
        assert set(keys) == read[name] - {"weight_decay"}, name
        for key in fields.keys() - {*keys, *config.KEYS_OF_ALL_OPTIMIZERS}:
            changed = True if key == "nesterov" else 0.123
            with pytest.raises(ValidationError, match=f"{key}: has no effect on {name}, which reads {', '.join(keys)}"):
                OptimizerRecipe.model_validate({"name": name, key: changed})


def test_a_recipe_needs_only_what_differs_from_the_defaults(smallest: Path) -> None:
    assert load_recipe(smallest) == Recipe(network="lenet", records="data")


def test_a_run_of_older_versions_keeps_the_network_that_it_has(tmp_path: Path) -> None:
    """It wrote down 0 where these options change nothing; 0 of the first alone is not asked for by anybody."""
    text = 'network = "convnext_tiny"\nrecords = "data"\n[network_options]\nactivation = "own"\n'
    old = load_recipe(write(tmp_path, f"{text}squeeze_excitation = 0\nstochastic_depth = 0.0\n"))
    recorded = {**old.model_dump(mode="json"), "network_options": {"squeeze_excitation": 0, "stochastic_depth": 0.0}}
    assert old == read_recipe(recorded, "journal") == Recipe(network="convnext_tiny", records="data")
    off = load_recipe(write(tmp_path, f"{text}stochastic_depth = 0.0\n"))
    assert off.whole_network == "convnext_tiny?stochastic_depth=0"
    assert load_recipe(write(tmp_path, recipe_text(off))) == off
    with pytest.raises(BadRecipe, match="squeeze_excitation': input should be greater than or equal to 1; found 0"):
        load_recipe(old, {"network_options.squeeze_excitation": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"unknown recipe key 'epoch'; did you mean epochs"),
        (
            "[optimizer]\nlearning_rte = 1.0",
            r"'optimizer.learning_rte'; did you mean optimizer.learning_rate",
        ),
        ("xyzzy = 3", r"unknown recipe key 'xyzzy'; known keys: network, records"),
        ('epochs = "3"', r"recipe key 'epochs': input should be a valid integer; found '3'"),
        ("epochs = 3.0", r"recipe key 'epochs'"),
        ("epochs = true", r"recipe key 'epochs'"),
        ("epochs = 0", r"recipe key 'epochs': input should be greater than or equal to 1; found 0"),
        ("optimizer = 3", r"'optimizer' is a section, not a value.*write optimizer.name="),
        (
            "[optimizer]\nlearning_rate = 0",
            r"'optimizer.learning_rate': input should be greater than 0; found 0",
        ),
        ("[optimizer]\nlearning_rate = nan", r"recipe key 'optimizer.learning_rate'"),
        ("[optimizer]\nlearning_rate = inf", r"recipe key 'optimizer.learning_rate'"),
        ("[optimizer]\nmomentum = 1.0", r"'optimizer.momentum': input should be less than 1; found 1.0"),
        ("[optimizer]\nnesterov = true\nmomentum = 0", r"optimizer.nesterov': needs momentum above 0"),
        ('[schedule]\nkind = "step"', r"'schedule.kind': no such word; expected .*'steps'.*; found 'step'; .* steps\?"),
        ('[optimizer]\nname = "admw"', r"'optimizer.name': no such word; .*'lars'; found 'admw'; did you mean adamw"),
        ('[optimizer]\nname = "xyzzy"', r"'optimizer.name': no such word; .* 'lamb' or 'lars'; found 'xyzzy'$"),
        ("[optimizer]\nname = 3", r"'optimizer.name': no such word; .*; found 3$"),
        (
            '[checkpoint]\nkeep = "al"',
            r"keep': no such word; expected 'all' or a number; found 'al'; did you mean all\?",
        ),
        ('batch_size = "max"', r"'batch_size': no such word; expected 'auto' or a number; found 'max'$"),
        ('epochs = "many"\nprecision = "half"', r"'epochs': input should be a valid integer; found 'many'$"),
        (
            '[loader]\nthreads = "all"',
            r"'loader.threads': no such word; expected 'auto' or a number; found 'all'$",
        ),
        ('[loss]\nkind = "hinge"\nlabel_smoothing = 0.1', r"loss.label_smoothing': has no effect on hinge"),
        (
            "[loss]\ngamma = 1.0",
            r"loss.gamma': has no effect on cross_entropy, which reads label_smoothing, class_weights",
        ),
        (
            '[loss]\nkind = "binary_cross_entropy"\nthreshold = 1.0',
            r"'loss.threshold': input should be less than 1; fou",
        ),
        ("[loss]\nclass_weights = [0, 0.0]", r"loss.class_weights': one at least must be above 0"),
        (
            '[loss]\nclass_weights = "even"',
            r"loss.class_weights': no such word; .*'none' or 'balanced'.*; found 'even'",
        ),
        ("[loss]\nclass_weights = [1, -2]", r"loss.class_weights.*greater than or equal to 0; found -2"),
        ('[loader]\norder = "balanced"\nwindow_shards = 2', r"loader.window_shards': must be 0, for all, where order"),
        (
            '[loader]\norder = "balanced"\n[loss]\nclass_weights = "balanced"',
            r"'loss.class_weights': .balanced. beside loader.order .balanced. would count it twice",
        ),
        (
            "[augmentation]\npolicy_changes = 3",
            r"augmentation.policy_changes': has no effect on policy .none., only on",
        ),
        (
            '[augmentation]\npolicy = "trivial_augment"\npolicy_magnitude = 8',
            r"'augmentation.policy_magnitude': has no effect on policy .trivial_augment., only on .rand_augment.",
        ),
        (
            '[augmentation]\npolicy = "auto_augment"\npolicy_magnitude = 8',
            r"'augmentation.policy_magnitude': has no effect .*, only on .rand_augment. and .aug_mix.",
        ),
        ("[augmentation]\nmix_epochs = 8", r"'augmentation.mix_epochs': has no effect without mixup or cutmix"),
        ('[augmentation]\nfill = "near"', r"'augmentation.fill': .*'nearest'.*found 'near'"),
        ("[augmentation]\nhue = 0.6", r"'augmentation.hue': input should be less than or equal to 0.5; found 0.6"),
        ("batch_size = 5\n[loader]\nrepeats = 3", r"'loader.repeats': must be at most half of batch_size, 5; found 3"),
        ('[augmentation]\nmixup = 0.2\n[loss]\nkind = "hinge"', r"'loss.kind': hinge looks at one class an image"),
        ("batch_size = 5\n[augmentation]\ncutmix = 1.0", r"'batch_size': must be even where images are mixed .* 5"),
        ("[optimizer]\nbeta1 = 0.8", r"optimizer.beta1': has no effect on sgd, which reads momentum, nesterov"),
        (
            '[optimizer]\nname = "adam"\nmomentum = 0.8',
            r"optimizer.momentum': has no effect on adam, which reads beta1, beta2, eps",
        ),
        ('[schedule]\nkind = "steps"', r"schedule.drops': kind .steps. needs at least one epoch"),
        (
            '[schedule]\nkind = "steps"\ndrops = [9, 90]',
            r"'schedule.drops': must be below epochs, 90, to have an effect; found \[9, 90\]",
        ),
        (
            '[schedule]\nkind = "cosine"\npower = 2.0',
            r"schedule.power': has no effect on kind .cosine., which reads end_share, warmup_epochs",
        ),
        ('[schedule]\nkind = "plateau"\nfactor = 1.0', r"schedule.factor': of kind .plateau. must be below 1, found 1"),
        ('[schedule]\nkind = "exponential"\nfactor = 1.0', r"schedule.factor': of kind .exponential. must be below 1"),
        ('[schedule]\nkind = "restart"', r"schedule.kind': no such word; .*; did you mean restarts"),
        (
            'epochs = 12\n[schedule]\nkind = "restarts"\nperiod_epochs = 12.0',
            r"'schedule.period_epochs': must be below the 12 epochs .*; found 12; schedule.period_epochs=4 has two",
        ),
        ("steps = -1", r"recipe key 'steps': input should be greater than or equal to 0; found -1"),
        ("steps = 500\nepochs = 3", r"recipe key 'epochs': has no effect beside steps, 500, which end the run"),
        (
            '[stopping]\nfigure = "validation_lost"',
            r"stopping.figure': no such word; expected 'auto', .*'validation_rank5'.*; did you mean validation_loss",
        ),
        ('[stopping]\nfigure = "seconds"', r"stopping.figure': no such word; expected 'auto', 'train_loss'"),
        ("[stopping]\nmin_delta = 0.1", r"stopping.min_delta': has no effect without patience_epochs"),
        ('[schedule]\nkind = "one_cycle"', r"schedule.warmup_epochs': must be above 0 with kind .one_cycle."),
        ("[schedule]\ndrops = [3, 2]", r"schedule.drops': must rise, found \[3, 2\]"),
        ("[augmentation]\narea = [0.5, 0.1]", r"augmentation.area': the first number, 0.5, exceeds the second, 0.1"),
        ("[augmentation]\narea = [0.5]", r"recipe key 'augmentation.area'"),
        ('[loader]\nthreads = "all"', r"recipe key 'loader.threads'"),
        ("seed = -1", r"recipe key 'seed'"),
        ("seed = 4294967296", r"recipe key 'seed'"),
        ("a = = b", r"not a readable TOML file"),
    ],
)
def test_a_bad_recipe_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, f'network = "lenet"\nrecords = "data"\n{text}\n')
    with pytest.raises(BadRecipe, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="recipe key 'records' is missing"):
        load_recipe(write(tmp_path, 'network = "lenet"'))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="no such recipe file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(BadRecipe, match="a folder, not a recipe file"):
        load_recipe(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRecipe, match="not a readable TOML file"):
        load_recipe(tmp_path / "recipe.toml")


def test_overrides_are_toml_or_else_plain_text() -> None:
    words = ["epochs=3", "optimizer.learning_rate=1e-3", "network = resnet18", "devices=cpu:0,1", "a=x=y",
             "schedule.drops=[1, 2]", 'engine="gluon"', "optimizer.nesterov=true", "records="]  # fmt: skip
    assert parse_overrides(words) == {
        "epochs": 3,
        "optimizer.learning_rate": 1e-3,
        "network": "resnet18",
        "devices": "cpu:0,1",
        "a": "x=y",
        "schedule.drops": [1, 2],
        "engine": "gluon",
        "optimizer.nesterov": True,
        "records": "",
    }


def test_of_steps_and_epochs_the_one_given_later_counts(tmp_path: Path) -> None:
    """Laid over a recipe either takes the place of the other, as a key given twice does."""
    epochs = write(tmp_path, 'network = "lenet"\nrecords = "data"\nepochs = 7\n')
    assert (load_recipe(epochs, {"steps": 50}).steps, load_recipe(epochs, {"steps": 50}).epochs) == (50, 90)
    assert load_recipe(epochs, {"steps": 0}).epochs == 7
    assert load_recipe(epochs, {"epochs": 9, "steps": 50}).steps == 50
    steps = write(tmp_path, 'network = "lenet"\nrecords = "data"\nsteps = 50\n')
    assert (load_recipe(steps, {"epochs": 9}).steps, load_recipe(steps, {"epochs": 9}).epochs) == (0, 9)
    assert load_recipe(steps, {"steps": 60, "epochs": 9}).epochs == 9
    kept = load_recipe(steps)
    assert load_recipe(kept, {"seed": 1}).steps == 50
    assert load_recipe(write(tmp_path, recipe_text(kept))) == kept


@pytest.mark.parametrize("word", ["epochs", "=3", " =3", ""])
def test_a_word_that_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(BadRecipe, match="not an override"):
        parse_overrides([word])


def test_overrides_win(smallest: Path) -> None:
    steps = {"schedule.kind": "steps", "schedule.drops": [1, 2]}
    recipe = load_recipe(smallest, {"epochs": 7, "optimizer.momentum": 0, **steps})
    assert (recipe.epochs, recipe.optimizer.momentum, recipe.schedule.drops) == (7, 0.0, (1, 2))


def test_zero_scales_go_with_weights_where_they_are_auto(smallest: Path) -> None:
    smallest.write_text(smallest.read_text() + '\n[initial]\nzero_last_scale = "auto"\n')
    assert load_recipe(smallest, {"initial.weights": "a.pth"}).initial.zero_last_scale == "auto"
    with pytest.raises(BadRecipe, match=r'zero_last_scale.: has no effect with weights; "auto" or false is right'):
        load_recipe(smallest, {"initial.weights": "a.pth", "initial.zero_last_scale": True})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epoch", "did you mean epochs"),
        ("epochs.x", "recipe key|not a section"),
        ("network.x", "not a section"),
        ("optimizer", "'optimizer' is a section, not a value.*write optimizer.name="),
        ("a.b", "unknown recipe key 'a'"),
        ("..", "unknown recipe key"),
        ("optimizer.lr", r"did you mean optimizer.learning_rate=3\?"),
        ("lr", r"^command line: unknown recipe key 'lr'; did you mean optimizer.learning_rate=3\?$"),
        ("--lr", r"did you mean optimizer.learning_rate=3\?"),
        ("learning_rate", r"did you mean optimizer.learning_rate=3\?"),
        ("bs", r"did you mean batch_size=3\?"),
        ("Image-Size", r"did you mean input.size=3\?"),
        ("label_smoothing", r"did you mean loss.label_smoothing=3\?"),
        ("kind", r"did you mean initial.kind=3 or distillation.kind=3 or loss.kind=3 or schedule.kind=3\?"),
        ("schedule.patience", r"did you mean stopping.patience_epochs=3\?"),
        ("num_classes", "there is none: the records say how many classes there are"),
        ("dropout", r"did you mean network_options.dropout=3\?"),
        ("optimiser.name", "command line: unknown recipe key 'optimiser'; did you mean the section optimizer"),
    ],
)
def test_a_bad_override_is_refused(smallest: Path, key: str, message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        load_recipe(smallest, {key: 3})


def test_what_others_call_a_key_is_one_of_ours_and_no_other() -> None:
    known = option_names()
    assert set(reading._USUAL_NAMES) <= set(known)
    names = [name for line in reading._USUAL_NAMES.values() for name in line.split()]
    assert len(names) == len(set(names))
    assert not {*names, *reading._NO_KEYS} & {key.rpartition(".")[2] for key in known}
    assert [key.name for key in recipe_keys("lr")] == ["optimizer.learning_rate"]


def test_a_file_names_the_key_alone(smallest: Path) -> None:
    smallest.write_text(smallest.read_text() + "lr = 0.1\n")
    with pytest.raises(BadRecipe, match=r"recipe key 'lr'; did you mean optimizer.learning_rate\?$"):
        load_recipe(smallest)


DIGITS = "9" * 5000
VALUES = st.one_of(
    st.sampled_from(
        [DIGITS, f"-{DIGITS}", f"0x{'f' * 5000}", f"0.{DIGITS}", f"1e{DIGITS}", "1e999", "-1e999", "nan", "inf",
         "[" * 5000, "[" * 5000 + "]" * 5000, "{a=" * 3000, f'"""{"a" * 10**5}"""', '"\\ud800"', "\ud800", "\0",
         "{a.b=1}", "1979-05-27T07:32:00Z", str(2**63), str(2**64), f"[{DIGITS}]", "{a=0x" + "f" * 4000 + "}"]
    ),
    st.text(max_size=30),
)  # fmt: skip


@given(
    key=st.one_of(st.sampled_from([*option_names(), "transfer.rates.conv1", "transfer"]), st.text(max_size=9)),
    value=VALUES,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_value_is_more_than_one_short_line(smallest: Path, key: str, value: str) -> None:
    """A number of 5,000 digits, infinities, brackets in brackets, halves of characters: read, or BadRecipe."""
    try:
        load_recipe(smallest, parse_overrides([f"{key}={value}"]))
    except BadRecipe as error:
        require_one_line(error, 700)
    odd = smallest.with_name("odd.toml")
    odd.write_bytes(f"{key} = {value}\n".encode("utf-8", "surrogatepass"))
    with pytest.raises(BadRecipe) as caught:
        load_recipe(odd)
    require_one_line(caught.value)


def require_one_line(error: BadRecipe, longest: int = 10**4) -> None:
    assert "\n" not in str(error)
    assert len(str(error).partition("known keys: ")[0]) <= longest


positive = st.floats(min_value=1e-12, max_value=1e6)
fraction = st.floats(min_value=0, max_value=1)
ranges = st.tuples(positive, positive).map(lambda pair: tuple(sorted(pair)))
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
recipes = st.fixed_dictionaries(
    {"network": plain, "records": plain},
    optional={
        "epochs": st.integers(10, 10**6),
        "seed": st.integers(0, 2**32 - 1),
        "precision": st.sampled_from(["auto", "float32", "float64"]),
        "augmentation": st.fixed_dictionaries({"zoom": ranges, "flip": fraction}),
        "optimizer": st.fixed_dictionaries({"learning_rate": positive, "weight_decay": positive}),
        "schedule": st.fixed_dictionaries(
            {
                "kind": st.just("steps"),
                "drops": st.sets(st.integers(1, 9), min_size=1).map(lambda s: tuple(sorted(s))),
            }
        ),
        "loader": st.fixed_dictionaries({"threads": st.integers(0, 64) | st.just("auto")}),
    },
)


@given(recipes)
def test_the_text_of_a_recipe_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    recipe = Recipe(**values)
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe_text(recipe), encoding="utf-8", newline="")
    assert load_recipe(path) == recipe


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4),
       st.sampled_from(OPTIONS))  # fmt: skip
def test_any_value_under_any_key_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str
) -> None:
    path = write(tmp_path_factory.mktemp("recipe"), 'network = "lenet"\nrecords = "data"\n')
    try:
        load_recipe(path, {key: value})
    except BadRecipe as error:
        require_one_line(error)


@given(st.text(max_size=40))
def test_any_override_word_is_read_or_refused(word: str) -> None:
    try:
        parse_overrides([word])
    except BadRecipe as error:
        require_one_line(error)


def test_every_key_says_what_it_means() -> None:
    keys = recipe_keys()
    assert [key.name for key in keys if not (key.meaning and key.meaning.endswith((".", ")")))] == []
    assert [(key.name, key.required) for key in keys if key.required] == [("network", True), ("records", True)]
    (engine,) = recipe_keys("MXNet/gluon")
    assert (engine.name, engine.default, engine.choices) == ("engine", "auto", ("auto", "gluon", "pytorch"))
    assert [key.name for key in recipe_keys("warmup")] == ["schedule.warmup_epochs"]
    assert recipe_keys("no such word") == []


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"mean": [1.0, 2.0, 3.0]}, r"'initial\.mean': goes with std"),
        ({"std": [1.0, 2.0, 3.0]}, r"'initial\.std': goes with mean"),
        ({"mean": [1.0, 2.0], "std": [1.0, 2.0]}, r"'initial\.mean': must be three numbers"),
        ({"mean": [1.0, 2.0, 3.0], "std": [1.0, 0.0, 1.0]}, r"'initial\.std"),
        ({"mean": [1.0, 2.0, 3.0], "std": [1.0, 1e-9, 1.0]}, r"'initial\.std': must be 1e-6 or above"),
        ({"mean": [1e31, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}, r"'initial\.mean': must be in 0\.\.255"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229] * 3}, r"0\.\.255: mean=\[123\.675, 116\.28, 103\.53\]"),
    ],
)  # fmt: skip
def test_a_normalisation_is_three_numbers_each_in_0_to_255(
    smallest: Path, initial: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRecipe, match=message) as caught:
        load_recipe(smallest, {f"initial.{key}": value for key, value in initial.items()})
    require_one_line(caught.value)


def test_drops_beyond_a_shortened_run_are_told_what_would_do(tmp_path: Path) -> None:
    text = 'network="lenet"\nrecords="x"\nepochs=90\n[schedule]\nkind="steps"\ndrops=[30, 60, 80]\n'
    path = write(tmp_path, text)
    with pytest.raises(BadRecipe, match=r"found \[30, 60, 80\]; schedule\.drops=\[3, 6, 8\] keeps their proportion"):
        load_recipe(path, {"epochs": 9})
    assert load_recipe(path, {"epochs": 9, **parse_overrides(["schedule.drops=[3, 6, 8]"])}).epochs == 9
    with pytest.raises(BadRecipe, match="no drop fits one epoch"):
        load_recipe(path, {"epochs": 1})
    with pytest.raises(BadRecipe, match=r"schedule\.drops=\[12, 24, 32\]"):
        load_recipe(write(tmp_path, text.replace("90", "40")))


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(2, 300), st.integers(0, 400))
def test_drops_that_are_offered_fit(drops: set[int], epochs: int, meant_for: int) -> None:
    fitted = fitted_drops(sorted(drops), epochs, meant_for)
    config.ScheduleRecipe(kind="steps", drops=tuple(fitted))
    assert all(1 <= drop < epochs for drop in fitted)
    assert 1 <= len(fitted) <= len(drops)


PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8})?", fullmatch=True), PLAIN | st.lists(PLAIN, max_size=3))
)
def test_overrides_as_words_are_read_back(overrides: dict[str, Any]) -> None:
    assert parse_overrides(override_words(overrides)) == overrides


def test_a_table_among_overrides_becomes_words_of_its_keys() -> None:
    words = override_words({"transfer": {"frozen": {"stem": 5}}, "epochs": 3})
    assert words == ["transfer.frozen.stem=5", "epochs=3"]
