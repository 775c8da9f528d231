"""The whole page: its title, its looks and its tabs."""

from __future__ import annotations

import gradio as gr

from sfumato.app import compare, edit, generate, train, understand
from sfumato.app.page import Page

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


def built(page: Page) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as demo:
        gr.Markdown(f"# {TITLE}\nTrain, sample, edit and understand diffusion models.")
        with gr.Tab("Generate", id="generate"):
            generate.build(page)
        with gr.Tab("Compare", id="compare"):
            compare.build(page)
        with gr.Tab("Edit", id="edit"):
            edit.build(page)
        with gr.Tab("Understand", id="understand") as tab:
            understand.build(page, tab)
        with gr.Tab("Train", id="train"):
            train.build(page)
        page.follow(demo.load)
    return demo
