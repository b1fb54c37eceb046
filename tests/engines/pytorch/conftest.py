"""The operators that PyTorch is asked for, as a test sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

Counting = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture
def counting() -> Counting:
    """`with counting() as names`: lists the operators that are called in the block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, call: Any, kinds: Any, given: Any = (), named: Any = None) -> Any:
            self.names.append(str(call))
            return call(*given, **(named or {}))

    @contextmanager
    def count() -> Iterator[list[str]]:
        with Calls() as calls:
            yield calls.names

    return count
