"""What a language model answers to general questions by itself, kept so that a student does not forget it.

    python -m serve.batch.keep --run RUN --out kept.jsonl

The same command goes on after an interruption. Knows nothing about pictures or training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from assistant.disk import write_file
from assistant.handbook import entries
from data_gen.questions.bank import wordings

_ANSWER_TOKENS = 96


def keep(questions: Iterable[str], answer: Callable[[str], str], out: Path) -> int:
    """Append what is answered to each question that `out` does not hold yet; returns how many lines it holds.

    A line that a kill cut is written anew.
    """
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, "".join(whole))
    held = {json.loads(line)["question"] for line in whole}
    with out.open("a", encoding="utf-8") as file:
        for question in dict.fromkeys(questions):
            if question not in held and (said := answer(question).strip()):
                file.write(json.dumps({"question": question, "answer": said}, ensure_ascii=False) + "\n")
                file.flush()
                held.add(question)
    return len(held)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module. Raises RunError for a run that cannot be loaded."""
    from assistant.inference import Assistant

    parser = argparse.ArgumentParser(prog="python -m serve.batch.keep", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a student on the base that is not yet fine-tuned")
    parser.add_argument("--out", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    assistant = Assistant.load(parsed.run)
    asked = [question for entry in entries() for question in entry.questions]
    asked += [wording.text for wording in wordings("train") if wording.part in ("greeting", "offtopic", "help")]
    kept = keep(asked, lambda q: "".join(assistant.converse(q, max_new_tokens=_ANSWER_TOKENS)), parsed.out)
    print(f"{parsed.out}: {kept} answers")  # noqa: T201


if __name__ == "__main__":
    main()
