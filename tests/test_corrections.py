"""Numbers in an answer: what is known is quoted, what is not known is not stated, and a stream waits no longer than
it must."""

import pytest

from assistant.measure import Fact, Facts, Known, corrected, corrected_stream

FACTS = Facts(
    "particles",
    (
        Fact("count", 24.0, "", "watershed", 0.9),
        Fact("mean_diameter", 312.0, "nm", "equal area", 0.9),
        Fact("coverage", 30.0, "%", "area", 0.9),
        Fact("anisotropy", 0.1712, "", "tensor", 0.8),
        Fact("contrast", 19.6, "%", "deviation", 0.9),
        Fact("noise", 0.386, "%", "difference", 0.8),
    ),
)
KNOWN = Known(FACTS, hv_kv=20.0, wd_mm=5.0, magnification=500.0, nm_per_pixel=385.2)
NOTHING = Known(Facts("texture", ()))


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("The acceleration voltage is 10 kV.", "The voltage is 20 kV."),
        ("The acceleration voltage is 20 kV.", "The acceleration voltage is 20 kV."),
        ("One pixel is 1.622 nm.", "The pixel size is 385.2 nm."),
        ("It was taken at 15 kV with 10.62 nm per pixel.", "The voltage is 20 kV. The pixel size is 385.2 nm."),
        ("The pixel size is 0.5 um and the voltage is 2 kV.", "The pixel size is 385.2 nm. The voltage is 20 kV."),
        ("The working distance is 4 mm.", "The working distance is 5 mm."),
        ("The magnification is 4000x.", "The magnification is 500x."),
        (
            "The count is 30 and the mean diameter is 900 nm.",
            "24 structures were counted. The mean diameter is 312 nm.",
        ),
        ("The count is 25.", "24 structures were counted."),
        ("32 structures were counted; it is 10 kV.", "24 structures were counted. The voltage is 20 kV."),
        ("No, 3 pores were counted.", "24 structures were counted."),
        ("There are more than 50 structures.", "24 structures were counted."),
        ("There are more than 20 structures.", "There are more than 20 structures."),
        ("It has 2 phases.", "That value was not measured in this image."),
        ("No, the anisotropy is only 0.02.", "The anisotropy is 0.17."),
        ("The noise is 9.1 %, which is high.", "The noise is 0.39 %."),
        ("The contrast is 20 %.", "The contrast is 20 %."),
        ("The coverage is above 50 %.", "The coverage is 30 %."),
        ("The coverage is above 20 %.", "The coverage is above 20 %."),
        ("The tip radius is 40 nm.", "That value was not measured in this image."),
        ("It shows nanowires.", "It shows nanowires."),
    ],
)
def test_known_numbers_are_quoted(said: str, right: str) -> None:
    assert corrected(said, KNOWN) == right
    assert "".join(corrected_stream(list(said), KNOWN)) == right


@pytest.mark.parametrize(
    ("said", "honest"),
    [
        (
            "It was taken at 15 kV with 10.62 nm per pixel.",
            "The voltage was not found in the file or read from its info bar. The image is not calibrated.",
        ),
        ("The working distance is 4 mm.", "The working distance was not found in the file or read from its info bar."),
        ("The magnification is 4000x.", "The magnification was not found in the file or read from its info bar."),
        ("The fibre width is 13.2 nm.", "The image is not calibrated."),
        (
            "The fibre width is 13.2 px; the count is 3.",
            "The fibre width could not be measured in this image. The count could not be measured in this image.",
        ),
    ],
)
def test_what_is_not_known_is_never_stated(said: str, honest: str) -> None:
    """The tiny student invents a voltage for a file that has none: a reader must never see it.

    Also in a stream, whose first words cannot be taken back: seen failing with "The acceleration voltage is oltage.".
    """
    assert corrected(said, NOTHING) == honest
    assert "".join(corrected_stream(list(said), NOTHING)) == honest


def test_an_answer_streams_sentence_by_sentence() -> None:
    """What is shown is never taken back: a sentence is shown once it is whole and holds."""
    pieces = list(corrected_stream(["It shows ", "wires. ", "The voltage ", "is 1", "0 kV", ". Fine", "."], KNOWN))
    assert pieces == ["It shows wires. ", "The voltage is 20 kV. ", "Fine."]
