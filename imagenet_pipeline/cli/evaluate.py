"""The verbs that measure a trained network: evaluate (a checkpoint or several), features, probe."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_pipeline.cli.completion import complete_run_or_key
from imagenet_pipeline.cli.output import WHICH, Json, overrides_of, say, say_json, say_table
from imagenet_pipeline.errors import BadRecipe, PipelineError, counted

if TYPE_CHECKING:
    from imagenet_pipeline.evaluation.results import Findings
    from imagenet_pipeline.evaluation.vectors import VectorFindings
import dataclasses
from typing import Any, Literal

from imagenet_pipeline.cli.output import LARGEST_SEED, Checkpoint, Overrides, Run, list_names

Model = Literal["knn", "perceptron", "sgd", "logistic", "svm"]
Penalty = Literal["none", "l1", "l2", "elasticnet"]
Features = Literal["pixels", "hog", "colour-histogram"]
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|KEY=VALUE",
        help="Run folders, and recipe keys to change, as devices=cpu.",
        autocompletion=complete_run_or_key,
    ),
]
Checkpoints = Annotated[str, typer.Option(help=f"{WHICH}; several with commas between, as 5,10,best.")]
Split = Annotated[str | None, typer.Option(help="Which split to score [default: test, or val where there is none]")]
CropCount = Annotated[int, typer.Option(help="1 (centre), 2 (and its mirror) or 10.")]
Records = Annotated[
    Path | None,
    typer.Option(
        help="Another data set of the same classes, of some, or of folders 0 to 999 (ImageNetV2); or a .rec file."
    ),
]
Subset = Annotated[
    bool | None,
    typer.Option(
        "--subset/--no-subset",
        help="Score the logits of the records' own classes alone [default: for ImageNet-A and -R as built by name]",
    ),
]
RealLabels = Annotated[
    Path | None, typer.Option(help="real.json: score ImageNet's validation images by their ReaL labels, too.")
]
Report = Annotated[
    Path | None,
    typer.Option(help="The page's name; .md and .json go beside it [default: report-SPLIT.html in the first run]"),
]


def evaluate(
    context: typer.Context,
    words: Words,
    checkpoint: Checkpoints = "best",
    split: Split = None,
    crops: CropCount = 1,
    records: Records = None,
    subset: Subset = None,
    real_labels: RealLabels = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Score a checkpoint on every record of a split once: rank-1, rank-5 and loss with 95 % intervals, and a report.

    Chance is the rank-1 of guessing; rank-5 is left out where there are no more than five classes.

    Several runs or checkpoints are scored beside each other on the records of the first, and together: their
    probabilities are averaged. They may differ in network, engine and input size, not in their classes. There p is
    how likely so large a difference of rank-1 to the first would be by chance (McNemar's test, on the same images).

    Of a run whose records have several classes an image, or numbers, it is the mean average precision with each
    class's own, or MAE, RMSE and R2.

    \b
    Examples:
      imagenet-pipeline evaluate output/runs/demo --split test --json
      imagenet-pipeline evaluate output/runs/demo --checkpoint 5,10,best
      imagenet-pipeline evaluate output/runs/first output/runs/second devices=cpu
      imagenet-pipeline evaluate output/runs/resnet50 --split val --real-labels real.json
      imagenet-pipeline evaluate output/runs/resnet50 --records output/imagenet-r
    """
    from imagenet_pipeline.engines import launch_ranks, taking_part
    from imagenet_pipeline.evaluation.compare import examine
    from imagenet_pipeline.evaluation.evaluate import crops_of, default_split, scoring_recipe
    from imagenet_pipeline.evaluation.report import require_page
    from imagenet_pipeline.evaluation.results import findings_of
    from imagenet_pipeline.evaluation.vectors import evaluate_vectors, label_kind_of, require_alone
    from imagenet_pipeline.training.engine_setup import with_engine

    views = crops_of(crops)
    runs, changes = runs_and_changes(words, "evaluate")
    split = split or default_split(runs[0], records, changes)
    checkpoints = [which.strip() for which in checkpoint.split(",")]
    page = report or runs[0] / _page_name(runs, checkpoints, split, crops, records, subset)
    require_page(page, own=report is None)
    with taking_part():
        planned = with_engine(scoring_recipe(runs[0], changes, "evaluate"))
        if launch_ranks(planned.engine, planned.devices, context.obj):
            return
        if label_kind_of(runs[0], checkpoints[0]) != "class":
            require_alone(runs, checkpoints, real_labels)
            vectors = evaluate_vectors(runs[0], checkpoints[0], split, views, records, changes)
            if not vectors.evaluation.process:
                _answer_vectors(vectors, page, as_json)
            return
        found = examine(runs, checkpoints, split, views, records, changes, real_labels, subset)
    if not found.result.process:
        _answer(findings_of(found), page, as_json)


def _answer(findings: Findings, page: Path, as_json: bool) -> None:
    """Write the report and say the figures, also where it cannot be written: they took so much longer."""
    from imagenet_pipeline.evaluation.report import write_report
    from imagenet_pipeline.evaluation.results import report_of

    problem: PipelineError | None = None
    try:
        write_report(findings, page)
    except PipelineError as error:
        problem = error
    if as_json:
        say_json(report_of(findings, None if problem else page))
    else:
        _say(findings, None if problem else page)
    if problem:
        raise problem


def _answer_vectors(findings: VectorFindings, page: Path, as_json: bool) -> None:
    """Write the report of label vectors and say the figures, also where it cannot be written."""
    from imagenet_pipeline.evaluation.vector_report import lines_of, write_vector_report

    problem: PipelineError | None = None
    try:
        write_vector_report(findings, page)
    except PipelineError as error:
        problem = error
    if as_json:
        say_json(dataclasses.replace(findings.evaluation, report=None if problem else page))
    else:
        for line in lines_of(findings.evaluation):
            say(line)
        if not problem:
            say(f"report: {page}")
    if problem:
        raise problem


def runs_and_changes(words: list[str], verb: str) -> tuple[list[Path], dict[str, object]]:
    """Runs come first; what has an equals sign, and is no folder, is a recipe key."""
    runs = [Path(word) for word in words if "=" not in word or Path(word).is_dir()]
    if not runs:
        raise BadRecipe("no run is named", where=" ".join(words), expected=f"{verb} RUN [RUN...] [key=value...]")
    return runs, overrides_of([word for word in words if Path(word) not in runs])


def _page_name(
    runs: list[Path], checkpoints: list[str], split: str, crops: int, records: Path | None, subset: bool | None
) -> str:
    """Name a report's page after what differs from the best checkpoint's centre crops on the run's own records."""
    words = [f"{crops}-crops"] if crops > 1 else []
    words += checkpoints if checkpoints != ["best"] else []
    others = [run.resolve() for run in runs[1:]]
    words += [f"with-{run.name}" for run in others]
    words += [f"on-{records.resolve().name}"] if records else []
    words += [] if subset is None else ["subset" if subset else "all-classes"]
    name = "-".join(["report", split, *words])
    if others or records:
        # Folders of the same name are not the same, and a long name is cut.
        digest = hashlib.sha256(repr((others, records and records.resolve(), checkpoints)).encode())
        name = f"{name.encode()[:200].decode(errors='ignore')}-{digest.hexdigest()[:6]}"
    return f"{name}.html"


def _say(findings: Findings, page: Path | None) -> None:
    from imagenet_pipeline.evaluation.report_tables import in_train_note, seen, who

    result, figures = findings.examination.result, findings.figures
    if len(findings.own) > 1:
        _say_members(findings)
    for note in findings.examination.notes:
        say(note)
    say(f"{who(result)}: {counted(result.images, f'{result.split} image')}, {seen(result.crops)}")
    rates = {"rank-1": figures.rank1}
    if findings.says_rank5:
        rates["rank-5"] = figures.rank5
    if figures.real:
        rates["ReaL"] = figures.real
    for name, rate in rates.items():
        (low, high), beside = rate.interval, f"; {findings.chance}" if name == "rank-1" else ""
        of = f"{rate.hits:,} of {rate.images:,}; 95 %: {low:.2f} to {high:.2f}{beside}"
        say(f"{name:<7} {rate.percent:.2f} %  ({of})")
    kind, span = findings.examination.loss_kind, figures.loss.interval
    unit = "nats" if kind.endswith("cross_entropy") else f"({kind})"
    said = f"  (95 %: {span[0]:z.4f} to {span[1]:z.4f})" if span else ""
    say(f"loss    {figures.loss.value:z.4f} {unit}{said}")
    say(f"ECE     {100 * figures.calibration.error:.2f} %  (expected calibration error)")
    if findings.in_train:
        say(in_train_note(findings))
        if findings.in_train.images and (without := findings.in_train.rank1_without):
            (low, high), of = without.interval, f"{without.hits:,} of {without.images:,}"
            say(f"without them: rank-1 {without.percent:.2f} %  ({of}; 95 %: {low:.2f} to {high:.2f})")
    if page:
        say(f"report: {page}")


def _say_members(findings: Findings) -> None:
    """Each by itself and all together; what they have in common is said once, before."""
    from imagenet_pipeline.config import shown_size
    from imagenet_pipeline.evaluation.report_tables import TOGETHER, difference_cells

    examination = findings.examination
    members = examination.evaluations
    traits = {
        "run": [member.run for member in members],
        "network": [member.network for member in members],
        "engine": [member.engine for member in members],
        "input": [f"{shown_size(member.input_size)} px" for member in members],
    }
    shared = [f"{name} {values[0]}" for name, values in traits.items() if len({*values}) == 1]
    differing = {name: [*values, ""] for name, values in traits.items() if len({*values}) > 1}
    if shared:
        say(f"of all: {', '.join(shared)}")
    names, rank5 = [*(member.checkpoint for member in members), TOGETHER], ["rank-5 %"] if findings.says_rank5 else []
    figures = [
        (
            f"{result.rank1:.2f}",
            *([f"{result.rank5:.2f}"] if rank5 else []),
            f"{result.loss:z.4f}",
            *difference_cells(gap),
        )
        for result, gap in zip([*members, examination.result], [None, *findings.differences], strict=True)
    ]
    rows = [(*row[:-1], *row[-1]) for row in zip(names, *differing.values(), figures, strict=True)]
    say_table(["checkpoint", *differing, "rank-1 %", *rank5, "loss", "to the first", "p"], rows)
    say("to the first: points of rank-1, with 95 % interval; p: McNemar's test on the same images")


def features(
    run: Run,
    layer: Annotated[str, typer.Option(help="Layer, or a group of layers, as `networks NAME` shows it.")],
    out: Annotated[Path, typer.Option(help="File to write, a NumPy archive: NAME.npz.")],
    overrides: Overrides = None,
    splits: Annotated[str, typer.Option(help="Which splits, with commas [default: all]")] = "",
    checkpoint: Checkpoint = "best",
    records: Annotated[Path | None, typer.Option(help="Another data set, of any classes, or a .rec file.")] = None,
    as_json: Json = False,
) -> None:
    """Write the activations of a layer for every record.

    The network runs up to the layer, on the centre crop of each image. Memory is that of a batch; the file takes 4
    bytes a number. For a split, say train, it holds train_features [n, k] float32 (of an image [channels, height,
    width], flattened), train_labels and train_records [n]; also classes and, as JSON, about.

    \b
    Examples:
      imagenet-pipeline features output/runs/demo --layer flatten --out output/demo.npz
      imagenet-pipeline features output/runs/imagenet-resnet18 --layer stage3.unit2 --records output/flowers
                        --out output/flowers.npz batch_size=64
      python -c "import numpy; print(numpy.load('output/demo.npz')['train_features'].shape)"
    """
    from imagenet_pipeline.evaluation.features import extract

    chosen = [word.strip() for word in splits.split(",") if word.strip()]
    extraction, images_per_second = extract(run, layer, out, chosen, checkpoint, records, overrides_of(overrides))
    if as_json:
        answer = {**dataclasses.asdict(extraction), "images_per_second": round(images_per_second, 1)}
        say_json({**answer, "file": out, "bytes": out.stat().st_size})
        return
    shape = f" ({'x'.join(map(str, extraction.shape))})" if len(extraction.shape) > 1 else ""
    say(f"{extraction.network}, {extraction.checkpoint}: {layer} gives {counted(extraction.features, 'number')}{shape}")
    say(f"{out}: {list_names(extraction.images)}, {out.stat().st_size:,} bytes, {images_per_second:,.0f} images/s")


def probe(
    file: Annotated[Path, typer.Argument(help="A file of `features`.")],
    kind: Annotated[str, typer.Option(help="logistic (regression) or svm (linear).")] = "logistic",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Draws the folds.")] = 42,
    out: Annotated[Path | None, typer.Option(help="Write the classifier's weights here: NAME.npz.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a linear classifier on a file of features.

    scikit-learn's logistic regression or linear SVM; rank-1 and rank-5 on val and test.

    Features are standardised. The regularisation C is chosen by a stratified cross-validation on train, of five
    folds, among 1e-6 to 10, up from the smallest until rank-1 falls; then all of train is fitted, and val and test
    are scored once each. Memory is 12 bytes for each number of the training features, 36 with svm: 1.2 and 3.6 GB
    for 10,000 x 10,000.

    \b
    Examples:
      imagenet-pipeline probe output/flowers.npz
      imagenet-pipeline probe output/flowers.npz --kind svm --json
    """
    from imagenet_pipeline.evaluation.probe import probe as fit_probe
    from imagenet_pipeline.training.metrics import chance_percent, says_rank5

    if kind not in ("logistic", "svm"):
        raise BadRecipe("unknown classifier", where="--kind", expected="logistic or svm", found=kind)
    result: Any = fit_probe(file, kind, seed, out)  # type: ignore[arg-type]
    if as_json:
        say_json(result)
        return
    say_table(
        ["C", "rank-1 %", "deviation"],
        [(f"{fit.c:g}", f"{fit.rank1:.2f}", f"{fit.deviation:.2f}") for fit in result.tried],
    )
    say(f"{kind}, C = {result.c:g}: {result.images:,} training images, {result.features:,} features")
    for split, scored in result.splits.items():
        chance = f"chance: {chance_percent(result.classes):.3g} %"
        say(f"{split}: rank-1  {scored.rank1:.2f} %  ({scored.rank1_hits:,} of {scored.images:,}; {chance})")
        if not says_rank5(result.classes):
            continue
        say(f"{split}: rank-5  {scored.rank5:.2f} %  ({scored.rank5_hits:,} of {scored.images:,})")
    if out is not None:
        say(f"weights: {out}")


def baseline(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set, as `build` made it.")],
    model: Annotated[
        Model, typer.Option(help="knn, perceptron, sgd, logistic (regression) or svm (linear).")
    ] = "logistic",
    penalty: Annotated[Penalty, typer.Option(help="Of the weights of a linear model.")] = "l2",
    features: Annotated[Features, typer.Option(help="Numbers that describe an image.")] = "pixels",
    size: Annotated[int, typer.Option(min=4, max=512, help="Side that images are brought to, pixels.")] = 32,
    strength: Annotated[float, typer.Option(min=0, help="Times the penalty (scikit-learn's alpha).")] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over train, of a linear model.")] = 20,
    neighbours: Annotated[int, typer.Option(min=1, help="Of knn.")] = 5,
    split: Split = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Order of the training images.")] = 42,
    out: Annotated[Path | None, typer.Option(help="Folder of the report [default: output/baselines/NAME]")] = None,
    as_json: Json = False,
) -> None:
    """Score a classic classifier (k-NN, or a linear model) on the records: what a network must beat.

    scikit-learn on the centre square of each image, with the same figures and report as `evaluate`. Linear models
    learn piece by piece, so that a set larger than memory takes longer and gives the same result.

    \b
    Examples:
      imagenet-pipeline baseline output/digits --model knn --size 16
      imagenet-pipeline baseline output/photos --model sgd --penalty l1
      imagenet-pipeline baseline output/photos --model svm --features hog --size 64 --json
    """
    from imagenet_pipeline.evaluation.baseline import Baseline, run_baseline
    from imagenet_pipeline.evaluation.evaluate import usual_split
    from imagenet_pipeline.evaluation.report import require_page
    from imagenet_pipeline.evaluation.results import findings_of
    from imagenet_pipeline.records.manifest import read_data_set

    chosen = Baseline(model, penalty, features, size, strength, epochs, neighbours, seed)
    records = read_data_set(data)
    split = split or usual_split(records)
    folder = out or Path("output/baselines") / f"{Path(records.name).name}-{chosen.name}"
    page = folder / f"report-{split}.html"
    require_page(page, own=out is None)
    _answer(findings_of(run_baseline(chosen, records, split, folder)), page, as_json)


def diagnose(
    run: Run,
    overrides: Overrides = None,
    checkpoint: Checkpoint = "best",
    target: Annotated[float, typer.Option(help="Rank-1 within reach, percent: people's, or the best known.")] = 100.0,
    train_images: Annotated[int, typer.Option(min=1, help="Images of train to score, about.")] = 10_000,
    records: Records = None,
    out: Annotated[Path | None, typer.Option(help="Draw the errors side by side: NAME.png.")] = None,
    as_json: Json = False,
) -> None:
    """Say what holds a run back: bias, variance, mismatch or over-fitting, each with its evidence and what to try.

    A checkpoint is scored on train, on train_val (`build --train-val-fraction` cuts that out of train), on val and on
    test, as in evaluation. What is lost from each to the next counts where its 95 % interval leaves out 0 and it is
    2 points or more. The history says whether the run was still learning.

    \b
    Examples:
      imagenet-pipeline diagnose output/runs/photos
      imagenet-pipeline diagnose output/runs/photos --target 95 --out errors.png
    """
    from imagenet_pipeline.drawing import require_png
    from imagenet_pipeline.evaluation.diagnosis import diagnose as look
    from imagenet_pipeline.evaluation.diagnosis import draw_diagnosis

    if out:
        require_png(out)
    found = look(run, checkpoint, target, train_images, records, overrides_of(overrides))
    if out:
        draw_diagnosis(found, out, target)
    if as_json:
        say_json({**dataclasses.asdict(found), "picture": out})
        return
    say(f"{run}, {found.checkpoint}")
    rows = [
        (
            score.split,
            f"{score.rank1.images:,}",
            f"{score.rank1.percent:.2f}",
            f"{100 - score.rank1.percent:.2f}",
            f"{score.loss:z.4f}",
        )
        for score in found.scores
    ]
    say_table(["split", "images", "rank-1 %", "error %", "loss"], rows)
    for finding in found.findings:
        say(f"{'YES' if finding.found else 'no '}  {finding.name}: {finding.evidence}")
        for advice in finding.advice:
            say(f"       try {advice}")
    if out:
        say(f"picture: {out}")
