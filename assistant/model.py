"""MaemiForConditionalGeneration: the wiring of encoders, grounding and decoder, and nothing else.

Letters: B conversations, I images of the batch, K images of a conversation, U turns, T tokens, Q question tokens,
N memory tokens of an image, M memory tokens of a conversation, D memory width, S side of an image [px].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from assistant.chat import Conversation, Encoded, encode_conversation, template_of
from assistant.config import Config
from assistant.decoder import ANY_TURN, PADDING, Decoder, VisualContext, VisualMemory, align_index
from assistant.errors import ConfigError
from assistant.families import family_of
from assistant.grounding import GroundedEncoder, GroundedTextEncoder, MatchingHead
from assistant.hnf import HNF
from assistant.loss import IGNORED_LABEL, next_token_loss
from assistant.towers import EfficientNetLite0, required_tower
from assistant.vit import OpenClipTower, ViT


class MaemiConfig(PreTrainedConfig):
    """Architecture of a student: the sections of `Config` that shape it, and its language model's own config."""

    model_type = "maemi"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - the form transformers expects

    def __init__(self, student: dict[str, Any] | None = None, text_config: Any = None, **kwargs: Any) -> None:
        self.student = student if student is not None else architecture_of(Config())
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        # A copy: the base class resets the attention implementation of every config it is given.
        self.text_config = copy.deepcopy(text_config) if text_config is not None else AutoConfig.for_model("llama")
        kwargs.setdefault("pad_token_id", self.text_config.pad_token_id)
        kwargs.setdefault("bos_token_id", self.text_config.bos_token_id)
        kwargs.setdefault("eos_token_id", self.text_config.eos_token_id)
        super().__init__(**kwargs)

    @property
    def settings(self) -> Config:
        """The architecture as a validated Config."""
        return Config.model_validate(self.student)


def architecture_of(config: Config) -> dict[str, Any]:
    """The part of a Config that decides shapes, as plain values."""
    return config.model_dump(mode="json", include={"image_size", "vit", "hnf", "tower", "text_encoder", "decoder"})


@dataclass(frozen=True)
class ImageStates:
    """One encoding of images: what the decoder attends to, and one vector per image for classification."""

    memory: Tensor  # [I, N, D]
    summary: Tensor  # [I, Dv + Dh]: ViT CLS and the fused HNF vector
    cls: Tensor  # [I, Dv]


class MaemiForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A language model that looks at micrographs through gated cross-attention (MAEMI, sLAVA)."""

    config_class = MaemiConfig
    base_model_prefix = "maemi"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    main_input_name = "input_ids"

    def __init__(self, config: MaemiConfig, lm: nn.Module | None = None) -> None:
        super().__init__(config)
        settings = config.settings
        text, decoder = settings.text_encoder, settings.decoder
        dim = decoder.cross_attention_dim
        self.vit = build_vit(settings)
        self.hnf = HNF(image_size=settings.image_size, **settings.hnf.model_dump())
        self.vit_projection = nn.Linear(self.vit.dim, dim)
        self.hnf_projection = nn.Linear(settings.hnf.dim, dim)
        # In a list, so that its weights are neither moved, trained nor saved with the student's.
        self._tower = [required_tower()] if settings.tower.name != "none" else []
        self.tower_projection = nn.Linear(EfficientNetLite0.token_width, dim) if self._tower else None
        vocabulary = config.text_config.vocab_size
        padding = config.pad_token_id or 0
        self.text_encoder = GroundedTextEncoder(
            vocabulary, text.dim, text.depth, text.heads, max_tokens=text.max_tokens, pad_id=padding
        )
        self.grounded = GroundedEncoder(text.dim, text.grounded_depth, text.heads, image_dim=dim)
        self.matching = MatchingHead(text.dim)
        self.image_match = nn.Linear(self.vit.dim, text.dim)
        self.text_match = nn.Linear(text.dim, text.dim)
        self.question_projection = nn.Linear(text.dim, dim)
        self.decoder = Decoder(
            lm if lm is not None else AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config)),
            memory_dim=dim,
            width=dim,
            heads=decoder.cross_attention_heads,
            every=decoder.cross_attention_every,
            max_images=decoder.max_images,
        )
        self.memory_kind = decoder.memory
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part initialises itself when it is built; nothing is drawn again here."""

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.decoder.lm.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.decoder.lm.get_output_embeddings()
        return head

    def student_state(self) -> dict[str, Tensor]:
        """State of everything but the language model: what a run saves beside its adapter."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("decoder.lm.")}

    def encode_images(self, pixels: Tensor) -> ImageStates:
        """Pixels [I, 1, S, S] in 0..1 -> states; an image's states do not depend on its batch-mates."""
        patches = self.vit(pixels)  # [I, P + 1, Dv]
        fused = self.hnf(pixels)
        hierarchy = torch.cat([fused.scales, fused.tokens], dim=1)  # [I, L + P_L, Dh]
        parts = [self.vit_projection(patches), self.hnf_projection(hierarchy)]
        if self.tower_projection is not None:
            with torch.no_grad():
                tokens = self._tower[0].to(pixels.device)(pixels.float()).tokens
            parts.append(self.tower_projection(tokens.to(pixels.dtype)))
        memory = torch.cat(parts, dim=1)  # [I, N, D]
        return ImageStates(memory, torch.cat([patches[:, 0], fused.fused], dim=-1), patches[:, 0])

    def ground(self, question_ids: Tensor, question_mask: Tensor, visual: Tensor, visible: Tensor) -> Tensor:
        """Questions [R, Q] over visual tokens [R, M, D] -> grounded states [R, Q + 2, Dt], [CLS] and [ENC] first."""
        text = self.text_encoder(question_ids, question_mask)
        states: Tensor = self.grounded(text, F.pad(question_mask, (2, 0), value=True), visual, visible)
        return states

    def visual_context(
        self,
        pixel_values: Tensor | None,
        image_mask: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        turn_images: Tensor,
        *,
        image_memory: Tensor | None = None,
    ) -> VisualContext:
        """Keys and values of all images so far and the grounded questions of every turn.

        pixel_values [B, K, 1, S, S] with image_mask [B, K]; question_ids, question_mask [B, U, Q]; turn_images [B, U]
        counts the images shown up to a turn (0: no such turn). `image_memory` [I, N, D], already encoded images in
        the order of `image_mask`, stands in for the pixels.
        """
        if image_memory is None:
            assert pixel_values is not None
            image_memory = self.encode_images(pixel_values[image_mask]).memory
        images = self._image_memory(image_memory, image_mask)
        if self.memory_kind == "image":
            return self.decoder.context(images)
        questions = self._question_memory(images, question_ids, question_mask, turn_images)
        if self.memory_kind == "fused":
            return self.decoder.context(questions.compacted())
        both = VisualMemory(
            torch.cat([images.tokens, questions.tokens], dim=1),
            torch.cat([images.image_index, questions.image_index], dim=1),
            torch.cat([images.turn_index, questions.turn_index], dim=1),
        )
        return self.decoder.context(both.compacted())

    def _image_memory(self, memory: Tensor, image_mask: Tensor) -> VisualMemory:
        (b, k), (_, n, d) = image_mask.shape, memory.shape
        tokens = memory.new_zeros(b, k, n, d)
        tokens[image_mask] = memory  # [B, K, N, D]
        position = torch.arange(1, k + 1, device=memory.device).expand(b, k)
        index = torch.where(image_mask, position, PADDING).repeat_interleave(n, dim=1)  # [B, K * N]
        return VisualMemory(tokens.flatten(1, 2), index, torch.full_like(index, ANY_TURN))

    def _question_memory(
        self, images: VisualMemory, question_ids: Tensor, question_mask: Tensor, turn_images: Tensor
    ) -> VisualMemory:
        b, u, q = question_ids.shape
        asked = turn_images > 0  # [B, U]
        row = asked.nonzero()[:, 0]  # [R]
        shown = images.image_index[row]  # [R, K * N]
        visible = (shown != PADDING) & (shown <= turn_images[asked][:, None])
        states = self.ground(question_ids[asked], question_mask[asked], images.tokens[row], visible)
        projected = self.question_projection(states)  # [R, Q + 2, D]
        present = F.pad(question_mask[asked], (2, 0), value=True)
        tokens = projected.new_zeros(b, u, q + 2, projected.shape[-1])
        image_index = torch.full((b, u, q + 2), PADDING, device=tokens.device)
        tokens[asked] = projected
        image_index[asked] = torch.where(present, turn_images[asked][:, None], PADDING)
        turn_index = torch.arange(1, u + 1, device=tokens.device)[None, :, None].expand_as(image_index)
        return VisualMemory(tokens.flatten(1, 2), image_index.flatten(1), turn_index.flatten(1))

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        turn_index: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        turn_images: Tensor | None = None,
        context: VisualContext | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        with_logits: bool | None = None,
        past_key_values: Any = None,
        **lm_arguments: Any,
    ) -> CausalLMOutputWithPast:
        """A batch from `MaemiProcessor` -> logits [B, T, V]; with labels, the mean loss over answer tokens.

        The visual memory is computed from pixels and questions, or taken from `context`; with neither, the student
        is its language model. With labels there are no logits in training, nor where `with_logits` is False: the loss
        goes without them.
        `num_items_in_batch`, answer tokens of all micro-batches of a step, takes the place of the batch's own number.
        """
        if context is None and image_mask is not None and image_mask.any():
            assert question_ids is not None
            assert question_mask is not None
            assert turn_images is not None
            context = self.visual_context(pixel_values, image_mask, question_ids, question_mask, turn_images)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = input_ids.shape[1]
        nothing = torch.zeros_like(input_ids)
        loss_alone = labels is not None and (self.training if with_logits is None else not with_logits)
        output = self.decoder(
            input_ids,
            context=context,
            with_logits=not loss_alone,
            image_index=nothing if image_index is None else align_index(image_index, past=past, length=length),
            turn_index=nothing if turn_index is None else align_index(turn_index, past=past, length=length),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **lm_arguments,
        )
        past_key_values = output.past_key_values
        if labels is None:
            return CausalLMOutputWithPast(logits=output.logits, past_key_values=past_key_values)
        logits = None if loss_alone else output.logits
        states, head = (
            (output.last_hidden_state, self.get_output_embeddings()) if logits is None else (logits, nn.Identity())
        )
        loss = next_token_loss(states, labels, head, count=num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """`GenerationMixin.generate` with the visual memory computed once instead of at every step."""
        parts = {name: kwargs.pop(name, None) for name in VISUAL_INPUTS}
        kwargs.pop("labels", None)
        if kwargs.get("context") is None and parts["image_mask"] is not None and parts["image_mask"].any():
            kwargs["context"] = self.visual_context(**parts)
        return super().generate(input_ids, **kwargs)

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        context = kwargs.pop("context", None)
        if expand_size > 1:
            kwargs = {
                name: value.repeat_interleave(expand_size, dim=0) if isinstance(value, Tensor) else value
                for name, value in kwargs.items()
            }
            input_ids = input_ids.repeat_interleave(expand_size, dim=0)
            if context is not None:
                context = context.select(torch.arange(len(context.image_index)).repeat_interleave(expand_size))
        return input_ids, {**kwargs, "context": context}


VISUAL_INPUTS = ("pixel_values", "image_mask", "question_ids", "question_mask", "turn_images")


def build_vit(settings: Config) -> ViT | OpenClipTower:
    """The image encoder the settings name."""
    vit = settings.vit
    if vit.tower:
        return OpenClipTower(vit.tower, vit.pretrained, image_size=settings.image_size)
    return ViT(settings.image_size, vit.patch_size, dim=vit.dim, depth=vit.depth, heads=vit.heads)


class MaemiProcessor(ProcessorMixin):
    """Conversations and model-input images -> the batch `MaemiForConditionalGeneration` takes."""

    def __init__(
        self,
        tokenizer: Any,
        image_size: int = 128,
        question_tokens: int = 192,
        family: str = "llama",
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.question_tokens = question_tokens
        self.family = family
        self.template = template_of(tokenizer, family_of("the processor's family", family))
        super().__init__(tokenizer, **kwargs)

    def encode(self, conversation: Conversation) -> Encoded:
        """Token ids, loss mask and indices of one conversation."""
        return encode_conversation(
            conversation, self.tokenizer, question_tokens=self.question_tokens, template=self.template
        )

    def __call__(
        self,
        conversations: Sequence[Conversation],
        images: Sequence[Sequence[np.ndarray]] | None = None,
        *,
        padding_side: str = "right",
    ) -> dict[str, Tensor]:
        """One list of images [S, S] float32 in 0..1 per conversation -> padded tensors, labels included.

        `images=None` leaves the pixels out, for callers that hold encoded images. Pad on the left to generate.
        Raises ConfigError `image_count` where markers and images differ in number.
        """
        encoded = [self.encode(conversation) for conversation in conversations]
        batch = self._pad_tokens(encoded, padding_side) | self._pad_questions(conversations, encoded)
        counts = [conversation.images for conversation in conversations]
        batch["image_mask"] = torch.arange(max(counts, default=0)) < torch.tensor(counts)[:, None]  # [B, K]
        if images is not None:
            batch["pixel_values"] = self._stack(images, counts)
        return batch

    def _pad_tokens(self, encoded: Sequence[Encoded], side: str) -> dict[str, Tensor]:
        def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
            longest = max(map(len, rows))
            gaps = [[value] * (longest - len(row)) for row in rows]
            return torch.tensor([[*g, *r] if side == "left" else [*r, *g] for r, g in zip(rows, gaps, strict=True)])

        labels = [
            [token if answer else IGNORED_LABEL for token, answer in zip(e.input_ids, e.is_answer, strict=True)]
            for e in encoded
        ]
        return {
            "input_ids": pad([e.input_ids for e in encoded], self.tokenizer.pad_token_id or 0),
            "attention_mask": pad([[1] * len(e.input_ids) for e in encoded], 0),
            "image_index": pad([e.image_index for e in encoded], 0),
            "turn_index": pad([e.turn_index for e in encoded], 0),
            "labels": pad(labels, IGNORED_LABEL),
        }

    def _pad_questions(self, conversations: Sequence[Conversation], encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        turns = max(len(e.questions) for e in encoded)
        width = max((len(q) for e in encoded for q in e.questions), default=1)
        ids = torch.zeros(len(encoded), turns, width, dtype=torch.long)
        mask = torch.zeros(len(encoded), turns, width, dtype=torch.bool)
        shown = torch.zeros(len(encoded), turns, dtype=torch.long)
        for row, (conversation, e) in enumerate(zip(conversations, encoded, strict=True)):
            users = [message for message in conversation.messages if message.role == "user"]
            for turn, question in enumerate(e.questions):
                ids[row, turn, : len(question)] = torch.tensor(question, dtype=torch.long)
                mask[row, turn, : len(question)] = True
                shown[row, turn] = sum(message.images for message in users[: turn + 1])
        return {"question_ids": ids, "question_mask": mask, "turn_images": shown}

    def _stack(self, images: Sequence[Sequence[np.ndarray]], counts: Sequence[int]) -> Tensor:
        if [len(row) for row in images] != list(counts):
            given = [len(row) for row in images]
            raise ConfigError("image_count", f"{given} images for {list(counts)} image markers. Give one per marker.")
        size = self.image_size
        pixels = torch.zeros(len(counts), max(counts, default=0), 1, size, size)
        for row, shown in enumerate(images):
            for position, image in enumerate(shown):
                pixels[row, position, 0] = torch.from_numpy(image)
        return pixels  # [B, K, 1, S, S]


AutoConfig.register("maemi", MaemiConfig)
AutoModelForImageTextToText.register(MaemiConfig, MaemiForConditionalGeneration)
AutoProcessor.register(MaemiConfig, MaemiProcessor)
