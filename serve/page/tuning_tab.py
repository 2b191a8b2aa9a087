"""The tab that fine-tunes: a data set is checked, settings are planned, one training runs and is watched.

Knows nothing about how any of it is done, or about other tabs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import gradio as gr
from jinja2 import UndefinedError

from assistant.errors import MaemiError
from serve.desk.workbench import DEFAULTS, Running, Settings, Standing, Workbench
from serve.page.mounting import Blocks
from serve.page.saved import template
from serve.page.tables import duration
from serve.wording import SHOWN_SCORES
from training.account import loss_curve, score_curve
from training.preflight import memory_here

LOOK_EVERY_S = 2.0
"""Time between two looks at what runs [s]."""
_TOLD = {
    "training": "Training",
    "scoring": "Scoring",
    "done": "Finished",
    "stopped": "Stopped, can go on",
    "failed": "Failed",
}
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_EMPTY = (
    '<div class="maemi-empty"><p>Nothing was trained yet.</p><p>Choose a data set that <code>maemi teach</code> wrote, '
    "check it, then start: the loss is drawn here while it falls.</p></div>"
)


class Tuning:
    """What the controls do; most answer with all that stands on the tab (`look`)."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def open(self) -> tuple[Any, ...]:
        """What there is to choose from, when the page opens: data sets, files, name of a new run, then as `look`."""
        datasets, files, runs = self._bench.datasets(), self._bench.files(), self._bench.runs()
        running = self._bench.running()
        newest = running.run if running and running.run in runs else next(iter(runs), None)
        return (
            gr.Dropdown(choices=datasets, value=next(iter(datasets), None)),
            gr.Dropdown(choices=files, value=DEFAULTS),
            self._bench.free_name(),
            *self.look(newest),
        )

    def choose(self, file: str) -> tuple[int, int, float]:
        """What a file of settings says: steps, batch size, peak rate."""
        training = self._bench.configured(Settings("", file)).training
        return training.steps, training.batch_size, training.learning_rate

    def plan(self, data: str | None, *words: Any) -> str:
        """The memory that settings take."""
        if not data:
            return ""
        try:
            config = self._bench.configured(settings := _settings(data, *words))
            memory = memory_here(config, self._bench.dataset(settings.data), device="auto")
        except MaemiError as error:
            return _drawn("problem", error.message)
        return _drawn("plan", memory)

    def check(self, run: str | None, data: str | None, *words: Any) -> tuple[Any, ...]:
        """Look at data, settings and memory before a training."""
        self._bench.check(_settings(data, *words))
        return self.look(run)

    def start(self, name: str, data: str | None, *words: Any) -> tuple[Any, ...]:
        """Begin a training: name of the next one, then as `look`."""
        self._bench.start(name.strip(), _settings(data, *words))
        return self._bench.free_name(), *self.look(name.strip())

    def resume(self, run: str | None) -> tuple[Any, ...]:
        """Let a training go on."""
        self._bench.resume(run or "")
        return self.look(run)

    def score(self, run: str | None) -> tuple[Any, ...]:
        """Score a run and what it started from."""
        self._bench.score(run or "")
        return self.look(run)

    def stop(self, run: str | None) -> tuple[Any, ...]:
        """Stop what runs; a training saves its step first."""
        self._bench.stop()
        return self.look(run)

    def look(self, run: str | None) -> tuple[Any, ...]:
        """All that changes by itself: clock, list of runs, run, report of a check, and the five buttons."""
        running, runs = self._bench.running(), self._bench.runs()
        run = run if run in runs else next(iter(runs), None)
        standing = self._bench.standing(run) if run else None
        free, state = running is None, standing.state if standing else ""
        return (
            gr.Timer(active=not free),
            gr.Dropdown(choices=runs, value=run),
            _drawn_standing(standing) if standing else _EMPTY,
            self._drawn_check(running),
            gr.Button(interactive=free),
            gr.Button(interactive=free),
            gr.Button(interactive=free and state in ("stopped", "failed")),
            gr.Button(interactive=free and state == "done"),
            gr.Button(interactive=not free),
        )

    def _drawn_check(self, running: Running | None) -> str:
        if running is not None and running.what == "check":
            return _drawn("waiting", "Looking at every picture and conversation …")
        checked = self._bench.checked()
        if checked is None:
            return ""
        settings, report = checked
        if isinstance(report, str):
            return _drawn("problem", report)
        try:
            return _drawn("checked", settings, report)
        except UndefinedError:
            return _drawn("problem", "The last check was made by another version. Check again.")


def tuning_tab(blocks: Blocks, bench: Workbench) -> None:
    """Data, settings and the memory that they take to the left; the run and the report of a check to the right."""
    page = Tuning(bench)
    with gr.Row(elem_classes="maemi-columns"):
        with gr.Column(scale=3, min_width=280):
            data = gr.Dropdown([], label="Data set")
            file = gr.Dropdown([DEFAULTS], value=DEFAULTS, label="Settings")
            with gr.Row():
                steps = gr.Number(300, label="Steps", precision=0, minimum=1, min_width=80)
                batch = gr.Number(8, label="Batch size", precision=0, minimum=1, min_width=80)
                rate = gr.Number(0.001, label="Peak rate", minimum=0, step=0.0001, min_width=80)
            with gr.Accordion("More settings", open=False):
                more = gr.Textbox(
                    "",
                    label="One a line",
                    lines=3,
                    max_length=2000,
                    placeholder="training.max_tokens=512\nadapter.r_max=8",
                )
            planned = gr.HTML(elem_classes="maemi-card")
            check = gr.Button("Check")
            name = gr.Textbox(label="Name of the run", max_lines=1, max_length=64)
            start = gr.Button("Start fine-tuning", variant="primary")
        with gr.Column(scale=8, min_width=300):
            run = gr.Dropdown([], label="Run")
            standing = gr.HTML(_EMPTY, elem_classes="maemi-card")
            with gr.Row(elem_classes="maemi-actions"):
                stop = gr.Button("Stop and save", variant="stop", size="sm", interactive=False, min_width=110)
                resume = gr.Button("Resume", size="sm", interactive=False, min_width=110)
                score = gr.Button("Score before and after", size="sm", interactive=False, min_width=110)
            checked = gr.HTML(elem_classes="maemi-card maemi-check")
    clock = gr.Timer(LOOK_EVERY_S, active=False)
    shown = [clock, run, standing, checked, check, start, resume, score, stop]
    words = [data, file, steps, batch, rate, more]
    file.change(page.choose, file, [steps, batch, rate], **_QUIET)
    for control in words:
        control.change(page.plan, words, planned, **_QUIET)
    check.click(page.check, [run, *words], shown, **_QUIET)
    start.click(page.start, [name, *words], [name, *shown], **_QUIET)
    for button, act in ((resume, page.resume), (score, page.score), (stop, page.stop)):
        button.click(act, [run], shown, **_QUIET)
    run.input(page.look, [run], shown, **_QUIET)
    clock.tick(page.look, [run], shown, **_QUIET)
    opened = blocks.load(page.open, None, [data, file, name, *shown], **_QUIET)
    opened.then(page.plan, words, planned, **_QUIET)


def _settings(
    data: str | None, file: str, steps: float | None, batch: float | None, rate: float | None, more: str | None
) -> Settings:
    """What the fields say; an empty number leaves the file's own."""
    named = {"training.steps": steps, "training.batch_size": batch, "training.learning_rate": rate}
    given = [f"{key}={value:g}" for key, value in named.items() if value]
    return Settings(data or "", file, (*given, *(line.strip() for line in (more or "").splitlines() if line.strip())))


def _drawn_standing(standing: Standing) -> str:
    step = standing.steps if standing.state in ("done", "scoring") else int(_last(standing, "step") or 0)
    losses = (("training loss", _last(standing, "loss")), ("validation loss", _last(standing, "validation_loss")))
    loss = ", ".join(f"{name} {value:.3f}" for name, value in losses if isinstance(value, float))
    pace_s = _last(standing, "step_s") if standing.state == "training" else None
    left = f", {duration(pace_s * (standing.steps - step))} left" if pace_s else ""
    drawn = (loss_curve(standing.log), score_curve(standing.log))
    curves = [f"data:image/svg+xml;base64,{base64.b64encode(one.encode()).decode()}" for one in drawn if one]
    return _drawn(
        "standing",
        standing,
        _TOLD[standing.state] + left,
        standing.state in ("training", "scoring", "done"),
        step,
        loss,
        curves,
        _scores(standing),
    )


def _last(standing: Standing, key: str) -> Any:
    return next((entry[key] for entry in reversed(standing.log) if key in entry), None)


def _scores(standing: Standing) -> list[tuple[str, str, str, str]]:
    """Rows of the table before and after: name, both values, and the blind one after."""
    before, after = standing.scores.get("before", {}), standing.scores.get("after", {})
    if not after:
        return []

    def cell(scores: Mapping[str, Any], section: str, name: str) -> str:
        value = scores.get(section, {}).get(name)
        return f"{value:.3f}" if isinstance(value, float) else str(value) if isinstance(value, int) else "-"

    rows = [
        (f"{section}, {name}", cell(before, section, name), cell(after, section, name), cell(after, section, blind))
        for section, name, blind in SHOWN_SCORES
        if section in after
    ]
    verdicts = ("true", "false", "unsupported", "withheld")
    return rows + [
        (f"statements, {name}", cell(before, "statements", name), cell(after, "statements", name), "")
        for name in verdicts
    ]


def _drawn(macro: str, *about: Any) -> str:
    return str(getattr(template("tuning.html.j2").module, macro)(*about))
