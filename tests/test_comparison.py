"""Two pictures, quantity by quantity: both values, their difference, or why there is none."""

from dataclasses import replace

from assistant.measure import Fact, Facts, Known
from assistant.measurements.comparison import compared


def known(*facts: tuple[str, float, str], **read: object) -> Known:
    items = tuple(Fact(name, value, unit, "m", 0.9) for name, value, unit in facts)
    return replace(Known(Facts("particles", items)), **read)  # type: ignore[arg-type]


def differences(a: Known, b: Known) -> dict[str, str]:
    return {row.name: row.written for row in compared(a, b)}


def test_numbers_have_a_difference_in_their_unit() -> None:
    a = known(
        ("count", 84.0, ""), ("mean_diameter", 312.0, "nm"), ("coverage", 30.0, "%"), ("orientation", 175.0, "deg")
    )
    b = known(
        ("count", 24.0, ""), ("mean_diameter", 520.0, "nm"), ("coverage", 31.0, "%"), ("orientation", 15.0, "deg")
    )
    assert differences(a, b) == {
        "count": "−60",
        "mean_diameter": "+208 nm",
        "coverage": "+1 points, alike",
        "orientation": "20 deg",
    }


def test_what_was_read_has_no_tolerance() -> None:
    """Seen failing with the tolerance of a measurement: 20 and 18.5 kV were alike."""
    found = differences(known(hv_kv=20.0, detector="SE2"), known(hv_kv=18.5, detector="BSE"))
    assert found == {"voltage": "−1.5 kV", "detector": "different"}
    assert differences(known(hv_kv=20.0, detector="SE2"), known(hv_kv=20.0, detector="se2")) == {
        "voltage": "the same",
        "detector": "the same",
    }


def test_lengths_in_pixels_do_not_compare() -> None:
    in_nm, in_px = known(("mean_diameter", 312.0, "nm")), known(("mean_diameter", 66.0, "px"))
    assert differences(in_nm, in_px)["mean_diameter"] == "no pixel size of image 2"
    assert differences(in_px, in_px)["mean_diameter"] == "no pixel size of image 1 and image 2"


def test_what_one_picture_lacks_is_said() -> None:
    a, b = known(("mean_diameter", 312.0, "nm")), known(("fibre_width", 40.0, "nm"))
    assert differences(a, b) == {"mean_diameter": "not known of image 2", "fibre_width": "not known of image 1"}
