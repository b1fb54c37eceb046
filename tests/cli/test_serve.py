"""The verb serve as a process: an address, a page, an end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from imagenet_pipeline.cli import main
from imagenet_pipeline.evaluation.predict import open_classifier


def test_it_says_its_address_serves_and_ends_cleanly_on_ctrl_c(drawn_run: Callable[..., Path]) -> None:
    words = [sys.executable, "-m", "imagenet_pipeline", "serve", str(drawn_run("cat", "dog")), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert process.stdout.readline().startswith("ready after ")
        with urllib.request.urlopen(address) as page:
            assert b"lenet" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


WITHOUT_ENGINES = """
import sys
sys.modules.update(dict.fromkeys(("torch", "mxnet", "onnx", "gluoncv", "timm")))
from imagenet_pipeline.cli import main
main(["serve", *sys.argv[1:], "--port", "0"])
"""


@pytest.mark.pytorch
def test_an_exported_file_is_served_without_the_engines(drawn_run: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run = drawn_run("cat", "dog")
    with pytest.raises(SystemExit):
        main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "net")])
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    words = [sys.executable, "-c", WITHOUT_ENGINES, str(tmp_path / "net.onnx")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        address = process.stdout.readline().split()[0]
        assert "lenet, onnxruntime, 28 pixels" in process.stdout.readline()
        photo, kind = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), {"Content-Type": "image/png"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}predict", photo, kind)) as asked:
            answer = json.load(asked)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert process.stderr.read() == ""
    expected = dict(zip(("cat", "dog"), open_classifier(run).probabilities([pixels])[0], strict=True))
    assert answer["model"]["engine"] == "onnxruntime"
    for choice in answer["predictions"]:
        assert choice["probability"] == pytest.approx(expected[choice["name"]], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{run}", "--port", "{taken}"], 2, "Address already in use"),
        (["{run}", "--host", "192.0.2.1"], 2, "192.0.2.1:7860: no page can be served here"),
        (["nowhere", "--port", "0"], 2, "nowhere"),
        (["nowhere.onnx", "--port", "0"], 2, "nowhere.onnx: there is no such file"),
        (["{run}", "--port", "70000"], 2, "--port"),
        (["{run}", "--port", "0", "epochs 3"], 2, "not an override"),
    ],
)
def test_a_mistake_is_one_line(
    emotion_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["serve", *(word.format(run=emotion_run, taken=taken) for word in words)])
    told = capsys.readouterr()
    assert (ended.value.code, told.out, told.err.count("\n")) == (code, "", 1)
    assert says in told.err


def test_what_is_found_while_it_warms_up_ends_it_with_a_line(
    emotion_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(emotion_run), "--port", "0", "epochs=3"])
    told = capsys.readouterr()
    assert (ended.value.code, told.out.count("\n"), told.err.count("\n")) == (2, 1, 1)
    assert "does not apply" in told.err


def test_without_the_extra_it_says_what_to_install(
    emotion_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("imagenet_pipeline.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(emotion_run)])
    assert ended.value.code == 2
    assert "pip install 'imagenet-pipeline[serve]'" in capsys.readouterr().err


def test_another_address_is_warned_of(
    drawn_run: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import imagenet_pipeline.serving.connections as connections

    monkeypatch.setattr(connections, "serve", lambda *_: None)
    run = str(drawn_run("a", "b"))
    addresses = [("127.0.0.1", "127.0.0.1", False), ("127.0.0.2", "127.0.0.2", False), ("0.0.0.0", "0.0.0.0", True)]
    if Path("/proc/net/if_inet6").exists():
        addresses.append(("::1", "[::1]", False))
    for host, shown, warned in addresses:
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main(["serve", run, "--host", host, "--port", "0"])
        assert capsys.readouterr().out.startswith(f"http://{shown}:")
        assert not ended.value.code
        assert ("no password" in caplog.text) is warned
