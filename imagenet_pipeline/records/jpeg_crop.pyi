import numpy as np
from numpy.typing import NDArray

LIBJPEG_TURBO: str

def decode(
    data: bytes | memoryview, left: int, top: int, width: int, height: int, out: NDArray[np.uint8] | bytearray, /
) -> bool: ...
def read_head(data: bytes | memoryview, /) -> tuple[int, int, int, bool] | None: ...
