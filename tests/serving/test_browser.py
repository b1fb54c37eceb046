"""The page in headless Chromium, its camera fed from a file."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.serving.answers import Answers, open_answers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)")
ODD_NAMES = {"<script>alert(1)</script>", "cats & \"dogs\" 'n' $more", "犬"}
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, two_faces: Callable[[int], Any]) -> Iterator[Any]:
    """A browser whose camera shows two faces."""
    sync_api = pytest.importorskip("playwright.sync_api")
    film = tmp_path_factory.mktemp("camera") / "two.y4m"
    planes = cv2.cvtColor(two_faces(0), cv2.COLOR_RGB2YUV_I420).tobytes()
    film.write_bytes(b"YUV4MPEG2 W640 H360 F10:1 Ip A1:1 C420jpeg\n" + 5 * (b"FRAME\n" + planes))
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new page; whatever its script fails at, and whatever it asks of another machine, fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: faults.append(one.url) if not one.url.startswith(("data:", "http://127.")) else None)
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert faults == []


def cards(page: Any, count: int) -> list[str]:
    """The texts of the answers, the newest first, once all are there."""
    from playwright.sync_api import expect

    expect(page.locator(".card")).to_have_count(count, timeout=30_000)
    expect(page.locator(".waiting")).to_have_count(0, timeout=30_000)
    return [card.inner_text() for card in page.locator(".card").all()]


def wait_until(page: Any, condition: str) -> None:
    """Playwright's own `wait_for_function` is stopped by the page's Content-Security-Policy."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def write(path: Path, pixels: Any) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


def test_photos_in_a_row_and_refusals_between_them(page: Any, odd_site: Any, tmp_path: Path) -> None:
    first, last = (write(tmp_path / name, np.full((30, 40, 3), 90, np.uint8)) for name in ("1.png", "<b>4<i>.jpg"))
    (tmp_path / "2.zip").write_bytes(b"PK\x03\x04 and more")
    with (tmp_path / "3.jpg").open("wb") as large:
        large.truncate(200 * 2**20)
    page.goto(odd_site.address)
    for number, path in enumerate((first, tmp_path / "2.zip", tmp_path / "3.jpg", last), 1):
        page.set_input_files("#files", path)
        told = cards(page, number)
        assert told[0].startswith(path.name)
    assert "too large: more than 64 MB" in told[1]
    assert "cannot be used: not an image" in told[2]
    for answer in (told[0], told[3]):
        assert answer.count("%") == 2
        assert sum(name in answer for name in ODD_NAMES) == 2
    assert page.locator("img").evaluate_all("all => all.map(one => one.naturalWidth)") == [40, 40]


@pytest.mark.faces
def test_photos_that_are_dropped(page: Any, emotion_site: Any, two_faces: Callable[[int], Any], tmp_path: Path) -> None:
    photo = write(tmp_path / "two.png", two_faces(0)).read_bytes()
    page.goto(emotion_site.address)
    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "two.png"));
        data.items.add(new File(["text"], "text.txt"));
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    page.evaluate(drop, list(photo))
    text, two = cards(page, 2)
    assert "cannot be used" in text
    assert "Face 1" in two
    assert "Face 2" in two
    assert "Face 3" not in two


@pytest.mark.faces
def test_the_camera_shows_two_faces(page: Any, emotion_site: Any) -> None:
    page.goto(emotion_site.address)
    page.click("#camera")
    for count in (1, 2):
        page.wait_for_timeout(1000)
        page.click("#shoot")
        newest = cards(page, count)[0]
        assert newest.startswith("Camera, ")
        assert "2 faces, from the left." in newest
    page.click("#close")
    assert not page.locator("#video").is_visible()


VIDEO_RUNS = "document.getElementById('video').videoWidth > 0"
KEEP_TRACKS = """() => {
    const devices = navigator.mediaDevices, open = devices.getUserMedia.bind(devices);
    window.tracks = [];
    devices.getUserMedia = async (wanted) => {
        const stream = await open(wanted);
        tracks.push(...stream.getTracks());
        return stream;
    };
}"""


@pytest.mark.faces
@pytest.mark.parametrize("clicks", ["twice at once", "one after the other"])
def test_a_closed_camera_is_off_however_often_it_was_opened(page: Any, emotion_site: Any, clicks: str) -> None:
    page.goto(emotion_site.address)
    page.evaluate(KEEP_TRACKS)
    if clicks == "twice at once":
        page.evaluate('() => { const camera = document.getElementById("camera"); camera.click(); camera.click(); }')
    else:
        page.click("#camera")
        wait_until(page, "tracks.length == 1")
        page.click("#camera")
        wait_until(page, "tracks.length == 2")
    wait_until(page, VIDEO_RUNS)
    page.wait_for_timeout(500)  # for a second stream, if there is one
    page.click("#close")
    assert set(page.evaluate("tracks.map((track) => track.readyState)")) == {"ended"}
    assert page.evaluate("document.getElementById('video').srcObject") is None


@pytest.mark.faces
def test_a_picture_of_the_camera_that_cannot_be_stored_stops_nothing(page: Any, emotion_site: Any) -> None:
    page.goto(emotion_site.address)
    page.click("#camera")
    wait_until(page, VIDEO_RUNS)
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (done) => done(null); }")
    page.click("#shoot")
    assert "cannot be stored" in page.inner_text("#notice")
    page.click("#close")


def test_a_photo_that_fails_does_not_hold_up_the_next(page: Any, odd_site: Any, tmp_path: Path) -> None:
    photo = write(tmp_path / "1.png", np.full((30, 40, 3), 90, np.uint8))
    page.goto(odd_site.address)
    page.evaluate("() => { const own = bars; bars = () => { bars = own; throw new Error('out of ink'); }; }")
    page.set_input_files("#files", photo)
    page.set_input_files("#files", photo)
    newest, failed = cards(page, 2)
    assert "This photo cannot be shown (out of ink)." in failed
    assert newest.count("%") == 2


def test_a_page_that_warms_up_goes_on_by_itself(page: Any, odd_run: Path, serving: Callable[..., Any]) -> None:
    let_go = threading.Event()

    def opened_late(*words: Any, **keys: Any) -> Answers:
        let_go.wait(20)
        return open_answers(*words, **keys)

    with serving(odd_run, opened=opened_late, status="warming") as site:
        page.goto(site.address)
        assert "Warming up" in page.inner_text("header")
        let_go.set()
        page.wait_for_selector("#drop")
        assert "3 classes" in page.inner_text("header")


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_nothing_sticks_out_at_any_width(page: Any, odd_site: Any, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(odd_site.address)
    page.set_input_files("#files", write(tmp_path / ("long" * 30 + ".png"), np.zeros((60, 2000, 3), np.uint8)))
    cards(page, 1)
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
