"""The types of arrays that pictures are made of. Knows nothing about what they show."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[Any]
"""Grey levels in any type. [H, W], or [H, W, C] with colours"""
Mask: TypeAlias = NDArray[np.bool_]
F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
I32: TypeAlias = NDArray[np.int32]
