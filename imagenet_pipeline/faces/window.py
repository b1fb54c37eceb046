"""A window to watch in, where there is a screen and an OpenCV that can open one."""

from __future__ import annotations

import contextlib
import logging
import os

import cv2

from imagenet_pipeline.loading.transforms import Pixels

log = logging.getLogger("imagenet_pipeline")

_TITLE = "emotions - q ends"
_ENDING_KEYS = (ord("q"), 27)


class Window:
    """Shows frames as they come, or nothing at all where no window can be had."""

    def __init__(self, wanted: bool = True) -> None:
        self.open = wanted and bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        if not self.open:
            return
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
        except cv2.error:
            self.open = False
            log.info("no window: opencv-python-headless has none")

    def show(self, pixels: Pixels, wait_milliseconds: int = 1) -> bool:
        """Show an RGB picture [H, W, 3] for at least so long, 0 until a key; False once q or Escape was pressed."""
        if not self.open:
            return True
        cv2.imshow(_TITLE, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(wait_milliseconds) & 0xFF not in _ENDING_KEYS

    def close(self) -> None:
        """Take it away."""
        if self.open:
            with contextlib.suppress(cv2.error):
                cv2.destroyWindow(_TITLE)
