"""How well a student tells which text belongs to which picture: every caption of a batch held against every picture.

Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assistant.checkpoint import Run
from assistant.generation import computing
from assistant.model import MaemiForConditionalGeneration
from training.data import Collator, Example, TrainingSet
from training.stages import all_pair_logits

_BATCH = 16
"""Pictures that are held against one another's texts."""


def matching_report(run: Run, rows: Sequence[Example]) -> dict[str, Any]:
    """`loss`, as training weighs it, and `auroc` of right pairs against wrong ones; None of them without two captions.

    A pair whose texts have a wording in common is neither right nor wrong.
    """
    from sklearn.metrics import roc_auc_score

    plain = run.config.training.model_copy(update={"augment": False})
    itm = run.config.loss.itm.model_copy(update={"text": "caption"})
    loss = run.config.loss.model_copy(update={"itm": itm})
    config = run.config.model_copy(update={"training": plain, "loss": loss})
    captioned = [row for row in rows if row.task == "caption" and len(row.images) == 1]
    dataset = TrainingSet.configured(captioned, config)
    collator = Collator(run.processor, max_tokens=plain.max_tokens)
    logits, right = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(dataset) - 1, _BATCH):
        batch = collator([dataset[index] for index in range(start, min(start + _BATCH, len(dataset)))])
        held, pairs = pair_logits(run.student, {name: tensor.to(run.student.device) for name, tensor in batch.items()})
        decided = pairs | ~(batch["match_key"][:, None] == batch["match_key"][None])
        logits.append(held.cpu()[decided])
        right.append(pairs[decided])
    found, labels = torch.cat(logits), torch.cat(right)
    if labels.all() or not labels.any():
        return {"loss": None, "auroc": None, "pairs": len(labels)}
    losses = F.binary_cross_entropy_with_logits(found, labels.float(), reduction="none")
    return {
        "loss": round(float(losses[labels].mean() + losses[~labels].mean()) / 2, 4),
        "auroc": round(float(roc_auc_score(labels.numpy(), found.numpy())), 4),
        "pairs": len(labels),
    }


def pair_logits(student: MaemiForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of P conversations about one image each -> logits [P, P] of image i with text j, and which are right."""
    with computing(student.device):
        memory = student.encode_images(batch["pixel_values"][batch["image_mask"]]).memory
        text = student.text_encoder(batch["match_ids"], batch["match_mask"])
        logits = all_pair_logits(student, text, batch["match_mask"], memory)
    return logits.float(), torch.eye(len(text), dtype=torch.bool)
