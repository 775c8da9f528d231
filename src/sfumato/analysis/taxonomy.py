"""The taxonomy of generative models, the first slide of the lecture, as data and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfumato.analysis import families
from sfumato.analysis.plots import COLOURS, FAINT, INK, figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Kind:
    """A family of generative models.

    Attributes:
        name: the family.
        optimizes: what its training optimizes, in words.
        formula: the same in LaTeX.
        likelihood: exact, bound, unnormalized or none.
        sampling: one pass, a pass for each dimension, or many.
        paper: where it was introduced, or made to work.
    """

    name: str
    optimizes: str
    formula: str
    likelihood: str
    sampling: str
    paper: str


KINDS = (
    Kind(
        "Autoregressive models",
        "likelihood, one dimension at a time",
        r"$\max\ \sum_i \log p_\theta(x_i \mid x_{<i})$",
        "exact",
        "a pass for each dimension",
        "van den Oord et al. 2016",
    ),
    Kind(
        "Normalizing flows",
        "likelihood, by a change of variables",
        r"$\max\ \log p(f^{-1}(x)) + \log |\det \partial f^{-1} / \partial x|$",
        "exact",
        "one pass",
        "Dinh et al. 2017",
    ),
    Kind(
        "Variational autoencoders",
        "a lower bound on the likelihood",
        r"$\max\ E_q[\log p_\theta(x \mid z)] - D_{KL}(q_\phi(z \mid x) \| p(z))$",
        "lower bound",
        "one pass",
        "Kingma and Welling 2014",
    ),
    Kind(
        "Generative adversarial networks",
        "a game against a discriminator",
        r"$\min_G \max_D\ E[\log D(x)] + E[\log(1 - D(G(z)))]$",
        "none",
        "one pass",
        "Goodfellow et al. 2014",
    ),
    Kind(
        "Energy-based models",
        "likelihood up to its normalization",
        r"$p_\theta(x) = \exp(-E_\theta(x)) / Z_\theta$",
        "unnormalized",
        "many (Markov chain)",
        "LeCun et al. 2006",
    ),
    Kind(
        "Score- and diffusion-based models",
        "denoising, a weighted bound",
        r"$\min\ E\, \lambda_t \|\epsilon - \epsilon_\theta(x_t, t)\|^2$",
        "bound; exact by an ODE",
        "many (10 to 1,000)",
        "Sohl-Dickstein et al. 2015, Ho et al. 2020",
    ),
)
"""The families of the lecture's first slide."""

_COLUMNS = (0.0, 0.22, 0.41, 0.69, 0.83)
_HEADS = ("family", "optimizes", "formula", "likelihood", "samples in")


def _table(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(len(KINDS) + 0.6, -0.6))
    axes.axis("off")
    for x, head in zip(_COLUMNS, _HEADS, strict=True):
        axes.text(x, -0.1, head, color=FAINT, fontsize=9, va="center")
    axes.plot([0, 1], [0.3, 0.3], color=FAINT, linewidth=0.8)
    for row, kind in enumerate(KINDS, 1):
        axes.text(_COLUMNS[0], row - 0.14, kind.name, fontsize=9.5, va="center", weight="bold", color=INK)
        axes.text(_COLUMNS[0], row + 0.22, kind.paper, fontsize=7.5, va="center", color=FAINT)
        cells = (kind.optimizes, kind.formula, kind.likelihood, kind.sampling)
        for x, cell in zip(_COLUMNS[1:], cells, strict=True):
            axes.text(x, row, cell, fontsize=8.5, va="center", color=INK)
        axes.plot([0, 1], [row + 0.5, row + 0.5], color=FAINT, linewidth=0.3)


def _points(axes: Axes, points: families.Points, title: str, below: str, colour: str) -> None:
    x = points.detach().double()
    axes.plot(x[:, 0], x[:, 1], ".", color=colour, markersize=1.6, alpha=0.5)
    axes.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10, loc="center")
    axes.set_xlabel(below, fontsize=8, color=INK)


def _comparison(row: Sequence[Axes], results: Sequence[families.Result]) -> None:
    """The truth, and the samples of each family with what was measured."""
    truth = families.ring().sample(len(results[0].samples), 1)
    below = f"entropy {families.entropy():.2f} nats\ndistance of two such sets {families.floor():.3f}"
    _points(row[0], truth, "Truth", below, INK)
    for axes, result, colour in zip(row[1:], results, COLOURS, strict=False):
        lines = [f"distance {result.distance:.3f}"]
        lines += [f"{one.nats:.2f} nats, {_SHORT.get(one.name, one.name)}" for one in result.likelihoods]
        lines += ["no likelihood"] if not result.likelihoods else []
        passes = "1 evaluation" if result.evaluations == 1 else f"{result.evaluations} evaluations"
        _points(axes, result.samples, result.name, "\n".join([*lines, f"{passes} per sample"]), colour)


_SHORT = {"ELBO (lower bound)": "ELBO", "importance-weighted bound, 100 latents": "IWAE bound"}


@styled()
def plot(results: Sequence[families.Result] = ()) -> Figure:
    """The taxonomy as a table; with the ``results`` of :func:`families.compare`, also their samples."""
    canvas = figure(12.0, 7.4 if results else 4.3, "Generative models")
    if not results:
        _table(canvas.subplots())
        return canvas
    grid = canvas.add_gridspec(2, 1 + len(results), height_ratios=(4.1, 2.6))
    _table(canvas.add_subplot(grid[0, :]))
    _comparison([canvas.add_subplot(grid[1, column]) for column in range(1 + len(results))], results)
    return canvas


def summary(results: Sequence[families.Result]) -> str:
    """What the comparison found, in a sentence."""
    macs = max(result.training_macs for result in results)
    parts: list[str] = []
    for result in results:
        best = result.likelihoods[-1] if result.likelihoods else None
        nats = "" if best is None else f", {best.nats:.2f} nats ({best.name})"
        calls = "1 evaluation" if result.evaluations == 1 else f"{result.evaluations} evaluations"
        parts.append(f"{result.name} {result.distance:.3f}{nats}, {calls}")
    return (
        f"On a ring of 8 Gaussians, models of {min(r.parameters for r in results):,} to "
        f"{max(r.parameters for r in results):,} parameters were trained with {macs / 1e9:.3g} GMAC each; the sliced "
        f"Wasserstein distance of their samples to the truth (two true sets: {families.floor():.3f}), the "
        f"log-likelihood of held-out points (at most {-families.entropy():.2f} nats) and the evaluations per sample: "
        f"{'; '.join(parts)}."
    )
