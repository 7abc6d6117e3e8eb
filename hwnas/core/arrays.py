"""The arrays that every part of hwnas takes and gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Population = NDArray[np.int16]
"""(n, genes) array; entry [i, j] is an index into gene j's choices."""
