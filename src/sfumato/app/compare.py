"""The tab Compare: a plot over any two settings, from the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
import torch
from PIL.Image import Image

from sfumato.app import asking, jobs, pictures
from sfumato.app.generate import asked_of, controls
from sfumato.app.library import Library
from sfumato.app.page import Page
from sfumato.errors import InputError
from sfumato.io import images as image_files
from sfumato.io.lettering import captioned
from sfumato.models.sweep import swept

MOST_CELLS = 64
_SEED, _PROMPT, _LABEL = "seed", "prompt", "class"
AXES = {
    "guidance scale": "guidance.scale",
    "steps": "steps",
    "sampler": "sampler",
    "grid": "grid",
    "temperature": "temperature",
    "seed": _SEED,
    "prompt": _PROMPT,
    "class": _LABEL,
}
"""What can be compared, and the setting."""
USUAL = {
    "guidance scale": "1, 2, 4",
    "steps": "4, 8, 16, 32",
    "sampler": "best, ddim, heun, ancestral",
    "grid": "best, uniform, karras",
    "temperature": "0.5, 0.8, 1",
    "seed": "0, 1, 2, 3",
    "prompt": "a red circle, a blue circle",
    "class": "0, 1, 2",
}


def values_of(axis: str, text: str) -> list[str]:
    """The values of an axis, which have commas between them."""
    if axis not in AXES:
        raise InputError(f"There is no setting {axis!r} to compare; choose one of the list.")
    values = [" ".join(one.split()) for one in text.split(",")]
    values = [one for one in values if one]
    if not values:
        raise InputError(f"Say the values of {axis}, with commas between them, such as: {USUAL[axis]}")
    return values


def cells(what: asking.Request, across: str, columns: list[str], down: str, rows: list[str]) -> list[asking.Request]:
    """What is sampled at each place, row by row."""
    if across == down:
        raise InputError("The two axes are the same setting; choose different ones.")
    if len(columns) * len(rows) > MOST_CELLS:
        raise InputError(f"{len(columns)} x {len(rows)} pictures are more than {MOST_CELLS}, the most of one plot.")
    # every value is checked before anything is sampled
    return [_with(_with(what, across, column), down, row) for row in rows for column in columns]


def _with(what: asking.Request, axis: str, value: str) -> asking.Request:
    key = AXES[axis]
    if key == _SEED:
        return replace(what, seed=asking.whole(value, 0, asking.MOST_SEED, "The seed"))
    if key == _PROMPT:
        if what.prompt is None:
            raise InputError(f"{what.entry.name} takes no prompt.")
        return replace(what, prompt=value)
    if key == _LABEL:
        name = what.entry.condition("label")
        if name is None or value not in what.entry.classes:
            raise InputError(f"{what.entry.name} has no class {value!r}.")
        return replace(what, given={**what.given, name: value})
    if key in ("sampler", "grid") and value not in (*asking.SOLVERS, *asking.GRIDS):
        raise InputError(f"There is no {key} {value!r}; known are {', '.join(asking.SOLVERS)}.")
    (sampling,) = swept(what.base_sampling, key, [value])
    if sampling.steps > asking.MOST_STEPS:
        raise InputError(f"The number of steps is at most {asking.MOST_STEPS}.")
    if sampling.guidance.scale != 1.0 and not what.entry.guided:
        raise InputError(f"{what.entry.name} was trained without a null condition and can't be guided.")
    return what.with_base_sampling(sampling)


def plotted(
    library: Library, what: asking.Request, across: str, columns: list[str], down: str, rows: list[str], job: jobs.Job
) -> Image:
    """A labelled grid: a column for each value of the one setting, a row for each of the other."""
    every = cells(what, across, columns, down, rows)
    job.note("loading the model")
    model = library.load(what.entry.name)
    images: list[Any] = []
    for number, one in enumerate(every):
        job.label = f"picture {number + 1} of {len(every)}"
        images.append(one.sample(model))
    sheets = [
        image_files.grid(torch.cat(images[k : k + len(columns)]), len(columns), 160)
        for k in range(0, len(images), len(columns))
    ]
    short = {"guidance scale": "guidance"}
    above = [f"{short.get(across, across)} {value}" if across != _PROMPT else value for value in columns]
    return captioned(
        sheets, [f"{short.get(down, down)} {value}" if down != _PROMPT else value for value in rows], above
    )


def build(page: Page) -> None:
    """The components of the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            own = controls(page, "compare", many=False)
            with gr.Row():
                across = gr.Dropdown(list(AXES), value="guidance scale", label="Columns", elem_id="compare-across")
                columns = gr.Textbox(USUAL["guidance scale"], label="Values", elem_id="compare-columns")
            with gr.Row():
                down = gr.Dropdown(list(AXES), value="steps", label="Rows", elem_id="compare-down")
                rows = gr.Textbox("4, 8, 16", label="Values", elem_id="compare-rows")
            go, stop = jobs.buttons("compare", "Compare")
        with gr.Column(scale=3, min_width=420):
            bar = gr.HTML(elem_id="compare-progress")
            seen = gr.HTML(elem_id="compare-preview", elem_classes=["sf-preview", "sf-pixels"])
            shown = pictures.shown("compare-plot", "Every picture from the same noise", pixels=True)
    for axis, values in ((across, columns), (down, rows)):
        axis.input(_usual, axis, values, queue=False, api_visibility="private")

    def compare(across: str, columns: str, down: str, rows: str, *values: Any) -> Iterator[list[Any]]:
        what = asking.request(page.library, asked_of(page, (*values[:5], 1, *values[6:])))
        named = (across, values_of(across, columns), down, values_of(down, rows))
        cells(what, *named)
        for found in jobs.watched(lambda job: plotted(page.library, what, *named, job)):
            if isinstance(found, jobs.Seen):
                yield [jobs.progress(found), jobs.preview(found), gr.skip()]
                continue
            facts = {"across": across, "columns": columns, "down": down, "rows": rows, "seed": what.seed}
            yield ["", "", _saved(jobs.result_of(found), page, facts)]

    jobs.connect(stop, [bar, seen, shown], (go.click, compare, [across, columns, down, rows, *own.all]))


def _usual(axis: str) -> str:
    return USUAL.get(axis, "")


def _saved(image: Image, page: Page, facts: dict[str, Any]) -> str:
    """The plot as a file, with what it shows in its metadata."""
    path = pictures.own_folder(page.results) / "comparison.png"
    image_files.save_png(image, path, facts)
    return str(path)
