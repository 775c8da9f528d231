"""The tab generate."""

from __future__ import annotations

import gradio as gr

from sfumato.app.page import Page


def build(page: Page) -> None:
    """The components of the tab."""
    gr.Markdown("")
