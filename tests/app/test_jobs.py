"""Jobs of the page: seen, cancelled, and their errors in words."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")

import gradio as gr

import sfumato
from sfumato.app import jobs
from sfumato.app.jobs import Done, Job, Seen, watched
from sfumato.diffusion.oracle import GaussianOracle
from sfumato.diffusion.schedule import ContinuousCosine
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.model import Model


def model() -> Model:
    data = torch.linspace(-1.0, 1.0, 64).reshape(4, 1, 4, 4)
    oracle = GaussianOracle.fit(data)
    oracle.schedule = ContinuousCosine()  # type: ignore[attr-defined]
    return Model(oracle, (1, 4, 4))


def test_each_step_is_seen_with_a_preview() -> None:
    found = list(watched(lambda job: model().sample(2, seed=0, steps=5, solver="ddim")))
    *seen, done = found
    assert isinstance(done, Done) and done.value.shape == (2, 1, 4, 4)
    steps = [one for one in seen if isinstance(one, Seen) and one.steps]
    assert steps and all(one.steps == 5 and one.picture is not None for one in steps)
    assert [one.step for one in steps] == sorted(one.step for one in steps)
    assert torch.equal(done.value, model().sample(2, seed=0, steps=5, solver="ddim"))


def test_nobody_who_waits_ends_the_work() -> None:
    steps: list[int] = []

    def work(job: Job) -> None:
        for step in range(10**6):
            job.advance(step, 10**6)
            steps.append(step)
            time.sleep(0.001)

    walk = watched(work)
    next(walk)
    walk.close()  # joins the thread
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count < 10**5


def test_sampling_ends_within_a_step() -> None:
    walk = watched(lambda job: model().sample(4, steps=900, solver="ddim"))
    for seen in walk:
        if isinstance(seen, Seen) and seen.steps:
            break
    before = threading.active_count()
    walk.close()
    assert threading.active_count() == before - 1


def test_warnings_reach_the_page() -> None:
    def work(job: Job) -> int:
        for _ in range(2):
            warnings.warn("The word unicorn is unknown.", SfumatoWarning, stacklevel=1)
        warnings.warn("of another library", UserWarning, stacklevel=1)
        return 7

    *_, done = watched(work)
    assert done == Done(7, ("The word unicorn is unknown.",))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("A sentence."), "A sentence."),
        (RuntimeError("something odd"), "something odd"),
        (RuntimeError("CUDA out of memory. Tried"), "fewer or smaller"),
        (MemoryError(), "fewer or smaller"),
    ],
)
def test_errors_are_sentences(error: Exception, words: str) -> None:
    def work(job: Job) -> None:
        raise error

    with pytest.raises(gr.Error, match=words):
        list(watched(work))


def test_progress_is_a_line() -> None:
    assert "step 3 of 4" in jobs.progress(Seen(3, 4, None)) and "width:75%" in jobs.progress(Seen(3, 4, None))
    assert "loading" in jobs.progress(Seen(0, 0, None, "loading"))
    assert "&lt;b&gt;" in jobs.progress(Seen(0, 0, None, "<b>"))


def test_a_cascade_is_watched_through_all_stages() -> None:
    from sfumato import pretrained
    from sfumato.sampling.sample import watched as watching

    seen: list[tuple[int, ...]] = []
    shapes = sfumato.load(pretrained.path("shapes"))
    with watching(lambda step, steps, frame: seen.append((step, steps, frame.x.shape[-1]))):
        one = shapes.generate("a green ring", seed=0, steps=2, base={"steps": 3})
    assert [s for s in seen if s[2] == 16][-1][:2] == (3, 3) and [s for s in seen if s[2] == 64][-1][:2] == (2, 2)
    assert torch.equal(one, shapes.generate("a green ring", seed=0, steps=2, base={"steps": 3}))
