import numpy as np
from numpy.typing import NDArray

def average(image: NDArray[np.uint8], out: NDArray[np.uint8], /) -> None: ...
