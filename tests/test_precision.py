"""Which number format a device computes in, on processors and GPUs whose abilities are written down, not owned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from students import tiny_config

from assistant import precision
from assistant.precision import Precision, number_format, weights_dtype
from training.claim import claim
from training.processes import ALONE
from training.trainer import _arguments

FLAGS = {
    "avx2": "flags\t\t: fpu sse2 avx avx2 fma bmi2",
    "avx512 without bfloat16": "flags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512_vnni",
    "avx512_bf16": "flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16",
    "amx": "flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile",
    "arm": "Features\t: fp asimd bf16 i8mm",
    "arm without bfloat16": "Features\t: fp asimd crc32",
}
MADE_FOR_IT = {"avx512_bf16", "amx", "arm"}
Processor = Callable[[str], None]


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processor]:
    """Makes this machine's processor another one."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)

    def become(kind: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nbf16 mentioned\t: nowhere\n{FLAGS[kind]}\n")
        monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
        precision._cpu_flags.cache_clear()

    yield become
    precision._cpu_flags.cache_clear()


def gpu(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))


@pytest.mark.parametrize("kind", FLAGS)
def test_auto_is_bfloat16_only_where_the_processor_is_made_for_it(processor: Processor, kind: str) -> None:
    processor(kind)
    assert number_format("auto", "cpu").precision == ("bf16" if kind in MADE_FOR_IT else "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """A T4 (7.5) takes bfloat16 and emulates it; the language model's weights and NF4's products follow."""
    gpu(monkeypatch, *capability)
    assert number_format("auto", "cuda:0").precision == expected
    assert weights_dtype("cuda:0") == (torch.bfloat16 if expected == "bf16" else torch.float32)


@pytest.mark.parametrize("kind", ["avx2", "amx"])
@pytest.mark.parametrize("chosen", ["bf16", "fp32"])
def test_what_is_set_counts_everywhere(processor: Processor, kind: str, chosen: Precision) -> None:
    processor(kind)
    assert number_format(chosen, "cpu").precision == chosen


def test_a_processor_that_may_not_use_its_units_has_none(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor("amx")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert number_format("auto", "cpu").precision == "fp32"


def test_a_machine_without_cpuinfo_computes_in_float32(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("amx")
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "absent")
    assert number_format("auto", "cpu").precision == "fp32"


@pytest.mark.parametrize("kind", FLAGS)
def test_a_run_decides_once_and_says_so(
    processor: Processor, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And training autocasts as decided, on whatever processor it goes on."""
    processor(kind)
    (tmp_path / "base").mkdir()
    with caplog.at_level(logging.INFO, "maemi.training"):
        config = claim(tmp_path, tiny_config(tmp_path / "base", "training.precision=auto"), "rows", device="cpu")
    expected = "bf16" if kind in MADE_FOR_IT else "fp32"
    assert config.training.precision == expected
    assert ("bfloat16" if expected == "bf16" else "float32") in caplog.text
    processor("amx" if expected == "fp32" else "avx2")
    again = claim(tmp_path, tiny_config(tmp_path / "base", "training.precision=auto"), "rows", device="cpu")
    arguments: Any = _arguments(again, tmp_path, device=torch.device("cpu"), processes=ALONE, validates=False)
    assert arguments.bf16 is (expected == "bf16")


@pytest.mark.parametrize("kind", ["avx2", "amx"])
def test_the_plan_says_what_this_processor_would_compute_in(
    processor: Processor, kind: str, maemi: Callable[..., tuple[int, str, str]]
) -> None:
    processor(kind)
    code, out, _ = maemi("plan")
    assert code == 0
    assert ("bfloat16" if kind == "amx" else "float32") in out.splitlines()[-1]


@pytest.mark.parametrize("kind", ["avx2", "amx"])
def test_answers_are_computed_in_float32_on_every_processor(processor: Processor, kind: str) -> None:
    processor(kind)
    assert weights_dtype("cpu") == torch.float32
