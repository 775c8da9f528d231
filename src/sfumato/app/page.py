"""The page: its tabs, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, no_type_check

import gradio as gr

from sfumato import pretrained
from sfumato.app import jobs
from sfumato.app.library import Library

T = TypeVar("T")

TITLE = "Sfumato"
CSS = """
.sf-progress { position: relative; height: 1.6rem; border-radius: .4rem; overflow: hidden; }
.sf-progress { background: var(--border-color-primary); }
.sf-progress div { height: 100%; background: var(--primary-300); transition: width .2s; }
.sf-progress span { position: absolute; inset: 0; line-height: 1.6rem; text-align: center; font-size: .85rem; }
.sf-note { opacity: .75; font-size: .9rem; }
.sf-preview img { display: block; margin: 0 auto; height: 260px; }
.sf-pixels img { image-rendering: pixelated; }
footer { display: none !important; }
"""


@dataclass
class Page:
    """What the tabs share.

    Attributes:
        library: the models.
        runs: the folder that trainings are written to.
        folders: folders of pictures that may be trained on, by name.
        results: a folder of the page's own, for what it makes.
        at_start: what is computed when a page is opened: functions, their inputs and outputs.
    """

    library: Library
    runs: Path
    folders: dict[str, Path]
    results: Path
    at_start: list[tuple[Callable[..., Any], list[Any], list[Any]]] = field(
        default_factory=list[tuple[Callable[..., Any], list[Any], list[Any]]]
    )
    _dropdowns: list[tuple[gr.Dropdown, tuple[str, ...]]] = field(
        default_factory=list[tuple[gr.Dropdown, tuple[str, ...]]]
    )

    def models(self, *able: str, label: str = "Model", first: str | None = None, **options: Any) -> gr.Dropdown:
        """A choice of the models that are able to do something (properties of an entry); it follows the library.

        Args:
            able: what they can do; any of these.
            label: of the choice.
            first: which model is chosen at the start, where it is there.
            options: others of the component.
        """
        choices = self.library.choices(*able)
        names = [name for _, name in choices]
        value = first if first in names else names[0] if names else None
        dropdown = gr.Dropdown(choices, value=value, label=label, **options)
        self._dropdowns.append((dropdown, able))
        return dropdown

    def follow(self, event: Callable[..., Any]) -> None:
        """Let the choices follow the library at an event, such as ``demo.load``."""

        def refreshed() -> list[Any]:
            self.library.refresh()
            return [gr.update(choices=self.library.choices(*able)) for _, able in self._dropdowns]

        event(refreshed, None, [dropdown for dropdown, _ in self._dropdowns], **jobs.QUICK, api_visibility="private")

    def guarded(self, function: Callable[..., T]) -> Callable[..., T]:
        """The function with its errors as sentences on the page, for events that take a moment."""

        def inner(*arguments: Any) -> T:
            try:
                return function(*arguments)
            except Exception as error:
                raise jobs.told(error) from None

        return inner

    def streamed(self, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same for events that yield, such as those of :func:`sfumato.app.jobs.watched`."""

        @no_type_check  # what wraps a function for its types is no generator, which Gradio looks for
        def inner(*arguments: Any) -> Iterator[Any]:
            try:
                yield from function(*arguments)
            except Exception as error:
                raise jobs.told(error) from None

        return inner


def built(page: Page) -> gr.Blocks:
    """The whole page."""
    from sfumato.app import compare, edit, generate, train, understand

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as demo:
        gr.Markdown(f"# {TITLE}\nTrain, sample, edit and understand diffusion models.")
        tabs = {
            "Generate": generate.build,
            "Compare": compare.build,
            "Edit": edit.build,
            "Understand": understand.build,
            "Train": train.build,
        }
        for name, build in tabs.items():
            with gr.Tab(name, id=name.lower()):
                build(page)
        page.follow(demo.load)
        for function, inputs, outputs in page.at_start:
            how: dict[str, Any] = {**jobs.QUICK, "show_progress": "hidden", "api_visibility": "private"}
            demo.load(page.guarded(function), inputs, outputs, **how)
    return demo


def default_model(page: Page) -> str:
    """The model to begin with: the first that was named, else the one of shapes."""
    return next(iter(map(str, page.library.named)), next(name for name in pretrained.SAID if name == "shapes"))
