"""The verbs predict (the classes of pictures), submit, serve (a local page) and calibrate (honest probabilities)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from imagenet_pipeline.cli.completion import complete_run
from imagenet_pipeline.cli.output import Checkpoint, Json, Overrides, Run, overrides_of, say, say_json
from imagenet_pipeline.errors import BadInput, BadRecipe, printable
from imagenet_pipeline.files import require_separate
from imagenet_pipeline.progress import Bar

if TYPE_CHECKING:
    from imagenet_pipeline.evaluation.predict import Classifier, Prediction
    from imagenet_pipeline.serving.answers import Answers

log = logging.getLogger("imagenet_pipeline")
SubmissionForm = Literal["id-label", "id-probabilities"]
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="PICTURE|FOLDER|LIST|KEY=VALUE",
        help="Pictures, folders of them, lists (.txt, a path a line; .lst); recipe keys, as devices=cpu.",
    ),
]
Table = Annotated[
    Path | None, typer.Option(help="Write a table, a row a picture: NAME.csv; then only failures are printed.")
]
Annotate = Annotated[Path | None, typer.Option(help="Folder for copies with their classes below.")]
Sheet = Annotated[Path | None, typer.Option(help="Write a contact sheet of the 100 least certain, PNG.")]


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE.onnx", help="Run folder, or an ONNX file of `export`.", autocompletion=complete_run
        ),
    ],
    words: Words,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    crops: Annotated[int, typer.Option(help="1 (centre), 2 (and its mirror) or 10.")] = 1,
    checkpoint: Checkpoint = "best",
    root: Annotated[Path, typer.Option(help="Where relative paths in lists start.")] = Path(),
    out: Table = None,
    annotate: Annotate = None,
    sheet: Sheet = None,
    as_json: Json = False,
) -> None:
    """Name the most probable classes of pictures, in any number.

    Folders are looked through with all that is in them. A picture that cannot be read is named with the reason and
    the others go on; the exit code is then 3. Probabilities of several crops are averaged. Of a run whose records
    have several classes an image, those of a probability above 1/2 are named; of one with numbers, these. An ONNX
    file that `export` wrote needs neither MXNet nor PyTorch.

    \b
    Examples:
      imagenet-pipeline predict output/runs/imagenet-resnet50 cat.jpg holidays/ --top 3
      imagenet-pipeline predict output/runs/demo photos/ --sheet sheet.png --annotate annotated/ engine=pytorch
      imagenet-pipeline predict output/runs/demo list.txt --root photos --json
    """
    from imagenet_pipeline.evaluation.evaluate import crops_of
    from imagenet_pipeline.evaluation.exported import open_run_or_export
    from imagenet_pipeline.evaluation.predict import predict as predict_pictures
    from imagenet_pipeline.evaluation.predict import prediction_table, require_csv
    from imagenet_pipeline.evaluation.predict_pictures import Drawings, caption_of

    views = crops_of(crops)
    if out:
        require_csv(out)
    paths, changes = _pictures_and_changes(words, root, (out, sheet))
    drawings = Drawings(paths, annotate, sheet)
    classifier = open_run_or_export(run, checkpoint, changes)
    answer = _JsonAnswer(classifier) if as_json else _TextAnswer(out)
    with contextlib.ExitStack() as stack:
        # Without a bar the lines of the answer on a terminal say how far it is.
        bar = stack.enter_context(Bar("predict", "pictures", shown=as_json or bool(out) or not sys.stdout.isatty()))
        columns = classifier.classes.names if classifier.classes.label_kind == "number" else ()
        most = min(top, len(classifier.classes))
        table = stack.enter_context(prediction_table(out, most, columns)) if out else None
        found = stack.enter_context(contextlib.closing(predict_pictures(classifier, paths, top, views)))  # type: ignore[type-var]
        for done, prediction in enumerate(found, 1):
            answer.add(prediction)
            drawings.add(prediction)
            if table:
                table.add(prediction)
            bar.show(done, len(paths))
    drawn = drawings.finish(caption_of(classifier.run, classifier.checkpoint))
    answer.finish(_written(out, annotate if drawings.annotated else None, sheet if drawn else None), drawn)
    if answer.unreadable:
        raise BadInput(f"{answer.unreadable:,} of {len(paths):,} pictures could not be read")


def _written(table: Path | None, annotated: Path | None, sheet: Path | None) -> dict[str, Path]:
    written = {"table": table, "annotated": annotated, "sheet": sheet}
    return {name: path for name, path in written.items() if path}


def _pictures_and_changes(
    words: Sequence[str], root: Path, outputs: Sequence[Path | None]
) -> tuple[list[Path], dict[str, object]]:
    """Tell pictures from recipe keys: a key has an equals sign and is no file. No picture may be written over."""
    from imagenet_pipeline.evaluation.predict import find_pictures

    changes = [word for word in words if "=" in word and not Path(word).exists()]
    sources = [Path(word) for word in words if word not in changes]
    if not sources:
        raise BadRecipe("no picture is named", where=" ".join(words), expected="predict RUN PICTURE... [key=value...]")
    paths = find_pictures(sources, root)
    require_separate(outputs, (*sources, *paths))
    return paths, overrides_of(changes)


class _TextAnswer:
    """A block of lines a picture, a line with --top 1; beside a table only the pictures that could not be read."""

    def __init__(self, table: Path | None) -> None:
        self._table = table
        self._pictures = self.unreadable = 0

    def add(self, prediction: Prediction) -> None:
        self._pictures += 1
        if prediction.reason:
            self.unreadable += 1
            say(f"{prediction.path}: not read: {prediction.reason}")
            return
        if self._table:
            return
        lines = [f"{100 * guess.probability:6.2f} %  {_called(guess.class_id, guess.name)}" for guess in prediction.top]
        lines += [f"{amount.value:.6g}  {printable(amount.name)}" for amount in prediction.numbers]
        lines = lines or ["none of the classes"]
        if len(lines) == 1:
            say(f"{lines[0]}  {prediction.path}")
            return
        say(str(prediction.path))
        for line in lines:
            say(f"  {line}")

    def finish(self, written: dict[str, Path], sheet: str) -> None:
        for name, path in written.items():
            if name != "table":
                say(f"{name}: {path}" + (f", {sheet}" if name == "sheet" else ""))
        count = f"{self._pictures:,} picture{'' if self._pictures == 1 else 's'}"
        count += f", {self.unreadable:,} not read" if self.unreadable else ""
        say(f"{count}: {self._table}" if self._table else count)


class _JsonAnswer:
    """One object, written as it grows: the predictions need not be in memory together."""

    def __init__(self, classifier: Classifier) -> None:
        head: dict[str, Any] = {"run": str(classifier.run), "checkpoint": classifier.checkpoint.folder.name}
        head |= {} if classifier.temperature == 1 else {"temperature": classifier.temperature}
        print(f'{json.dumps(head)[:-1]}, "predictions": [', end="")
        self._between = ""
        self._unreadable: list[dict[str, str]] = []

    @property
    def unreadable(self) -> int:
        return len(self._unreadable)

    def add(self, prediction: Prediction) -> None:
        if prediction.reason:
            self._unreadable.append({"file": str(prediction.path), "reason": prediction.reason})
            return
        top = [
            {"class": guess.class_id, "name": guess.name, "probability": guess.probability} for guess in prediction.top
        ]
        said: dict[str, Any] = {"top": top}
        if prediction.numbers:
            said = {"numbers": [{"name": amount.name, "value": amount.value} for amount in prediction.numbers]}
        print(self._between + json.dumps({"file": str(prediction.path), **said}), end="")
        self._between = ", "

    def finish(self, written: dict[str, Path], _: str) -> None:
        tail: dict[str, Any] = {"unreadable": self._unreadable, **{name: str(path) for name, path in written.items()}}
        print(f"], {json.dumps(tail)[1:]}")


def _called(class_id: str, name: str) -> str:
    return name if class_id == name else f"{class_id} {name}"


def submit(
    run: Run,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the pictures to be classified.")],
    changes: Overrides = None,
    form: Annotated[
        SubmissionForm, typer.Option("--format", help="A class a picture, or a probability a class.")
    ] = "id-label",
    out: Annotated[Path, typer.Option(help="File to write: NAME.csv.")] = Path("submission.csv"),
    sample: Annotated[
        Path | None, typer.Option(help="The competition's sample_submission.csv: its header, ids and order.")
    ] = None,
    crops: Annotated[int, typer.Option(help="1 (centre), 2 (and its mirror) or 10.")] = 1,
    checkpoint: Checkpoint = "best",
    as_json: Json = False,
) -> None:
    """Write a submission to a competition (Kaggle): a CSV with a row a picture.

    Ids are the names of the pictures, without their ending or as the sample has them. Columns of probabilities are
    matched to the classes by id or name; of two classes and a single column it is the second's. With a sample every
    id must have its picture and every picture its id. A picture that cannot be read is an error: no row is made up.

    \b
    Examples:
      imagenet-pipeline submit output/runs/breeds test/ --format id-probabilities --sample sample_submission.csv
      imagenet-pipeline submit output/runs/digits test/ --out digits.csv devices=cpu
    """
    from imagenet_pipeline.evaluation.evaluate import crops_of
    from imagenet_pipeline.evaluation.predict import find_pictures, open_classifier, require_csv
    from imagenet_pipeline.evaluation.submission import plan_submission, read_sample, write_submission

    views = crops_of(crops)
    require_csv(out)
    pictures = find_pictures([folder], Path())
    require_separate((out,), [*pictures, *([sample] if sample else [])])
    example = read_sample(sample) if sample else None
    classifier = open_classifier(run, checkpoint, overrides_of(changes))
    planned = plan_submission(folder, pictures, classifier.classes, form, example)
    rows = write_submission(classifier, planned, out, views)
    if as_json:
        say_json({"file": out, "rows": rows, "columns": planned.header, "sample": sample})
    else:
        say(f"{out}: {rows:,} rows of {', '.join(planned.header[:3])}{', ...' if len(planned.header) > 3 else ''}")


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE.onnx", help="Run folder, or an ONNX file of `export`.")],
    changes: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 7860,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    checkpoint: Checkpoint = "best",
) -> None:
    """Serve a page that looks at photos, and an address for programs.

    On the page photos are dropped, chosen or taken with the camera: their most probable classes, or faces and emotions.
    Programs send them to POST /predict, which /openapi.json describes; /health says when they may.

    It listens on this machine alone, unless --host says otherwise, and works offline. A photo has 20
    seconds to arrive. The address is there at once, and says so until the network is ready. What was sent by the time
    of Ctrl-C or SIGTERM is answered. An ONNX file needs neither MXNet nor PyTorch. Needs the extra "serve".

    \b
    Examples:
      imagenet-pipeline serve output/runs/demo
      imagenet-pipeline serve output/runs/fer2013 --port 0 engine=pytorch
      imagenet-pipeline serve exported/demo.onnx --host 0.0.0.0
      curl -H "Content-Type: image/jpeg" --data-binary @cat.jpg "http://127.0.0.1:7860/predict?top=3"
      curl -F file=@cat.jpg -F file=@dog.jpg http://127.0.0.1:7860/predict
    """
    from imagenet_pipeline.serving.address import address, listen, own_names

    overrides = overrides_of(changes)
    _require_server(run)
    # The port and its address first: the server's own modules and the run take longer.
    with contextlib.closing(listen(host, port)) as listening, contextlib.suppress(KeyboardInterrupt):
        names = own_names(host, listening)
        if not names:
            log.warning("warning: whoever reaches %s can send photos; there is no password and no encryption", host)
        say(f"{address(host, listening)}  warming up (Ctrl-C ends it)")
        sys.stdout.flush()
        _serve(lambda: _open_answers(run, checkpoint, overrides, top), run, names, listening)
    say("ended")


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    changes: Overrides = None,
    checkpoint: Checkpoint = "best",
    split: Annotated[str, typer.Option(help="Which split to fit it on; not the one to be scored.")] = "val",
    records: Annotated[Path | None, typer.Option(help="Another data set of the same classes, or of some.")] = None,
    as_json: Json = False,
) -> None:
    """Fit the temperature of a checkpoint: the number that its logits are divided by, for the least loss on a split.

    Temperature scaling (Guo et al. 2017). It is kept in the checkpoint's folder, temperature.json, for these weights
    alone, and evaluate, predict, serve and submit use it from then on and say so. No rank changes: the probabilities
    do, and so the calibration error and the cross-entropy. To do without it again, remove the file.

    \b
    Examples:
      imagenet-pipeline calibrate output/runs/demo
      imagenet-pipeline calibrate output/runs/resnet50 --checkpoint 90 devices=gpu:0
    """
    from imagenet_pipeline.evaluation.evaluate import calibrate as fit

    fitted, folder = fit(run, checkpoint, split, records, overrides_of(changes))
    if as_json:
        say_json({"checkpoint": folder, **dataclasses.asdict(fitted)})
        return
    say(f"{folder}: {fitted.words}")
    say(f"loss    {fitted.loss_before:z.4f} -> {fitted.loss_after:z.4f} nats")
    say(f"ECE     {100 * fitted.error_before:.2f} -> {100 * fitted.error_after:.2f} %  (on the images of the fit)")


def _require_server(run: Path) -> None:
    """Raise BadRecipe where the server's packages are missing or there is no run."""
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            advice = "pip install 'imagenet-pipeline[serve]'"
            raise BadRecipe("the page needs Starlette and uvicorn", found=f"no {name}", advice=advice)
    if run.suffix == ".onnx" and not run.exists():
        raise BadRecipe("there is no such file", where=run, advice="`export RUN` writes one")
    if not run.is_file():
        from imagenet_pipeline.config import load_run_recipe

        load_run_recipe(run)


def _open_answers(run: Path, checkpoint: str, overrides: dict[str, Any], top: int) -> Answers:
    from imagenet_pipeline.serving.answers import open_answers

    return open_answers(run, checkpoint, overrides, top)


def _serve(open_run: Callable[[], Answers], run: Path, names: Sequence[str], listening: socket.socket) -> None:
    from imagenet_pipeline.serving.connections import serve as serve_app
    from imagenet_pipeline.serving.page import page_app
    from imagenet_pipeline.serving.service import Service

    def tell_warm(answers: Answers, seconds: float) -> None:
        say(f"ready after {seconds:.1f} s: {answers.title}")
        sys.stdout.flush()

    service = Service(run.resolve().name, open_run, tell_warm)
    serve_app(page_app(service, names), service, listening)
