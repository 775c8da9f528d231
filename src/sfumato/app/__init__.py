"""The page in the browser, ``sfumato app`` (extra ``app``, Gradio): generate, compare, edit, understand, train."""
