"""Questions and answers: they follow from the facts, reveal no label, and are worded as the prompt files say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest

from assistant.chat import CAPTION_PROMPT, CLASSIFY_PROMPT, class_answer
from assistant.errors import DatasetError
from assistant.quantities import written
from data_gen.drawing.synth import CLASSES
from data_gen.questions.evidence import PROMPTS, Evidence, chance, class_words, known_text, pair_slots, slots_of
from data_gen.questions.filters import numbers_agree
from data_gen.questions.tasks import (
    QuestionTemplate,
    TaughtQuestion,
    _parse,
    ask_template,
    conversation_about,
    items,
    questions_about,
    questions_comparing,
)
from data_gen.questions.words import VISIBLE_WORDS

UNITS = {"count": "", "coverage": "%", "porosity": "%", "aspect_ratio": "", "anisotropy": "", "orientation": "deg"}
UNITS |= {"contrast": "%", "noise": "%"}
LABELS = dict.fromkeys(CLASSES, 20)
SMALL = {"count": 9.0, "mean_diameter": 99.0, "coverage": 60.0, "noise": 9.0}


def evidence(index: int = 0, **changes: Any) -> Evidence:
    """A micrograph of one of the ten classes, with words drawn as the synthetic ones are."""
    rng = chance("evidence", index)
    label = changes.pop("label", CLASSES[index % len(CLASSES)])
    measured = {"count": 84.0, "mean_diameter": 312.4, "coverage": 23.4, "aspect_ratio": 1.08, "contrast": 41.0}
    measured |= changes.pop("measured", {})
    unit = "px" if changes.get("nm_per_pixel", 4.2) is None else "nm"
    facts = [
        {"name": name, "value": value, "unit": UNITS.get(name, unit), "method": "m", "confidence": 0.9, "note": ""}
        for name, value in measured.items()
    ]
    words: dict[str, Any] = {}
    if label in VISIBLE_WORDS:
        words = {facet: rng.choice(options) for facet, options in VISIBLE_WORDS[label].items() if facet != "defects"}
        words["defects"] = [rng.choice(VISIBLE_WORDS[label]["defects"])] if rng.random() < 0.5 else []
        words["tilt_deg"] = rng.choice((0.0, 30.0))
    line = "; ".join(f"{f['name'].replace('_', ' ')} {written(f['value'], f['unit'])}" for f in facts)  # type: ignore[arg-type]
    known = Evidence(
        path=f"{index}.tif",
        sha256=f"{index:064x}",
        label=label,
        group=f"g{index // 4}",
        split="train",
        size=(640, 480),
        truth=words,
        true_nm_per_pixel=4.2,
        nm_per_pixel=4.2,
        instrument={"vendor": "thermo", "model": "Helios G4", "hv_kv": 5.0, "wd_mm": 4.1, "detector": "ETD"},
        facts={"kind": "particles", "items": facts},
        metadata_line="Thermo Helios G4; 5 kV; WD 4.1 mm; ETD; 4.2 nm/px",
        facts_line=line,
    )
    return replace(known, **changes)


def item(name: str) -> QuestionTemplate:
    return next(item for item in items() if item.name == name)


def asked(name: str, known: Evidence) -> TaughtQuestion | None:
    return ask_template(item(name), slots_of(known, seed=0), rng=chance(name, known.sha256), paraphrases=5)


def everything(known: Evidence, **options: Any) -> list[TaughtQuestion]:
    tasks = ("caption", "vqa", "classification", "metadata")
    return [question for task in tasks for question in questions_about(known, task, seed=0, count=99, **options)]


# ---------------------------------------------------------------------------------------------------- prompt files


def test_every_item_has_wordings_enough() -> None:
    """Four questions at least, and never fewer answers than questions in any case: wording i answers wording i."""
    assert len({item.name for item in items()}) == len(items()) > 40
    for found in items():
        assert len(found.questions) >= 4, found.name
        assert found.cases, found.name
        for case in [*found.cases, *(case for cases in found.clauses.values() for case in cases)]:
            assert 4 <= len(case.wordings) <= 5, (found.name, case)
        assert all(len(case.wordings) >= len(found.questions) for case in found.cases), found.name
        assert all(text.endswith(("?", ".")) for text in found.questions), found.name


def test_every_slot_of_a_prompt_file_can_be_filled() -> None:
    """A misspelt slot would silence an item for ever, without an error."""
    measured = dict.fromkeys(("period", "line_width", "fibre_width", "porosity", "nearest_neighbour"), 200.0)
    measured |= {"line_edge_roughness": 5.0, "orientation": 40.0, "anisotropy": 0.7, "noise": 4.0}
    measured |= {"d10_diameter": 100.0, "d90_diameter": 500.0}
    names: set[str] = set()
    for i in range(200):
        instrument = {"model": "Helios G4", "magnification": 5000.0, "hv_kv": 5.0, "wd_mm": 4.1, "detector": "ETD"}
        line = "Thermo Helios G4; 5 kV; WD 4.1 mm; mag 5000x; ETD; 4.2 nm/px"
        known = evidence(i, measured=measured, instrument=instrument, metadata_line=line)
        names |= slots_of(known, seed=0, labels=LABELS).keys()
        names |= pair_slots(known, evidence(i + 3, measured=SMALL, nm_per_pixel=42.0), seed=0).keys()
    missing = {f"{found.name}: {name}" for found in items() for name in found.reads - names}
    assert not missing


def test_the_vocabulary_is_compact() -> None:
    """A student of a few million parameters and a thousand tokens learns what these words are."""
    words: set[str] = set()
    for i in range(100):
        for question in everything(evidence(i)):
            for text in (question.text, *question.answers):
                words |= set(re.findall(r"[a-z]+", text.lower()))
    assert 150 < len(words) < 450


def test_a_prompt_file_with_an_unknown_line_is_refused(tmp_path: Any) -> None:
    """A typing error in a prompt file names the file and the line."""
    path = tmp_path / "broken.txt"
    path.write_text("[item]\nfacett: x\n? Is it?\n! Yes.\n")
    with pytest.raises(DatasetError, match=r"bad_prompt: broken.txt: 'facett: x'"):
        list(_parse(path))


def test_every_class_has_words() -> None:
    """A class without a name in sentences would drop out of the captions."""
    assert set(class_words()) == set(CLASSES)
    assert all(set(entry) == {"class", "function", "application"} for entry in class_words().values())


# ------------------------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize("index", range(20))
def test_questions_and_facts_never_name_the_class(index: int) -> None:
    """The class in the student's input would make classification a reading exercise."""
    known = evidence(index)
    names = {CLASSES[index % 10].replace("_", " "), class_words()[CLASSES[index % 10]]["class"].removeprefix("a ")}
    for question in everything(known):
        assert not any(re.search(rf"\b{name}\b", question.text.lower()) for name in names), question


def test_wording_i_answers_wording_i() -> None:
    """A target that does not follow from the question would be out of reach of greedy decoding."""
    shape = item("shape")
    seen = set()
    for i in range(40):
        known = evidence(i, label="particles", truth={"shape": "spherical"})
        question = asked("shape", known)
        assert question is not None
        place = shape.questions.index(question.text)
        expected = [text.replace("{are_shape}", "are spherical") for text in shape.cases[0].wordings]
        assert question.answers[0] == expected[place]
        assert sorted(question.answers) == sorted(expected)
        seen.add(place)
    assert seen == set(range(len(shape.questions)))


def test_serving_and_training_ask_the_same() -> None:
    """The caption and class questions that serving asks are the commonest in training, word for word."""
    texts = Counter()  # type: ignore[var-annotated]
    for i in range(200):
        for task in ("caption", "classification"):
            (question,) = questions_about(evidence(i), task, seed=0)
            texts[question.text] += 1
            if question.text == CLASSIFY_PROMPT:
                assert question.answers[0] == class_answer(CLASSES[i % 10])
    assert texts[CAPTION_PROMPT] > 90
    assert texts[CLASSIFY_PROMPT] > 90


def test_numbers_are_those_of_the_auxiliary_line() -> None:
    """An answer that rounds otherwise than the line it is read from could not be copied."""
    for i in range(30):
        known = evidence(i)
        allowed = f"{known.facts_line}; {known.metadata_line}; 4.2 nm"
        for question in everything(known):
            for answer in question.answers:
                assert numbers_agree(answer, f"{allowed}; {question.text}"), (question.text, answer)
    assert "mean diameter 312 nm" in evidence().facts_line


def test_a_fact_outside_the_auxiliary_line_is_not_asked() -> None:
    """The line holds twelve facts at most; what is cut off cannot be known to the student."""
    known = evidence(1)
    assert asked("contrast", known) is not None
    line = known.facts_line.removesuffix("; contrast 41 %")
    assert line != known.facts_line
    assert "contrast" not in slots_of(replace(known, facts_line=line), seed=0)


def test_a_measurement_that_misses_the_truth_is_not_taught() -> None:
    """84 counted where 200 were drawn is wrong, whatever the measurement says; 84 of 90 is what it will say later."""
    known = evidence(1)
    assert "count" in slots_of(replace(known, truth={"count": 90.0}), seed=0)
    assert "count" not in slots_of(replace(known, truth={"count": 200.0}), seed=0)
    pixels = evidence(1, nm_per_pixel=None)
    assert "mean_diameter" in slots_of(replace(pixels, truth={"mean_diameter": 312.4 * 4.2}), seed=0)
    assert "mean_diameter" not in slots_of(replace(pixels, truth={"mean_diameter": 312.4}), seed=0)
    turned = evidence(1, measured={"orientation": 178.0})
    assert "orientation" in slots_of(replace(turned, truth={"orientation": 2.0}), seed=0)


def test_an_uncalibrated_image_is_answered_in_pixels_and_says_so() -> None:
    """A pixel size is never invented, so the honest answer is the target."""
    known = evidence(1, nm_per_pixel=None, metadata_line="Thermo Helios G4; 5 kV; not calibrated")
    diameter, scale, calibrated = (asked(name, known) for name in ("diameter", "pixel_size", "calibrated"))
    assert diameter is not None
    assert scale is not None
    assert calibrated is not None
    assert all("312 px" in answer and "not calibrated" in answer for answer in diameter.answers)
    assert all("not known" in answer for answer in scale.answers)
    assert all(answer.startswith("No") for answer in calibrated.answers)
    assert not [q for q in everything(known) for answer in q.answers if " nm" in answer]


def test_what_nobody_knows_is_asked_only_of_a_teacher_that_looks() -> None:
    """Without ground truth the offline teacher has no answer to give; a hosted one sees the picture."""
    known = evidence(1, label=None, truth={})
    assert "shape" not in {question.id for question in everything(known)}
    looking = {question.id: question for question in everything(known, looking=True)}
    assert looking["shape"].answers == ()
    assert looking["count"].answers
    assert "class" not in looking
    assert all(question.answers or item(name).look for name, question in looking.items())


def test_the_unknown_metadata_is_named_as_unknown() -> None:
    """A missing voltage is answered, not guessed; one that only the file's tags know is not asked."""
    known = evidence(1)
    without = replace(known, instrument={}, metadata_line="4.2 nm/px")
    voltage = asked("voltage", without)
    assert voltage is not None
    assert all("not" in answer for answer in voltage.answers)
    assert asked("voltage", replace(known, metadata_line="4.2 nm/px")) is None
    microscope = asked("microscope", known)
    assert microscope is not None
    assert "Thermo Helios G4" in microscope.answers[0]


def test_captions_say_what_is_known_and_nothing_else() -> None:
    """Class, shape, surface, arrangement, size and condition where known; a label alone or no label still captions."""
    truth = {"shape": "lines", "surface": "rough", "arrangement": "periodic"}
    known = evidence(6, truth=truth)
    caption = next(q for i in range(50) for q in questions_about(replace(known, sha256=f"{i}"), "caption", seed=0))
    for part in ("a patterned surface", "lines", "rough surface", "periodic arrangement", "312 nm", "5 kV"):
        assert part in caption.answers[0]
    assert len(caption.answers) == 5
    (bare,) = questions_about(evidence(6, truth={}, label="superalloy"), "caption", seed=0)
    assert "superalloy" in bare.answers[0]
    assert "shape" not in bare.answers[0]
    (plain,) = questions_about(evidence(6, truth={}, label=None), "caption", seed=0)
    assert "84" in plain.answers[0]
    assert plain.states["count"] == "84"
    nothing = evidence(6, truth={}, label=None, facts={"kind": "lines", "items": []}, facts_line="")
    (lines,) = questions_about(nothing, "caption", seed=0)
    assert "line pattern" in lines.answers[0]


def test_offered_words_are_right_half_of_the_time_and_betray_nothing() -> None:
    """If "lines" were mostly offered where it is right, the word alone would answer the question."""
    right: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for i in range(3000):
        slots = slots_of(evidence(i), seed=0)
        for facet in ("shape", "surface", "arrangement", "touching"):
            right[facet][slots[f"offered_{facet}"], slots[f"offered_{facet}_right"]] += 1
            assert (slots[f"offered_{facet}"] == slots[facet]) == (slots[f"offered_{facet}_right"] == "yes")
    for facet, counts in right.items():
        yes = sum(count for (_, verdict), count in counts.items() if verdict == "yes")
        assert 0.46 < yes / 3000 < 0.54
        for word in {word for word, _ in counts}:
            share = counts[word, "yes"] / (counts[word, "yes"] + counts[word, "no"])
            assert 0.3 < share < 0.72, (facet, word)


def test_limits_lie_on_both_sides() -> None:
    """ "Are there more than 50?" must be no as often as yes."""
    verdicts = Counter(slots_of(evidence(i), seed=0)["more_than"] for i in range(400))
    assert 0.4 < verdicts["yes"] / 400 < 0.6
    slots = slots_of(evidence(3), seed=0)
    assert (float(slots["count_limit"]) < 84) == (slots["more_than"] == "yes")


def test_facets_are_spread() -> None:
    """A facet with ten items must not crowd out one with a single item."""
    chosen = Counter()  # type: ignore[var-annotated]
    for i in range(300):
        questions = questions_about(evidence(i), "vqa", seed=0, count=8)
        assert len(questions) == 8
        assert len({question.id for question in questions}) == 8
        chosen.update({question.facet for question in questions})
    assert set(chosen) == {"basics", "morphology", "size_distribution", "surface", "composition", "boundaries",
                           "environment", "technique", "function", "context", "hypothesis",
                           "limits"}  # fmt: skip
    assert min(chosen.values()) > 90


def test_questions_depend_on_the_image_and_the_seed_only() -> None:
    """The same picture is asked the same, in any folder, order and run; another seed asks otherwise."""
    first = questions_about(evidence(5), "vqa", seed=0, count=6)
    questions_about(evidence(6), "vqa", seed=0, count=6)
    assert questions_about(replace(evidence(5), path="elsewhere.tif"), "vqa", seed=0, count=6) == first
    assert questions_about(evidence(5), "vqa", seed=1, count=6) != first


def test_comparisons_follow_from_both_pictures() -> None:
    """Which is larger, more, more regular: from the two facts, and silent where they hardly differ."""
    one = evidence(1, truth={"surface": "rough", "arrangement": "random", "defects": ["debris"]})
    two = evidence(2, measured={"mean_diameter": 900.0, "count": 86.0},
                   truth={"surface": "smooth", "arrangement": "periodic", "defects": []})  # fmt: skip
    slots = pair_slots(one, two, seed=0)
    assert (slots["larger"], slots["more_regular"], slots["defects_in"]) == ("2", "2", "1")
    assert (slots["same_class"], slots["same_surface"]) == ("no", "no")
    assert "more" not in slots
    turned = pair_slots(two, one, seed=0)
    assert (turned["larger"], turned["more_regular"], turned["defects_in"]) == ("1", "1", "2")
    questions = {question.id: question for question in questions_comparing(one, two, seed=0, count=9)}
    assert all("900 nm" in answer and "312 nm" in answer for answer in questions["larger"].answers)
    assert pair_slots(one, evidence(2, nm_per_pixel=None), seed=0).get("larger") is None


def test_the_known_text_holds_no_name_and_no_date() -> None:
    """What goes out with a picture is the class, the facts and the metadata line, never a path."""
    text = known_text(replace(evidence(1), path="lot-7/secret.tif", group="lot-7"))
    assert "lot-7" not in text
    assert "class: fibres" in text
    assert "measured: count 84" in text


def test_prompt_templates_name_all_their_slots() -> None:
    """A slot that nobody fills would reach a hosted teacher as a brace."""
    for name, slots in (("teacher", "pair known questions paraphrases"), ("sheet", "known questions")):
        text = (PROMPTS / f"{name}.txt").read_text()
        assert set(re.findall(r"\{(\w+)\}", text)) == set(slots.split())


def test_candidates_betray_nothing() -> None:
    """The class stands in every place, and is offered as often where it is wrong as where it is right.

    Seen failing with the class always first.
    """
    places, right, wrong = Counter[int](), Counter[str](), Counter[str]()
    for i in range(2000):
        label = CLASSES[i % 10]
        words = slots_of(evidence(i, label=label), seed=0, labels=LABELS)["candidates"]
        offered = [word.replace(" ", "_") for word in re.split(", | or ", words)]
        assert len(set(offered)) == 4
        places[offered.index(label)] += 1
        right[label] += 1
        wrong.update(set(offered) - {label})
    assert all(400 < count < 600 for count in places.values())
    assert all(abs(wrong[label] / right[label] - 3) < 0.5 for label in CLASSES)


def test_candidates_need_other_classes() -> None:
    """A data set of one or two classes has nothing to choose from."""
    for labels in (None, {}, {"fibres": 3, "tips": 3}):
        assert "candidates" not in slots_of(evidence(1), seed=0, labels=labels)


def test_what_serving_asks_is_among_the_questions() -> None:
    """Short and detailed captions, and candidates, come beside the question that serving asks, never in its place."""
    for i in range(50):
        captions = questions_about(evidence(i), "caption", seed=0, count=2)
        classes = questions_about(evidence(i), "classification", seed=0, count=2, labels=LABELS)
        assert [captions[0].id, classes[0].id, classes[1].id] == ["caption", "class", "class_among"]
        assert captions[1].id in {"caption_short", "caption_detailed"}
        short, full = (len(question.answers[0]) for question in (captions[1], captions[0]))
        assert (short < full) == (captions[1].id == "caption_short")


def test_conversations_hang_together() -> None:
    """Every turn follows one before it, none comes twice, and each is what its item answers by itself."""
    lengths, closing = Counter[int](), Counter[str]()
    after = {item.name: item.after for item in items() if item.after}
    assert {name for names in after.values() for name in names} <= {item.name for item in items()}
    named = defaultdict(set)
    for found in items():
        for text in found.questions:
            named[text].add(found.name)
    for i in range(200):
        talk = conversation_about(evidence(i, measured={"d10_diameter": 100.0, "d90_diameter": 500.0}), seed=0)
        assert talk is not None
        said = [*(asked for asked, _ in talk.history), talk.text]
        assert len(set(said)) == len(said)
        assert all(answer and not re.search(r"[{}]", answer) for _, answer in talk.history)
        turns = [named[text] for text in said if text in named]  # a question with slots is not there as it was asked
        if len(turns) == len(said):
            assert any(name not in after for name in turns[0])
            for place in range(1, len(turns)):
                earlier = set().union(*turns[:place])
                assert any(earlier & set(after.get(name, ())) for name in turns[place]), said
        lengths[len(said)] += 1
        closing[said[-1]] += 1
    assert set(lengths) <= {2, 3, 4}
    assert lengths[4] > 100
    assert len(closing) >= 8


def test_a_picture_is_asked_little_that_it_cannot_answer() -> None:
    """One question that no micrograph answers at most, and one about a quantity that is not there."""
    silent = evidence(2)
    facts = [{**fact, "value": None, "confidence": 0.0} for fact in silent.facts["items"]]
    facts += [{**facts[0], "name": name} for name in ("period", "line_width", "fibre_width", "nearest_neighbour")]
    for i in range(40):
        known = replace(silent, sha256=f"{i}", facts={"kind": "texture", "items": facts}, facts_line="")
        asked = questions_about(known, "vqa", seed=0, count=99)
        assert sum(question.facet == "limits" for question in asked) == 1
        assert sum("be measured" in q.answers[0] or "be counted" in q.answers[0] for q in asked) == 1
        assert all(question.canonical == "" for question in asked if question.facet == "limits")


def test_an_unsure_measurement_is_not_taught_without_a_truth() -> None:
    """Three bodies, a pale count or a weak direction are what a threshold makes of any picture.

    Seen failing on real alloys ("1 objects can be counted") without these limits.
    """

    def taught(
        name: str, label: str = "tips", confidence: float = 0.9, kind: str = "particles", **measured: float
    ) -> bool:
        known = evidence(9, label=label, truth={}, measured=measured)
        facts = [{**fact, "confidence": confidence} for fact in known.facts["items"]]
        return name in slots_of(replace(known, facts={"kind": kind, "items": facts}), seed=0)

    assert taught("count")
    assert not taught("count", confidence=0.5)
    assert not taught("count", count=3.0)
    assert not taught("mean_diameter", count=3.0)
    assert taught("coverage")
    assert not taught("coverage", count=3.0), "the few that stood out do not cover what all cover"
    assert taught("orientation", orientation=40.0, anisotropy=0.7)
    assert not taught("orientation", orientation=40.0, anisotropy=0.4)
    assert not taught("directed", anisotropy=0.4)
    assert not taught("fibre_width", kind="fibres", fibre_width=50.0), "tips pass for fibres"
    assert not taught("fibre_width", "ebc_coating", kind="fibres", fibre_width=50.0), "layers do, too"
    assert taught("fibre_width", "our_nanowires", kind="fibres", fibre_width=50.0)
    assert taught("period", kind="lines", period=200.0)
    assert not taught("period", kind="texture", period=200.0)


def test_what_reads_alike_is_not_called_the_larger() -> None:
    """Two values are compared as they are written: 0.35 % is no higher noise than 0.35 %."""

    def compared(first: float, second: float) -> str | None:
        pair = [evidence(i, measured={"anisotropy": 0.1, "noise": noise}) for i, noise in enumerate((first, second))]
        return pair_slots(pair[0], pair[1], seed=0).get("noisier")

    assert compared(6.0, 2.0) == "1"
    assert compared(0.004, 0.0051) == "2"
    assert compared(5.0, 5.9) is None


def test_dark_bodies_are_pores_only_where_somebody_says_so() -> None:
    """The dark ground beside a sample is no porosity."""
    dark = {"porosity": 20.0}
    assert "porosity" not in slots_of(evidence(1, truth={}, label="melt_pool", measured=dark), seed=0)
    slots = slots_of(evidence(1, truth={}, label="melt_pool", measured=dark), seed=0)
    assert (slots["dark_share"], slots["objects"]) == ("20 %", "structures")
    slots = slots_of(evidence(1, truth={}, label="porous_shale", measured=dark), seed=0)
    assert (slots["porosity"], slots["objects"]) == ("20 %", "pores")


def test_a_class_without_words_is_still_a_sentence() -> None:
    """A label of one's own has no article and no plural: it is named as a class."""
    question = asked("sample", evidence(1, truth={}, label="ncm333_cycled"))
    assert question is not None
    assert all("a sample of the class ncm333 cycled" in answer for answer in question.answers)


@pytest.mark.parametrize(("ratio", "word"), [(1.1, "round"), (1.4, "slightly elongated"), (2.0, "elongated")])
def test_shape_words_follow_the_aspect_ratio(ratio: float, word: str) -> None:
    question = asked("elongation", evidence(1, measured={"aspect_ratio": ratio}))
    assert question is not None
    assert word in " ".join(question.answers)


def test_guesses_are_held_against_the_facts() -> None:
    """A guess about the period is right half of the time, and the answer gives the measured one."""
    verdicts = Counter[str]()
    for i in range(200):
        question = asked("period_guess", evidence(i, measured={"period": 200.0}))
        assert question is not None
        right = "period of 200 nm" in question.text or "period is 200 nm" in question.text
        assert all("200 nm" in answer for answer in question.answers)
        assert question.answers[0].startswith(("Yes", "The guess holds") if right else ("No", "The guess does not"))
        verdicts["yes" if right else "no"] += 1
    assert 70 < verdicts["yes"] < 130
