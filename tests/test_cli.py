"""The `maemi` command on real files and a tiny untrained student: shapes, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measuring import MeasuringAssistant, write_tiff

from assistant.errors import ConfigError, ServerError
from serve import cli
from serve.desk.answering import parse_labels, parse_pixel_size
from serve.verbs import doctor, terminal

ROOT = Path(__file__).parents[1]
VERBS = (
    "info", "synth", "teach", "train", "evaluate", "ask", "caption", "classify", "serve", "answers", "plan", "export",
    "doctor", "demo", "fit", "predict", "similar", "next", "drift", "mcp",
)  # fmt: skip
INFO_KEYS = {
    "path", "sha256", "width", "height", "dtype", "pages", "pixel_size_nm", "pixel_size_source",
    "pixel_size_confidence", "vendor", "model", "hv_kv", "wd_mm", "magnification", "detector", "date", "banner",
    "sample_fraction", "window", "warnings",
}  # fmt: skip
Maemi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "discs.tif")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "broken.tif"
    file.write_bytes(b"II*\0 this is no tiff")
    return file


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with an untrained student."""
    import datasets
    from students import tiny_run
    from transformers.utils import logging

    from assistant.checkpoint import save_model

    logging.disable_progress_bar()  # in a process of its own the environment does both
    datasets.disable_progress_bars()

    folder = tmp_path_factory.mktemp("student")
    save_model(tiny_run(folder / "base", "adapter.r_min=2", "adapter.r_max=4"), folder / "run")
    return folder / "run"


def one_error(err: str, code: str) -> str:
    """The message of the only line on stderr."""
    match = re.fullmatch(rf"error: {code}: (.+)\n", err)
    assert match, err
    assert "Traceback" not in err
    return match[1]


# ------------------------------------------------------------------------------------------- help and usage


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(maemi: Maemi, verb: str) -> None:
    code, out, err = maemi(verb, "--help")
    assert (code, err) == (0, "")
    assert re.search(rf"Example:\n\s+maemi {verb}\b", out)


def test_info_draws_what_it_measured(maemi: Maemi, tiff: Path, tmp_path: Path) -> None:
    """Every figure bears the name of its file; a folder that cannot be made is one line and no traceback."""
    code, out, _ = maemi("info", tiff, "--overlay", tmp_path / "figures", "--json")
    assert code == 0
    assert json.loads(out)[0]["path"] == str(tiff)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"discs.tif.objects.png", "discs.tif.neighbours.png", "discs.tif.grey.png"} <= names
    code, _, err = maemi("info", tiff, "--overlay", tiff / "figures")
    assert code == 2
    assert err.startswith("error: disk: ")
    assert "Traceback" not in err


def test_the_overview_names_every_verb(maemi: Maemi) -> None:
    for arguments in ([], ["--help"]):
        code, out, _ = maemi(*arguments)
        assert code == 0
        assert set(VERBS) <= set(re.findall(r"^  (\w+)  ", out, re.MULTILINE))


@pytest.mark.parametrize(
    "arguments",
    [["inf"], ["info"], ["info", "--nope", "a.tif"], ["synth"], ["synth", "--out"], ["train"], ["ask", "only words"],
     ["caption", "x", "--out", "y", "--workers", "0"], ["serve", "--port", "99999"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_one_line_and_2(maemi: Maemi, arguments: list[str]) -> None:
    code, out, err = maemi(*arguments)
    assert (code, out) == (2, "")
    one_error(err, "usage")


def test_the_environment_is_closed_before_anything_heavy(
    maemi: Maemi, monkeypatch: pytest.MonkeyPatch, tiff: Path
) -> None:
    """Offline and without telemetry by default; --online, wherever it stands, lifts only the first."""
    for name in cli.ENVIRONMENT:
        monkeypatch.setenv(name, "unset")
    maemi("info", tiff)
    assert {name: os.environ[name] for name in cli.ENVIRONMENT} == cli.ENVIRONMENT
    maemi("info", tiff, "--online")
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_fault_of_ours_is_one_line_too(maemi: Maemi, monkeypatch: pytest.MonkeyPatch, tiff: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("assistant.micrograph.read_micrograph", fail)
    code, _, err = maemi("info", tiff)
    assert code == 2
    assert "ZeroDivisionError" in one_error(err, "internal")


# ------------------------------------------------------------------------------------------- info


def test_info_prints_the_record_of_the_contract(maemi: Maemi, tiff: Path) -> None:
    code, out, err = maemi("info", tiff, "--json")
    (record,) = json.loads(out)
    assert (code, err) == (0, "")
    assert set(record) == INFO_KEYS
    assert record["path"] == str(tiff)
    assert record["pixel_size_nm"] == pytest.approx(4.2)
    assert (record["dtype"], record["width"], record["height"]) == ("uint16", 128, 96)


def test_info_keeps_the_order_and_names_what_failed(maemi: Maemi, tiff: Path, broken: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.tif"
    code, out, err = maemi("info", broken, tiff, missing, "--json")
    records = json.loads(out)
    assert code == 1
    assert [record["path"] for record in records] == [str(broken), str(tiff), str(missing)]
    assert [set(record) for record in records][0::2] == [{"path", "error"}] * 2
    assert set(records[0]["error"]) == {"code", "message"}
    assert len(err.splitlines()) == 2
    assert maemi("info", broken, missing)[0] == 2


def test_info_for_people(maemi: Maemi, tiff: Path) -> None:
    code, out, _ = maemi("info", tiff)
    assert code == 0
    assert "4.2 nm/px" in out
    assert "128 × 96 px, uint16" in out
    _, out, _ = maemi("info", tiff, "--pixel-size", "0.5um")
    assert "500 nm/px (you" in out


def test_control_characters_of_a_file_never_reach_the_terminal(maemi: Maemi, tmp_path: Path) -> None:
    """A file name or tag with ANSI escapes could rewrite the operator's screen."""
    nasty = write_tiff(tmp_path / "a\x1b[2Jb.tif")
    _, out, err = maemi("info", nasty, tmp_path / "no\x1b[2J.tif")
    assert "\x1b" not in out + err
    assert terminal.printable("a\x07\x9bb\ud800") == "a\ufffd\ufffdb?"


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "nm"),
    [("4.2 nm", 4.2), ("0.5um", 500.0), ("1.5 µm", 1500.0), ("80pm", 0.08), ("3", 3.0), ("2 nm/px", 2.0),
     ("1 Å", 0.1), ("4,2 nm", 4.2), ("2 microns", 2000.0), (" ", None), (None, None)],
)  # fmt: skip
def test_pixel_sizes_are_read(text: str | None, nm: float | None) -> None:
    assert parse_pixel_size(text) == (pytest.approx(nm) if nm else None)


@pytest.mark.parametrize(
    "text", ["nm", "-1 nm", "0", "1,250 nm", "1-2 nm", "1e99 nm", "nan", "inf nm", "4.2 kg", "4.2 nm; rm"]
)
def test_pixel_sizes_are_never_guessed(text: str) -> None:
    with pytest.raises(ConfigError, match="bad_pixel_size"):
        parse_pixel_size(text)


def test_labels_are_two_or_more_and_different() -> None:
    assert parse_labels(" a, b ,c,") == ["a", "b", "c"]
    for text in ("", "a", "a,a", ","):
        with pytest.raises(ConfigError, match="bad_labels"):
            parse_labels(text)


# ------------------------------------------------------------------------------------------- a student


def test_ask_answers_with_evidence(maemi: Maemi, student: Path, tiff: Path) -> None:
    code, out, err = maemi("ask", tiff, "What is it?", "--run", student, "--max-tokens", 8, "--json")
    reply = json.loads(out)
    assert (code, err) == (0, "")
    assert set(reply) == {"answer", "images", "facts", "statements", "warnings"}
    for statement in reply["statements"]:
        assert reply["answer"][statement["start"] : statement["stop"]] == statement["text"]
        assert (statement["fact"] is None) == (statement["verdict"] == "withheld")
    assert reply["statements"]
    assert [set(info) for info in reply["images"]] == [INFO_KEYS]
    assert reply["facts"][0]["items"]
    code, out, err = maemi("ask", tiff, "What is it?", "--run", student, "--max-tokens", 8)
    assert code == 0
    assert out.strip() == terminal.printable(reply["answer"])
    assert "count" in err  # the measured facts


def test_ask_refuses_in_one_line(maemi: Maemi, student: Path, tiff: Path, broken: Path, tmp_path: Path) -> None:
    code, out, err = maemi("ask", broken, "What?", "--run", student)
    assert (code, out) == (2, "")
    assert one_error(err, r"\w+")
    code, _, err = maemi("ask", tiff, "What?", "--run", tmp_path / "no-run")
    assert code == 2
    assert "no-run" in one_error(err, r"\w+")
    assert "last" in one_error(maemi("ask", tiff, tiff)[2], "usage")


def test_classify_gives_the_shape_of_the_contract(maemi: Maemi, student: Path, tiff: Path, broken: Path) -> None:
    code, out, err = maemi("classify", tiff, broken, "--labels", "wires,powder", "--run", student, "--json")
    good, bad = json.loads(out)
    assert code == 1
    assert set(good) == set(bad) == {"path", "scores", "verdict", "error"}
    assert {score["label"] for score in good["scores"]} <= {"wires", "powder", "unknown"}
    assert good["verdict"] == good["scores"][0]["label"]
    assert bad["error"]["code"]
    assert len(err.splitlines()) == 1


def test_classify_by_examples_in_folders(maemi: Maemi, student: Path, tmp_path: Path) -> None:
    for label, level in (("light", 45000), ("dim", 5000)):
        (tmp_path / "known" / label).mkdir(parents=True)
        write_tiff(tmp_path / "known" / label / "a.tif", level=level)
    new = write_tiff(tmp_path / "new.tif", seed=5, level=45000)
    code, out, _ = maemi("classify", new, "--examples", tmp_path / "known", "--run", student, "--json", "--top", 1)
    assert code == 0
    assert len(json.loads(out)[0]["scores"]) == 1
    told = ("--examples", tmp_path / "known", "--shots", 1)
    code, out, _ = maemi("classify", new, *told, "--run", student, "--json", "--top", 1)
    assert code == 0
    assert len(json.loads(out)[0]["scores"]) == 1
    code, _, err = maemi("classify", new, "--labels", "a,b", "--shots", 1, "--run", student)
    assert code == 2
    assert one_error(err, "no_examples")
    code, _, err = maemi("classify", new, "--examples", tmp_path, "--labels", "a,b", "--run", student)
    assert code == 2
    assert one_error(err, r"\w+")


def test_caption_writes_rows_and_names_failures(
    maemi: Maemi, student: Path, tiff: Path, broken: Path, tmp_path: Path
) -> None:
    out_file = tmp_path / "out" / "captions.csv"
    code, out, err = maemi("caption", tmp_path, "--out", out_file, "--run", student, "--json")
    assert code == 1
    done = json.loads(out)
    assert {done[name] for name in ("total", "captioned", "failed")} == {2, 1}
    assert "broken.tif" in one_error(err, r"\w+")
    assert out_file.read_text(encoding="utf-8-sig").startswith("path,sha256,caption,pixel_size_nm,confidence,error")
    broken.unlink()
    code, out, err = maemi("caption", tmp_path, "--out", out_file, "--run", student)
    assert (code, err) == (0, "")
    assert "1 before" in out


def test_train_evaluate_export_and_plan(
    maemi: Maemi,
    student: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a data set to a run, to its scores and to a stock adapter, through the command alone."""
    monkeypatch.setattr("training.evaluate.ANSWER_TOKENS", 3)  # an untrained student never stops by itself
    from instruction_data import write_dataset
    from students import tiny_config

    from assistant.config import dump_config

    data, run = write_dataset(tmp_path / "data", per_class=2), tmp_path / "run"
    shapes = ("init=bundled", "decoder.base=null", "adapter.r_min=2", "adapter.r_max=4")
    config = tiny_config("", *shapes, "training.steps=1", "training.turns=1")
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    settings = ("--config", tmp_path / "tiny.yaml", "--set", f"init={student}")
    code, out, err = maemi("train", *settings, "--data", data, "--out", run, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"run": str(run)}
    code, out, _ = maemi("evaluate", "--run", run, "--data", data, "--limit", 1, "--no-baselines", "--json")
    report = json.loads(out)
    assert code == 0
    assert {"caption", "vqa", "classification", "factual", "baselines", "n"} <= set(report)
    assert {"bleu2", "bleu2_blind"} <= set(report["vqa"])
    cli.evaluate.print_scores(report, title="After")
    assert re.search(r"vqa +bleu2 +\d\.\d{3} +\d\.\d{3}", capsys.readouterr().out)
    code, _, err = maemi("export", "--run", run, "--rank", 3, "--out", tmp_path / "lora")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 3
    code, _, err = maemi("export", "--run", run, "--rank", 99, "--out", tmp_path / "lora99")
    assert code == 2
    assert one_error(err, r"\w+")
    code, out, _ = maemi("plan", *settings, "--gpu-gib", 8, "--json")
    assert code == 0
    assert sum(json.loads(out)["parts"].values()) > 0


def test_wrong_settings_name_the_key(maemi: Maemi, tmp_path: Path) -> None:
    code, _, err = maemi("train", "--data", tmp_path, "--out", tmp_path / "run", "--set", "training.setps=5")
    assert code == 2
    assert "steps" in one_error(err, r"\w+")


def test_synth_then_teach(maemi: Maemi, tmp_path: Path) -> None:
    code, out, err = maemi(
        "synth", "--out", tmp_path / "drawn", "--classes", "particles,fibres", "--per-class", 4, "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["images"] == 8
    assert len(Path(json.loads(out)["truth"]).read_text().splitlines()) == 8
    code, out, err = maemi("teach", tmp_path / "drawn", "--out", tmp_path / "data", "--json")
    assert code == 0, err
    assert json.loads(out)["total"] > 0
    code, _, err = maemi("synth", "--out", tmp_path / "x", "--classes", "unicorns")
    assert code == 2
    assert "unicorns" in one_error(err, r"\w+")


# ------------------------------------------------------------------------------------------- serve and doctor


def test_serve_refuses_an_open_door(maemi: Maemi) -> None:
    code, _, err = maemi("serve", "--host", "0.0.0.0")
    assert code == 2
    assert "--auth" in one_error(err, "auth_needed")


def test_the_doctor_finds_all_well_and_cuts_the_network() -> None:
    checks = list(doctor.check_machine(load=lambda run: MeasuringAssistant()))
    features = {check.name: check for check in checks}
    assert {"synth", "info", "measure", "weights", "ask", "caption", "classify", "network"} <= set(features)
    # How full this machine's disk is, is no property of the software; the next test has it.
    assert [check for check in checks if not check.ok and check.name != "disk"] == []
    assert "blocked" in features["network"].found


@pytest.mark.parametrize(("free_gib", "ok"), [(2.5, True), (1.4, False)])
def test_the_doctor_says_when_the_disk_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, ok: bool
) -> None:
    usage = shutil.disk_usage(".")._replace(free=int(free_gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    disk = next(check for check in doctor.check_machine() if check.name == "disk")
    assert disk.ok == ok
    assert "GiB free" in disk.found


def test_the_doctor_finds_what_calls_home() -> None:
    """The negative control: an assistant that opens a connection must fail its check, and only that one."""

    class CallsHome(MeasuringAssistant):
        def caption(self, images: Any) -> list[str]:
            socket.create_connection(("example.org", 443), timeout=1)
            return super().caption(images)

    checks = {check.name: check for check in doctor.check_machine(load=lambda run: CallsHome())}
    assert not checks["caption"].ok
    assert "example.org" in checks["caption"].found
    assert checks["ask"].ok


def test_without_weights_the_doctor_says_what_did_not_run() -> None:
    def missing(run: Path | None) -> MeasuringAssistant:
        raise ServerError("no_weights", "The bundled weights are missing.")

    checks = {check.name: check for check in doctor.check_machine(load=missing)}
    assert "missing" in checks["weights"].found
    assert "earlier check" in checks["ask"].found
    assert checks["measure"].ok


def test_the_network_is_open_again_afterwards() -> None:
    with doctor.no_network(), pytest.raises(ServerError, match=r"192\.0\.2\.7"):
        socket.getaddrinfo("192.0.2.7", 80)
    assert socket.getaddrinfo("127.0.0.1", 80)
    with socket.create_server(("127.0.0.1", 0)) as door, doctor.no_network():
        socket.create_connection(door.getsockname()).close()


# ------------------------------------------------------------------------------------------- a real process


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "serve.cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_closed_pipe_leaves_no_trace(tiff: Path) -> None:
    """`maemi info ... | head -1` must not end in a BrokenPipe traceback."""
    process = spawn("info", *[tiff] * 40, "--json")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(300) == 0
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_server_leaves_nothing(student: Path, tiff: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The real thing: bind, say so once it answers, take an upload, and leave none of it however it is stopped."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, folder = f"http://127.0.0.1:{port}", tmp_path / "temporary"
    folder.mkdir()
    state = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(folder)}
    process = spawn("serve", "--run", student, "--port", port, env=state)
    try:
        assert process.stderr
        told = process.stderr.readline().decode()
        assert url in told
        with httpx.Client(base_url=url) as browser:
            assert browser.get("/healthz").json() == {"status": "ok"}  # at once: the address is told when it answers
            browser.get("/")
            assert (
                browser.post("/gradio_api/upload", files={"files": ("discs.tif", tiff.read_bytes())}).status_code == 200
            )
        assert any(path.is_file() for path in folder.rglob("*"))
        assert (tmp_path / "state" / "maemi" / "answers.sqlite").stat().st_mode & 0o077 == 0
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert b"Traceback" not in out + err
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert not list(folder.iterdir())


def test_a_taken_port_is_told_before_the_model_is_loaded(maemi: Maemi, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = maemi("serve", "--run", tmp_path / "no such run", "--port", taken.getsockname()[1])
    assert (code, out) == (2, "")
    assert err.startswith("error: port_taken:")
    assert "http://" not in err


def test_a_proxy_is_named_by_its_address(maemi: Maemi, tmp_path: Path) -> None:
    code, _, err = maemi("serve", "--run", tmp_path / "no such run", "--trusted-proxy", "proxy.example")
    assert code == 2
    assert err.startswith("error: bad_proxy:")
    assert len(err.splitlines()) == 1
