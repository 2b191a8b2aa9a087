"""Imports bitsandbytes without its calls of `torch.compile`, which cost every start a second of CPU for nothing.

bitsandbytes 0.50 wraps four fallback kernels with `torch.compile` while it is imported, and so loads Inductor and all
that it needs. MAEMI calls none of the four; called all the same, they run uncompiled. Import this before PEFT, which
imports bitsandbytes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    return function if function is not None else lambda function: function


_compile = torch.compile
torch.compile = _as_it_is  # type: ignore[assignment]
try:
    import bitsandbytes  # noqa: F401
finally:
    torch.compile = _compile
