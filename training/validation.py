"""Loss and answers on the validation split while a student trains: the same few rows every time, at the full rank.

Knows nothing about checkpoints, or about what follows from a loss or a score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from assistant.checkpoint import Run
from assistant.config import Config
from assistant.inference import Assistant
from training.data import Collator, Example, TrainingSet
from training.evaluate import answer_examples, encode_examples, with_truth
from training.quoting import known_of_pictures
from training.scores import factual_report, rounded, shown_answers, statement_report
from training.stages import InstructionStage, counts_of


class Validation:
    """At most `training.validate_on` conversations, spread over the split, as they are without any augmentation."""

    def __init__(self, examples: Sequence[Example], config: Config, collator: Collator) -> None:
        plain = {"augment": False, "aux_dropout": 0.0, "fact_dropout": 0.0}
        training = config.training.model_copy(update=plain)
        dataset = TrainingSet.configured(examples, config.model_copy(update={"training": training}))
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
        device = next(stage.parameters()).device
        totals: dict[str, float] = {}
        with looking(stage, device):
            torch.manual_seed(self.seed)
            for batch in self.batches:
                there = {name: tensor.to(device) for name, tensor in batch.items()}
                for name, loss in stage(**there, counts=self.counts.to(device)).items():
                    totals[name] = totals.get(name, 0.0) + float(loss)
        return {name: round(total, 6) for name, total in totals.items()}


class AnswerScores:
    """At most `count` questions of the validation split, answered as the student words it, held against the facts."""

    def __init__(self, examples: Sequence[Example], run: Run, count: int) -> None:
        self.rows = with_truth(examples[:: -(-len(examples) // count)], known_of_pictures(examples))
        self.assistant = Assistant(run)

    def measure(self, stage: InstructionStage) -> dict[str, float]:
        """Shares of drafted statements that are true, of shown ones that are false, and of answers that agree.

        A share is left out where nothing was said that could be held against a fact. Leaves the stage as it was.
        """
        with looking(stage, self.assistant.device):
            looks = encode_examples(self.assistant, self.rows, features=False)
            drafts = answer_examples(self.assistant, self.rows, looks, with_aux=True, blind=False)
        told = statement_report(self.rows, drafts, shown_answers(self.rows, drafts))
        drafted = told["drafted"]
        stated = drafted["true"] + drafted["false"] + drafted["unsupported"]
        shares = {
            "score_drafted_true": rounded(drafted["true"] / stated) if stated else None,
            "score_shown_false": told["false_rate"],
            "score_agrees": factual_report(self.rows, {"seen": drafts})["accuracy"],
        }
        return {name: share for name, share in shares.items() if share is not None}


@contextmanager
def looking(stage: InstructionStage, device: torch.device) -> Iterator[None]:
    """The stage as it will be used, at the full rank; afterwards it trains on, with the random numbers it had."""
    lm, training = stage.student.decoder.lm, stage.training
    if hasattr(lm, "peft_config"):
        from assistant.adapters import set_rank

        set_rank(lm, None)
    stage.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    stage.train(training)
