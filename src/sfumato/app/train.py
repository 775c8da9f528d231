"""The tab Train: start a training, watch it, stop it and resume it; every browser sees the same one."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sfumato.app import curves, jobs, pictures, watching
from sfumato.app.curves import Curve
from sfumato.app.orders import DIGITS, FOLDER, MOST_FILES, SHAPES, SIZES, UPLOAD, Wanted
from sfumato.app.page import Page
from sfumato.app.training import Trainings
from sfumato.app.watching import View
from sfumato.errors import InputError

_SOON, _LATER = 1.5, 10.0
"""Seconds between two looks, at what changes and at what may begin in another browser."""
_LEAST = 400  # pixels of a sheet of samples, to which smaller ones are enlarged
_LIGHT: dict[str, Any] = {"concurrency_id": "watch", "concurrency_limit": 4, "api_visibility": "private"}
_NOTE = (
    "The training runs on the machine of the page. Closing this tab does not stop it; closing the page (Ctrl-C in its "
    "terminal) saves a checkpoint first, from which it can be resumed."
)


def build(page: Page) -> None:
    """The components of the tab."""
    trainings = Trainings(page.runs, page.folders)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            start, inputs = _settings(page)
        with gr.Column(scale=3, min_width=420):
            with gr.Row(equal_height=True):
                chosen = gr.Dropdown([], value=None, label="Run", elem_id="train-run", scale=4)
                with gr.Column(scale=1, min_width=110):
                    stop = gr.Button("Stop", interactive=False, elem_id="train-stop", size="md")
                    resume = gr.Button("Resume", interactive=False, elem_id="train-resume", size="md")
            status = gr.HTML(_line("Nothing is trained yet."), elem_id="train-status")
            with gr.Row(equal_height=False):
                with gr.Column(min_width=300):
                    loss = gr.HTML("<b>Loss</b>", visible=False)
                    curve = pictures.shown("train-curve", visible=False)
                with gr.Column(min_width=300):
                    step = gr.HTML(visible=False, elem_id="train-step")
                    samples = pictures.shown("train-samples", pixels=True, visible=False)
            table = gr.Markdown(visible=False, elem_id="train-evaluation")
            with gr.Accordion("Log", open=False):
                log = gr.Code(
                    show_label=False, interactive=False, show_line_numbers=False, wrap_lines=True, elem_id="train-log"
                )
    timer = gr.Timer(_SOON)
    # what this browser shows, and how many trainings it has seen completed
    shown, completed = gr.State({}), gr.State(trainings.completed)

    def look(name: str | None, before: dict[str, Any]) -> list[Any]:
        return _refreshed(trainings, name, before)

    seen = [chosen, stop, resume, status, loss, curve, step, samples, table, log, timer, shown, completed]
    looks: dict[str, Any] = {"inputs": [chosen, shown], "outputs": seen, **_LIGHT, "show_progress": "hidden"}
    guarded = jobs.guarded(look)
    timer.tick(guarded, **looks)
    chosen.input(guarded, **looks)

    def begin(*values: Any) -> tuple[Any, bool]:
        name = trainings.start(_wanted(*values))
        # a second click must not replace what has just begun
        return gr.update(choices=watching.names(trainings), value=name), False

    def end() -> None:
        trainings.stop()

    def go_on(name: str | None) -> None:
        if not name or not watching.look(trainings, name).resumable:
            raise InputError("This run can't be resumed: it is complete, or it is being trained.")
        trainings.resume(name)

    private: dict[str, Any] = {**jobs.QUICK, "api_visibility": "private"}
    start.click(jobs.guarded(begin), inputs, [chosen, inputs[1]], **private).success(guarded, **looks)
    stop.click(jobs.guarded(end), None, None, **private).success(guarded, **looks)
    resume.click(jobs.guarded(go_on), [chosen], None, **private).success(guarded, **looks)
    # a model that has just been trained is offered in the other tabs
    page.follow(completed.change)


def _settings(page: Page) -> tuple[gr.Button, list[Any]]:
    """The components that say what is trained, in the order of :func:`_wanted`."""
    choices = [("Handwritten digits (8x8, 10 classes)", DIGITS), ("Shapes with captions (text to image)", SHAPES)]
    choices += [(f"Folder {name}", f"{FOLDER}{name}") for name in page.folders]
    choices += [("Upload pictures", UPLOAD)]
    data = gr.Dropdown(choices, value=DIGITS, label="Data", elem_id="train-data")
    files = gr.File(
        file_count="multiple",
        file_types=["image"],
        label=f"Pictures, at most {MOST_FILES:,}",
        visible=False,
        height=180,
        elem_id="train-files",
    )
    classes = gr.Checkbox(True, label="Condition on the class", info=_CLASSES[DIGITS], elem_id="train-classes")
    size = gr.Dropdown(
        list(SIZES),
        value=32,
        label="Size",
        info="Pixels a side.",
        visible=False,
        elem_id="train-size",
    )
    steps = gr.Number(
        750,
        label="Steps",
        info="750 take about a minute on two CPU cores.",
        precision=0,
        minimum=1,
        step=50,
        elem_id="train-steps",
    )
    budget = gr.Textbox(
        "10m",
        label="Time",
        info="Such as 90s, 10m or 2h; the training takes as many steps as fit.",
        visible=False,
        elem_id="train-budget",
    )
    name = gr.Textbox(
        "", label="Name of the run", info="Letters, digits, - and _.", placeholder="by the data", elem_id="train-name"
    )
    exists = gr.Checkbox(False, label="Replace the run of this name, if there is one", elem_id="train-replace")
    with gr.Accordion("Advanced", open=False):
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="train-seed")
        options = gr.Textbox(
            "",
            label="Further options",
            info="As on the command line; sfumato train --help lists them.",
            placeholder="--optimizer.learning-rate 1e-3 --training.batch-size 64",
            lines=3,
            elem_id="train-options",
        )
    start = gr.Button("Start", variant="primary", elem_id="train-start")
    gr.Markdown(_NOTE, elem_classes="sf-note")

    def suited(chosen: str) -> list[Any]:
        digits, classed = chosen == DIGITS, chosen == DIGITS or chosen.startswith(FOLDER)
        sizes = [size for size in SIZES if chosen != SHAPES or size in (32, 64)]
        return [
            gr.update(visible=chosen == UPLOAD),
            gr.update(visible=classed, value=digits, info=_CLASSES.get(chosen, _CLASSES[FOLDER])),
            gr.update(visible=not digits, choices=sizes, value=32),
            gr.update(visible=digits),
            gr.update(visible=not digits),
        ]

    outputs = [files, classes, size, steps, budget]
    data.input(jobs.guarded(suited), [data], outputs, **jobs.QUICK, api_visibility="private")
    return start, [data, exists, name, classes, steps, budget, size, seed, options, files]


_CLASSES = {
    DIGITS: "Digits can then be sampled by class, and guided.",
    FOLDER: "The classes are the sub-folders.",
}


def _wanted(*values: Any) -> Wanted:
    """What the components of :func:`_settings` say."""
    data, exists, name, classes, steps, budget, size, seed, options, files = values
    return Wanted(
        data=str(data or ""),
        name=str(name or ""),
        classes=bool(classes),
        steps=steps,
        budget=str(budget or ""),
        size=size,
        seed=seed,
        options=str(options or ""),
        replace=bool(exists),
        files=tuple(map(str, files or ())),
    )


def _refreshed(trainings: Trainings, name: str | None, before: dict[str, Any]) -> list[Any]:
    """The updates of what a browser shows; what has not changed is left alone."""
    choices = watching.names(trainings)
    known = [value for _, value in choices]
    first = name is None
    if name is None and known:
        name = trainings.running or known[0]
    now: dict[str, Any] = {}

    def update(key: str, state: Any, make: Callable[[], Any]) -> Any:
        now[key] = state
        return gr.skip() if before.get(key, "") == state else make()

    view, line = None, _line("Nothing is trained yet.")
    if name is not None:
        try:
            view = watching.look(trainings, name)
            line = _status(view)
        except InputError as error:
            line = _line(str(error))
    folder = trainings.runs / view.name if view is not None and view.steps else None
    runs = gr.update(choices=choices, value=name) if first else gr.update(choices=choices)
    page_trains = trainings.running is not None
    can_stop = page_trains and trainings.running == name and not trainings.stopping
    can_resume = view is not None and view.resumable and not page_trains
    curve = view.curve if view is not None and view.curve.steps else None
    sheet = view.samples if view is not None else None
    rows = watching.evaluation(folder) if folder is not None else []
    text = watching.log(trainings, view.name) if view is not None else ""  # a known name, no path
    soon = page_trains or (view is not None and view.changing)
    updates = [
        update("choices", choices, lambda: runs),
        update("stop", can_stop, lambda: gr.update(interactive=can_stop)),
        update("resume", can_resume, lambda: gr.update(interactive=can_resume)),
        update("line", line, lambda: line),
        update("loss", curve is not None, lambda: gr.update(visible=curve is not None)),
        update("curve", (name, curve and (len(curve.steps), curve.step, len(curve.heldout))), lambda: _drawn(curve)),
        update("step", (name, sheet), lambda: _title(sheet)),
        update("samples", (name, sheet, watching.modified(sheet)), lambda: _sheet(sheet)),
        update("table", rows, lambda: gr.update(visible=bool(rows), value=_table(rows))),
        update("log", text, lambda: text),
        update("timer", soon, lambda: gr.Timer(_SOON if soon else _LATER)),
    ]
    return [*updates, now, trainings.completed]


def _line(sentence: str) -> str:
    return f"<p>{html.escape(sentence)}</p>"


def _status(view: View) -> str:
    """The state of a run as HTML: a bar while something goes on, and a sentence."""
    said = html.escape(view.sentence)
    if view.state in ("starting", "stopping", "evaluating"):
        what = {"starting": "Starting", "stopping": "Stopping", "evaluating": "Sampling and evaluating"}[view.state]
        bar = jobs.progress(jobs.Seen(0, 0, None, what))
    elif view.changing:
        bar = jobs.progress(jobs.Seen(view.step, view.steps, None))
    else:
        bar = ""
    strong = {"failed": "<b>Failed.</b> ", "stopped": "<b>Stopped.</b> "}.get(view.state, "")
    return f"{bar}<p>{strong}{said}</p>"


def _drawn(curve: Curve | None) -> Any:
    if curve is None:
        return gr.update(visible=False, value=None)
    return gr.update(visible=True, value=pictures.of_figure(curves.plot(curve)))


def _sheet(path: Path | None) -> Any:
    """A sheet of samples, large enough to be seen."""
    try:
        image = Image.open(path).convert("RGB") if path is not None else None
    except OSError:
        image = None  # it is gone, or the run is
    if image is None:
        return gr.update(visible=False, value=None)
    factor = max(1, _LEAST // max(image.size))
    larger = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    return gr.update(visible=True, value=larger)


def _title(path: Path | None) -> Any:
    step = "" if path is None else path.stem.removeprefix("step-").lstrip("0")
    return gr.update(visible=path is not None, value=f"<b>Samples at step {step}</b>")


def _table(rows: list[list[str]]) -> str:
    """The evaluation as Markdown."""
    lines = ["| Evaluation | samples | real pictures |", "|:--|--:|--:|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", "↓ lower is better, ↑ higher is better, → the nearer to real pictures the better."])
