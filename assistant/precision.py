"""Which number format a device computes in: bfloat16 where it is made for it, float32 elsewhere.

A processor without bfloat16 instructions emulates them: a 512 x 512 product took 37 times as long as in float32 on an
AVX2 machine. Knows nothing about models; imports torch only to look at a GPU.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]
CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Any of these in /proc/cpuinfo means bfloat16 products in hardware (x86-64, x86-64, Arm)."""
GPU_GENERATION = (8, 0)
"""First CUDA compute capability with bfloat16 in hardware (Ampere)."""
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class NumberFormat:
    """What a device computes in, and why."""

    precision: Literal["bf16", "fp32"]
    reason: str

    def __str__(self) -> str:
        return f"{'bfloat16' if self.precision == 'bf16' else 'float32'} ({self.reason})"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def device_of(device: str) -> str:
    """`auto` as the device it means here: CUDA where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def number_format(precision: Precision, device: str) -> NumberFormat:
    """What `training.precision` means on a device (`cpu`, `cuda`, `cuda:1`)."""
    if precision != "auto":
        return NumberFormat(precision, "as set by training.precision")
    made_for_it, what = _gpu(device) if device.startswith("cuda") else _processor()
    return NumberFormat("bf16" if made_for_it else "fp32", what)


def weights_dtype(device: str) -> torch.dtype:
    """Format of a language model's weights and of NF4's products, and of what is computed when answering.

    A processor answers in float32 whatever it is made for, so that every machine gives the same words.
    """
    import torch

    return torch.bfloat16 if device.startswith("cuda") and _gpu(device)[0] else torch.float32


def _gpu(device: str) -> tuple[bool, str]:
    import torch

    generation = torch.cuda.get_device_capability(device)
    made_for_it = generation >= GPU_GENERATION
    return made_for_it, f"the GPU's compute capability is {generation[0]}.{generation[1]}"


def _processor() -> tuple[bool, str]:
    if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):  # PyTorch is told to do without AVX-512
        return False, "ATEN_CPU_CAPABILITY forbids AVX-512"
    found = sorted(CPU_FLAGS & _cpu_flags())
    return bool(found), f"the processor has {' and '.join(found)}" if found else "the processor has no bfloat16 unit"


@cache
def _cpu_flags() -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo; none where there is no such file."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(flags.partition(":")[2].split())
