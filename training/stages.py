"""Training stages: which data a step reads and which losses it minimises. The training loop knows neither.

Every stage is a module over the student, so data-parallel training sees one forward call per step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.adapters import count_tokens, has_routers, router_losses
from assistant.config import Config, LossConfig
from assistant.grounding import CLS, STATES, contrastive_loss, hard_negatives, matching_loss, similarity_of
from assistant.loss import IGNORED_LABEL
from assistant.model import ImageStates, MaemiForConditionalGeneration

PROBE_WEIGHT = 0.3
ALIKE = 2
"""Conversations of the language stage that are padded to one length."""
LEARNS = {
    "language": "the language model's adapters",
    "alignment": "the encoders and the grounded text, matching",
    "instruction": "the adapters, cross-attention, grounded text, matching, and the encoders more slowly",
    "heads": "class and attributes from frozen features; the student is held",
}
"""What each stage of `maemi train` trains, in their order."""


def planned(config: Config) -> list[dict[str, Any]]:
    """The stages of a configuration with their steps and losses; heads are fitted in closed form, without steps."""
    steps = {
        "language": config.training.language_steps,
        "alignment": config.training.alignment_steps,
        "instruction": config.training.steps,
    }
    matching = [name for name, part in (("itm", config.loss.itm), ("itc", config.loss.itc)) if part.weight]
    routed = ["router"] if getattr(config.adapter, "is_routed", False) else []
    losses = {"language": ["lm"], "alignment": matching, "instruction": ["lm", *matching, *routed]}
    stages: list[dict[str, Any]] = [
        {"stage": name, "steps": count, "losses": losses[name], "learns": LEARNS[name]}
        for name, count in steps.items()
        if count
    ]
    return [*stages, {"stage": "heads", "steps": None, "losses": ["cross-entropy"], "learns": LEARNS["heads"]}]


def counts_of(batch: dict[str, Tensor]) -> Tensor:
    """What the losses of a batch are means over [3]: answer tokens, tokens without padding, one-image conversations.

    A stage that is given the sums over all parts of a step makes a loss of each part that add up to the step's own.
    Only what is drawn within a part differs: wrong pictures and texts of matching, and the contrast.
    """
    answers = (batch["labels"][:, 1:] != IGNORED_LABEL).sum()
    return torch.stack([answers, batch["attention_mask"].sum(), (batch["image_mask"].sum(1) == 1).sum()])


class AlignmentStage(nn.Module):
    """Image-text matching with image-text contrast, without the language model: which text belongs to which picture.

    MAEMI (2408.13248): ITM; MVaEMa (2409.07463): ITM + ITC.
    """

    def __init__(self, student: MaemiForConditionalGeneration, loss: LossConfig) -> None:
        super().__init__()
        self.student = student
        self.loss = loss

    def forward(
        self,
        *,
        pixel_values: Tensor,
        image_mask: Tensor,
        match_ids: Tensor,
        match_mask: Tensor,
        match_key: Tensor,
        counts: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """A batch from `Collator`, with `counts` of the whole step if it is a part -> `loss` and its parts."""
        states = self.student.encode_images(pixel_values[image_mask])
        itm, itc = self.matching(states, image_mask, match_ids, match_mask, match_key, counts)
        return {"loss": self.weighed(itm, itc), "itm": itm, "itc": itc}

    def weighed(self, itm: Tensor, itc: Tensor) -> Tensor:
        """Both losses with their weights.

        A contrast without a weight is 0 with the gradient of the projections behind hard negatives, times the
        temperature, so that it does not rule the norm gradients are clipped by; Adam's step is the same.
        """
        options = self.loss.itc
        contrast = options.weight * itc if options.weight else options.temperature * (itc - itc.detach())
        return self.loss.itm.weight * itm + contrast

    def matching(
        self,
        states: ImageStates,
        image_mask: Tensor,
        ids: Tensor,
        mask: Tensor,
        key: Tensor,
        counts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Matching and contrast over the P conversations with exactly one image.

        Matching sees every pair three times: itself, with a wrong image, with a wrong text; none of the three where
        no wrong one is legal, since true pairs alone teach a head to say yes.
        """
        student, share = self.student, _share(image_mask, counts)
        single = image_mask.sum(1) == 1  # [B]
        mine = single[image_mask.nonzero()[:, 0]]  # [I] images of such conversations
        memory, mask, key = states.memory[mine], mask[single], key[single]
        same = key[:, None] == key[None, :]
        text = student.text_encoder(ids[single], mask)  # [P, T + 2, Dt]
        similarity, itc = self._contrast(states.cls[mine], text[:, CLS], same)
        if self.loss.itm.pairs == "all":
            return self._all_pairs(text, mask, memory, same) * share, itc * share
        image_for_text, text_for_image, legal = hard_negatives(similarity, same)
        right = torch.arange(len(text), device=text.device)
        texts = torch.cat([right, right, text_for_image])
        images = torch.cat([right, image_for_text, right])
        shown = F.pad(mask[texts], (STATES, 0), value=True)
        logits = student.matching(student.grounded(text[texts], shown, memory[images]))  # [3 P]
        labels = torch.arange(len(texts), device=text.device) < len(text)
        return matching_loss(logits, labels, legal.repeat(3)) * share, itc * share

    def _all_pairs(self, text: Tensor, mask: Tensor, memory: Tensor, same: Tensor) -> Tensor:
        """The matching loss of every image with every text that says another thing; right pairs weigh as much as wrong.

        text [P, T + 2, Dt], memory [P, N, D], same [P, P].
        """
        logits = all_pair_logits(self.student, text, mask, memory)
        right, wrong = torch.eye(len(text), dtype=torch.bool, device=text.device), ~(same | same.mT)
        if not wrong.any():
            return matching_loss(logits, right, wrong)
        return (matching_loss(logits, right, right) + matching_loss(logits, right, wrong)) / 2

    def _contrast(self, image: Tensor, text: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity [P, P] that negatives are drawn by, and the contrastive loss; [P, Dv] and [P, Dt] -> both.

        Without a weight the encoders learn nothing from it, and the two projections still learn what is similar.
        """
        student, itc = self.student, self.loss.itc
        if not itc.weight:
            image, text = image.detach(), text.detach()
        similarity = similarity_of(student.image_match(image), student.text_match(text), itc.temperature)
        drawn_by = similarity if self.loss.itm.negatives == "hard" else torch.zeros_like(similarity)
        return drawn_by.detach(), contrastive_loss(similarity, same)


class InstructionStage(AlignmentStage):
    """Language-model loss on the answers, image-text matching with hard negatives, optional image-text contrast.

    MAEMI (2408.13248) and sLAVA (2408.15305): LM + ITM; MVaEMa (2409.07463): LM + ITM + ITC.
    """

    def __init__(self, student: MaemiForConditionalGeneration, loss: LossConfig) -> None:
        super().__init__(student, loss)
        self.routed = has_routers(student.decoder.lm)

    def forward(self, *, pixel_values: Tensor, image_mask: Tensor, **batch: Any) -> dict[str, Tensor]:
        """As of the alignment, with `lm` and, for routed adapters, `router`."""
        return self.losses(self.student.encode_images(pixel_values[image_mask]), image_mask=image_mask, **batch)

    def losses(
        self,
        states: ImageStates,
        *,
        image_mask: Tensor,
        match_ids: Tensor,
        match_mask: Tensor,
        match_key: Tensor,
        class_index: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        turn_images: Tensor,
        counts: Tensor | None = None,
        **text: Any,
    ) -> dict[str, Tensor]:
        """The losses of a batch whose images are already encoded."""
        context = self.student.visual_context(
            None, image_mask, question_ids, question_mask, turn_images, image_memory=states.memory
        )
        answers = None if counts is None else counts[0]
        if self.routed:
            count_tokens(self.student.decoder.lm, text["attention_mask"])
        language = self.student(**text, context=context, num_items_in_batch=answers, with_logits=False)
        losses = {"lm": language.loss}
        total = losses["lm"]
        if self.loss.itm.weight or self.loss.itc.weight:
            itm, itc = self.matching(states, image_mask, match_ids, match_mask, match_key, counts)
            losses |= {"itm": itm, "itc": itc}
            total = total + self.weighed(itm, itc)
        if self.routed:
            losses["router"] = router_losses(self.student.decoder.lm)
            if counts is not None:
                losses["router"] = losses["router"] * (text["attention_mask"].sum() / counts[1])
            total = total + losses["router"]
        return {"loss": total, **losses}


def all_pair_logits(student: MaemiForConditionalGeneration, text: Tensor, mask: Tensor, memory: Tensor) -> Tensor:
    """Matching logits [P, P] of every image with every text; text [P, T + 2, Dt], mask [P, T], memory [P, N, D]."""
    count = len(text)
    images, texts = torch.meshgrid(*[torch.arange(count, device=text.device)] * 2, indexing="ij")
    images, texts = images.flatten(), texts.flatten()  # [P P]
    shown = F.pad(mask[texts], (STATES, 0), value=True)
    logits: Tensor = student.matching(student.grounded(text[texts], shown, memory[images]))
    return logits.view(count, count)


class LanguageStage(nn.Module):
    """Language-model loss on the answers without their pictures: quoting facts is learned from the prompt alone.

    Conversations of like length are computed together: a third of a whole batch would be padding.
    """

    def __init__(self, student: MaemiForConditionalGeneration) -> None:
        super().__init__()
        self.student = student

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        counts: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """A batch from `Collator`, with `counts` of the whole step if it is a part -> `loss`."""
        answers = (labels[:, 1:] != IGNORED_LABEL).sum().clamp(min=1) if counts is None else counts[0]
        words = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        words |= {"image_index": torch.zeros_like(input_ids), "turn_index": torch.ones_like(input_ids)}
        lengths = attention_mask.sum(1)
        losses = []
        for rows in lengths.argsort().split(ALIKE):
            part = {name: values[rows, : int(lengths[rows].max())] for name, values in words.items()}
            told = self.student(**part, context=None, num_items_in_batch=answers, with_logits=False)
            losses.append(told.loss)
        return {"loss": torch.stack(losses).sum()}


class ClassProbes(nn.Module):
    """Linear probes of the class labels on both image encoders, with their summed cross-entropy."""

    def __init__(self, student: MaemiForConditionalGeneration, classes: int) -> None:
        super().__init__()
        self.vit = nn.Linear(student.vit.dim, classes)
        self.hnf = nn.Linear(student.hnf.dim, classes)

    def forward(self, states: ImageStates, class_index: Tensor) -> Tensor:
        """States of I images and their class indices [I], -100 where there is none."""
        if not (class_index >= 0).any():
            return states.summary.sum() * 0.0
        cls, fused = states.summary.split([self.vit.in_features, self.hnf.in_features], dim=-1)
        return sum(
            F.cross_entropy(probe(vector).float(), class_index, label_smoothing=0.05)
            for probe, vector in ((self.vit, cls), (self.hnf, fused))
        )  # type: ignore[return-value]


class VisionStage(nn.Module):
    """Class labels of single images, turned and mirrored: a start for encoders without pretrained weights."""

    def __init__(self, student: MaemiForConditionalGeneration, classes: int) -> None:
        super().__init__()
        self.student = student
        self.probes = ClassProbes(student, classes)

    def forward(
        self,
        *,
        pixel_values: Tensor,
        image_mask: Tensor,
        class_index: Tensor,
        counts: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """A batch from `Collator`, with `counts` of the whole step if it is a part -> `loss`."""
        pixels = pixel_values[image_mask]  # [I, 1, S, S]
        if self.training:
            pixels = turned(pixels)
        owner = image_mask.nonzero()[:, 0]  # [I]
        loss = self.probes(self.student.encode_images(pixels), class_index[owner])
        return {"loss": loss * _share(image_mask, counts)}


class PretrainStage(InstructionStage):
    """Instructions with the class probes kept beside them, so the encoders do not forget while the text is learned."""

    def __init__(self, student: MaemiForConditionalGeneration, loss: LossConfig, classes: int) -> None:
        super().__init__(student, loss)
        self.probes = ClassProbes(student, classes)

    def forward(self, *, pixel_values: Tensor, image_mask: Tensor, **batch: Any) -> dict[str, Tensor]:
        """A batch from `Collator` -> `loss` and its parts."""
        states = self.student.encode_images(pixel_values[image_mask])
        losses = self.losses(states, image_mask=image_mask, **batch)
        owner = image_mask.nonzero()[:, 0]  # [I]
        probes = self.probes(states, batch["class_index"][owner]) * _share(image_mask, batch.get("counts"))
        return losses | {"loss": losses["loss"] + PROBE_WEIGHT * probes, "probes": probes}


def _share(image_mask: Tensor, counts: Tensor | None) -> Tensor | float:
    """The share that a part has in a step's conversations with one image; 1 where it is the whole step."""
    return 1.0 if counts is None else (image_mask.sum(1) == 1).sum() / counts[2]


def turned(pixels: Tensor) -> Tensor:
    """Each image [I, 1, S, S] in one of its eight orientations, drawn from torch's generator."""
    turns, mirrored = torch.randint(4, (len(pixels),)).tolist(), torch.randint(2, (len(pixels),)).tolist()
    return torch.stack(
        [
            torch.rot90(image.flip(-1) if mirror else image, turn, dims=(-2, -1))
            for image, turn, mirror in zip(pixels, turns, mirrored, strict=True)
        ]
    )
