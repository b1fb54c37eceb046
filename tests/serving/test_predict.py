"""POST /predict: the run's own probabilities in every form, alone and in company; refusals; the description."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.errors import OutOfRoom
from imagenet_pipeline.evaluation.predict import open_classifier
from imagenet_pipeline.serving import answers, batches, openapi, uploads
from imagenet_pipeline.serving.answers import Answers, open_answers
from imagenet_pipeline.serving.service import Service

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
BOUNDARY = "----form7"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def encoded(pixels: Any, ending: str = ".png") -> bytes:
    return cv2.imencode(ending, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


PHOTO = encoded(PIXELS)


def form(files: Sequence[tuple[str, bytes]], end: str = "--") -> bytes:
    head = '--{}\r\nContent-Disposition: form-data; name="file"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = b"".join(head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in files)
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\nno file\r\n'
    return field.encode() + parts + f"--{BOUNDARY}{end}\r\n".encode()


def in_json(text: str) -> bytes:
    return json.dumps({"image": text}).encode()


@pytest.fixture(scope="module")
def expected(odd_run: Path) -> list[dict[str, Any]]:
    """What the run says of PIXELS, the most probable class first."""
    classifier = open_classifier(odd_run)
    (row,) = classifier.probabilities([PIXELS])
    named = zip(classifier.classes.ids, classifier.classes.names, row.tolist(), strict=True)
    ordered = sorted(named, key=lambda each: -each[2])
    return [{"class": own, "name": name, "probability": pytest.approx(share, rel=1e-5)} for own, name, share in ordered]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("image/png", PHOTO),
        ("image/jpeg", PHOTO),
        ("application/octet-stream", PHOTO),
        ("application/json", in_json(base64.b64encode(PHOTO).decode())),
        ("application/json", b' {\r\n"image":"%s"} ' % base64.b64encode(PHOTO).replace(b"/", b"\\/")),
        ("application/json; charset=utf-8", in_json(f"data:image/png;base64,{base64.b64encode(PHOTO).decode()}")),
    ],
)
def test_a_photo_gets_the_run_s_probabilities(
    odd_site: Any, odd_run: Path, expected: Any, kind: str, body: bytes
) -> None:
    status, answer = odd_site.predict(body, kind)
    assert (status, answer["predictions"]) == (200, expected[:2])  # the site's --top
    assert odd_site.predict(body, kind, "?top=1")[1]["predictions"] == expected[:1]
    assert odd_site.predict(body, kind, "?top=1000")[1]["predictions"] == expected
    assert answer["model"]["name"] == odd_run.name
    assert (answer["model"]["network"], answer["model"]["checkpoint"]) == ("lenet", "epoch-0001")
    assert 0 < answer["seconds"] < 60
    assert "warning" not in answer


def test_a_form_of_several_photos_is_answered_in_its_order(odd_site: Any, expected: Any) -> None:
    files = [("a.png", PHOTO), ("Käse.png", b"only text"), ("c.png", PHOTO)]
    status, answer = odd_site.predict(form(files), FORM)
    assert status == 200
    assert [photo["file"] for photo in answer["photos"]] == ["a.png", "Käse.png", "c.png"]
    first, second, third = answer["photos"]
    assert first["predictions"] == third["predictions"] == expected[:2]
    assert "not an image" in second["error"]


def test_a_damaged_photo_that_can_be_read_is_answered_with_a_warning(odd_site: Any) -> None:
    photo = encoded(cv2.resize(PIXELS, (700, 500)), ".jpg")
    status, answer = odd_site.predict(photo[: len(photo) * 3 // 4] + b"\xff\xd9", "image/jpeg")
    assert (status, len(answer["predictions"])) == (200, 2)
    assert "damaged" in answer["warning"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        ("image/png", b"", 400, "empty file"),
        ("image/jpeg", b"only text", 400, "not an image"),
        ("image/png", PHOTO[:-300], 400, "cannot be used"),
        (FORM, form([("a.png", b"only text"), ("b.png", b"")]), 400, "a.png: This cannot be used: not an image"),
        ("image/png", bytes(2**20 + 1), 413, "too large"),
        (FORM, form([("a.png", b"x")] * 33), 413, "More than 32 photos"),
        (FORM, form([("", b"")] * 100), 413, "More than 100 parts"),
        (FORM, form([("", b"")] * 99), 422, "no file"),
        (FORM, form([(";" * 5000, b"x")]), 422, "not whole"),
        ("text/html", PHOTO, 415, "text/html; expected Content-Type: image/jpeg"),
        ("application/x-www-form-urlencoded", PHOTO, 415, "expected Content-Type"),
        ("application/json", b'{"image": ', 422, "not JSON"),
        ("application/json", b"[" * 100_000, 422, "not JSON"),
        ("application/json", b'{"picture": "aa"}', 422, "Expected"),
        ("application/json", b'{"image": [' + b"[]," * 9 + b"[]]}", 422, "Expected"),
        ("application/json", in_json("a b c"), 422, "not base64"),
        ("application/json", rb'{"image": "\x"}', 422, "not base64"),
        (FORM, form([]), 422, "no file"),
        (FORM, form([("a.png", PHOTO)], end=""), 422, "not whole"),
        ("multipart/form-data", form([("a.png", PHOTO)]), 422, "not whole"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(
    odd_site: Any, monkeypatch: pytest.MonkeyPatch, kind: str, body: bytes, status: int, says: str
) -> None:
    monkeypatch.setattr(uploads, "FILE_LIMIT_BYTES", 2**20)
    got, answer = odd_site.predict(body, kind)
    assert (got, list(answer)) == (status, ["error"])
    assert says in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("top", ["0", "-1", "many", "", "1.5", "٣"])
def test_a_number_of_classes_is_a_number(odd_site: Any, top: str) -> None:
    from urllib.parse import quote

    assert odd_site.predict(PHOTO, query=f"?top={quote(top)}")[0] == 422


def test_another_site_s_page_may_not_ask(odd_site: Any) -> None:
    assert odd_site.ask("POST", "/predict", PHOTO, Origin="http://evil.example")[0] == 403


def test_the_description_is_openapi(odd_site: Any) -> None:
    described = json.loads(odd_site.ask("GET", "/openapi.json")[2])
    assert described == openapi.description()
    assert described["openapi"].startswith("3.1.")
    assert set(described["paths"]) == {"/predict", "/health"}
    pytest.importorskip("openapi_spec_validator").validate(described)


def test_answers_are_as_described(odd_site: Any) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    described = openapi.description()

    def require(address: str, method: str, status: int, answer: Any) -> None:
        schema = described["paths"][address][method]["responses"][str(status)]["content"]["application/json"]["schema"]
        validator({**schema, "components": described["components"]}).validate(answer)

    require("/health", "get", *odd_site.health())
    several = form([("a.png", PHOTO), ("b.png", b"x")])
    for kind, body in (("image/png", PHOTO), (FORM, several), ("image/png", b"x"), ("text/html", PHOTO)):
        require("/predict", "post", *odd_site.predict(body, kind))


@pytest.mark.parametrize("engine", ["pytorch", "gluon"])
def test_a_photo_in_company_gets_what_it_gets_alone(
    drawn_run: Callable[..., Path], serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    run = drawn_run("a", "b", "c", network="resnet18", size=32, engine=engine)
    sizes: list[int] = []
    score = Answers.score

    def noting(self: Answers, views: Any) -> Any:
        sizes.append(len(views))
        return score(self, views)

    monkeypatch.setattr(Answers, "score", noting)
    random = np.random.default_rng(1)
    photos = [encoded(random.integers(0, 256, (40, 40 + number, 3), np.uint8)) for number in range(24)]
    with serving(run) as site, ThreadPoolExecutor(24) as pool:
        alone = [site.predict(photo) for photo in photos]
        assert set(sizes) == {1}
        together = list(pool.map(site.predict, photos))
        assert site.health()[1]["answered"] == 48
    assert max(sizes) > 1
    for (one_status, one), (status, other) in zip(alone, together, strict=True):
        assert (one_status, status) == (200, 200)
        shares = [{choice["class"]: choice["probability"] for choice in each["predictions"]} for each in (one, other)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-5)


class OfEngine(Exception):
    """Derives from Exception alone, as those of ONNX Runtime."""


@pytest.mark.parametrize(
    ("failure", "refused"), [(OutOfRoom("out of memory", where="gpu:0"), 503), (OfEngine("no such kernel"), 500)]
)
def test_a_photo_that_the_engine_fails_on_is_refused_alone(
    odd_run: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, failure: Exception, refused: int
) -> None:
    score = Answers.score

    def full(self: Answers, views: Any) -> Any:
        if (views == 255).all(axis=(1, 2, 3, 4)).any():
            raise failure
        return score(self, views)

    photos = [encoded(np.full((30, 30, 3), 255 if number == 5 else number, np.uint8)) for number in range(12)]
    monkeypatch.setattr(Answers, "score", full)
    with serving(odd_run) as site, ThreadPoolExecutor(12) as pool:
        given = list(pool.map(site.predict, photos))
        assert site.health()[1]["status"] == "ready"
    assert [status for status, _ in given] == [refused if number == 5 else 200 for number in range(12)]
    assert list(given[5][1]) == ["error"]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Photos are scored once this is set, and a little later."""
    let_go, score = threading.Event(), Answers.score

    def later(self: Answers, views: Any) -> Any:
        let_go.wait(20)
        return score(self, views)

    monkeypatch.setattr(Answers, "score", later)
    return let_go


def waits(site: Any, count: int) -> None:
    while site.health()[1]["waiting"] < count:
        time.sleep(0.02)


def test_more_photos_than_may_wait_are_refused_for_a_moment(
    odd_run: Path, serving: Callable[..., Any], held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PHOTOS_WAITING", 10)
    monkeypatch.setattr(answers, "TOGETHER_ON_CPU", 2)
    with serving(odd_run) as site, ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(site.predict, PHOTO) for _ in range(10)]
        waits(site, 10)
        status, headers, answer = site.ask("POST", "/predict", PHOTO, **{"Content-Type": "image/png"})
        assert (status, headers["retry-after"]) == (503, "1")
        assert "Too many" in json.loads(answer)["error"]
        held.set()
        assert [each.result()[0] for each in waiting] == [200] * 10
        assert site.predict(PHOTO)[0] == 200


def test_a_form_for_which_there_is_no_room_leaves_nothing_behind(
    odd_run: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PHOTOS_WAITING", 10)
    with serving(odd_run) as site:
        assert site.predict(form([("a.png", PHOTO)] * 11), FORM)[0] == 503
        health = site.health()[1]
        assert (health["waiting"], health["answered"]) == (0, 0)
        assert site.predict(form([("a.png", PHOTO)] * 10), FORM)[0] == 200


def test_a_photo_that_cannot_be_decoded_for_memory_ends_its_form_once_all_have_begun(
    odd_run: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    view, viewed = Answers.view, []

    def full(self: Answers, data: bytes) -> Any:
        if data == b"large":
            raise MemoryError
        time.sleep(0.1)
        viewed.append(data)
        return view(self, data)

    monkeypatch.setattr(Answers, "view", full)
    with serving(odd_run) as site:
        files = [("a.png", b"large"), ("b.png", PHOTO), ("c.png", PHOTO)]
        assert site.predict(form(files), FORM) == (503, {"error": "There is too little memory for this photo."})
        assert viewed == [PHOTO] * 2


def test_the_end_does_not_wait_for_what_nobody_computes() -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError

    class Opened:
        together = 1
        score = warm_up = broken

    async def failing() -> bool:
        service = Service("odd", Opened)  # type: ignore[arg-type]
        async with asyncio.timeout(20), service.running():
            while not service.failure:
                await asyncio.sleep(0)
            service._in_work = 1
            await service.drain(lambda: False)
        return True

    assert asyncio.run(failing())


def test_at_the_end_what_was_taken_is_answered_and_nothing_new(
    odd_run: Path, serving: Callable[..., Any], held: threading.Event
) -> None:
    with serving(odd_run) as site, ThreadPoolExecutor(20) as pool:
        taken = [pool.submit(site.predict, PHOTO) for _ in range(20)]
        waits(site, 20)
        site.server.stop()
        while site.health()[1]["status"] == "ready":
            time.sleep(0.02)
        assert site.health()[0] == 503
        status, refused = site.predict(PHOTO)
        assert status == 503
        assert "ending" in refused["error"]
        held.set()
        assert [each.result()[0] for each in taken] == [200] * 20


def test_until_it_is_warm_it_says_so(odd_run: Path, serving: Callable[..., Any]) -> None:
    let_go = threading.Event()

    def opened_late(*words: Any, **keys: Any) -> Answers:
        let_go.wait(20)
        return open_answers(*words, **keys)

    with serving(odd_run, opened=opened_late, status="warming") as site:
        assert site.health() == (503, {"status": "warming", "model": {"name": odd_run.name}})
        assert site.predict(PHOTO)[0] == 503
        status, headers, page = site.ask("GET", "/")
        assert (status, headers["retry-after"]) == (503, "1")
        assert b'http-equiv="refresh"' in page
        let_go.set()
        while site.health()[0] != 200:
            time.sleep(0.02)
        assert site.ask("GET", "/")[0] == 200
        assert site.predict(PHOTO)[0] == 200
