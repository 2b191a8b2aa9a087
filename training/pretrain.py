"""Pretraining of the tiny student from nothing but the project's own data: tokenizer, encoders, language model.

    python -m training.pretrain --data DIR --out RUN

Three steps, all seeded: a byte-level BPE tokenizer on the training texts; the encoders on class labels; then the
whole student in full precision on the instructions, its language model included. The result is a run whose language
model is quantised to NF4 when it is loaded; `maemi train` puts adapters on it. Knows nothing about pictures' origin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from assistant.chat import IMAGE_MARKER
from assistant.checkpoint import Run, new_run, save_model
from assistant.config import Config, DecoderConfig, load_config
from assistant.families import LLAMA_2
from assistant.measure import reference_words
from assistant.progress import Progress
from training.data import Collator, Example, TrainingSet, load_split
from training.stages import PretrainStage, VisionStage
from training.trainer import run_stage

_VOCABULARY = 1024
VISION_BATCH = 32
BASE_NAME = "maemi-tiny-base"
"""What runs call this language model; it travels inside them."""
MARKS = [LLAMA_2.first.strip(), LLAMA_2.answer.strip(), IMAGE_MARKER]
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", *MARKS)


def pretrain(
    config: Config,
    data: Path,
    out: Path,
    *,
    vision_steps: int,
    steps: int,
    vision_batch: int = VISION_BATCH,
    progress: Progress | None = None,
) -> Path:
    """Make a student from a data set. Returns its model directory, `out/model`.

    `vision_batch` images a step go through the encoders alone, which is cheap beside the conversations of the rest.

    Raises DatasetError and RunError.
    """
    set_seed(config.seed)
    examples = load_split(data, "train")
    base = out / "base"
    whole = reference_words() if config.prompt.facts == "references" else []
    write_language_model(base, train_tokenizer(texts_of(examples), whole=whole))
    dense = {"base": str(base), "quantization": "none"}
    decoder = DecoderConfig.model_validate(config.decoder.model_dump() | dense)
    config = config.model_copy(update={"init": None, "decoder": decoder})
    run = new_run(config)
    run.student.requires_grad_(True)

    labelled = [example for example in examples if example.label and len(example.images) == 1]
    labels = sorted({example.label for example in labelled if example.label})
    run = _with(run, steps=vision_steps, batch_size=vision_batch)
    _fit(run, VisionStage(run.student, len(labels)), labelled, labels, out / "vision", progress)
    run = _with(run, steps=steps, batch_size=config.training.batch_size)
    if config.loss.itm.gates:
        run.student.grounded.open_gates(config.loss.itm.gates)
    _fit(run, PretrainStage(run.student, config.loss, len(labels)), examples, labels, out / "joint", progress)

    run.student.decoder.lm.save_pretrained(str(base))
    quantised = config.decoder.model_copy(update={"base": BASE_NAME, "quantization": "nf4"})
    save_model(replace(run, config=run.config.model_copy(update={"decoder": quantised})), out / "model")
    return out / "model"


def texts_of(examples: Sequence[Example]) -> list[str]:
    """Every text the tokenizer should know, each once, sorted."""
    return sorted({text for e in examples for text in (e.question, e.answer, e.aux, *e.references)})


def train_tokenizer(texts: Sequence[str], *, whole: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, so any number and any character can be read and written.

    `whole` words are one token each wherever they stand.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(whole))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=MARKS,
    )


def write_language_model(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A small Llama with random weights and its tokenizer; every width is a multiple of 64, as NF4 on a CPU needs."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def _with(run: Run, **changes: int) -> Run:
    training = run.config.training.model_copy(update=changes)
    return replace(run, config=run.config.model_copy(update={"training": training}))


def _fit(
    run: Run,
    stage: Any,
    examples: Sequence[Example],
    labels: Sequence[str],
    out: Path,
    progress: Progress | None,
) -> None:
    settings = run.config.training
    out.mkdir(parents=True, exist_ok=True)
    dataset = TrainingSet.configured(examples, run.config)
    collator = Collator(run.processor, max_tokens=settings.max_tokens, labels=labels)
    groups = [{"params": [p for p in stage.parameters() if p.requires_grad], "lr": settings.learning_rate}]
    run_stage(stage, run, dataset, collator, groups, out, progress=progress)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--vision-steps", type=int, default=1200)
    parser.add_argument("--vision-batch", type=int, default=VISION_BATCH)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c")
    parsed = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")

    def tell(done: int, total: int, text: str) -> None:
        if done % 10 == 0:
            print(f"{done}/{total} {text}", file=sys.stderr, flush=True)  # noqa: T201

    pretrain(
        load_config(parsed.config, parsed.set),
        parsed.data,
        parsed.out,
        vision_steps=parsed.vision_steps,
        vision_batch=parsed.vision_batch,
        steps=parsed.steps,
        progress=tell,
    )


if __name__ == "__main__":
    main()
