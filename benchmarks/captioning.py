"""Captioning speed of the bundled student against one-at-a-time Hugging Face `generate`, and how soon answers start.

    OMP_NUM_THREADS=2 python benchmarks/captioning.py [--device cuda] [--run RUN] [--out FILE]

Peer and MAEMI get the same pixels and prompts and must say the same tokens; each encodes its images. Drawn micrographs
of all classes stand in for real ones. Times are the best of several passes, in turn. A GPU computes in bfloat16, in
which batches of other sizes may round another way: whether the tokens are the same is said, never assumed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from assistant.chat import CAPTION_PROMPT, Conversation, Message
from assistant.generation import complete
from assistant.inference import Assistant, Look
from assistant.micrograph import find_micrographs, to_model_input
from data_gen.drawing.synth import write_synthetic

IMAGES, NEW_TOKENS, PASSES = 64, 128, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=Path, help="a run directory; the bundled student otherwise")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    assistant = Assistant.load(options.run, options.device)
    with tempfile.TemporaryDirectory() as folder:
        files = drawn(Path(folder))
        record = captioning(assistant, assistant.look_all(files[:IMAGES])) | first_words(assistant, files[:5])
    on_gpu = options.device.startswith("cuda")
    record |= {
        "student": assistant.name,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "number_format": str(next(assistant.student.decoder.lm.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def captioning(assistant: Assistant, looks: Sequence[Look]) -> dict[str, Any]:
    """Images per second of both, and whether they say the same."""
    talks = [Conversation((Message("user", CAPTION_PROMPT, 1, look.aux),)) for look in looks]
    pixels = [to_model_input(look.micrograph, assistant.processor.image_size)[0] for look in looks]
    student, processor = assistant.student, assistant.processor
    end = processor.tokenizer.eos_token_id

    def on_device(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(student.device) for name, tensor in batch.items()}

    def one_at_a_time() -> list[list[int]]:
        said = []
        for talk, image in zip(talks, pixels, strict=True):
            batch = on_device(processor([talk], [[image]], padding_side="left"))
            ids = student.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
            said.append(ids[0, batch["input_ids"].shape[1] :].tolist())
        return said

    def prepare(numbers: Sequence[int]) -> Any:
        batch = on_device(processor([talks[n] for n in numbers], [[pixels[n]] for n in numbers], padding_side="left"))
        names = ("pixel_values", "image_mask", "question_ids", "question_mask", "turn_images")
        return batch, student.visual_context(*(batch[name] for name in names))

    def in_slots(slots: int) -> list[list[int]]:
        return complete(student, len(talks), prepare, max_new_tokens=NEW_TOKENS, end=end, slots=slots)

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "hf_generate_one_at_a_time": one_at_a_time,
        "slots_8": lambda: in_slots(8),
        "slots_16": lambda: in_slots(16),
        "slots_32": lambda: in_slots(32),
    }
    seconds: dict[str, float] = {}
    said: dict[str, list[list[int]]] = {}
    for _ in range(PASSES):
        for name, way in ways.items():
            start = time.perf_counter()
            said[name] = way()
            seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - start)
    peer = "hf_generate_one_at_a_time"
    return {
        "images": len(looks),
        "mean_tokens": round(sum(map(len, said[peer])) / len(looks), 1),
        "images_per_second": {name: round(len(looks) / taken, 2) for name, taken in seconds.items()},
        "ratio": {name: round(seconds[peer] / taken, 2) for name, taken in seconds.items() if name != peer},
        "identical_tokens": all(tokens == said[peer] for tokens in said.values()),
    }


def first_words(assistant: Assistant, files: Sequence[Path]) -> dict[str, Any]:
    """Seconds until the first piece of an answer: of the first question on an image, and of the ones after it."""
    times: dict[str, list[float]] = {"first": [], "second": [], "second_in_chat": [], "second_read_anew": []}
    for file in files:
        fresh = Assistant(assistant.run)
        answer, seconds = timed(fresh, [file], CAPTION_PROMPT)
        times["first"].append(seconds)
        times["second"].append(timed(fresh, [file], "What is the arrangement of the structures?")[1])
        list(fresh.ask([file], CAPTION_PROMPT))
        history = (Message("user", CAPTION_PROMPT, images=1), Message("assistant", answer))
        question = "Which class does this micrograph belong to?"
        times["second_in_chat"].append(timed(fresh, [file], question, history=history)[1])
        anew = Assistant(assistant.run)
        anew.look(file)
        times["second_read_anew"].append(timed(anew, [file], question, history=history)[1])
    best = {name: min(values) for name, values in times.items()}
    return {
        "seconds_to_first_words": {name: round(value, 4) for name, value in best.items()},
        "first_over_second": round(best["first"] / best["second"], 2),
        "first_over_second_in_chat": round(best["first"] / best["second_in_chat"], 2),
        "chat_read_anew_over_kept": round(best["second_read_anew"] / best["second_in_chat"], 2),
    }


def timed(assistant: Assistant, files: Sequence[Path], question: str, **options: Any) -> tuple[str, float]:
    start = time.perf_counter()
    pieces = assistant.ask(files, question, **options)
    first = next(pieces)
    seconds = time.perf_counter() - start
    return first + "".join(pieces), seconds


def drawn(folder: Path) -> list[Path]:
    """Micrographs of all classes on disk."""
    write_synthetic(folder, per_class=7, seed=5)
    return find_micrographs(folder)


if __name__ == "__main__":
    main()
