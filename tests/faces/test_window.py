"""A window where one can be had, and silence where not."""

from __future__ import annotations

import logging
from typing import Any

import cv2
import numpy as np
import pytest

from imagenet_pipeline.faces.video import Window

FRAME = np.full((4, 4, 3), (255, 0, 0), np.uint8)


def test_without_a_screen_nothing_is_shown_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with caplog.at_level(logging.INFO):
        window = Window()
        assert window.show(FRAME)
        window.close()
    assert not window.open
    assert caplog.text == ""


def test_a_build_without_windows_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DISPLAY", ":7")
    with caplog.at_level(logging.INFO):
        window = Window()  # the headless OpenCV of this project
        assert window.show(FRAME)
        window.close()
    assert [record.message for record in caplog.records] == ["no window: opencv-python-headless has none"]


@pytest.mark.parametrize(("key", "goes_on"), [(-1, True), (ord("x"), True), (ord("q"), False), (27, False)])
def test_q_and_escape_end_it(monkeypatch: pytest.MonkeyPatch, key: int, goes_on: bool) -> None:
    shown: list[Any] = []
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyWindow", lambda _: shown.append("closed"))
    monkeypatch.setattr(cv2, "imshow", lambda _, pixels: shown.append(tuple(pixels[0, 0])))
    monkeypatch.setattr(cv2, "waitKey", lambda _: key)
    window = Window()
    assert window.show(FRAME) is goes_on
    window.close()
    assert shown == [(0, 0, 255), "closed"]
    assert not Window(wanted=False).open
