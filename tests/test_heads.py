"""Heads: right where they speak, silent with a reason where they cannot be sure, and nothing but data on disk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assistant.errors import RunError
from assistant.heads import (
    NEVER,
    SETTINGS,
    TENSORS,
    LabelledFeatures,
    few_shot,
    fit_heads,
    fit_space,
    held_out,
    load_heads,
    save_heads,
    threshold_for,
    verdicts,
)
from assistant.measure import Facts, Known

WIDTH = 24
WORDS = ("fibres", "powder", "sponge")
CENTRES = 6 * np.random.default_rng(0).normal(size=(len(WORDS) + 1, WIDTH))


def pictures(seed: int, *, each: int = 40, spread: float = 1.0, shift: float = 0.0) -> LabelledFeatures:
    """Three classes from two sources, five groups each, and some pictures that are nothing of the kind."""
    rng = np.random.default_rng(seed)
    rows, words, groups, sources = [], [], [], []
    for index, word in enumerate(WORDS):
        for n in range(each):
            source = n % 2
            rows.append(CENTRES[index] + spread * rng.normal(size=WIDTH) + shift * source)
            words.append(word)
            groups.append(f"{word} {n % 10}")
            sources.append(f"laboratory {source}")
    for n in range(20):
        rows.append(3 * CENTRES[-1] + rng.normal(size=WIDTH))
        words.append(None)
        groups.append(f"foreign {n}")
        sources.append("photographs")
    foreign = (False,) * (3 * each) + (True,) * 20
    return LabelledFeatures(
        np.asarray(rows, np.float32), tuple(groups), tuple(sources), {"class": tuple(words)}, foreign
    )


def test_new_pictures_of_known_classes_are_named_and_foreign_ones_are_not() -> None:
    heads = fit_heads(pictures(1), origin="run")
    new = pictures(2)
    told = [row[0] for row in heads.verdicts(new.features)]
    facts = [verdict.fact() for verdict in told]
    named = [n for n, fact in enumerate(facts) if fact.applies]
    right = [facts[n].text == new.words["class"][n] for n in named]
    assert len(named) >= 100
    assert np.mean(right) >= 0.99
    assert not any(new.foreign[n] for n in named)
    silent = facts[-1]
    assert (silent.text, silent.confidence, silent.source) == ("", 0.0, "predicted")
    assert "too unlike" in silent.note
    known = Known(Facts("", ()), predicted=(facts[named[0]], replace(silent, name="shape")))
    assert known.get("class") == facts[named[0]]
    assert known.get("shape") is None


def test_heads_stay_silent_where_their_words_do_not_carry_over_to_another_source() -> None:
    """Right at home, at chance abroad: a confidence that comes from home alone would speak."""
    rng = np.random.default_rng(5)
    data = pictures(5)
    shuffled = list(data.words["class"])
    abroad = [n for n, source in enumerate(data.sources) if source == "laboratory 1"]
    for n in abroad:
        shuffled[n] = WORDS[rng.integers(3)]
    mixed = replace(data, words={"class": tuple(shuffled)})
    heads = fit_heads(mixed, origin="run")
    assert not any(verdict.fact().applies for row in heads.verdicts(pictures(6).features) for verdict in row)
    carries_over = fit_heads(data, origin="run")
    assert any(verdict.fact().applies for row in carries_over.verdicts(pictures(6).features) for verdict in row)


def test_what_is_left_out_is_judged_by_heads_that_never_saw_it() -> None:
    data = pictures(7)
    rows = held_out(data, "class")
    assert {row.kind for row in rows} == {"groups", "sources", "foreign"}
    assert not any(row.right for row in rows if row.kind == "foreign")
    alone = replace(data, sources=("here",) * len(data.sources))
    unheard = [row for row in held_out(alone, "class") if row.kind == "words"]
    assert len(unheard) == 120
    assert not any(row.right for row in unheard)
    assert np.mean([row.right for row in rows if row.kind == "groups"]) > 0.95


def test_confidence_is_how_often_a_verdict_is_right() -> None:
    """Classes that overlap: of the verdicts at 0.8, about 0.8 must be right."""
    heads = fit_heads(pictures(8, spread=12.0, each=300), origin="run")
    new = pictures(9, spread=12.0, each=300)
    told = [row[0] for row, alien in zip(heads.verdicts(new.features), new.foreign, strict=True) if not alien]
    confidence = np.asarray([verdict.confidence for verdict in told])
    right = np.asarray([v.word == w for v, w in zip(told, new.words["class"], strict=False)])
    assert abs(confidence.mean() - right.mean()) < 0.1


def test_a_word_of_few_pictures_is_no_farther_off_for_it() -> None:
    """Counted as far away, pictures that are not there make such words look strange, and strangers look right."""
    data = pictures(10)
    kept = [n for n, word in enumerate(data.words["class"]) if word != "sponge" or n >= 118]  # two of them
    few = LabelledFeatures(
        data.features[kept],
        tuple(data.groups[n] for n in kept),
        tuple(data.sources[n] for n in kept),
        {"class": tuple(data.words["class"][n] for n in kept)},
        tuple(data.foreign[n] for n in kept),
    )
    heads = fit_heads(few, origin="run")
    probabilities, distance = heads.heads[0].judge(heads.space.embed(few.features), heads.space.spread)
    sponge = np.asarray(few.words["class"]) == "sponge"
    assert {heads.heads[0].words[n] for n in probabilities[sponge].argmax(axis=1)} == {"sponge"}
    assert distance[sponge].max() < 1


def test_classes_that_resemble_each_other_are_named_where_they_are_told_apart() -> None:
    """Each left out, its sister was taken for it, surely and wrongly; so no picture of either was named."""
    sisters = (CENTRES[0], CENTRES[0] + 4.5 * np.eye(WIDTH)[0], CENTRES[1], CENTRES[2])

    def site(seed: int) -> LabelledFeatures:
        rng, words = np.random.default_rng(seed), ("fine", "coarse", "powder", "sponge")
        rows = [centre + rng.normal(size=WIDTH) for centre in sisters for _ in range(30)]
        rows += [3 * CENTRES[-1] + rng.normal(size=WIDTH) for _ in range(20)]
        taught = [word for word in words for _ in range(30)]
        return LabelledFeatures(
            np.asarray(rows, np.float32),
            tuple(f"{word} {n % 6}" for n, word in enumerate(taught)) + tuple(f"foreign {n}" for n in range(20)),
            ("own",) * 120 + ("",) * 20,
            {"class": (*taught, *[None] * 20)},
            (False,) * 120 + (True,) * 20,
        )

    heads, new = fit_heads(site(1), origin="run", untaught=0.2), site(2)
    facts = [row[0].fact() for row in heads.verdicts(new.features)]
    named = [n for n, fact in enumerate(facts[:60]) if fact.applies]
    assert len(named) >= 40
    assert np.mean([facts[n].text == new.words["class"][n] for n in named]) >= 0.95
    assert not any(fact.applies for fact in facts[120:])


def test_a_threshold_is_the_lowest_with_so_pure_a_rest() -> None:
    confidence, right = np.asarray([0.9, 0.8, 0.7, 0.6]), np.asarray([True, True, False, True])
    assert threshold_for(confidence, right, purity=0.95) == 0.8
    assert threshold_for(confidence, right, purity=0.75) == 0.6
    assert threshold_for(confidence, right, np.asarray([1, 1, 0.1, 1]), purity=0.95) == 0.6
    assert threshold_for(confidence, ~right, purity=0.95) == NEVER


def test_of_several_heads_the_first_that_knows_a_name_speaks() -> None:
    data = pictures(1)
    first = fit_heads(data, origin="run")
    other = fit_heads(replace(data, words={"class": data.words["class"], "shape": data.words["class"]}), origin="b")
    first = replace(first, heads=(replace(first.heads[0], words=("", "a", "b", "c")),))
    (told,) = verdicts([first, other], data.features[:1])
    assert [(v.name, v.word in ("a", "b", "c")) for v in told] == [("class", True), ("shape", False)]
    silent = replace(first, heads=(replace(first.heads[0], threshold=NEVER),))
    (told,) = verdicts([silent, other], data.features[:1])
    assert [(v.name, v.word in ("a", "b", "c"), v.reason) for v in told] == [("class", False, ""), ("shape", False, "")]


def test_heads_survive_the_disk(tmp_path: Path) -> None:
    heads = fit_heads(pictures(1), origin="run")
    save_heads(heads, tmp_path / "heads", about={"seed": 1})
    again = load_heads(tmp_path / "heads")
    new = pictures(3).features
    for before, after in zip(heads.verdicts(new), again.verdicts(new), strict=True):
        assert before[0].word == after[0].word
        assert before[0].confidence == pytest.approx(after[0].confidence, abs=0.02)
        assert bool(before[0].reason) == bool(after[0].reason)
    assert {file.suffix for file in (tmp_path / "heads").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("harm", ["cut", "words", "gone", "format"])
def test_damaged_heads_are_an_error_that_names_them(tmp_path: Path, harm: str) -> None:
    save_heads(fit_heads(pictures(1), origin="run"), tmp_path, about={})
    settings = json.loads((tmp_path / SETTINGS).read_text())
    if harm == "cut":
        (tmp_path / TENSORS).write_bytes((tmp_path / TENSORS).read_bytes()[:-100])
    elif harm == "gone":
        (tmp_path / SETTINGS).unlink()
    else:
        settings["heads"][0]["words"] = ["one"]
        settings["format"] = 99 if harm == "format" else settings["format"]
        (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(RunError, match="holds no heads") as refused:
        load_heads(tmp_path)
    assert refused.value.code == "damaged_run"


def test_few_shot_knows_what_lies_near_its_examples_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (4, 40))
    drawn = {n: centre + rng.normal(0, 1, (30, 40)) for n, centre in enumerate(centres)}
    space = fit_space(np.concatenate([rng.normal(0, 3, (60, 40)), *drawn.values()]))
    examples = {"a": drawn[0][:3], "b": drawn[1][:3]}
    asked = np.concatenate([drawn[0][3:], drawn[1][3:], drawn[2], drawn[3]])
    for compared in (space, None, fit_space(rng.normal(0, 1, (60, 8)))):  # the last is one of other features
        told = few_shot(examples, asked, compared)
        assert [int(shares.argmax()) for shares, _ in told[:54]] == [0] * 27 + [1] * 27
        assert all(abs(float(shares.sum()) - 1) < 1e-9 for shares, _ in told)
        known = [confidence for _, confidence in told]
        assert min(known[:54]) > max(known[54:])
