"""The table of language models in docs/bases.md: size and predicted memory of one set-up on each of them.

    python -m training.planning.bases          # prints the table

Arithmetic on shapes alone; a test compares the page with it. Knows nothing about weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from assistant.config import Config, load_config
from training.planning.memory import CARDS, GIB, USABLE, step_parts
from training.planning.shapes import language_model_shape

PLANNED = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "Qwen/Qwen3-0.6B",
    "google/gemma-3-1b-it",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "meta-llama/Llama-3.2-1B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "google/gemma-3-4b-it",
    "Qwen/Qwen3-4B",
    "meta-llama/Llama-2-7b-hf",
    "mistralai/Mistral-7B-v0.3",
    "Qwen/Qwen2.5-7B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-8B",
    "meta-llama/Llama-2-13b-hf",
)
_HEADER = """\
| `decoder.base` | parameters | weights in NF4 [GiB] | 1024 × 1, checkpointed [GiB] | 512 × 1, kept [GiB] | 1024 × 4, checkpointed [GiB] | smallest card [GB] |
|---|--:|--:|--:|--:|--:|--:|
"""  # noqa: E501 - one row of a table
_STEPS = ((1024, 1, True), (512, 1, False), (1024, 4, True))


def table(config: Config) -> str:
    """Markdown: a row per language model, the rest of the student as configured."""
    rows = []
    for base in PLANNED:
        shape = language_model_shape(base)
        parts = step_parts(config, shape)
        weights = sum(size for name, size in parts.items() if name.startswith("language model"))
        peaks = []
        for tokens, batch, checkpointed in _STEPS:
            step = {"max_tokens": tokens, "batch_size": batch, "gradient_checkpointing": checkpointed}
            training = config.training.model_copy(update=step)
            peaks.append(sum(step_parts(config.model_copy(update={"training": training}), shape).values()))
        card = next((str(card) for card in CARDS if peaks[0] <= USABLE * card * GIB), "more")
        parameters = (shape.linear_parameters + shape.other_parameters) / 1e9
        cells = [f"{parameters:.2f} B", f"{weights / GIB:.2f}", *(f"{peak / GIB:.1f}" for peak in peaks), card]
        rows.append(f"| {base} | {' | '.join(cells)} |\n")
    return _HEADER + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table(load_config(Path("configs/llama2-7b.yaml"))))
