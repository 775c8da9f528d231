"""One look for every figure; matplotlib is imported when something is drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError
from sfumato.io.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which the colour-blind can tell apart, in the order of use."""

INK = "#333333"
FAINT = "#8a8a8a"
NOISE = "#777777"
"""The noise is grey in every figure."""

MAP = "cividis"
"""The map of magnitudes: the same to all eyes, and rising in lightness."""

_SETTINGS: Any = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "sfumato",
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """A drawing function under the shared style, which leaves the settings of the session as they are."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return function(*args, **kwargs)

    return draw


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, outside of pyplot: nothing is kept open."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@styled
def save(drawn: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as ``NAME.png`` and ``NAME.svg``, each whole or not at all."""
    paths: list[Path] = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = folder / f"{name}.{kind}"

        def write(temporary: Path, kind: str = kind, metadata: dict[str, Any] = metadata) -> None:
            drawn.savefig(temporary, format=kind, metadata=metadata)

        atomic_write(path, write)
        paths.append(path)
    return paths[0], paths[1]


def colours(count: int) -> list[Any]:
    """Colours for ordered curves, dark to light, without the palest."""
    import matplotlib

    return [matplotlib.colormaps[MAP](0.88 * i / max(1, count - 1)) for i in range(count)]


def bare(axes: Axes) -> None:
    """Take away ticks and frame: what is shown is a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def show(axes: Axes, image: Float[Tensor, "channels *space"]) -> None:
    """An image, a signal or a vector of the data's range [-1, 1]; what lies outside is cut off.

    Raises:
        InputError: if it has more than two axes of space.
    """
    values = image.detach().float().cpu().numpy()
    if values.ndim > 3:
        raise InputError(f"Only vectors, signals and images can be drawn; got shape {tuple(image.shape)}.")
    bare(axes)
    if values.ndim == 3:
        shown = np.clip(0.5 + 0.5 * values, 0.0, 1.0)
        axes.imshow(_pixels(shown), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        return
    axes.set_ylim(-1.1, 1.1)
    if values.ndim == 2:
        for i, signal in enumerate(values):
            axes.plot(signal, linewidth=1.0, color=COLOURS[i % len(COLOURS)])
    else:
        axes.bar(range(len(values)), values, color=COLOURS[0])


def _pixels(image: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """``(H, W)`` or ``(H, W, 3 or 4)``; of other numbers of channels the first is shown."""
    return np.moveaxis(image, 0, -1) if image.shape[0] in (3, 4) else image[0]


def aspect(shape: tuple[int, ...]) -> float:
    """The height of a picture of data of this shape ``(C, *space)`` over its width."""
    return shape[1] / shape[2] if len(shape) == 3 else 0.66
