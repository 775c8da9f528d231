"""What the tab Understand computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")

from sfumato.app import figures
from sfumato.app.jobs import Job
from sfumato.app.library import Library
from sfumato.errors import InputError
from tests.app.pages import classes


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    place = tmp_path_factory.mktemp("figures")
    classes(place / "runs" / "digits")
    return Library(place / "runs")


@pytest.fixture(scope="module")
def run(library: Library) -> str:
    return str(library.runs / "digits")


def test_an_image_is_noised_by_the_formula() -> None:
    image = figures.digit(3)
    assert image.shape == (1, 8, 8)
    _, at_start = figures.noised(image, "cosine", 0.0, 0)
    _, at_end = figures.noised(image, "cosine", 1, 0)
    assert "t = 0.00" in at_start and "alpha = 1" in at_start and "t = 1.00" in at_end
    with pytest.raises(InputError, match="schedule"):
        figures.noised(image, "os:system", 0.5, 0)
    for t in (-5.0, 2.0, None, float("nan"), "x"):
        with pytest.raises(InputError, match="t is a number"):
            figures.noised(image, "cosine", t, 0)
    assert "-\\infty" in figures.noised(image, "rectified flow", 1.0, 0)[1]


def test_points_lie_where_was_painted() -> None:
    canvas = np.zeros((100, 100))
    canvas[:50, 50:] = 255.0  # the upper right quarter
    points = figures.painted_points(canvas)
    assert points.shape == (figures.POINTS, 2)
    assert bool(((points > 0.0) & (points < 2.2)).all())
    assert float(points.mean()) == pytest.approx(1.1, abs=0.1)
    with pytest.raises(InputError, match="Nothing is painted"):
        figures.painted_points(np.zeros((5, 5)))


@pytest.mark.parametrize("name", figures.DENSITIES)
def test_densities_with_names_fit_into_the_plane(name: str) -> None:
    points = figures.named_points(name)
    assert float(points.abs().max()) < 2.6 and float(points.std(0).min()) > 0.3


def test_the_flow_ends_in_the_density() -> None:
    found = figures.diffused(figures.named_points("ring"), "cosine", Job())
    # at t = 0 the points of the flow lie on the ring, at t = 1 they are normal
    start, end = found.view.lines[0], found.view.lines[-1]
    assert float((start.norm(dim=1) - 1.5).abs().median()) < 0.25
    assert float(end.std()) == pytest.approx(1.0, abs=0.25)
    picture, said = found.at(0.0)
    assert picture.width > 300 and "0.00" in said
    with pytest.raises(InputError, match="no density"):
        figures.named_points("teapot")


def test_schedules_are_those_of_the_controls() -> None:
    linear = figures.edited_schedule("linear", 1000)
    expected = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert float(linear(1.0).alpha) ** 2 == pytest.approx(float((1.0 - expected).prod()), rel=1e-6)
    _, said = figures.scheduled(linear)
    assert "Signal is left" not in said
    _, said = figures.scheduled(figures.table_of("0.1, 0.2 0.3"))
    assert "Signal is left" in said and "0.504" in said
    for text in ("a, b", "", "1.5", "-0.1"):
        with pytest.raises(InputError):
            figures.table_of(text)
    with pytest.raises(InputError, match="beta"):
        figures.edited_schedule("linear", 10, 0.5, 0.1)
    for steps in (None, float("nan"), "x", 1):
        with pytest.raises(InputError, match="steps"):
            figures.edited_schedule("cosine", steps)


def test_the_reverse_process_is_that_of_the_model(library: Library, run: str) -> None:
    found = figures.trajectory(library, run, 2, 5, Job())
    same = library.load(run).sample(2, seed=5)
    torch.testing.assert_close(found.x[-1].clamp(-1, 1), same, atol=1e-5, rtol=0.0)
    level = found.levels[1]
    eps = figures.predicted_noise(found.x[1], found.x0[1], level)
    back = float(level.alpha) * found.x0[1] + float(level.sigma) * eps
    torch.testing.assert_close(back, found.x[1], atol=1e-4, rtol=1e-4)
    for step in (0, 2.0, len(found.levels) - 1):
        picture, _ = found.at(step)
        assert picture.width > 100
    for step in (-3, 10**6, None):
        with pytest.raises(InputError, match="step"):
            found.at(step)


def test_the_ledger_adds_up(library: Library, run: str) -> None:
    _, _, rows = figures.ledger(library, run, Job())
    terms = [float(row[2]) for row in rows]
    assert len(rows) == 4 and terms[3] == pytest.approx(sum(terms[:3]), abs=2e-3)


@pytest.mark.parametrize("topic", ["loss", "content", "stitch"])
def test_figures_of_a_model(library: Library, run: str, topic: str) -> None:
    picture, said = figures.of_model(topic, library, run, None, Job())
    assert picture.width > 300 and said.endswith(".")


def test_what_has_no_figure_is_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data"):
        figures.of_data("spectrum", "/etc")
    with pytest.raises(InputError, match="no model"):
        figures.trajectory(library, "../secret", 1, 0, Job())
