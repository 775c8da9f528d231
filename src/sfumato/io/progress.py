"""A progress bar on standard error, where somebody sees it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

Progress = Callable[[int], None] | bool | None
"""What shows progress: a function of the number done, True for a bar, False for none, None for one in terminals and
notebooks."""


@contextmanager
def progress_bar(title: str, total: int, progress: Progress = None) -> Generator[Callable[[int], None]]:
    """The context gives the function to call with the number done."""
    if callable(progress):
        yield progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    shown = progress if progress is not None else console.is_terminal or console.is_jupyter
    name = TextColumn("{task.description}", markup=False)  # a path may hold brackets
    columns = (name, BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
