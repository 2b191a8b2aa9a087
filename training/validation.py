"""The loss on the validation split while a student trains: the same few conversations every time, at the full rank.

Knows nothing about checkpoints, or about what follows from a loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from assistant.config import Config
from training.data import Collator, Conversations, Example
from training.stages import InstructionStage, counts_of


class Validation:
    """At most `training.validate_on` conversations, spread over the split, as they are without any augmentation."""

    def __init__(self, examples: Sequence[Example], config: Config, collator: Collator) -> None:
        plain = {"augment": False, "aux_dropout": 0.0, "fact_dropout": 0.0}
        training = config.training.model_copy(update=plain)
        dataset = Conversations.configured(examples, config.model_copy(update={"training": training}))
        chosen = range(0, len(dataset), -(-len(dataset) // training.validate_on))
        size = training.batch_size // training.accumulate
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        self.batches = [collator([dataset[index] for index in part]) for part in parts]
        self.counts = torch.stack([counts_of(batch) for batch in self.batches]).sum(0).clamp(min=1)
        self.conversations = len(chosen)
        self.seed = config.seed

    @torch.no_grad()
    def losses(self, stage: InstructionStage) -> dict[str, float]:
        """Every loss of the stage over all conversations, rounded; leaves random numbers and stage as they were."""
        lm, device, training = stage.student.decoder.lm, next(stage.parameters()).device, stage.training
        if hasattr(lm, "peft_config"):
            from assistant.adapters import set_rank

            set_rank(lm, None)
        totals: dict[str, float] = {}
        stage.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for batch in self.batches:
                there = {name: tensor.to(device) for name, tensor in batch.items()}
                for name, loss in stage(**there, counts=self.counts.to(device)).items():
                    totals[name] = totals.get(name, 0.0) + float(loss)
        stage.train(training)
        return {name: round(total, 6) for name, total in totals.items()}
