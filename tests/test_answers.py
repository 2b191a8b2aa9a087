"""Answers: what of a draft is fact stays, the rest gives way to facts or to what is missing."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.answers import asked_for, checked
from assistant.measure import Fact, Facts, Known, read_statements
from data_gen.questions.bank import Wording, wordings

FACTS = Facts(
    "particles",
    (
        Fact("count", 24.0, "", "watershed", 0.9),
        Fact("mean_diameter", 312.0, "nm", "equal area", 0.9),
        Fact("coverage", 30.0, "%", "area", 0.9),
    ),
)
KNOWN = Known(FACTS, hv_kv=20.0, nm_per_pixel=4.2, detector="SE2")
NOTHING = Known(Facts("texture", ()))
DESCRIBED = "The image shows bright bodies on a darker ground. Measured: count 24; mean diameter 312 nm; coverage 30 %."


def answer(draft: str, question: str, *known: Known) -> str:
    return "".join(checked(list(draft), question, known or (KNOWN,)))


@pytest.mark.parametrize(
    ("question", "draft"),
    [
        ("How many structures are there?", "There are 24 structures."),
        ("How large are they?", "The mean diameter is 312 nm."),
        ("How large are they?", "Their mean diameter is about 0.31 um."),
        ("At which voltage was it taken?", "It was taken at 20 kV."),
        ("What is the pixel size?", "One pixel is 4.2 nm."),
        ("How many structures are there, and how large?", "24 structures were counted. Their mean diameter is 312 nm."),
    ],
)
def test_a_true_answer_to_the_question_stays(question: str, draft: str) -> None:
    assert answer(draft, question).startswith(draft)


@pytest.mark.parametrize(
    ("question", "draft", "said"),
    [
        # an invented number, a garbled one, a true fact that was not asked for
        ("How many structures are there?", "There are 31 structures.", "24 structures were counted."),
        ("How many structures are there?", "The 24 distright structures be.", "24 structures were counted."),
        ("How many structures are there?", "The coverage is 30 %.", "24 structures were counted."),
        ("At which voltage was it taken?", "The metadata do not give the setings.", "The voltage is 20 kV."),
        (
            "What is the magnification?",
            "The magnification is 5000x.",
            "The magnification was not found in the file or read from its info bar.",
        ),
        ("Which detector was used?", "The detector was ETD.", "The detector is SE2."),
        (
            "How wide are the lines?",
            "They are 40 nm wide.",
            f"The line width could not be measured in this image. {DESCRIBED}",
        ),
    ],
)
def test_what_is_asked_is_answered_by_facts(question: str, draft: str, said: str) -> None:
    assert answer(draft, question).strip() == said


@pytest.mark.parametrize("draft", ["It shows nanowires.", "The surface is smooth.", "Yes, it is a powder.", "The lis."])
@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is this?", "class"),
        ("Which class does this micrograph belong to?", "class"),
        ("What shape do they have?", "shape"),
        ("What does the surface look like?", "surface"),
        ("How are they arranged?", "arrangement"),
    ],
)
def test_words_about_the_sample_are_withheld(question: str, word: str, draft: str) -> None:
    """No calibrated head knows them: of ten real pictures two were named rightly, and every surface was smooth."""
    said = answer(draft, question)
    assert f"The {word} cannot be told from this image" in said
    assert DESCRIBED in said
    assert draft not in said


def test_a_description_is_what_is_known() -> None:
    said = answer("A MEMS device with a comb shape at 20 kV.", "Describe this micrograph.")
    assert said == f"{DESCRIBED} Read from the file: voltage 20 kV; pixel size 4.2 nm; detector SE2."
    assert answer("A film.", "Describe this micrograph.", NOTHING) == (
        "Nothing could be measured in this image. The image is not calibrated."
    )


def test_what_a_draft_leaves_out_of_a_description_is_added_once() -> None:
    """Seen failing: half of the true drafts about real pictures told a single fact of the dozen that were known."""
    said = answer("24 structures were counted.", "Describe this micrograph.")
    assert said.startswith("24 structures were counted. ")
    assert said.count("24") == 1
    assert "mean diameter 312 nm" in said
    assert "voltage 20 kV" in said


def test_a_sentence_that_says_more_than_its_number_does_not_stay() -> None:
    """The number is right and the word beside it is a guess."""
    said = answer("The 24 structures are nanowires.", "How many structures are there?")
    assert said == "24 structures were counted."


@pytest.mark.parametrize("question", ["Describe this micrograph.", "How many structures are there, and how large?"])
@pytest.mark.parametrize(
    "draft",
    [
        "The mean distance is 312 nm.",
        "The width of the image is 312 nm.",
        "The image is 24 wide.",
        "24 detectors were used.",
        "There are 312 nm structures.",
        "The structures are 312 nm 24.",
        "The count is 24 24.",
        "The structures structures have a mean diameter of 312 nm.",
        "The diameters range from 1 nm to 900 nm.",
        "All structures have the same mean diameter: 312 nm.",
        "Most structures are small; the mean diameter is 312 nm.",
        "24 single structures were counted.",
    ],
)
def test_a_true_number_under_a_false_name_or_beside_a_claim_does_not_stay(question: str, draft: str) -> None:
    assert draft not in answer(draft, question)


def test_a_number_alone_is_what_was_asked() -> None:
    assert answer("It is 312 nm.", "How large are they?").startswith("It is 312 nm.")
    assert not answer("It is 312 nm.", "Describe this micrograph.").startswith("It is")


def test_a_sentence_comes_once() -> None:
    draft = "24 structures were counted. 24 structures were counted. 24 structures were counted."
    assert answer(draft, "How many are there?") == "24 structures were counted."


def test_an_answer_says_its_doubts_and_withholds_what_is_unlikely() -> None:
    """Seen failing on a freely shaped pattern, where a mean diameter of 26 % confidence was stated like any other."""
    facts = (
        Fact("count", 24.0, "", "m", 0.6),
        Fact("mean_diameter", 312.0, "nm", "m", 0.3),
        Fact("contrast", 20.0, "%", "m", 0.9),
    )
    unsure = Known(Facts("particles", facts), nm_per_pixel=1.0)
    question = "How many structures are there, and how large?"
    assert answer("There are 24 structures. The mean diameter is 312 nm.", question, unsure) == (
        "24 structures were counted, which is uncertain. The mean diameter could not be measured in this image with "
        "any confidence. The image seems to show bright bodies on a darker ground."
    )
    assert "Measured: count 24 (uncertain). The contrast is 20 %." in answer("", "Describe this micrograph.", unsure)


def test_each_picture_has_its_own_facts() -> None:
    other = Known(Facts("particles", (Fact("count", 7.0, "", "m", 0.9),)))
    said = answer("Image 1 has more.", "How many structures are there?", KNOWN, other)
    assert said == "Image 1: 24 structures were counted. Image 2: 7 structures were counted."


def test_a_pixel_size_is_no_size_of_structures() -> None:
    assert asked_for("What is the pixel size?") == ["pixel_size"]
    assert asked_for("How large is a pixel?") == ["pixel_size"]
    assert asked_for("How large are the structures?")[0] == "mean_diameter"


@given(
    st.text(alphabet="abcdeghimnoprstuw 0123456789.,%-", max_size=120),
    st.sampled_from(["What is this?", "How many are there?", "How large are they?", "Describe this micrograph."]),
)
@settings(max_examples=300, deadline=None)
def test_no_draft_brings_a_number_that_is_no_fact(draft: str, question: str) -> None:
    """Whatever a model writes, the numbers of the answer are those of the facts."""
    from assistant.quantities import read_amounts

    facts = {24.0, 312.0, 0.312, 30.0, 20.0, 4.2}
    for amount in read_amounts(answer(draft, question)):
        assert any(abs(amount.value - fact) <= 0.05 * fact for fact in facts), amount


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Is it noisy?", "The noise is 1.2 %, so the image is not noisy."),
        ("Which way do they run?", "No direction is preferred: the anisotropy is 0.1."),
        ("What is this?", "The class is porous shale. The image shows bright bodies"),
        ("any craks?", "Whether there are defects cannot be told"),
        ("Hallo", "Hello. Ask about the image"),
        ("What can I ask you?", "I answer from what is measured"),
        ("Compare them.", "There is one image here"),
        ("Who won the world cup?", "What is asked cannot be told here: it is neither measured nor recognised"),
    ],
)
def test_every_kind_of_question_gets_an_answer_of_its_own(question: str, said: str) -> None:
    facts = (*FACTS.items, Fact("anisotropy", 0.1, "", "m", 0.9), Fact("noise", 1.2, "%", "m", 0.9))
    known = Known(Facts("particles", facts), nm_per_pixel=4.2).with_class("porous_shale")
    assert answer("", question, known).startswith(said)


def test_pictures_are_compared_quantity_by_quantity() -> None:
    other = Known(Facts("particles", (Fact("count", 7.0, "", "m", 0.9),)), hv_kv=5.0)
    said = answer("", "What is the difference between the two images?", KNOWN, other)
    assert said == "Count: 24 in image 1, 7 in image 2. Voltage: 20 kV in image 1, 5 kV in image 2."


def sized(name: str, value: float, unit: str = "nm", confidence: float = 0.9) -> Known:
    return Known(Facts("particles", (Fact(name, value, unit, "m", confidence),)))


@pytest.mark.parametrize(
    ("first", "second", "question", "said"),
    [
        (
            sized("mean_diameter", 85.0),
            sized("mean_diameter", 312.0),
            "Which image has the larger structures?",
            "Image 2 has the larger mean diameter: 312 nm in image 2, 85 nm in image 1.",
        ),
        (
            sized("mean_diameter", 85.0),
            sized("mean_diameter", 312.0),
            "Which one has the smaller particles?",
            "Image 1 has the smaller mean diameter: 85 nm in image 1, 312 nm in image 2.",
        ),
        (
            sized("mean_diameter", 300.0, confidence=0.6),
            sized("mean_diameter", 312.0),
            "Which of the two is larger?",
            "The mean diameter of image 2 and image 1 is alike: 312 nm in image 2, 300 nm in image 1 (uncertain).",
        ),
        (
            sized("mean_diameter", 66.0, "px"),
            sized("mean_diameter", 312.0),
            "Which image has the larger structures?",
            "Which it is cannot be told, as image 1 is not calibrated: mean diameter 312 nm in image 2, 66 px in "
            "image 1.",
        ),
        (
            sized("mean_diameter", 66.0, "px"),
            sized("mean_diameter", 312.0, "px"),
            "Are the structures larger in image 2 than in image 1?",
            "Which it is cannot be told, as image 1 and image 2 are not calibrated: mean diameter 312 px in image 2, "
            "66 px in image 1.",
        ),
        (
            sized("fibre_width", 1300.0),
            sized("grain_size", 9350.0, confidence=0.6),
            "Which image has the larger structures?",
            "Image 2 seems to have the larger structures, though different things were measured: grain size 9.35 um in "
            "image 2 (uncertain), fibre width 1.3 um in image 1.",
        ),
        (
            sized("fibre_width", 1300.0),
            sized("grain_size", 2000.0),
            "Which image has the larger structures?",
            "Which it is cannot be told, as different things were measured: grain size 2 um in image 2, fibre width "
            "1.3 um in image 1.",
        ),
        (
            sized("count", 12.0, ""),
            sized("count", 40.0, ""),
            "Which image has more particles?",
            "Image 2 has the higher count: 40 in image 2, 12 in image 1.",
        ),
        (
            replace(NOTHING, hv_kv=20.0),
            replace(NOTHING, hv_kv=5.0),
            "Which was taken at the lower voltage?",
            "Image 2 has the lower voltage: 5 kV in image 2, 20 kV in image 1.",
        ),
    ],
)
def test_which_picture_has_more_is_decided_by_a_quantity_that_both_have(
    first: Known, second: Known, question: str, said: str
) -> None:
    """Seen failing with one list of facts for every picture, and no word on which of them is the larger."""
    assert answer("Image 1 has the larger structures.", question, first, second) == said
    assert all(s.verdict in ("true", "withheld") for s in read_statements(said, [first, second]))


def test_of_three_pictures_the_first_is_named() -> None:
    three = (sized("mean_diameter", 85.0), sized("mean_diameter", 312.0), sized("mean_diameter", 40.0))
    said = answer("", "Which of the pictures has the largest structures?", *three)
    assert said.startswith("Image 2 has the larger mean diameter: 312 nm in image 2, 85 nm in image 1, 40 nm")


def test_a_comparison_says_what_is_missing() -> None:
    said = answer("", "Which image has the larger structures?", KNOWN, NOTHING)
    assert said.startswith(
        "Which it is cannot be told: the size is not known of image 2. Image 1: The mean diameter is"
    )


@given(st.sampled_from(list(wordings())))
@settings(max_examples=200, deadline=None)
def test_whatever_is_asked_nothing_but_facts_is_said(wording: Wording) -> None:
    said = answer("", wording.text)
    assert all(s.verdict in ("true", "withheld") for s in read_statements(said, [KNOWN])), said


def test_a_class_that_says_what_is_asked_is_the_answer() -> None:
    sponge = NOTHING.with_words({"class": "porous sponge"}, "truth")
    assert answer("", "Is it porous?", sponge).startswith("The class is porous sponge. The porosity could not")
    wires = NOTHING.with_words({"class": "nanowires"}, "truth")
    assert "nanowires" not in answer("", "Is it porous?", wires)


def test_a_network_is_no_crowd_of_bodies() -> None:
    """Seen failing on a plant's stem, whose bright walls were called bright bodies."""
    network = Fact("arrangement", None, "", "head", 0.97, source="predicted", text="network")
    known = replace(KNOWN, predicted=(network,))
    said = answer("", "What is this?", known)
    assert said.startswith("The arrangement is a network.")
    assert "bright bodies" not in said


def test_a_picture_looks_like_bodies_only_as_far_as_they_are_measured() -> None:
    """Seen failing on cloudy noise ("shows bright bodies") and on polished grains ("seems to show long, thin bodies.
    Measured: fibre width")."""
    assert "bodies on" not in answer("", "What is this?", Known(Facts("particles", (), 0.92)))
    unclear = Known(Facts("fibres", (Fact("fibre_width", 17.4, "nm", "m", 0.51),), 0.9), nm_per_pixel=1.0)
    said = answer("", "What is this?", unclear)
    assert not {"thin", "fibre"} & set(said.split())
    assert "17.4 nm" in answer("", "How wide are the fibres?", unclear)
    assert "The image shows long, thin bodies." in answer("", "What is this?", unclear.with_class("fibres"))


@pytest.mark.parametrize(
    ("question", "dark"),
    [
        ("Are the precipitates dark or bright?", False),
        ("Are they darker or brighter than the matrix?", True),
        ("Sind die Teilchen hell oder dunkel?", True),
        ("Are the particles bright?", False),
    ],
)
def test_bodies_are_bright_or_dark(question: str, dark: bool) -> None:
    """Seen failing before: the mean grey of the whole image was given."""
    count = Fact("count", 24.0, "", "m", 0.9, "of dark bodies" if dark else "")
    known = Known(Facts("particles", (count,), 0.92))
    ground = "dark bodies on a brighter ground" if dark else "bright bodies on a darker ground"
    assert answer("The mean grey is 40 %.", question, known) == f"The image shows {ground}."
    assert answer("", question, NOTHING).startswith("Whether the bodies are bright or dark cannot be told")


def test_one_body_has_no_mean_and_is_not_many() -> None:
    """Seen failing before: "bright bodies. Measured: count 1; mean diameter 1.13 mm"."""
    items = (Fact("count", 1.0, "", "m", 0.95), Fact("mean_diameter", 113.0, "nm", "m", 0.9))
    said = answer("", "Is it porous?", Known(Facts("particles", items, 0.9), nm_per_pixel=1.0))
    assert "The image shows one bright body on a darker ground. Measured: diameter 113 nm." in said


@pytest.mark.parametrize(("name", "value", "unit"), [("period", 2.55, "um"), ("coverage", 54.0, "%")])
def test_what_is_not_clear_of_what_is_not_told_unasked(name: str, value: float, unit: str) -> None:
    """Seen failing before: the period of a scan, and what bodies cover that could not be outlined."""
    fact, title = Fact(name, value, unit, "m", 0.9), name.replace("_", " ")
    known = Known(Facts("particles", (fact,), 0.9), nm_per_pixel=1.0)
    assert fact.written not in answer("", "Are the particles hollow?", known)
    assert fact.written in answer("", f"What is the {title}?", known)
    counted = replace(known, facts=Facts("particles", (Fact("count", 24.0, "", "m", 0.9), fact), 0.9))
    assert fact.written in answer("", "Are the particles hollow?", counted)


@pytest.mark.parametrize("question", ["Are there fibres in this picture?", "Are there any particles?"])
def test_whether_there_are_things_of_a_class_is_asked_for_the_class(question: str) -> None:
    assert answer("", question, NOTHING.with_class("powder")).startswith("The class is powder.")


def test_lengths_come_in_angstrom() -> None:
    assert answer("", "What is the mean diameter in angstrom?", KNOWN) == "The mean diameter is 3120 angstrom."


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.09, "No direction is preferred: the anisotropy is 0.09."),
        (0.21, "No main direction could be measured: the anisotropy is 0.21."),
        (0.3, "The anisotropy is 0.3."),
        (0.49, "A direction is preferred: the anisotropy is 0.49."),
    ],
)
def test_a_weak_direction_is_not_denied(value: float, said: str) -> None:
    """Seen failing on precipitates that plainly lie one way, with an anisotropy of 0.21."""
    known = Known(Facts("uniform", (Fact("anisotropy", value, "", "m", 0.9),), 0.9))
    assert answer("", "Is there a preferred direction?", known).startswith(said)


@pytest.mark.parametrize(("label", "long"), [("fibres", True), ("coating in cross-section", False)])
def test_a_class_of_other_things_speaks_for_no_fibres(label: str, long: bool) -> None:
    known = Known(Facts("fibres", (Fact("contrast", 30.0, "%", "m", 0.9),), 0.9)).with_class(label)
    assert ("long, thin bodies" in answer("", "What is this?", known)) is long


def test_the_mean_grey_says_of_what_it_is() -> None:
    known = Known(Facts("uniform", (Fact("mean_grey", 26.0, "%", "m", 0.95),), 0.9))
    for question in ("What is the mean grey?", "How bright is it?", "Is it underexposed?"):
        assert "The mean grey is 26 % of the range that is shown." in answer("", question, known)
    assert "grey" not in answer("", "What fraction of the image is bright?", known)


def test_a_part_of_a_sentence_that_stays_is_a_sentence() -> None:
    """Seen failing before: "24 structures were counted; The class is powder."."""
    draft = "24 structures were counted; the surface is smooth."
    said = answer(draft, "Describe this micrograph.", KNOWN.with_class("powder"))
    assert said.startswith("24 structures were counted. The class is powder.")
    draft = "Read from the file: tilt 3 deg; voltage 20 kV; working distance 4 mm."
    assert not answer(draft, "Describe this micrograph.", KNOWN).startswith("voltage")


def test_bright_field_is_a_detector() -> None:
    assert answer("", "Is this bright field or dark field?", replace(KNOWN, detector="BF")) == "The detector is BF."


@pytest.mark.parametrize(
    ("question", "said"),
    [
        # a count of the whole image was given for its corner, and for a square micrometre
        ("How many particles are in the upper left corner?", "Parts of an image are not measured by themselves"),
        ("Wie viele Teilchen sind unten rechts?", "Parts of an image are not measured by themselves"),
        ("How many particles per square micrometre are there?", "The number per area is not told"),
        ("What is the average cell area?", "The area of single bodies is not told."),
        ("How long are the particles?", "The length of bodies is not measured."),
        ("How large are the cracks?", "The size of cracks and other defects is not measured."),
        (
            "Why is the voltage so high?",
            "Reasons cannot be told from an image, and what the question takes for granted is not confirmed. "
            "The voltage is 20 kV.",
        ),
        # why the fibres are aligned, where there are none; why it is noisy, in German, where it is not
        ("Warum ist das Bild so verrauscht?", "Reasons cannot be told from an image, and what the question takes for"),
        ("Are the edges brighter than the interior, and why?", "Reasons cannot be told"),
        ("Is it the same everywhere?", "Parts of an image are not measured by themselves"),
        ("Is it uniform?", "Parts of an image are not measured by themselves"),
        ("Are the small dots and the large bodies the same population?", "Parts of an image are not measured"),
        ("Is the bright phase connected from left to right?", "Whether parts are connected is not measured."),
        ("How many layers are there and which one is the brightest?", "Layers and phases are not counted"),
        ("Was it imaged with electrons or ions?", "Whether electrons or ions made an image is not read from its file."),
        ("Is the scale bar 100 nm?", "The length of the scale bar itself is not told"),
        ("How large are the small black ones in nm?", "Bodies of one tone, shape or place are not measured apart"),
        (
            "How many round holes are inside the big island?",
            "Bodies of one tone, shape or place are not measured apart",
        ),
        ("waht is teh chemcial compositon of theese partcles?", "Elements and crystal structure cannot be told"),
        ("How many wt% of filler does it hold?", "Elements and crystal structure cannot be told"),
        ("Are they all round?", "Single bodies are not judged: what is said holds for the picture as a whole."),
        ("Quelle est la taille de la plus grosse particule ?", "Single bodies such as the largest are not sized"),
        ("In which direction does the edge of the electrode run?", "Parts of an image are not measured by themselves"),
        ("Which phase has the higher atomic number, the bright one or the dark one?", "Elements and crystal structure"),
        ("How many nanowires do you see, you useless machine?", "24 structures were counted."),
        ("wat is the width of teh image in mm and in nm", "The field width"),
        ("Would you recommend a higher voltage?", "What to choose or whether it will do is not told here"),
        ("Is the powder suitable for additive manufacturing?", "What to choose or whether it will do is not told"),
        ("What is the scale bar length?", "The length of the scale bar itself is not told"),
        ("How many pixels does it have?", "How many pixels and bits an image has is not told here."),
        ("What is the tilt angle of the stage?", "Tilt, beam current, spot size"),
        ("What was the spot size?", "Tilt, beam current, spot size"),
        ("Is the etch profile vertical?", "The angle of walls in depth cannot be told"),
        ("Is the image astigmatic?", "Astigmatism is not told apart from other blur."),
        ("How many holes are there?", "What was measured are bright bodies on a darker ground. 24 structures were"),
        ("Is it charging?", "Charging and saturation are not recognised."),
        ("Are the particles hollow?", "What is asked cannot be told"),
        ("Is there beading on the fibres?", "What is asked cannot be told"),
        (
            "Is the working distance larger than 5 mm?",
            "The working distance was not found in the file or read from its info bar.",
        ),
        ("At what voltage was this taken, and can I trust it?", "The voltage is 20 kV."),
    ],
)
def test_a_fact_that_only_sounds_like_the_answer_is_not_given_for_it(question: str, said: str) -> None:
    """Seen failing: what is asked has a quantity's name in it, and that quantity was told as if it answered."""
    assert answer("24 structures were counted. The mean diameter is 312 nm.", question).startswith(said)


def test_openings_are_not_given_bright_bodies_for_an_answer_but_their_own() -> None:
    holes = Known(Facts("pores", (Fact("count", 24.0, "", "m", 0.9),)))
    assert answer("", "How many holes are there?", holes) == "24 structures were counted."
    assert answer("", "How many white spots are there?", holes).startswith("What was measured are dark bodies")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("How large are they in micrometres?", "The mean diameter is 0.312 um."),
        ("What is the pixel size in um?", "The pixel size is 0.0042 um."),
        ("How large are they in nm?", "The mean diameter is 312 nm."),
    ],
)
def test_a_length_is_in_the_unit_that_is_asked_for(question: str, said: str) -> None:
    assert answer("The mean diameter is 312 nm.", question) == said
    assert all(s.verdict == "true" for s in read_statements(said, [KNOWN]))


def test_a_unit_asked_of_pixels_says_that_the_image_is_not_calibrated() -> None:
    said = answer("", "How large are they in nm?", sized("mean_diameter", 62.0, "px"))
    assert said == "The mean diameter is 62 px. The image is not calibrated."


def test_bodies_of_one_size_have_no_range() -> None:
    names = ("mean_diameter", "d10_diameter", "d90_diameter")
    squares = Known(Facts("particles", tuple(Fact(name, 56.0, "px", "m", 0.9) for name in names)))
    assert "between" not in answer("", "Describe this micrograph.", squares)
    assert answer("", "What is the size distribution?", squares) == "Most diameters are 56 px."


POWDER = replace(KNOWN, date="2019-12-03T20:15:38").with_class("powder")
FIBRES = replace(NOTHING, hv_kv=5.0, date="2019-12-03T19:55:39").with_class("fibres")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (
            "Do both images show the same class of sample?",
            "Not the same class. Image 1: The class is powder. Image 2: The class is fibres.",
        ),
        ("Same voltage?", "Not the same voltage. Image 1: The voltage is 20 kV. Image 2: The voltage is 5 kV."),
        (
            "Is the detector the same?",
            "Whether the detector is the same cannot be told, as it is not known of image 2. Image 1: The detector is "
            "SE2.",
        ),
        (
            "Were they taken on the same day?",
            "The same day. Image 1: The date is 2019-12-03T20:15:38. Image 2: The date",
        ),
        (
            "Are the particles the same size?",
            "Whether the mean diameter is the same cannot be told, as it is not known",
        ),
        ("Is it the same material?", "Whether the material or the sample is the same cannot be told from images."),
        ("Are they from the same batch?", "Whether the material or the sample is the same cannot be told from images."),
        ("Which one do you like?", "What is asked cannot be told here: it is neither"),
        ("Which has more cracks?", "Whether there are defects cannot be told: nothing here recognises them. Image 1:"),
        ("What is the difference?", "Class: powder in image 1, fibres in image 2."),
    ],
)
def test_whether_pictures_agree_is_said_of_what_is_asked(question: str, said: str) -> None:
    """Seen failing with a list of all that was known of both."""
    told = answer("", question, POWDER, FIBRES)
    assert told.startswith(said)
    assert all(s.verdict in ("true", "withheld") for s in read_statements(told, [POWDER, FIBRES]))


def test_pictures_of_one_class_are_said_to_be() -> None:
    said = answer("", "Same class?", POWDER, POWDER)
    assert said == "The same class. Image 1: The class is powder. Image 2: The class is powder."


def test_a_picture_of_one_tone_is_not_said_to_be_noise() -> None:
    """Seen failing: "Is it noisy?" of a blank picture was answered with "hardly more than noise"."""
    blank = Known(Facts("uniform", (Fact("noise", None, "%", "m", 0.0, "the picture is constant"),)))
    said = answer("", "Is it noisy?", blank)
    assert "more than noise" not in said
    assert said.endswith("Nothing could be measured in this image: the picture is constant.")
