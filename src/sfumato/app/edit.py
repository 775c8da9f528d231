"""The tab Edit: fill in what is painted over, sample again, interpolate, enlarge, vary, blend."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sfumato.app import asking, jobs, pictures, retouching
from sfumato.app.asking import NO_CLASS
from sfumato.app.library import Entry
from sfumato.app.page import Page
from sfumato.errors import InputError
from sfumato.models.edit import inpaint, interpolate, sdedit

_CANVAS = 512


def build(page: Page) -> None:
    """The components of the tab."""
    with gr.Tabs():
        with gr.Tab("Inpaint", id="inpaint"):
            _inpaint(page)
        with gr.Tab("SDEdit", id="sdedit"):
            _sdedit(page)
        with gr.Tab("Interpolate", id="interpolate"):
            _interpolate(page)
        with gr.Tab("Up-scale", id="upscale"):
            _upscale(page)
        with gr.Tab("Vary", id="vary"):
            _vary(page)
        with gr.Tab("Blend", id="blend"):
            _blend(page)


def _outputs(name: str, label: str) -> tuple[gr.HTML, gr.HTML, gr.Gallery]:
    bar = gr.HTML(elem_id=f"{name}-progress")
    seen = gr.HTML(elem_id=f"{name}-preview", elem_classes=["sf-preview", "sf-pixels"])
    gallery = pictures.gallery(label, f"{name}-gallery")
    return bar, seen, gallery


def _connect(
    page: Page,
    go: gr.Button,
    stop: gr.Button,
    inputs: list[Any],
    outputs: tuple[gr.HTML, gr.HTML, gr.Gallery],
    work: Callable[..., Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]],
) -> None:
    """Let a button do some work: ``work`` checks the inputs and gives what a job computes, images and their facts."""

    def run(*values: Any) -> Iterator[list[Any]]:
        job = work(*values)
        for found in jobs.watched(job):
            if isinstance(found, jobs.Seen):
                yield [jobs.progress(found), jobs.preview(found), gr.skip()]
                continue
            images, facts = jobs.result_of(found)
            paths = pictures.written(images, page.results, facts, int(facts.pop("first", 0)))
            yield ["", "", [(str(path), f"{number + 1}") for number, path in enumerate(paths)]]

    jobs.connect(stop, list(outputs), (go.click, run, inputs))


class _Subject:
    """The controls that say which model edits, and what the picture shows."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.model = page.models("edits", elem_id=f"{name}-model")
        entry = page.library.entries.get(str(self.model.value))
        if entry is None:
            gr.Markdown(
                "No model here can do this yet: train one in the tab Train, such as that of the digits. Systems of "
                "several stages are edited stage by stage on the command line."
            )
        text, classes = (entry.text, entry.classes) if entry is not None else (None, ())
        self.prompt = gr.Textbox(label="Prompt", visible=text is not None, elem_id=f"{name}-prompt")
        self.label = gr.Dropdown(
            [NO_CLASS, *classes], value=NO_CLASS, label="Class", visible=bool(classes), elem_id=f"{name}-class"
        )
        self.model.change(
            jobs.guarded(self._changed), self.model, [self.prompt, self.label], **jobs.QUICK, api_visibility="private"
        )

    @property
    def inputs(self) -> list[Any]:
        return [self.model, self.prompt, self.label]

    def _changed(self, name: str | None) -> list[Any]:
        if name is None:
            return [gr.skip(), gr.skip()]
        entry = self.page.library.entry(name)
        return [
            gr.update(visible=entry.text is not None),
            gr.update(choices=[NO_CLASS, *entry.classes], value=NO_CLASS, visible=bool(entry.classes)),
        ]

    def chosen(self, model: str | None, prompt: str, label: str) -> tuple[Entry, dict[str, Any]]:
        """The model, and the conditions that it is given."""
        entry = self.page.library.entry(model)
        if not entry.edits:
            raise InputError(f"{entry.name} can't be edited with here; choose a single model of pictures.")
        return entry, asking.conditions(entry, prompt, label)


def _facts(kind: str, entry: Entry, given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"edit": kind, "model": str(entry.path), "given": given, **more}


def mask_of(layers: list[Any], shape: tuple[int, ...]) -> Any:
    """What is kept: true where nothing was painted; at the size of the model, where anything painted counts."""
    painted = np.zeros(shape[1:], dtype=bool)
    for layer in layers:
        opacity = np.asarray(layer.convert("RGBA"))[..., 3]
        small = Image.fromarray(opacity).resize((shape[2], shape[1]), Image.Resampling.BOX)
        painted |= np.asarray(small) > 127
    return ~painted


def _inpaint(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            subject = _Subject(page, "inpaint")
            gr.Markdown("Drop a picture, or take one of the model, and paint over what is to be filled in.")
            draw = gr.Button("Take a sample of the model", elem_id="inpaint-sample")
            editor = gr.ImageEditor(
                label="Paint over it",
                type="pil",
                sources=["upload", "clipboard"],
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=48, colors=["#ff7a1a"], color_mode="fixed"),
                format="png",
                canvas_size=(_CANVAS, _CANVAS),
                elem_id="inpaint-editor",
            )
            count = gr.Slider(1, asking.MOST_PICTURES, 4, step=1, label="Results", elem_id="inpaint-count")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="inpaint-seed")
            go, stop = jobs.buttons("inpaint", "Fill in")
        with gr.Column():
            outputs = _outputs("inpaint", "Filled in")

    def work(canvas: Any, count: int, seed: int, *values: Any) -> Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]:
        entry, given = subject.chosen(*values)
        if not canvas or canvas.get("background") is None:
            raise InputError("Drop a picture first, or take a sample of the model.")
        image = pictures.from_pillow(canvas["background"], entry.shape)
        kept = mask_of(canvas.get("layers") or [], entry.shape)
        if kept.all():
            raise InputError("Nothing is painted over: paint where the picture is to be filled in.")
        number, first = asking.whole(count, 1, asking.MOST_PICTURES, "The count"), _seed(seed)

        def run(job: jobs.Job) -> tuple[Tensor, dict[str, Any]]:
            job.note("loading the model")
            model = page.library.load(entry.name)
            job.label = "filling in"
            keep = torch.from_numpy(kept)
            images = inpaint(model, image, keep, number, repeats=3, seed=first, progress=False, **given)
            return images, _facts("inpaint", entry, given, seed=first)

        return run

    _connect(page, go, stop, [editor, count, seed, *subject.inputs], outputs, work)

    def sample(seed: int, *values: Any) -> Any:
        entry, given = subject.chosen(*values)
        model = page.library.load(entry.name)
        image = model.sample(1, seed=_seed(seed), progress=False, **given)[0]
        return pictures.flat(image, _CANVAS)

    draw.click(jobs.guarded(sample), [seed, *subject.inputs], editor, **jobs.ONE, api_visibility="private")


def _seed(seed: Any) -> int:
    return asking.whole(seed, 0, asking.MOST_SEED, "The seed")


def _sdedit(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            subject = _Subject(page, "sdedit")
            picture = pictures.upload(label="Picture", height=240)
            picture.elem_id = "sdedit-picture"
            strength = gr.Slider(
                0.05, 1.0, 0.5, step=0.05, label="Strength: how much is sampled again", elem_id="sdedit-strength"
            )
            count = gr.Slider(1, asking.MOST_PICTURES, 4, step=1, label="Results", elem_id="sdedit-count")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="sdedit-seed")
            go, stop = jobs.buttons("sdedit", "Sample again")
        with gr.Column():
            outputs = _outputs("sdedit", "Results")

    def work(
        path: str | None, strength: float, count: int, seed: int, *values: Any
    ) -> Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]:
        entry, given = subject.chosen(*values)
        image = pictures.of_model(path, entry.shape)
        number, first = asking.whole(count, 1, asking.MOST_PICTURES, "The count"), _seed(seed)
        share = asking.number(strength, 0.01, 1.0, "The strength")

        def run(job: jobs.Job) -> tuple[Tensor, dict[str, Any]]:
            job.note("loading the model")
            model = page.library.load(entry.name)
            job.label = f"strength {share:g}"
            images = sdedit(model, image, share, number, seed=first, progress=False, **given)
            return images, _facts("sdedit", entry, given, seed=first, strength=share)

        return run

    _connect(page, go, stop, [picture, strength, count, seed, *subject.inputs], outputs, work)


def _interpolate(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            subject = _Subject(page, "interpolate")
            with gr.Row():
                start = gr.Number(0, label="From seed", precision=0, elem_id="interpolate-start")
                end = gr.Number(1, label="to seed", precision=0, elem_id="interpolate-end")
            count = gr.Slider(3, asking.MOST_PICTURES, 8, step=1, label="Pictures", elem_id="interpolate-count")
            go, stop = jobs.buttons("interpolate", "Interpolate")
        with gr.Column():
            outputs = _outputs("interpolate", "On the way")

    def work(start: int, end: int, count: int, *values: Any) -> Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]:
        entry, given = subject.chosen(*values)
        ends = _seed(start), _seed(end)
        number = asking.whole(count, 3, asking.MOST_PICTURES, "The count")

        def run(job: jobs.Job) -> tuple[Tensor, dict[str, Any]]:
            job.note("loading the model")
            model = page.library.load(entry.name)
            job.label = f"from seed {ends[0]} to {ends[1]}"
            images = interpolate(model, *ends, number, progress=False, **given)
            return images, _facts("interpolate", entry, given, seed=ends[0], seeds=list(ends))

        return run

    _connect(page, go, stop, [start, end, count, *subject.inputs], outputs, work)


def _upscale(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            model = page.models("upscales", first="photos", elem_id="upscale-model")
            picture = pictures.upload(label=f"Picture, up to {retouching.MOST_ENLARGED} pixels a side", height=280)
            picture.elem_id = "upscale-picture"
            seed = gr.Number(0, label="Seed", precision=0, elem_id="upscale-seed")
            go, stop = jobs.buttons("upscale", "Up-scale")
        with gr.Column():
            bar = gr.HTML(elem_id="upscale-progress")
            slider = gr.ImageSlider(
                label="Bicubic, and the model: move the line",
                type="filepath",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="upscale-slider",
            )
            file = gr.File(label="The result", visible=False, interactive=False, elem_id="upscale-file")

    def run(path: str | None, name: str, seed: int) -> Iterator[list[Any]]:
        source, number = pictures.checked(path), _seed(seed)
        for found in jobs.watched(
            lambda job: retouching.enlarged(page.library, source, name, number, page.results, job), previews=False
        ):
            if isinstance(found, jobs.Seen):
                yield [jobs.progress(found), gr.skip(), gr.skip()]
                continue
            out, size = jobs.result_of(found)
            pair = (str(_bicubic(source, out)), str(out))
            yield [f"<span class='sf-note'>{size}</span>", pair, gr.update(value=str(out), visible=True)]

    jobs.connect(stop, [bar, slider, file], (go.click, run, [picture, model, seed]))


def _bicubic(source: Path, large: Path) -> Path:
    """The source at the size of its enlargement, by bicubic interpolation."""
    with Image.open(large) as result, Image.open(source) as image:
        upright = ImageOps.exif_transpose(image)
        plain = upright.convert("RGB").resize(result.size, Image.Resampling.BICUBIC)
    path = large.with_name(f"{secrets.token_hex(4)}-bicubic.png")
    plain.save(path)
    return path


def _vary(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            gr.Markdown(
                "Other pictures of the same embedding, by a system of unCLIP of that size; or of the model that made "
                "the picture, by SDEdit."
            )
            picture = pictures.upload(label="Picture", height=240)
            picture.elem_id = "vary-picture"
            eta = gr.Slider(0, 1, 1.0, step=0.1, label="eta: 0 gives the picture back", elem_id="vary-eta")
            count = gr.Slider(1, 8, 4, step=1, label="Variations", elem_id="vary-count")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="vary-seed")
            go, stop = jobs.buttons("vary", "Vary")
        with gr.Column():
            outputs = _outputs("vary", "Variations")

    def work(
        path: str | None, eta: float, count: int, seed: int
    ) -> Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]:
        source, number = pictures.checked(path), asking.whole(count, 1, 8, "The count")
        first, share = _seed(seed), asking.number(eta, 0.0, 1.0, "eta")

        def run(job: jobs.Job) -> tuple[Tensor, dict[str, Any]]:
            images, how = retouching.variations(page.library, source, number, first, job, eta=share)
            return images, {"edit": how, "seed": first}

        return run

    _connect(page, go, stop, [picture, eta, count, seed], outputs, work)


def _blend(page: Page) -> None:
    with gr.Row():
        with gr.Column():
            gr.Markdown("Pictures on the way from one to another, by a system of unCLIP.")
            with gr.Row():
                first = pictures.upload(label="From", height=200)
                second = pictures.upload(label="to", height=200)
            first.elem_id, second.elem_id = "blend-first", "blend-second"
            count = gr.Slider(3, 12, 6, step=1, label="Pictures", elem_id="blend-count")
            go, stop = jobs.buttons("blend", "Blend")
        with gr.Column():
            outputs = _outputs("blend", "On the way")

    def work(one: str | None, two: str | None, count: int) -> Callable[[jobs.Job], tuple[Tensor, dict[str, Any]]]:
        pictures.checked(one, "the first picture")
        pictures.checked(two, "the second picture")
        number = asking.whole(count, 3, 12, "The count")
        return lambda job: (retouching.blended(page.library, one, two, number, job), {"edit": "blend", "seed": 0})

    _connect(page, go, stop, [first, second, count], outputs, work)
