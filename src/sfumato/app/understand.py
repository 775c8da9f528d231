"""The tab Understand: the lecture as figures that can be moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from sfumato.app import asking, figures, jobs, pictures
from sfumato.app.page import Page

_MATH: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "$", "right": "$", "display": False},
]
First = tuple[Callable[..., list[Any]], list[Any], list[Any]]
"""What a sub-tab shows when it is opened: a function, its inputs and outputs."""

_LIVE: dict[str, Any] = {
    **jobs.QUICK,
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""For sliders: while one figure is drawn, only the last place of the slider waits."""


def build(page: Page, tab: gr.Tab) -> None:
    """The components of the ``tab``; what a sub-tab shows at first is computed when it is opened."""
    with gr.Tabs():
        for number, (name, components) in enumerate(_TABS.items()):
            with gr.Tab(name, id=name.lower().replace(" ", "-")) as own:
                first = components(page)
            if first is not None:
                function, inputs, outputs = first
                for opened in (own, tab) if number == 0 else (own,):
                    opened.select(jobs.guarded(function), inputs, outputs, **_LIVE)


def _text(text: str, name: str | None = None) -> gr.Markdown:
    return gr.Markdown(text.strip(), latex_delimiters=_MATH, elem_id=name)


def _forward(page: Page) -> First:
    _text(
        r"""
The forward process adds noise: $x_t = \alpha_t x_0 + \sigma_t \epsilon$ with $\epsilon \sim \mathcal N(0,
I)$. Move $t$ from 0, the data, to 1, the noise. $x_t$ is shown divided by $\sqrt{\alpha_t^2 + \sigma_t^2}$.
"""
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            t = gr.Slider(0, 1, 0.4, step=0.01, label="t", elem_id="forward-t")
            kind = gr.Dropdown(
                list(figures.SCHEDULES), value="linear (DDPM)", label="Schedule", elem_id="forward-schedule"
            )
            index = gr.Slider(0, 1796, 0, step=1, label="Digit", elem_id="forward-digit")
            own = pictures.upload(label="Or a picture of your own", height=160)
            seed = gr.Number(0, label="Seed of the noise", precision=0, elem_id="forward-seed")
        with gr.Column(scale=2):
            shown = pictures.shown("forward-picture", pixels=True)
            said = _text("", "forward-said")

    def forward(t: float, kind: str, index: float, path: str | None, seed: Any) -> list[Any]:
        image = figures.digit(index) if path is None else pictures.of_model(path, (3, 128, 128))
        return list(figures.noised(image, kind, t, asking.whole(seed, 0, asking.MOST_SEED, "The seed")))

    inputs = [t, kind, index, own, seed]
    for component in (t, kind, index, seed):
        component.change(jobs.guarded(forward), inputs, [shown, said], **_LIVE)
    own.change(jobs.guarded(forward), inputs, [shown, said], **_LIVE)
    return forward, inputs, [shown, said]


def _densities(page: Page) -> None:
    _text(
        r"""
Draw a density in the plane, or choose one. The forward process convolves it with Gaussians, $q(x_t) = \int
q(x_0)\, q(x_t \mid x_0)\, dx_0$; the probability flow carries the noise back along lines that do not cross.
"""
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            name = gr.Dropdown(["drawn", *figures.DENSITIES], value="ring", label="Density", elem_id="density-name")
            # with paper, the brush is there at once
            paper: Any = {"background": Image.new("RGB", (320, 320), (255, 255, 255)), "layers": [], "composite": None}
            canvas = gr.Sketchpad(
                paper,
                label="Draw with the brush",
                type="pil",
                layers=False,
                transforms=(),
                canvas_size=(320, 320),
                brush=gr.Brush(default_size=14, colors=["#000000"], color_mode="fixed"),
                format="png",
                elem_id="density-canvas",
            )
            kind = gr.Dropdown(list(figures.SCHEDULES), value="cosine", label="Schedule", elem_id="density-schedule")
            go, stop = jobs.buttons("density", "Diffuse")
        with gr.Column(scale=2):
            bar = gr.HTML(elem_id="density-progress")
            t = gr.Slider(0, 1, 0.0, step=0.01, label="t", elem_id="density-t")
            shown = pictures.shown("density-picture")
            said = _text("", "density-said")
    state = gr.State(None)

    def diffuse(name: str, canvas: Any, kind: str, t: float) -> Iterator[list[Any]]:
        if name == "drawn":
            points = figures.painted_points(_opacity(canvas))
        else:
            points = figures.named_points(name)
        for seen in jobs.watched(lambda job: figures.diffused(points, kind, job), previews=False):
            if isinstance(seen, jobs.Seen):
                yield [jobs.progress(seen), gr.skip(), gr.skip(), gr.skip()]
                continue
            found = jobs.result_of(seen)
            yield ["", found, *found.at(t)]

    canvas.input(_chosen, [canvas, name], name, queue=False, api_visibility="private")
    jobs.connect(stop, [bar, state, shown, said], (go.click, diffuse, [name, canvas, kind, t]))
    _moved(t, state, [shown, said])


def _opacity(canvas: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How much was painted at each place."""
    layers = (canvas or {}).get("layers") or []
    return sum((np.asarray(one.convert("RGBA"))[..., 3].astype(np.float64) for one in layers), np.zeros((1, 1)))


def _chosen(canvas: Any, name: str) -> str:
    """Once something is painted, that is the density."""
    return "drawn" if _opacity(canvas).any() else name


def _moved(slider: gr.Slider, state: gr.State, outputs: list[Any]) -> None:
    """Let a slider show another place of what was computed."""

    def move(place: float, found: Any) -> list[Any]:
        return [gr.skip(), gr.skip()] if found is None else list(found.at(place))

    slider.change(jobs.guarded(move), [slider, state], outputs, **_LIVE)


def _schedules(page: Page) -> First:
    _text(
        r"""
A schedule says how much signal and noise there is at each time. The table of DDPM is $\bar\alpha_t =
\prod_{s \le t}(1 - \beta_s)$; at $t = 1$ next to nothing of the data may be left.
"""
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            kinds = ["linear", "cosine", "EDM", "rectified flow", "own table"]
            kind = gr.Dropdown(kinds, value="linear", label="Schedule", elem_id="schedule-kind")
            steps = gr.Slider(2, 4000, 1000, step=1, label="Steps T", elem_id="schedule-steps")
            first = gr.Slider(1e-5, 0.01, 1e-4, step=1e-5, label="First beta, at T = 1000", elem_id="schedule-first")
            last = gr.Slider(0.002, 0.1, 0.02, step=0.001, label="Last beta, at T = 1000", elem_id="schedule-last")
            s = gr.Slider(0.001, 0.1, 0.008, step=0.001, label="s of the cosine", visible=False)
            sigma = gr.Slider(1, 200, 80, step=1, label="Largest sigma", visible=False)
            rho = gr.Slider(1, 15, 7, step=0.5, label="rho", visible=False)
            table = gr.Textbox("0.05, 0.1, 0.2, 0.4, 0.7", label="Betas", visible=False, elem_id="schedule-table")
        with gr.Column(scale=2):
            shown = pictures.shown("schedule-picture")
            said = _text("", "schedule-said")

    def draw(
        kind: str, steps: float, first: float, last: float, s: float, sigma: float, rho: float, table: str
    ) -> list[Any]:
        if kind == "own table":
            return list(figures.scheduled(figures.table_of(table)))
        return list(figures.scheduled(figures.edited_schedule(kind, steps, first, last, s, sigma, rho)))

    def visible(kind: str) -> list[Any]:
        groups = [("linear", "cosine"), ("linear",), ("linear",), ("cosine",), ("EDM",), ("EDM",), ("own table",)]
        return [gr.update(visible=kind in group) for group in groups]

    inputs = [kind, steps, first, last, s, sigma, rho, table]
    kind.change(visible, kind, inputs[1:], queue=False, api_visibility="private")
    for component in inputs:
        component.change(jobs.guarded(draw), inputs, [shown, said], **_LIVE)
    return draw, inputs, [shown, said]


def _spectrum(page: Page) -> None:
    _text(
        r"""
In the frequency domain $\mathcal F(x_t) = \alpha_t \mathcal F(x_0) + \sigma_t \mathcal F(\epsilon)$. The
power of images falls with the frequency, that of noise is the same at all: high frequencies drown first.
"""
    )
    source = gr.Dropdown(["digits", "shapes"], value="digits", label="Data", elem_id="spectrum-source")
    go, stop = jobs.buttons("spectrum", "Draw")
    bar = gr.HTML(elem_id="spectrum-progress")
    shown = pictures.shown("spectrum-picture")
    said = _text("", "spectrum-said")

    def draw(source: str) -> Iterator[list[Any]]:
        yield from _figure(lambda job: figures.of_data("spectrum", source))

    jobs.connect(stop, [bar, shown, said], (go.click, draw, [source]))


def _figure(work: Callable[[jobs.Job], figures.Shown]) -> Iterator[list[Any]]:
    """The progress of a job that draws one figure, then the figure."""
    for seen in jobs.watched(work, previews=False):
        if isinstance(seen, jobs.Seen):
            yield [jobs.progress(seen), gr.skip(), gr.skip()]
        else:
            yield ["", *jobs.result_of(seen)]


def _of_model(topic: str, text: str) -> Callable[[Page], None]:
    """A sub-tab with one figure of a model."""

    def build(page: Page) -> None:
        _text(text)
        model = page.models("edits", "system", first="digits", elem_id=f"{topic}-model")
        go, stop = jobs.buttons(topic, "Draw")
        bar = gr.HTML(elem_id=f"{topic}-progress")
        shown = pictures.shown(f"{topic}-picture")
        said = _text("", f"{topic}-said")

        def draw(name: str | None) -> Iterator[list[Any]]:
            yield from _figure(lambda job: figures.of_model(topic, page.library, name, None, job))

        jobs.connect(stop, [bar, shown, said], (go.click, draw, [model]))

    return build


def _content(page: Page) -> None:
    _text(
        r"""
What of an image survives when it is diffused to $t$ and generated again? Its content is decided at much
noise, its detail at little. Stitching takes the content of one model and the detail of another.
"""
    )
    with gr.Row():
        model = page.models("edits", "system", first="digits", elem_id="content-model")
        other = page.models("edits", "system", label="The detail, for stitching", elem_id="content-other")
    with gr.Row():
        what = gr.Radio(
            ["regenerate from t", "stitch two models", "stitch with the Gaussian of the data"],
            value="regenerate from t",
            label="Figure",
            elem_id="content-what",
        )
    go, stop = jobs.buttons("content", "Draw")
    bar = gr.HTML(elem_id="content-progress")
    shown = pictures.shown("content-picture")
    said = _text("", "content-said")

    def draw(name: str | None, second: str | None, what: str) -> Iterator[list[Any]]:
        topic = "content" if what.startswith("regenerate") else "stitch"
        detail = second if what == "stitch two models" else None
        yield from _figure(lambda job: figures.of_model(topic, page.library, name, detail, job))

    jobs.connect(stop, [bar, shown, said], (go.click, draw, [model, other, what]))


def _reverse(page: Page) -> None:
    _text(
        r"""
The reverse process of a model, step by step: the sample $x_t$, the network's estimate of $x_0$, and the
noise that it predicts, $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$.
"""
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = page.models("edits", "system", first="digits", elem_id="reverse-model")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="reverse-seed")
            count = gr.Slider(1, 6, 4, step=1, label="Samples", elem_id="reverse-count")
            go, stop = jobs.buttons("reverse", "Sample")
        with gr.Column(scale=2):
            bar = gr.HTML(elem_id="reverse-progress")
            step = gr.Slider(0, 16, 0, step=1, label="Step", elem_id="reverse-step")
            shown = pictures.shown("reverse-picture", pixels=True)
            said = _text("", "reverse-said")
    state = gr.State(None)

    def sample(name: str | None, seed: Any, count: Any) -> Iterator[list[Any]]:
        number, first = asking.whole(count, 1, 6, "The count"), asking.whole(seed, 0, asking.MOST_SEED, "The seed")
        for seen in jobs.watched(
            lambda job: figures.trajectory(page.library, name, number, first, job), previews=False
        ):
            if isinstance(seen, jobs.Seen):
                yield [jobs.progress(seen), *[gr.skip()] * 4]
                continue
            found = jobs.result_of(seen)
            last = len(found.levels) - 1
            yield ["", found, gr.update(maximum=last, value=last // 2), *found.at(last // 2)]

    jobs.connect(stop, [bar, state, step, shown, said], (go.click, sample, [model, seed, count]))
    _moved(step, state, [shown, said])


def _ledger(page: Page) -> None:
    _text(
        r"""
The variational bound as a ledger: $L_T$, the cost of the noise under the prior; the sum of $L_{t-1}$, what
each step adds; and $L_0$, the cost of the data given the last latent. All in bits per dimension.
"""
    )
    model = page.models("edits", "system", first="digits", elem_id="hierarchy-model")
    go, stop = jobs.buttons("hierarchy", "Add up")
    bar = gr.HTML(elem_id="hierarchy-progress")
    with gr.Row():
        shown = pictures.shown("hierarchy-picture")
        rows = gr.Dataframe(
            headers=["term", "of", "bits/dim"],
            datatype=["markdown", "str", "str"],
            latex_delimiters=_MATH,
            interactive=False,
            elem_id="hierarchy-table",
        )
    said = _text("", "hierarchy-said")

    def add(name: str | None) -> Iterator[list[Any]]:
        for seen in jobs.watched(lambda job: figures.ledger(page.library, name, job), previews=False):
            if isinstance(seen, jobs.Seen):
                yield [jobs.progress(seen), gr.skip(), gr.skip(), gr.skip()]
                continue
            image, sentence, table = jobs.result_of(seen)
            yield ["", image, sentence, table]

    jobs.connect(stop, [bar, shown, said, rows], (go.click, add, [model]))


def _families(page: Page) -> First:
    _text(r"""
Families of generative models differ in what they optimize, in whether they know the likelihood of an image, and in
how many evaluations a sample takes. The comparison trains four of them, of one size and at one cost, on a ring of
Gaussians whose density is known; it takes about a minute.
""")
    go, stop = jobs.buttons("families", "Compare on the ring")
    bar = gr.HTML(elem_id="families-progress")
    shown = pictures.shown("families-picture")
    said = _text("", "families-said")

    def compare() -> Iterator[list[Any]]:
        yield from _figure(figures.compared)

    jobs.connect(stop, [bar, shown, said], (go.click, compare, []))
    return figures.taxonomy_alone, [], [shown, said]


_LOSS = r"""
The denoising loss $\|\epsilon - \epsilon_\theta(x_t, t)\|^2$ at each time, next to that of the best
denoiser of a Gaussian with the same mean and covariance. Where a network is above that curve, it has not
learned even the covariance.
"""

_TABS: dict[str, Callable[[Page], First | None]] = {
    "Forward process": _forward,
    "Densities": _densities,
    "Schedules": _schedules,
    "Spectrum": _spectrum,
    "Content and detail": _content,
    "Reverse process": _reverse,
    "Loss": _of_model("loss", _LOSS),
    "Bits": _ledger,
    "Families": _families,
}
