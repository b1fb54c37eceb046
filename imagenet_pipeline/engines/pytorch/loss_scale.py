"""The loss scale of float16 training, kept on the device, so that Python waits for no step to see how it went."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagenet_pipeline.engines import Array, Values
from imagenet_pipeline.engines.pytorch.runtime import torch

START = 2.0**16
"""The first factor; a factor too large costs a few skipped steps, too small costs accuracy."""
LARGEST = 2.0**127
"""The largest factor: twice as much is no float32."""
STEPS_TO_GROW = 2000
"""Good steps in a row after which the factor doubles."""


class LossScale:
    """Micikevicius et al. 2018, section 3.2, with the factor chosen as training goes ("dynamic", its section 4).

    A step whose gradients are not all finite is skipped and halves the factor, to no less than 1. Whether it is, the
    device alone knows when Python issues the step, and Python counts it as taken. It learns better at the next step,
    before it counts on: by then the device has the next batch to work at, so it never waits for Python.
    """

    def __init__(self, device: Any) -> None:
        self._scale = torch.full((), START, dtype=torch.float32, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self._overflow = torch.zeros((), dtype=torch.float32, device=device)
        self._noted = torch.zeros((), dtype=torch.float32, pin_memory=device.type == "cuda")
        self._event: Any | None = torch.cuda.Event() if device.type == "cuda" else None
        self._pending = False

    def scaled(self, loss: Any) -> Any:
        """The loss to take the gradient of."""
        return loss * self._scale

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def unscale(self, gradients: list[Any]) -> Any:
        """Divide the gradients by the factor, in place, and move the factor.

        Returns a float32 [] on the device, the same every step: 1 where the step shall be skipped, otherwise 0.
        """
        self._overflow.zero_()
        # The factor is a power of 2, so its inverse is exact.
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._overflow, self._scale.reciprocal())
        torch._amp_update_scale_(self._scale, self._good_steps, self._overflow, 2.0, 0.5, STEPS_TO_GROW)
        self._scale.clamp_(1.0, LARGEST)
        self._noted.copy_(self._overflow, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._pending = True
        return self._overflow

    def skipped(self) -> bool:
        """True where the last step was skipped, when asked for the first time after it."""
        pending, self._pending = self._pending, False
        if pending and self._event is not None:
            self._event.synchronize()
        return pending and bool(self._noted.numpy())

    def state(self) -> dict[str, Array]:
        """`loss_scale` [2]: the factor, and the good steps since it last changed."""
        return {"loss_scale": np.array([self._scale.item(), self._good_steps.item()], np.float64)}

    def set_state(self, state: Values) -> None:
        """Go on from an optimizer state that has a loss scale."""
        if "loss_scale" in state:
            factor, good_steps = state["loss_scale"].tolist()
            self._scale.fill_(min(factor, LARGEST))
            self._good_steps.fill_(int(good_steps))
