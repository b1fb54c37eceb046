import numpy as np
from numpy.typing import NDArray

def average(
    image: NDArray[np.uint8],
    out: NDArray[np.uint8],
    left: float = 0,
    top: float = 0,
    width: float = 0,
    height: float = 0,
    /,
) -> None: ...
