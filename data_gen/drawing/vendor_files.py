"""Write a picture the way a maker's microscope would: burnt-in bar, tags or side-car. Knows nothing about what is
in the picture.

The tags follow the makers' layouts: Thermo/FEI INI block (TIFF tag 34682), Zeiss SmartSEM text (34118), TESCAN
record list (50431) or `.hdr`, JEOL `.txt` (`$CM_`), Hitachi `.txt` (`[SemImageFile]`, UTF-16), SEC `.jpg.txt`.
Nothing depends on the clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.drawing.scenes.info_bar import DrawnScaleBar, draw_bar

HOUSE = (
    "thermo8", "zeiss", "tescan16", "jeol_bmp", "thermo16", "plain_png", "sec_jpeg", "tescan_hdr", "jeol_tif",
)  # fmt: skip
SITE = ("hitachi",)
_MODELS = {
    "thermo": ("Helios G4", "Apreo 2", "Quanta 650"),
    "zeiss": ("Merlin", "Sigma 300", "Ultra 55"),
    "tescan": ("MIRA3 XMU", "SOLARIS X", "VEGA3"),
    "jeol": ("JSM-7600F", "JSM-IT500", "8530F"),
    "sec": ("SNE-4500M Plus",),
    "hitachi": ("SU8020",),
    "plain": (None,),
}
DETECTORS = {
    "thermo": ("ETD", "TLD"),
    "zeiss": ("SE2", "InLens", "HE-SE2"),
    "tescan": ("SE", "InBeam SE"),
    "jeol": ("SEI", "LEI"),
    "sec": ("SED",),
    "hitachi": ("SE(U)",),
    "plain": ("SE",),
}
BACKSCATTERED = {"hitachi": "BSE", "thermo": "CBS", "zeiss": "AsB", "tescan": "BSE", "jeol": "COMPO"}
DISPLAY_WIDTH_NM = {
    "thermo": 138.13e6, "zeiss": 281e6,
    "tescan": 276.8e6, "jeol": 120e6, "sec": 173e6, "hitachi": 127e6, "plain": 120e6,
}  # fmt: skip
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
ZEISS_RECORDS = 4


@dataclass(frozen=True)
class Written:
    """What was written: the image file, the rows of its info bar, the scale bar; whether metadata give a pixel size."""

    path: Path
    banner: tuple[int, int] | None
    bar: DrawnScaleBar
    calibrated: bool


def maker_of(kind: str) -> str:
    """The maker whose bar and side-car a format uses."""
    return {"plain_png": "plain"}.get(kind, kind.split("_")[0].rstrip("0123456789"))


def bits_of(kind: str) -> int:
    """Bits per pixel of a format."""
    return 16 if kind in ("thermo16", "tescan16") else 8


def format_of(number: int, style: str) -> str:
    """The format of the number-th sample: they take turns."""
    kinds = SITE if style == "site" else HOUSE
    return kinds[number % len(kinds)]


def instrument_of(
    kind: str, rng: np.random.Generator, *, width: int, nm_per_pixel: float, backscattered: bool
) -> dict[str, Any]:  # fmt: skip
    """Settings of the instrument as its metadata would give them; the date comes from the generator, not the clock."""
    maker = maker_of(kind)
    models, detectors = _MODELS[maker], DETECTORS[maker]
    hv = rng.choice([10.0, 15.0, 20.0] if backscattered or maker == "sec" else [1.0, 2.0, 3.0, 5.0, 10.0, 15.0])
    detector = BACKSCATTERED.get(maker, "BSE") if backscattered else detectors[int(rng.integers(len(detectors)))]
    wd = float(round(rng.uniform(2.5, 14.0))) if maker == "sec" else round(float(rng.uniform(2.5, 14.0)), 1)
    magnification = float(f"{DISPLAY_WIDTH_NM[maker] / (width * nm_per_pixel):.3g}")
    date = f"{int(rng.integers(2016, 2026))}-{int(rng.integers(1, 13)):02d}-{int(rng.integers(1, 29)):02d}"
    return {
        "vendor": None if maker == "plain" else maker,
        "model": models[int(rng.integers(len(models)))],
        "hv_kv": float(hv),
        "wd_mm": wd,
        "magnification": magnification,
        "detector": detector,
        "date": date,
    }


def _clock(seed_text: str) -> str:
    """A time of day that depends only on the text."""
    number = sum((k + 1) * ord(c) for k, c in enumerate(seed_text))
    return f"{8 + number % 10:02d}:{number // 7 % 60:02d}:{number // 3 % 60:02d}"


def _thermo_text(info: dict[str, Any], shape: tuple[int, int], nm: float, *, bar: int, tilt_deg: float) -> bytes:
    year, month, day = info["date"].split("-")
    time = _clock(info["date"])
    hour, size = int(time[:2]), nm * 1e-9
    half_day = f"{(hour - 1) % 12 + 1:02d}{time[2:]} {'PM' if hour >= 12 else 'AM'}"
    sections: dict[str, dict[str, object]] = {
        "User": {"Date": f"{month}/{day}/{year}", "Time": half_day, "User": "supervisor"},
        "System": {
            "Type": "SEM", "Dnumber": "0000000", "Software": "5.4.4.3197", "Source": "FEG", "Column": "Elstar",
            "SystemType": info["model"], "DisplayWidth": 0.518, "DisplayHeight": 0.324,
        },
        "Beam": {"HV": f"{info['hv_kv'] * 1e3:g}", "Spot": -7, "ScanRotation": 0, "Beam": "EBeam", "Scan": "EScan"},
        "EBeam": {
            "Source": "FEG", "HV": f"{info['hv_kv'] * 1e3:g}", "HFW": f"{size * shape[1]:.9g}",
            "VFW": f"{size * shape[0]:.9g}", "WD": f"{info['wd_mm'] * 1e-3:.6g}", "BeamCurrent": "1e-010",
        },
        "Scan": {
            "InternalScan": "true", "Dwelltime": "1e-006", "PixelWidth": f"{size:.10e}", "PixelHeight": f"{size:.10e}",
            "HorFieldsize": f"{size * shape[1]:.9g}", "VerFieldsize": f"{size * shape[0]:.9g}",
        },
        "Stage": {"StageT": f"{np.deg2rad(tilt_deg):.6g}", "WorkingDistance": f"{info['wd_mm'] * 1e-3:.6g}"},
        "Image": {
            "DigitalContrast": 1, "DigitalBrightness": 0, "ResolutionX": shape[1], "ResolutionY": shape[0],
            "MagCanvasRealWidth": 0.13813, "MagnificationMode": 3,
        },
        "Detectors": {"Number": 1, "Name": info["detector"], "Mode": "SE"},
        info["detector"]: {"Contrast": 62.0, "Brightness": 41.5, "Signal": "SE"},
        "PrivateFei": {"BitShift": 0, "DatabarHeight": bar},
    }  # fmt: skip
    blocks = ["\r\n".join([f"[{name}]", *(f"{k}={v}" for k, v in body.items())]) for name, body in sections.items()]
    return ("\r\n\r\n".join(blocks) + "\r\n").encode("ascii") + b"\x00"


def _metric(metres: float) -> str:
    for factor, unit in ((1e-3, "mm"), (1e-6, "µm"), (1e-9, "nm")):
        if metres >= factor:
            return f"{metres / factor:.6g} {unit}"
    return f"{metres / 1e-12:.6g} pm"


def _zeiss_text(info: dict[str, Any], shape: tuple[int, int], nm: float, *, tilt_deg: float) -> bytes:
    year, month, day = info["date"].split("-")
    size = nm * 1e-9
    record = [
        f"{size * shape[1] / 1024:.6e}",
        f"{info['magnification']:.6e}",
        "6",
        f"{info['hv_kv'] * 1e3:.6e}",
        "2.31e+000",
        "1.0e-009",
        f"{info['wd_mm'] * 1e-3:.6e}",
    ]
    head = ["0", "0", "0"]
    for number in range(ZEISS_RECORDS):
        head += [*record, str(number + 1) if number + 1 < ZEISS_RECORDS else "724"]
    pairs = {
        "DP_IMAGE_STORE": f"Store resolution = {shape[1]} * {shape[0]}",
        "DP_DETECTOR_CHANNEL": f"Signal A = {info['detector']}",
        "DP_DETECTOR_TYPE": f"Detector = {info['detector']}",
        "AP_ACTUALKV": f"EHT = {info['hv_kv']:5.2f} kV",
        "AP_MANUALKV": f"EHT Target = {info['hv_kv']:5.2f} kV",
        "AP_MAG": f"Mag = {info['magnification']:6g} X",
        "AP_WD": f"WD = {info['wd_mm']:4.1f} mm",
        "AP_PIXEL_SIZE": f"Pixel Size = {_metric(size * shape[1] / 1024)}",
        "AP_IMAGE_PIXEL_SIZE": f"Image Pixel Size = {_metric(size)}",
        "AP_WIDTH": f"Width = {_metric(size * shape[1])}",
        "AP_HEIGHT": f"Height = {_metric(size * shape[0])}",
        "AP_STAGE_AT_T": f"Stage at T = {tilt_deg:5.1f} °",
        "AP_TIME": f"Time :{_clock(info['date'])}",
        "AP_DATE": f"Date :{int(day)} {MONTHS[int(month) - 1]} {year}",
        "SV_VERSION": "Version = V05.07.00.00 : 08-Jul-14",
        "SV_SERIAL_NUMBER": f"Serial No. = {info['model']}-00-00",
        "SV_OPERATOR": "Operator = ",
    }
    lines = head + [line for pair in pairs.items() for line in pair]
    return ("\r\n".join(lines) + "\r\n").encode("cp1252") + b"\x00\x00"


def _tescan_sections(
    info: dict[str, Any], nm: float, *, tilt_deg: float
) -> tuple[dict[str, object], dict[str, object]]:
    main: dict[str, object] = {
        "AccFrames": 1, "Date": info["date"], "Description": "", "Device": info["model"],
        "FullUserName": "supervisor", "Magnification": f"{info['magnification']:g}",
        "PixelSizeX": f"{nm * 1e-9:.10e}", "PixelSizeY": f"{nm * 1e-9:.10e}", "Time": _clock(info["date"]),
        "Version": "4.2.13.0",
    }  # fmt: skip
    sem: dict[str, object] = {
        "Detector": info["detector"], "DwellTime": "3.2000e-6", "Gun": "Schottky",
        "HV": f"{info['hv_kv'] * 1e3:.1f}", "ScanMode": "RESOLUTION", "StageTilt": f"{tilt_deg:.1f}",
        "WD": f"{info['wd_mm'] * 1e-3:.6e}",
    }  # fmt: skip
    return main, sem


def _tescan_tag(info: dict[str, Any], nm: float, *, tilt_deg: float) -> bytes:
    """Records of [length, type, text]: type 2 is MAIN, 3 is SEM, 0 ends the list."""
    out = b""
    for number, body in enumerate(_tescan_sections(info, nm, tilt_deg=tilt_deg), start=2):
        text = "".join(f"{k}={v}\r\n" for k, v in body.items()).encode("utf-8") + b"\x00"
        out += struct.pack("<IH", len(text) + 2, number) + text
    return out + struct.pack("<IH", 2, 0)


def _tescan_hdr(info: dict[str, Any], nm: float, *, tilt_deg: float) -> str:
    main, sem = _tescan_sections(info, nm, tilt_deg=tilt_deg)
    sem = {"AcceleratorVoltage": sem.pop("HV"), **sem}
    parts = [
        f"[{name}]\n" + "".join(f"{k}={v}\n" for k, v in body.items()) for name, body in (("MAIN", main), ("SEM", sem))
    ]
    return "\n".join(parts)


def _jeol_text(info: dict[str, Any], shape: tuple[int, int], bar: DrawnScaleBar, *, title: str, tilt_deg: float) -> str:
    lines = {
        "$SEM_DATA_VERSION": "1", "$CM_SIGNAL_NAME": info["detector"], "$CM_DETECTOR_NAME": info["detector"],
        "$CM_ACCEL_VOLT": f"{info['hv_kv']:.2f}", "$$SM_WD": f"{info['wd_mm']:.2f}",
        "$CM_MAG": f"{info['magnification']:.0f}", "$CM_SIGNAL": info["detector"], "$CM_DETECTOR": info["detector"],
        "$CM_STAGE_POS": f"0 0 10.0 0 {tilt_deg:.1f} 0", "$CM_FORMAT": "JEOL-SEM", "$CM_VERSION": "3",
        "$CM_COMMENT": "", "$CM_DATE": info["date"].replace("-", "/"), "$CM_TIME": _clock(info["date"]),
        "$CM_OPERATOR": "user", "$CM_INSTRUMENT": info["model"],
        "$$SM_MICRON_BAR": f"{bar.pixels * 1280 / shape[1]:.0f}", "$$SM_MICRON_MARKER": bar.text.replace(" ", ""),
        "$CM_FRAME_SIZE": "0 0", "$CM_TITLE": title, "$CM_OFFSET": "0 0",
        "$CM_FULL_SIZE": f"1280 {round(shape[0] * 1280 / shape[1])}", "$CM_COLOR_MODE": "0",
    }  # fmt: skip
    return "".join(f"{k} {v}\r\n" for k, v in lines.items())


def _hitachi_text(info: dict[str, Any], shape: tuple[int, int], nm: float, bar: DrawnScaleBar, *, name: str) -> str:
    year, month, day = info["date"].split("-")
    lines = {
        "InstructName": info["model"], "SampleName": "", "Format": "tif", "SerialNumber": "000000-00",
        "DataNumber": "", "ImageName": name, "Directory": "D:\\images", "Date": f"{month}/{day}/{year}",
        "Time": _clock(info["date"]), "Media": "Full", "DataSize": f"{shape[1]}x{shape[0]}", "PixelSize": f"{nm:.10g}",
        "SignalName": info["detector"], "DataDisplayCombine": "1",
        "AcceleratingVoltage": f"{info['hv_kv'] * 1e3:.0f} Volt",
        "DecelerationVoltage": "0 Volt", "Magnification": f"{info['magnification']:.0f}",
        "WorkingDistance": f"{info['wd_mm'] * 1e3:.0f} um", "EmissionCurrent": "10500 nA", "LensMode": "Normal",
        "MicronMarker": f"{bar.nm:g}", "SubMagnification": "0", "ScanSpeed": "Slow1", "CalibrationScanSpeed": "0",
    }  # fmt: skip
    return "[SemImageFile]\r\n" + "".join(f"{k}={v}\r\n" for k, v in lines.items())


def _sec_text(info: dict[str, Any], *, name: str) -> str:
    mag = f"x{info['magnification']:.0f} "
    lines = [
        "[Image Info]", f"Model : {info['model']}", f"Date : {info['date']}", f"Time : {_clock(info['date'])}",
        f"File Name : D:\\DATA\\{name}", "Discription : Tabletop SEM", f"Acceleated Voltage :  {info['hv_kv']:.0f} kV",
        f"Magnification : {mag}", "Emission Current : 110uA", f"Detector Mode : {info['detector']}",
        "Vacuum Mode : High Vacuum", "Scan Speed : ", "[Running Info]", "Focus : 2253", f"Magnification : {mag}",
        "Scan Rotaion : 0°", "[   - Working Distance]", "Default Working Distance : 0mm",
        f"Working Distance : {info['wd_mm']:.0f}mm", "[Active Scan]", "Frame Average : 1", "Frame Size : 480,480",
        "Pixel Size : 0.7",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def with_bar(
    pixels: np.ndarray, *, kind: str, nm_per_pixel: float, instrument: dict[str, Any]
) -> tuple[np.ndarray, DrawnScaleBar]:  # fmt: skip
    """The picture with its maker's info bar below, in the picture's own type (white is the type's maximum)."""
    rows, columns = pixels.shape
    info = instrument | {"hfw_nm": columns * nm_per_pixel}
    bar, scale = draw_bar(maker_of(kind), columns, rows, nm_per_pixel=nm_per_pixel, info=info)
    strip = bar.astype(pixels.dtype) * 257 if pixels.dtype == np.uint16 else bar
    return np.concatenate([pixels, strip]), scale


def write_vendor(
    stem: Path, pixels: np.ndarray, *, kind: str, nm_per_pixel: float, instrument: dict[str, Any], tilt_deg: float = 0.0
) -> Written:  # fmt: skip
    """Write one picture as `kind` at `stem` plus the format's suffix, with its side-car where it has one."""
    import tifffile
    from PIL import Image

    rows, info, nm = pixels.shape[0], instrument, nm_per_pixel
    full, bar = with_bar(pixels, kind=kind, nm_per_pixel=nm, instrument=info)
    shape = (full.shape[0], full.shape[1])
    suffix = {"jeol_bmp": ".bmp", "plain_png": ".png", "sec_jpeg": ".jpg"}.get(kind, ".tif")
    path = stem.with_name(stem.name + suffix)
    tags: list[tuple[Any, ...]] = []
    sidecar: tuple[Path, bytes] | None = None
    match kind:
        case "thermo8" | "thermo16":
            data = _thermo_text(info, pixels.shape, nm, bar=shape[0] - rows, tilt_deg=tilt_deg)
            tags = [(34682, 2, len(data), data, True)]
        case "zeiss":
            data = _zeiss_text(info, shape, nm, tilt_deg=tilt_deg)
            tags = [(34118, 2, len(data), data, True)]
        case "tescan16":
            data = _tescan_tag(info, nm, tilt_deg=tilt_deg)
            maker = [(271, 2, 0, "TESCAN", True), (272, 2, 0, str(info["model"]), True)]
            tags = [*maker, (50431, 1, len(data), data, True)]
        case "tescan_hdr":
            sidecar = path.with_suffix(".hdr"), _tescan_hdr(info, nm, tilt_deg=tilt_deg).encode()
        case "jeol_bmp" | "jeol_tif":
            text = _jeol_text(info, pixels.shape, bar, title=stem.name, tilt_deg=tilt_deg)
            sidecar = path.with_suffix(".txt"), text.encode("latin-1")
        case "hitachi":
            text = _hitachi_text(info, pixels.shape, nm, bar, name=path.name)
            sidecar = path.with_suffix(".txt"), text.encode("utf-16")
        case "sec_jpeg":
            sidecar = path.with_name(path.name + ".txt"), _sec_text(info, name=path.name).encode()
        case "plain_png":
            pass
        case _:
            raise ValueError(kind)
    if suffix == ".tif":
        tifffile.imwrite(
            path, full, photometric="minisblack", metadata=None, software=False, datetime=None, extratags=tags
        )
    else:
        Image.fromarray(full).save(path, quality=92)  # only JPEG takes the quality
    if sidecar is not None:
        sidecar[0].write_bytes(sidecar[1])
    return Written(path, (rows, shape[0]), bar, kind not in ("plain_png", "sec_jpeg"))
