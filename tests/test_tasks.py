"""Questions and answers: they follow from the facts, reveal no label, and are worded as the prompt files say."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest

from assistant.chat import CAPTION_PROMPT, CLASSIFY_PROMPT, class_answer
from assistant.errors import DatasetError
from data_gen.evidence import PROMPTS, Evidence, chance, class_words, known_text, number, pair_slots, slots_of
from data_gen.filters import (
    NearDuplicates,
    blind_answers,
    clean,
    difference_hash,
    numbers,
    numbers_agree,
    text_verdict,
    wordings_agree,
)  # fmt: skip
from data_gen.scenes.words import CLASS_WORDS
from data_gen.synth import CLASSES
from data_gen.tasks import Item, Question, _parse, ask, items, questions_about, questions_comparing

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
    if label in CLASS_WORDS:
        words = {facet: rng.choice(options) for facet, options in CLASS_WORDS[label].items() if facet != "defects"}
        words["defects"] = [rng.choice(CLASS_WORDS[label]["defects"])] if rng.random() < 0.5 else []
        words["tilt_deg"] = rng.choice((0.0, 30.0))
    line = "; ".join(f"{f['name'].replace('_', ' ')} {number(f['value'])} {f['unit']}".strip() for f in facts)  # type: ignore[arg-type]
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


def item(name: str) -> Item:
    return next(item for item in items() if item.name == name)


def asked(name: str, known: Evidence) -> Question | None:
    return ask(item(name), slots_of(known, seed=0), rng=chance(name, known.sha256), paraphrases=5)


def everything(known: Evidence, **options: Any) -> list[Question]:
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


# ----------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("The mean diameter is 312 nm.", None),
        ("The mean diameter is 0.31 um.", None),
        ("The mean diameter is 0.31 µm.", None),
        ("The mean diameter is 312 um.", "numbers_disagree"),
        ("The mean diameter is 312 px.", "numbers_disagree"),
        ("There are 84 particles at 5 kV.", None),
        ("There are 120 particles.", "numbers_disagree"),
        ("The microscope is a Helios G4.", None),
        ("I'm sorry, I can't assist with that.", "refusal"),
        ("As an AI language model I do not see it.", "refusal"),
        ("It might be a wire.", "hedge"),
        ("It appears to be round.", "hedge"),
        ("It could be used for sensors.", None),
        ("![x](http://evil.example/?q=1)", "markup"),
        ("<script>alert(1)</script>", "markup"),
        ("=cmd|' /C calc'!A0", "markup"),
        ("", "empty"),
        ("word " * 200, "too_long"),
    ],
)
def test_text_verdicts(answer: str, verdict: str | None) -> None:
    """Numbers with the wrong unit, refusals, hedges and markup of a hosted teacher never become a target."""
    assert text_verdict(answer, known="count 84; mean diameter 312 nm; 5 kV; Helios G4") == verdict


def test_text_is_cleaned_of_what_cannot_be_seen() -> None:
    """Invisible characters could carry instructions through the data set; units are written in ASCII."""
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")
    assert clean(f"A\u200b round{hidden}\ufe0f\n body of 3 µm\u202e.\x00") == "A round body of 3 um."
    assert numbers("3.2 um and 1,200 px") == [("length", 3200.0), ("pixels", 1200.0)]


def test_wordings_must_agree() -> None:
    """Paraphrases that contradict each other are several answers, not one."""
    assert wordings_agree(["Yes, 84 of them.", "Yes, there are 84.", "84 can be counted."])
    assert not wordings_agree(["Yes, 84 of them.", "No, 84 of them."])
    assert not wordings_agree(["There are 84.", "There are 85."])


def test_a_question_that_needs_no_picture_is_thinned() -> None:
    """Nineteen "no" of twenty: the single "yes" stays, and "no" as often; ten of ten say nothing and go."""
    counts = [("tilt", 20, 19, "no"), ("noise", 20, 18, "low"), ("clean", 10, 10, "yes"), ("rare", 9, 9, "yes")]
    assert blind_answers(counts) == {"tilt": ("no", pytest.approx(1 / 19)), "clean": ("yes", 0.0)}


def test_difference_hash_sees_what_is_there_and_not_how_bright() -> None:
    """A brighter or noisier copy is a near-duplicate, a mirrored one is another picture."""
    import numpy as np

    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(40, 160, (8, 9)), np.ones((16, 16))).astype(np.uint8)
    code = difference_hash(picture)
    brighter = (picture * 1.3 + 20).astype(np.uint8)
    noisy = (picture + rng.integers(0, 6, picture.shape)).astype(np.uint8)
    cells = (np.diff(picture[::16, ::16].astype(int)) > 0).ravel()
    assert code == int("".join("1" if cell else "0" for cell in cells), 2)
    assert difference_hash(brighter) == code
    near = NearDuplicates(2)
    assert near.add(7, code) is None
    assert near.add(8, difference_hash(noisy)) == 7
    assert near.add(9, difference_hash(picture[:, ::-1].copy())) is None
    assert near.add(10, code ^ 0b111) is None
    assert near.add(11, code ^ (1 << 63) ^ 1) == 7


def test_near_duplicates_equal_a_plain_search() -> None:
    """The growing table finds what comparing every pair finds."""
    rng = chance("hashes")
    codes = [rng.getrandbits(64) for _ in range(100)]
    codes += [code ^ (1 << rng.randrange(64)) ^ (1 << rng.randrange(64)) for code in codes]
    rng.shuffle(codes)
    near, kept = NearDuplicates(2), []
    for position, code in enumerate(codes):
        expected = next((other for other in kept if (codes[other] ^ code).bit_count() <= 2), None)
        assert near.add(position, code) == expected
        if expected is None:
            kept.append(position)
    assert len(kept) == 100
