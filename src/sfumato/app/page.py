"""What the tabs of the page share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from sfumato.app import jobs
from sfumato.app.library import Library


@dataclass
class Page:
    """What the tabs share.

    Attributes:
        library: the models.
        runs: the folder that trainings are written to.
        folders: folders of pictures that may be trained on, by name.
        results: a folder of the page's own, for what it makes.
    """

    library: Library
    runs: Path
    folders: dict[str, Path]
    results: Path
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


def default_model(page: Page) -> str:
    """The model to begin with: the first that was named, else the one of shapes."""
    return str(page.library.named[0]) if page.library.named else "shapes"
