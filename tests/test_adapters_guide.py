"""The guide of the adapters is true: its code runs, block after block, on a tiny Llama."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import LABELS, TOKENS, llama
from peft import LoraConfig, PeftModel

from assistant.adapter_kinds import SETTINGS
from assistant.adapters import DyAMoPEConfig, DyQLoRAFAConfig, set_rank

GUIDE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning", "ignore:.*pin_memory.*:UserWarning")
def test_every_block_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails with a renamed function or argument. Seen failing with one misspelt setting."""
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("path/to/llama")
    batch = {"input_ids": TOKENS, "labels": LABELS}
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(TOKENS, LABELS, strict=True)] * 4
    names: dict[str, Any] = {"batches": [batch] * 3, "examples": rows, "seed": 0}
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(block, names)
    model, stock = names["model"], PeftModel.from_pretrained(llama(), "path/to/lora")
    assert isinstance(stock.peft_config["default"], LoraConfig)
    assert all(b.abs().sum() > 0 for name, b in model.named_parameters() if "lora_B" in name)
    set_rank(model, 8)
    torch.testing.assert_close(stock(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [DyQLoRAFAConfig(), DyAMoPEConfig()], ids=lambda c: type(c).__name__)
def test_every_setting_is_in_the_guide_with_its_default(config: Any) -> None:
    """Fails with a setting nobody wrote about. Seen failing when one was left out."""
    ours = set(SETTINGS) - {"kind", "target_modules"}
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", GUIDE, re.MULTILINE):
        defaults = [default] if default.startswith("(") else default.split(", ")
        told |= dict(zip(re.findall(r"`(\w+)`", names), defaults, strict=True))
    assert told.keys() == ours
    for name in ours & vars(config).keys():
        written = told[name].strip('`"')
        value = getattr(config, name)
        expected = {"none": None, "true": True, "false": False, "()": ()}.get(written, written)
        assert value == (type(value)(expected) if isinstance(value, int | float) else expected), name
