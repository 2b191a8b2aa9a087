"""The page through a real server with Gradio's own client, and the report as a file on disk."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from measuring import MeasuringAssistant, write_tiff
from PIL import Image
from serving import running

from assistant.micrograph import Micrograph, read_micrograph
from serve import wording
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.guard import App, Credentials, read_credentials
from serve.page.app import build_app
from serve.verbs.report import ReportImage, loss_chart, write_report

LEAKS = re.compile(rf"0x[0-9a-f]{{6,}}|{re.escape(gettempdir())}|Traceback|File \"|site-packages")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()))


@pytest.fixture(scope="module")
def url(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        with running(built(desk)) as base:
            yield base


def built(desk: Desk, credentials: Credentials | None = None) -> App:
    """The application, built inside a loop: outside of one Gradio opens loops that it never closes."""

    async def build() -> App:
        return build_app(desk, credentials=credentials)

    return asyncio.run(build())


@pytest.fixture(scope="module")
def visitor(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    downloads = tmp_path_factory.mktemp("downloads")
    page = Client(url, verbose=False, analytics_enabled=False, download_files=downloads)
    yield page
    page.close()


@pytest.fixture
def client(visitor: Client) -> Client:
    """A visitor in a session of its own."""
    visitor.reset_session()
    return visitor


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "discs.tif")


def talk(client: Client, text: str, *files: Path, size: str = "") -> tuple[list[Any], str]:
    """One turn as the page makes it: take, then respond; returns the chat and the panel."""
    typed = {"text": text, "files": [handle_file(file) for file in files]}
    client.predict(typed, size, api_name="/take")
    chat, panel = client.predict(size, api_name="/respond")
    return chat, panel


def words(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def read_aloud(message: dict[str, Any]) -> str:
    """The words of a message without the marks of facts."""
    return unescape(re.sub(r"</?span[^>]*>", "", words(message)))


# ------------------------------------------------------------------------------------------- chat


def test_a_16_bit_micrograph_is_shown_answered_and_explained(client: Client, tiff: Path) -> None:
    """gr.Image turns 16 bit white; what the browser gets must be our windowed 8-bit PNG with its grey levels."""
    chat, panel = talk(client, "How many?", tiff)
    assert words(chat[1]) == "How many?"
    assert read_aloud(chat[2]).startswith("Turn 1, 1 image(s).")
    (picture,) = [part["file"] for part in chat[0]["content"] if part["type"] == "file"]
    with Image.open(picture if isinstance(picture, str) else picture["path"]) as image:
        shown = np.asarray(image)
    assert shown.dtype == np.uint8
    assert shown.mean() < 200
    assert len(np.unique(shown)) > 50
    assert "4.2 nm/px" in panel
    assert "uint16" in panel
    assert "Not calibrated" not in panel


def test_a_conversation_remembers_pictures_and_turns(desk: Desk, client: Client, tiff: Path, tmp_path: Path) -> None:
    chat, _ = talk(client, "How many?", tiff)
    chat, panel = talk(client, "And now?", write_tiff(tmp_path / "second.tif", seed=1))
    assert read_aloud(chat[-1]).startswith("Turn 2, 2 image(s).")
    images, question, history, _ = desk.answerer.asked[-1]  # type: ignore[attr-defined]
    assert (images, question, [m.images for m in history]) == (2, "And now?", [1, 0])
    assert "second.tif" in panel
    assert "discs.tif" in panel


def test_two_visitors_do_not_see_each_other(url: str, client: Client, tiff: Path) -> None:
    """State lives per session: the second visitor has no picture, and is told so."""
    talk(client, "How many?", tiff)
    other = Client(url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError, match="Add a micrograph first"):
        talk(other, "What is it?")
    other.close()


def test_a_picture_is_read_once_in_a_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen failing with six readings: every turn read every picture of the conversation, with text recognition."""
    calls = []

    def counting(source: Any, **how: Any) -> Micrograph:
        calls.append(source)
        return read_micrograph(source, **how)

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()), read=counting)
    with running(built(desk)) as base:
        client = Client(base, verbose=False, analytics_enabled=False)
        talk(client, "How many?", write_tiff(tmp_path / "discs.tif"))
        talk(client, "How large?")
        talk(client, "And that one?", write_tiff(tmp_path / "more.tif", seed=1))
        client.close()
    assert len(calls) == 2


def test_a_picture_without_pixel_size_says_so_until_it_is_given(client: Client, tmp_path: Path) -> None:
    bare = write_tiff(tmp_path / "bare.tif", nm=None)
    _, panel = talk(client, "?", bare)
    assert "Not calibrated" in panel
    panel = client.predict("2 nm", api_name="/recalibrate")
    assert "2 nm/px" in panel
    assert "Not calibrated" not in panel
    with pytest.raises(AppError, match="not a pixel size"):
        client.predict("two", api_name="/recalibrate")


def test_an_empty_question_asks_for_a_description(client: Client, tiff: Path) -> None:
    chat, _ = talk(client, "  ", tiff)
    assert words(chat[1]) == "Describe this micrograph."


def test_a_failed_question_can_be_asked_again(client: Client, tiff: Path, tmp_path: Path, desk: Desk) -> None:
    """A question whose answer never came must not stand in the history as if it had been answered."""
    typed = {"text": "First?", "files": [handle_file(tiff)]}
    client.predict(typed, "", api_name="/take")  # and the answer is stopped before it begins
    talk(client, "Again?")
    images, question, history, _ = desk.answerer.asked[-1]  # type: ignore[attr-defined]
    assert (images, question, history) == (1, "Again?", ())


@pytest.mark.parametrize("content", [b"", b"II*\0garbage", b"<html>", b"%PDF-1.7", b"GIF89a"])
def test_a_file_that_is_no_micrograph_is_refused_in_words(client: Client, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(content)
    with pytest.raises(AppError) as refusal:
        talk(client, "?", bad)
    assert len(str(refusal.value)) > 20
    assert not LEAKS.search(str(refusal.value))


def test_words_are_shown_as_words(client: Client, tiff: Path) -> None:
    """A chat shows HTML: a tag in a question would vanish, one in an answer would become an element."""
    said = f"{HOSTILE} <script>b</script> &lt;i&gt; R&D, 5 < 6 & 7"
    chat, _ = talk(client, said, tiff)
    assert not hostile_tags(words(chat[1]))
    assert unescape(words(chat[1])) == said
    assert words(chat[1]).endswith("5 < 6 & 7")  # what is no markup can be copied as it is
    with pytest.raises(AppError) as refusal:
        client.predict(HOSTILE, api_name="/recalibrate")
    assert "&lt;img" in str(refusal.value)
    assert not hostile_tags(str(refusal.value))


# ------------------------------------------------------------------------------------------- captions, classes


def captioned(client: Client, *given: Any) -> tuple[str, str]:
    """Caption files to the end: the batch and its table."""
    choice = client.predict(*given, api_name="/captions")
    id = str(choice["value"] if isinstance(choice, dict) else choice)
    while True:
        line, table, *_ = client.predict(id, "", "all", "", [], 1, api_name="/batch")
        if " done" in line:
            return id, table
        assert "captioned" in line or "Looking" in line
        time.sleep(0.1)


def test_captions_come_as_table_csv_jsonl_and_parquet(client: Client, url: str, tiff: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"not a tiff")
    formula = write_tiff(tmp_path / "=cmd.tif", seed=3, nm=None)
    files = [handle_file(file) for file in (tiff, bad, formula)]
    id, table = captioned(client, files, "", "")
    assert table.count("data:image/jpeg") == 2
    assert "circularity" in table
    texts = {}
    for form in ("csv", "plain.csv", "jsonl", "parquet"):
        reply = httpx.get(f"{url}/captions/{id}/{form}", cookies=client.cookies)
        assert reply.status_code == 200, reply.text
        texts[form] = reply.content
    report = httpx.get(f"{url}/captions/{id}/html", cookies=client.cookies).text
    assert report.count("data:image/jpeg") == 2
    assert "3 pictures, 1 of them could not be captioned" in report
    assert re.search(r"<th>mean diameter \[nm\]</th><td>6[56]\.", report)
    assert "<td>contrast [%]</td><td>2</td>" in report
    assert "orientation [°]</td>" not in report  # its median means nothing
    assert not hostile_tags(report)
    assert not re.search(r"(?:src|href)=.(?!data:)", report)
    assert httpx.get(f"{url}/captions/{id}/csv").status_code == 404  # somebody else's
    rows = [json.loads(line) for line in texts["jsonl"].splitlines()]
    rows.sort(key=lambda row: str(row["path"]))
    assert [row["path"] for row in rows] == ["=cmd.tif", "bad.tif", tiff.name]
    assert [bool(row["caption"]) for row in rows] == [True, False, True]
    assert rows[1]["error"]
    assert not LEAKS.search(rows[1]["error"])
    assert rows[2]["mean_diameter_nm"] == pytest.approx(65.9, abs=0.5)
    assert rows[0]["mean_diameter_nm"] is None
    assert texts["csv"].startswith(b"\xef\xbb\xbf")
    assert not texts["plain.csv"].startswith(b"\xef\xbb\xbf")
    cells = [cell for row in csv.reader(texts["csv"].decode("utf-8-sig").splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t"))]
    assert pq.read_table(io.BytesIO(texts["parquet"])).num_rows == 3


def test_a_side_car_is_found_beside_its_picture(client: Client, tmp_path: Path) -> None:
    """Uploads land in folders of their own: the side-car must be put back beside its image."""
    picture, side = tmp_path / "a.tif", tmp_path / "a.txt"
    write_tiff(picture, nm=None)
    side.write_text("$CM_FORMAT JEOL\n$CM_ACCEL_VOLT 15.0\n$CM_MAG 1000\n")
    _, panel = talk(client, "?", picture, side)
    assert "JEOL" in panel
    assert "15 kV" in panel


def test_classes_without_and_with_examples(client: Client, url: str, tmp_path: Path) -> None:
    bright = [write_tiff(tmp_path / f"bright{n}.tif", seed=n, level=45000) for n in range(2)]
    dark = [write_tiff(tmp_path / f"dark{n}.tif", seed=n, level=5000) for n in range(2)]
    asked = [handle_file(bright[0]), handle_file(dark[0])]
    table = client.predict(asked, "Labels", "particles, powder", "", api_name="/classify")
    assert "2 done" in table
    for label, files in (("light", bright), ("dim", dark)):
        summary, _ = client.predict(label, [handle_file(files[1])], api_name="/add_examples")
    assert summary == "dim: 1, light: 1"
    table = client.predict(asked, "Labels", "light, dim", "", api_name="/classify")
    verdicts = re.findall(r'maemi-badge maemi-teal">([^<]+)<', table)
    assert verdicts == ["light", "dim"]
    with pytest.raises(AppError, match="two or more"):
        client.predict(asked, "Labels", "one", "", api_name="/classify")
    keys = re.findall(r'<input list="maemi-labels" data-tells="correction" data-value="([^"]+)"', table)
    client.predict(f"{keys[0]}\tlight\n1", api_name="/correct_label")
    table = client.predict(f"{keys[1]}\tgrey\n2", api_name="/correct_label")
    assert "1 of 2 that you looked at were right" in table
    assert table.count('class="maemi-wrong"') == 1
    sheet = httpx.get(f"{url}/sorted.csv", cookies=client.cookies).content.decode("utf-8-sig")
    told = list(csv.DictReader(sheet.splitlines()))
    assert [(row["picture"], row["said"], row["predicted"]) for row in told] == [
        ("bright0.tif", "light", "light"),
        ("dark0.tif", "grey", "dim"),
    ]
    assert len(httpx.get(f"{url}/sorted.csv").text.splitlines()) == 1  # nothing of somebody else's
    with pytest.raises(AppError, match="Nothing is left to label"):
        client.predict(api_name="/label_next")
    with pytest.raises(AppError, match="no longer in the table"):
        client.predict("99\tlabel\tlight\n1", api_name="/correct_label")


class _Tags(HTMLParser):
    """Collects tags and attributes as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def hostile_tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return [
        (tag, attrs)
        for tag, attrs in parser.seen
        if tag in {"script", "iframe", "object"}
        or attrs.get("src") == "x"
        or any(name.startswith("on") for name in attrs)
    ]


def test_names_and_labels_are_text_never_markup(client: Client, tmp_path: Path) -> None:
    """Stored XSS through file names, side-cars and labels."""
    picture = write_tiff(tmp_path / f"{HOSTILE}.tif", nm=None)
    (tmp_path / f"{HOSTILE}.txt").write_text(f"$CM_FORMAT JEOL\n$CM_INSTRUMENT {HOSTILE}\n$CM_SIGNAL {HOSTILE}\n")
    _, panel = talk(client, "?", picture, tmp_path / f"{HOSTILE}.txt")
    labels = f"{HOSTILE}, <script>b</script>"
    client.predict(api_name="/forget_examples")
    table = client.predict([handle_file(picture)], "Labels", labels, "", api_name="/classify")
    _, captions = captioned(client, [handle_file(picture)], "", "")
    for html in (panel, table, captions):
        assert not hostile_tags(html)
    assert hostile_tags(HOSTILE)  # the detector detects


# ------------------------------------------------------------------------------------------- the house


def test_the_page_loads_nothing_from_elsewhere(url: str) -> None:
    """An air-gapped site: no font, script or style may come from another host."""
    html = httpx.get(url).text
    parser = _Tags()
    parser.feed(html)
    loaded = [
        attrs.get(name) or ""
        for tag, attrs in parser.seen
        for name in ("src", "href")
        if tag in {"script", "link", "img"}
    ]
    assert loaded
    assert not [address for address in loaded if re.match(r"(https?:)?//", address) and not address.startswith(url)]
    styles = httpx.get(f"{url}/theme.css").text
    assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", styles)
    assert "MAEMI" in html
    assert "frame-ancestors 'none'" in httpx.get(url).headers["content-security-policy"]


def test_an_idle_page_is_idle(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's queue looks for work a thousand times a second; what sleeps so often costs a core 5 %."""
    sleep, naps = asyncio.sleep, []

    async def counted(seconds: float, *rest: Any) -> Any:
        naps.append(seconds)
        return await sleep(seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", counted)
    time.sleep(0.5)
    assert naps
    assert min(naps) >= 0.02


def test_every_route_of_the_page_is_behind_the_login(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("ada:correct horse\n")
    app = built(desk, read_credentials(tmp_path / "logins"))
    with running(app) as base, httpx.Client(base_url=base) as http:
        pages = "/ /config /login /theme.css /openapi.json /assets/index.js /monitoring /gradio_api/info"
        for path in f"{pages} /gradio_api/app_id /gradio_api/openapi.json /gradio_api/file=/etc/passwd".split():
            assert http.get(path).status_code == 401, path
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/take"):
            assert http.post(path, json={}).status_code == 401, path
        assert http.get("/", auth=("ada", "correct horse")).status_code == 200
        assert http.get("/docs", auth=("ada", "correct horse")).status_code == 404


# ------------------------------------------------------------------------------------------- the report


def evaluation(shift: float) -> dict[str, Any]:
    text = {"bleu2": 0.4 + shift, "bleu2_without_aux": 0.3, "bleu2_blind": 0.2, "bleu2_interval": [0.3, 0.5], "n": 9}
    return {
        "caption": text,
        "vqa": text,
        "classification": {"top1": 0.5 + shift, "ece": 0.1 - shift / 10, "n": 9},
        "factual": {"accuracy": 0.6 + shift, "without_aux": 0.4, "blind": 0.1, "n": 5, "interval": [0.5, 0.7]},
        "facets": {"size": {"bleu2": 0.5 + shift, "bleu2_without_aux": 0.2, "bleu2_blind": 0.1, "n": 4}},
        "baselines": {"caption_bleu2_majority": 0.25, "top1_cnn": 0.9, "factual_majority": None},
    }


def make_report(out: Path, tiff: Path, name: str = "discs.tif") -> str:
    micrograph = read_micrograph(tiff)
    image = ReportImage(
        name=name,
        pixels=micrograph.to_display(),
        info=micrograph.info(),
        facts=MeasuringAssistant().facts_of(micrograph).as_dict(),
        caption=f"Discs {name}",
        answers=[("How many?", "9", "9"), ("Shape?", f"round {name}", "disc")],
    )
    return write_report(
        out / "report.html",
        title=f"A run {name}",
        dataset={"rows": {"train": 1200, "test": 90}, "teacher": "offline"},
        before=evaluation(0.0),
        after=evaluation(0.3),
        losses=[(step, 4.0 / (1 + step / 20)) for step in range(0, 100, 5)],
        images=[image],
        timing={"fine-tune": 61.0},
        versions={"torch": "2.13"},
    ).read_text()


def test_the_report_stands_alone_and_shows_the_numbers(tmp_path: Path, tiff: Path) -> None:
    html = make_report(tmp_path, tiff)
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(|@import|<script""", html)
    for text in (
        "0.400",
        "0.700",
        "+0.300",
        "0.250",
        "0.900",
        "Small convolutional network",
        "1,200",
        "discs.tif",
        "4.2 nm/px",
    ):
        assert text in html, text
    assert '<span class="up">−0.030</span>' in html  # a falling calibration error is an improvement
    assert not list(tmp_path.glob(".report*"))


def test_the_report_escapes_what_it_shows(tmp_path: Path, tiff: Path) -> None:
    assert not hostile_tags(make_report(tmp_path, tiff, HOSTILE))


def test_the_loss_chart_draws_every_step_inside_its_frame() -> None:
    chart = loss_chart([(1, 3.0), (2, 2.0), (3, 2.5)])
    each, median = (line.split() for line in re.findall(r'polyline points="([^"]+)"', chart))
    pixels = [tuple(map(float, point.split(","))) for point in each]
    assert len(pixels) == len(median) == 3
    assert all(0 <= x <= 920 and 0 <= y <= 280 for x, y in pixels)
    assert pixels[0][1] < pixels[2][1] < pixels[1][1]  # a larger loss stands higher
    assert "Training loss from 3.000 to 2.500 over 3 steps" in chart
    assert "No training steps" in loss_chart([])


def test_the_window_keeps_the_grey_levels_of_deep_pictures_apart() -> None:
    info = dict.fromkeys(("pixel_size_nm", "vendor", "model", "hv_kv", "wd_mm", "magnification", "detector", "banner"))
    frame = {"width": 640, "height": 480, "dtype": "float32", "pages": 1}
    shown = [
        dict(wording.reading(info | frame | {"window": {"low": low, "high": high}}))["Window"]
        for low, high in ((0.0, 254.6), (300.0, 4095.0), (0.00512, 65535.0))
    ]
    assert shown == ["0 – 255", "300 – 4095", "0.00512 – 65535"]
