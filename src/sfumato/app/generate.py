"""The tab Generate: pictures of a prompt or a class, seen while they are made."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sfumato.app import asking, jobs, pictures, retouching
from sfumato.app.asking import AS_TRAINED, GRIDS, NO_CLASS, SOLVERS, Asked
from sfumato.app.library import Entry
from sfumato.app.page import Page, default_model
from sfumato.errors import InputError

_KEPT = 64  # results of a session

EXAMPLES = ["a small yellow circle above a large blue square", "a green ring", "a large red star"]


@dataclass
class Controls:
    """The components whose values are an :class:`Asked`, in the order of its fields."""

    model: gr.Dropdown
    prompt: gr.Textbox
    label: gr.Dropdown
    seed: gr.Number
    first: gr.Number
    count: gr.Slider
    steps: gr.Slider
    solver: gr.Dropdown
    grid: gr.Dropdown
    scale: gr.Slider
    low: gr.Textbox
    high: gr.Textbox
    restored: gr.State

    @property
    def all(self) -> list[Any]:
        """All of them."""
        return list(vars(self).values())

    @property
    def of_model(self) -> list[Any]:
        """Those that depend on the model."""
        return [self.prompt, self.label, self.steps, self.solver, self.grid, self.scale, self.low, self.high]


def controls(page: Page, name: str, *, many: bool = True) -> Controls:
    """The controls of a sampling.

    Args:
        page: the page.
        name: of the tab, for the ids of the components.
        many: whether several pictures are sampled at once.
    """
    model = page.models("samples", first=default_model(page), elem_id=f"{name}-model")
    entry = page.library.entries.get(model.value)
    prompt = gr.Textbox(
        label="Prompt",
        value=EXAMPLES[0],
        lines=2,
        visible=entry is not None and entry.text is not None,
        elem_id=f"{name}-prompt",
    )
    classes = entry.classes if entry is not None else ()
    label = gr.Dropdown(
        [NO_CLASS, *classes], value=NO_CLASS, label="Class", visible=bool(classes), elem_id=f"{name}-class"
    )
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=asking.MOST_SEED, elem_id=f"{name}-seed")
        first = gr.Number(0, label="First index", precision=0, minimum=0, elem_id=f"{name}-first", visible=many)
    count = gr.Slider(1, asking.MOST_PICTURES, 4, step=1, label="Pictures", visible=many, elem_id=f"{name}-count")
    usual, guided = entry.sampling if entry is not None else None, entry is not None and entry.guided
    with gr.Accordion("Sampling", open=False):
        steps = gr.Slider(1, 250, usual.steps if usual else 20, step=1, label="Steps", elem_id=f"{name}-steps")
        with gr.Row():
            solver = gr.Dropdown([AS_TRAINED, *SOLVERS], value=AS_TRAINED, label="Sampler", elem_id=f"{name}-sampler")
            grid = gr.Dropdown([AS_TRAINED, *GRIDS], value=AS_TRAINED, label="Grid", elem_id=f"{name}-grid")
        scale = gr.Slider(
            0,
            10,
            usual.guidance.scale if usual else 1.0,
            step=0.1,
            label="Guidance scale (1: none)",
            elem_id=f"{name}-guidance",
            visible=guided,
        )
        with gr.Row():
            # texts: an empty number becomes 0 when the accordion opens
            low, high = (
                gr.Textbox(label=label, placeholder="everywhere", elem_id=f"{name}-{end}", visible=guided)
                for label, end in (("Guide from σ/α", "low"), ("up to σ/α", "high"))
            )

    found = Controls(model, prompt, label, seed, first, count, steps, solver, grid, scale, low, high, gr.State({}))

    def chosen(name: str) -> list[Any]:
        return [*of_model(page.library.entry(name)), {}]

    # what a person chooses, not what a dropped picture sets: that has its own settings
    model.input(
        jobs.guarded(chosen),
        model,
        [*found.of_model, found.restored],
        **jobs.QUICK,
        api_visibility="private",
    )
    return found


def of_model(entry: Entry) -> list[Any]:
    """The updates of the controls that depend on the model."""
    how, guided = entry.sampling, entry.guided
    return [
        gr.update(visible=entry.text is not None),
        gr.update(choices=[NO_CLASS, *entry.classes], value=NO_CLASS, visible=bool(entry.classes)),
        gr.update(value=how.steps, maximum=max(250, how.steps)),
        AS_TRAINED,
        AS_TRAINED,
        gr.update(value=how.guidance.scale, visible=guided),
        *(gr.update(value=end, visible=guided) for end in asking.ends(how.guidance)),
    ]


def asked_of(page: Page, values: tuple[Any, ...]) -> Asked:
    """The values of the controls; guidance only of a model that knows it."""
    asked = Asked(*values)
    entry = page.library.entry(asked.model)
    return asked if entry.guided else replace(asked, scale=None, low=None, high=None)


def build(page: Page) -> None:
    """The components of the tab."""
    made = gr.State([])  # a dictionary for each result, the newest first
    chosen = gr.State(0)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            own = controls(page, "generate")
            fresh = gr.Checkbox(False, label="A new seed each time", elem_id="generate-fresh")
            go, stop = jobs.buttons("generate", "Generate")
            with gr.Column(visible=own.prompt.visible is True) as examples:
                gr.Examples(EXAMPLES, own.prompt, label="Prompts")
            dropped = pictures.upload(label="Drop a picture of Sfumato to restore its settings", height=140)
            dropped.elem_id = "generate-drop"
        with gr.Column(scale=3, min_width=420):
            bar = gr.HTML(elem_id="generate-progress")
            seen = gr.HTML(elem_id="generate-preview", elem_classes=["sf-preview", "sf-pixels"])
            gallery = pictures.gallery("Results, the newest first", "generate-gallery")
            with gr.Row():
                again = gr.Button("Same again", elem_id="generate-again")
                vary = gr.Button("Vary", elem_id="generate-vary")
                larger = gr.Button("Up-scale", elem_id="generate-upscale")
            about = gr.Markdown("Choose a result for its details.", elem_id="generate-about", elem_classes="sf-note")

    def with_prompts(name: str | None) -> Any:
        return gr.update(visible=name is not None and page.library.entry(name).text is not None)

    own.model.change(jobs.guarded(with_prompts), own.model, examples, **jobs.QUICK, api_visibility="private")
    results = [bar, seen, gallery, made, chosen, about]

    def generate(made: list[dict[str, Any]], *values: Any) -> Iterator[list[Any]]:
        what = asking.request(page.library, asked_of(page, values))
        yield from _results(made, partial(_sampled, page, what))

    def same(made: list[dict[str, Any]], chosen: int) -> Iterator[list[Any]]:
        one = _one(made, chosen)
        what = asking.request(page.library, asking.restored(page.library, Path(one["path"])))
        yield from _results(made, partial(_sampled, page, what))

    def varied(made: list[dict[str, Any]], chosen: int) -> Iterator[list[Any]]:
        one = _one(made, chosen)
        yield from _results(made, partial(_varied, page, one))

    def enlarged(made: list[dict[str, Any]], chosen: int) -> Iterator[list[Any]]:
        one = _one(made, chosen)
        yield from _results(made, partial(_enlarged, page, one))

    private: dict[str, Any] = {"api_visibility": "private"}

    def seed_of(fresh: bool, seed: int) -> int:
        return secrets.randbelow(2**31) if fresh else seed

    renewed = go.click(seed_of, [fresh, own.seed], own.seed, queue=False, **private)
    jobs.connect(
        stop,
        results,
        (renewed.success, generate, [made, *own.all]),
        (again.click, same, [made, chosen]),
        (vary.click, varied, [made, chosen]),
        (larger.click, enlarged, [made, chosen]),
    )

    def select(made: list[dict[str, Any]], event: gr.SelectData) -> list[Any]:
        return [event.index, made[event.index]["about"]]

    gallery.select(select, made, [chosen, about], queue=False, **private)

    def restore(path: str | None) -> list[Any]:
        if path is None:
            return [gr.skip()] * len(own.all)
        asked = asking.restored(page.library, Path(path))
        return restored_values(page, own, asked)

    # hidden: an error would be marked on every control
    dropped.upload(jobs.guarded(restore), dropped, own.all, **{**jobs.QUICK, "show_progress": "hidden"}, **private)


def restored_values(page: Page, own: Controls, asked: Asked) -> list[Any]:
    """The updates of all controls for a picture that was dropped."""
    entry = page.library.entry(asked.model)
    updates = dict(zip(map(id, own.of_model), of_model(entry), strict=True))
    found: list[Any] = []
    for name, component in vars(own).items():
        update, value = updates.get(id(component)), getattr(asked, name)
        if name == "model":
            update = gr.update(choices=page.library.choices("samples"))
        found.append({**update, "value": value} if isinstance(update, dict) else value)
    return found


def _one(made: list[dict[str, Any]], chosen: int) -> dict[str, Any]:
    if not made:
        raise InputError("There is no result yet: generate some, and choose one.")
    return made[min(chosen, len(made) - 1)]


def _results(made: list[dict[str, Any]], work: Callable[[jobs.Job], list[dict[str, Any]]]) -> Iterator[list[Any]]:
    """Show the work, then its results in front of those that are there."""
    skip = gr.skip()
    for found in jobs.watched(work):
        if isinstance(found, jobs.Seen):
            yield [jobs.progress(found), jobs.preview(found), skip, skip, skip, skip]
            continue
        new = jobs.result_of(found)
        made = [*new, *made][:_KEPT]
        shown = [(one["path"], one["title"]) for one in made]
        yield ["", "", gr.update(value=shown, selected_index=None), made, 0, made[0]["about"]]


def _sampled(page: Page, what: asking.Request, job: jobs.Job) -> list[dict[str, Any]]:
    job.note("loading the model")
    model = page.library.load(what.entry.name)
    job.label = what.prompt or what.entry.name
    images = what.sample(model)
    facts = what.facts(model)
    paths = pictures.written(images, page.results, facts, what.first)
    how = what.base_sampling
    lines = [f"**{what.prompt or what.entry.name}**", f"{what.entry.name}, {how.steps} steps of {how.sampler.kind}"]
    if how.guidance.scale != 1.0:
        lines[-1] += f", guidance {how.guidance.scale:g}"
    found: list[dict[str, Any]] = []
    for number, path in enumerate(paths, what.first):
        about = "\n\n".join([*lines, f"seed {what.seed}, index {number}"])
        found.append({"path": str(path), "title": f"seed {what.seed} · index {number}", "about": about})
    return found


def _varied(page: Page, one: dict[str, Any], job: jobs.Job) -> list[dict[str, Any]]:
    images, how = retouching.variations(page.library, Path(one["path"]), 4, 0, job)
    facts = {"varied": one["title"], "how": how}
    paths = pictures.written(images, page.results, facts, 0)
    return [
        {"path": str(path), "title": f"variation {k + 1} of {one['title']}", "about": f"{how}\n\n{one['about']}"}
        for k, path in enumerate(paths)
    ]


def _enlarged(page: Page, one: dict[str, Any], job: jobs.Job) -> list[dict[str, Any]]:
    path, size = retouching.enlarged(page.library, Path(one["path"]), None, 0, page.results, job)
    return [{"path": str(path), "title": f"{size} of {one['title']}", "about": f"{size}\n\n{one['about']}"}]
