"""The factor that keeps the small gradients of float16 training from vanishing."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.pytorch.runtime import torch

START = 2.0**16
"""The first factor; too large a one costs a few skipped steps, too small a one accuracy."""
STEPS_TO_GROW = 2000
"""After so many good steps in a row the factor doubles."""


class LossScale:
    """Micikevicius et al. 2018, section 3.2, with the factor chosen as training goes ("dynamic", its section 4).

    A step whose gradients are not all finite is skipped and halves the factor, to no less than 1. To know, Python
    waits for the device in every step.
    """

    def __init__(self) -> None:
        self._scale = START
        self._good_steps = 0

    def scaled(self, loss: Any) -> Any:
        """What to take the gradient of."""
        return loss * self._scale

    def unscale(self, gradients: list[Any]) -> bool:
        """Divide the gradients by the factor, in place. Whether to take the step."""
        torch._foreach_mul_(gradients, 1 / self._scale)
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))))
        self._good_steps = self._good_steps + 1 if finite else 0
        if not finite:
            self._scale = max(self._scale / 2, 1.0)
        elif self._good_steps == STEPS_TO_GROW:
            self._scale, self._good_steps = 2 * self._scale, 0
        return finite

    def state(self) -> dict[str, Array]:
        """`loss_scale` [2]: the factor, and the good steps since it last changed."""
        return {"loss_scale": np.array([self._scale, self._good_steps], np.float64)}

    def set_state(self, state: Values) -> None:
        """Go on from an optimizer state that has one."""
        if "loss_scale" in state:
            self._scale, self._good_steps = float(state["loss_scale"][0]), int(state["loss_scale"][1])
