"""Jobs: work that takes time, shown step by step, cancelled when nobody waits for it, its errors in sentences."""

from __future__ import annotations

import contextvars
import html
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, no_type_check

import gradio as gr
from PIL import Image

from sfumato.app import pictures
from sfumato.errors import InputError, SfumatoWarning
from sfumato.sampling import sample as sampling
from sfumato.sampling.sample import Frame

T = TypeVar("T")

ONE: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, "show_progress": "minimal"}
"""For events that compute for long: one at a time, of all who use the page; the others wait in a queue."""
QUICK: dict[str, Any] = {"concurrency_id": "figure", "concurrency_limit": 2, "show_progress": "minimal"}
"""For events that take a moment, such as the move of a slider."""
WAITING = 24
"""Events that may wait; more are refused."""

_BEAT = 0.2  # seconds between looks at whether somebody still waits


class Cancelled(Exception):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Seen:
    """Where the work is: a step of so many, and a picture of the present estimate if there is one."""

    step: int
    steps: int
    picture: Image.Image | None
    note: str = ""


@dataclass(frozen=True)
class Done(Generic[T]):
    """The result, and what was warned of."""

    value: T
    warnings: tuple[str, ...] = ()


class Job:
    """What work reports of itself; :meth:`advance` and :meth:`note` end it if nobody waits any more."""

    def __init__(self) -> None:
        self.label = ""
        self.cancelled = threading.Event()
        self.seen: queue.Queue[Seen | Done[Any] | BaseException] = queue.Queue()

    def check(self) -> None:
        """Raise if nobody waits any more."""
        if self.cancelled.is_set():
            raise Cancelled

    def note(self, text: str) -> None:
        """Say what is being done."""
        self.check()
        self.label = text
        self.seen.put(Seen(0, 0, None, text))

    def advance(self, step: int, steps: int, picture: Image.Image | None = None) -> None:
        """Say how far the work is."""
        self.check()
        self.seen.put(Seen(step, steps, picture, self.label))


def watched(work: Callable[[Job], T], *, previews: bool = True) -> Iterator[Seen | Done[T]]:
    """Run ``work`` in a thread of its own and yield what is seen of it, at last its result.

    Whatever it samples is seen step by step, with a preview. Closing the iterator cancels it, after the present step.

    Raises:
        gr.Error: any failure, in a sentence.
    """
    job = Job()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(_run, work, job, previews), daemon=True)
    thread.start()
    try:
        yield from _seen(job)
    finally:
        job.cancelled.set()
        # the next job begins when this one has ended, so that there is never more than one
        thread.join()


def _seen(job: Job) -> Iterator[Any]:
    while True:
        try:
            found = job.seen.get(timeout=_BEAT)
            while not job.seen.empty() and isinstance(found, Seen):
                found = job.seen.get()  # a page that is slower than the work skips steps
        except queue.Empty:
            found = Seen(0, 0, None, job.label)
        if isinstance(found, BaseException):
            raise found
        yield found
        if isinstance(found, Done):
            return


def _run(work: Callable[[Job], Any], job: Job, previews: bool) -> None:
    def watcher(step: int, steps: int, frame: Frame) -> None:
        job.advance(step, steps, pictures.preview(frame) if previews else None)

    try:
        with warnings.catch_warnings(record=True) as caught, sampling.watched(watcher):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", SfumatoWarning)
            value = work(job)
        job.seen.put(Done(value, tuple(dict.fromkeys(str(one.message) for one in caught))))
    except Cancelled:
        pass  # nobody listens
    except Exception as error:
        job.seen.put(error_of(error))


def error_of(error: Exception) -> gr.Error:
    """An error as a sentence on the page; the traceback of one that nobody foresaw goes to the terminal."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        return gr.Error(str(error), print_exception=False)
    traceback.print_exception(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return gr.Error("Out of memory: make fewer or smaller pictures at once.", print_exception=False)
    first = (str(error).splitlines() or [""])[0][:200]
    sentence = f"This failed ({type(error).__name__}: {first}). The terminal of the page has the details."
    return gr.Error(sentence, print_exception=False)


def result_of(found: Done[T]) -> T:
    """The result of a job; what was warned of appears on the page."""
    for sentence in found.warnings:
        gr.Warning(sentence)
    return found.value


def preview(seen: Seen) -> Any:
    """The picture of a step for a component of HTML, which keeps the one it has where there is none."""
    return gr.skip() if seen.picture is None else pictures.inline(seen.picture)


def progress(seen: Seen) -> str:
    """Where the work is, as a line of HTML."""
    note = html.escape(seen.note)
    if not seen.steps:
        return f"<div class='sf-progress'><span>{note or 'Working'} …</span></div>"
    share = 100.0 * seen.step / seen.steps
    note = f"{note}, " if note else ""
    return (
        f"<div class='sf-progress'><div style='width:{share:.0f}%'></div>"
        f"<span>{note}step {seen.step} of {seen.steps}</span></div>"
    )


def guarded(function: Callable[..., T]) -> Callable[..., T]:
    """The function with its errors as sentences on the page, for events that take a moment."""

    def inner(*arguments: Any) -> T:
        try:
            return function(*arguments)
        except Exception as error:
            raise error_of(error) from None

    return inner


def streamed(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for events that yield, such as those of :func:`watched`."""

    @no_type_check  # what wraps a function for its types is no generator, which Gradio looks for
    def inner(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except Exception as error:
            raise error_of(error) from None

    return inner


def buttons(name: str, text: str) -> tuple[gr.Button, gr.Button]:
    """A button that starts a job, and one that cancels it; their ids begin with ``name``."""
    with gr.Row():
        go = gr.Button(text, variant="primary", elem_id=f"{name}-go")
        stop = gr.Button("Cancel", variant="stop", elem_id=f"{name}-cancel")
    return go, stop


Started = tuple[Callable[..., Any], Callable[..., Iterator[list[Any]]], list[Any]]
"""An event such as ``button.click``, the work that it starts, and the inputs of that."""


def connect(stop: gr.Button, outputs: list[Any], *starts: Started) -> None:
    """Let events start work, one job at a time, and a button cancel it.

    Args:
        stop: the button that cancels.
        outputs: of the work, which yields a value for each; the first shows the progress. Those that are HTML are
            emptied when it is cancelled.
        starts: what starts it.
    """
    shown = [one for one in outputs if isinstance(one, gr.HTML)]
    how: dict[str, Any] = {**ONE, "show_progress_on": outputs[0], "api_visibility": "private"}
    events: Any = [start(streamed(work), inputs, outputs, **how) for start, work, inputs in starts]

    def stopped() -> Any:
        time.sleep(2.0 * _BEAT)  # the last step that is on its way comes first
        values = ["<span class='sf-note'>Cancelled.</span>", *[""] * (len(shown) - 1)]
        return values if len(values) > 1 else values[0]

    stop.click(stopped, None, shown, cancels=events, api_visibility="private")
