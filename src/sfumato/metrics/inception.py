"""The Inception-v3 of the Frechet Inception Distance, and the published ways to resize pictures for it.

Inception-v3 (Szegedy et al., 2016) as in the TensorFlow graph of 2015-12-05 that the FID (Heusel et al., 2017) and the
inception score (Salimans et al., 2016) are defined with. It differs from the network of later libraries: averages at
the border are over the pixels that exist, the last block pools by maximum, and there are 1008 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError, nearest
from sfumato.io import files
from sfumato.io.fetch import fetch
from sfumato.io.tensors import read_state, require_sha256
from sfumato.metrics.folding import ConvNorm, fold
from sfumato.metrics.pictures import bicubic, bilinear, bilinear_corner, colours

SIDE = 299
WIDTH = 2048  # features: those after the third pooling, "pool3"
FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

RESIZINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "pytorch-fid": lambda images: bilinear(colours(images), SIDE).div(127.5).sub_(1.0),
    "torch-fidelity": lambda images: bilinear_corner(colours(images), SIDE).sub(128.0).div_(128.0),
    "clean-fid": lambda images: bicubic(colours(images), SIDE).sub(128.0).div_(128.0),
}
"""From images in [-1, 1] to what the network sees, each as the program of this name does it.

They give different distances: name the one that was used. pytorch-fid: bilinear between pixel centres, without
smoothing; torch-fidelity: bilinear as in TensorFlow 1, as in the original FID; clean-fid: Pillow's bicubic in float.
"""

Layer = tuple[str, int, int | tuple[int, int]]
"""The name of a convolution, its output channels and its kernel."""
Chain = tuple[Layer | tuple[Layer, Layer], ...]
"""Layers one after the other; a pair of them is side by side, and their outputs are stacked."""


def _layer(inner: int, outer: int, kernel: int | tuple[int, int], stride: int, padded: bool) -> ConvNorm:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
    return ConvNorm(nn.Conv2d(inner, outer, sides, stride, padding, bias=False), functional.relu)


class _Mixed(nn.Module):
    """Chains of convolutions and a pooling, side by side.

    Args:
        inner: channels of the input.
        chains: the convolutions.
        pooled: channels that the pooled input is projected to; None to halve the sides, in all chains.
        average: whether that pooling is an average, and not a maximum.
    """

    def __init__(self, inner: int, chains: tuple[Chain, ...], pooled: int | None, *, average: bool = True) -> None:
        super().__init__()
        self.average, self.halves = average, pooled is None
        self.chains: list[list[list[str]]] = []
        self.outer = inner if pooled is None else pooled
        for chain in chains:
            width, names = inner, []
            for index, step in enumerate(chain):
                layers: tuple[Layer, ...] = (step,) if isinstance(step[0], str) else step  # pyright: ignore[reportAssignmentType]
                stride = 2 if self.halves and index == len(chain) - 1 else 1
                for name, channels, kernel in layers:
                    self.add_module(name, _layer(width, channels, kernel, stride, stride == 1))
                names.append([name for name, _, _ in layers])
                width = sum(channels for _, channels, _ in layers)
            self.chains.append(names)
            self.outer += width
        if pooled is not None:
            self.branch_pool = _layer(inner, pooled, 1, 1, True)

    def forward(self, x: Tensor) -> Tensor:
        results: list[Tensor] = []
        for chain in self.chains:
            h = x
            for names in chain:
                parts = [self.get_submodule(name)(h) for name in names]
                h = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            results.append(h)
        if self.halves:
            results.append(functional.max_pool2d(x, 3, 2))
        elif self.average:
            # TensorFlow divides by the number of pixels that are there
            results.append(self.branch_pool(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        else:
            results.append(self.branch_pool(functional.max_pool2d(x, 3, 1, 1)))
        return torch.cat(results, 1)


_DOUBLE: Chain = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
_A: tuple[Chain, ...] = ((("branch1x1", 64, 1),), (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)), _DOUBLE)
_B: tuple[Chain, ...] = ((("branch3x3", 384, 3),), _DOUBLE)
_ACROSS, _DOWN = (1, 7), (7, 1)


def _c(width: int) -> tuple[Chain, ...]:
    single: Chain = (("branch7x7_1", width, 1), ("branch7x7_2", width, _ACROSS), ("branch7x7_3", 192, _DOWN))
    double: Chain = (
        ("branch7x7dbl_1", width, 1),
        ("branch7x7dbl_2", width, _DOWN),
        ("branch7x7dbl_3", width, _ACROSS),
        ("branch7x7dbl_4", width, _DOWN),
        ("branch7x7dbl_5", 192, _ACROSS),
    )
    return (("branch1x1", 192, 1),), single, double


_LONG: Chain = (
    ("branch7x7x3_1", 192, 1),
    ("branch7x7x3_2", 192, _ACROSS),
    ("branch7x7x3_3", 192, _DOWN),
    ("branch7x7x3_4", 192, 3),
)
_D: tuple[Chain, ...] = ((("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)), _LONG)
_FORK: Chain = (("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))))
_LONG_FORK: Chain = (
    ("branch3x3dbl_1", 448, 1),
    ("branch3x3dbl_2", 384, 3),
    (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
)
_E: tuple[Chain, ...] = ((("branch1x1", 320, 1),), _FORK, _LONG_FORK)
# the number of a block, its convolutions, and what its pooled input is projected to
_BLOCKS = (
    ("5b", _A, 32),
    ("5c", _A, 64),
    ("5d", _A, 64),
    ("6a", _B, None),
    ("6b", _c(128), 192),
    ("6c", _c(160), 192),
    ("6d", _c(160), 192),
    ("6e", _c(192), 192),
    ("7a", _D, None),
    ("7b", _E, 192),
    ("7c", _E, 192),
)


class Inception(nn.Module):
    """Prepared pictures ``(N, 3, 299, 299)`` to 2048 features, the mean of the last block over all positions.

    Layers have the names of the file of weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _layer(3, 32, 3, 2, False)
        self.Conv2d_2a_3x3 = _layer(32, 32, 3, 1, False)
        self.Conv2d_2b_3x3 = _layer(32, 64, 3, 1, True)
        self.Conv2d_3b_1x1 = _layer(64, 80, 1, 1, False)
        self.Conv2d_4a_3x3 = _layer(80, 192, 3, 1, False)
        width = 192
        self.blocks: list[str] = []
        for name, chains, pooled in _BLOCKS:
            block = _Mixed(width, chains, pooled, average=name != "7c")
            self.add_module(f"Mixed_{name}", block)
            self.blocks.append(f"Mixed_{name}")
            width = block.outer
        self.fc = nn.Linear(width, 1008)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 2048"]:
        """The features."""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(h, 3, 2)))
        h = functional.max_pool2d(h, 3, 2)
        for name in self.blocks:
            h = self.get_submodule(name)(h)
        return h.mean(dim=(2, 3))

    def logits(self, features: Float[Tensor, "batch 2048"]) -> Float[Tensor, "batch 1008"]:
        """The logits of 1008 classes without their biases, as the inception score is computed of them."""
        return functional.linear(features, self.fc.weight)


def build(state: Mapping[str, Tensor]) -> Inception:
    """The network with these weights, in evaluation mode."""
    with torch.device("meta"):
        network = Inception()
    # files of old versions of torch do not count the batches of batch normalization
    counts = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if "num_batches" in name}
    network.load_state_dict({**counts, **state}, assign=True)
    return network.eval().requires_grad_(False)


def resizing(name: str | None) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A published resizing by name, by default that of pytorch-fid."""
    name = name or "pytorch-fid"
    if name not in RESIZINGS:
        raise InputError(f"there is no resizing {name!r} for Inception{nearest(name, RESIZINGS)}")
    return name, RESIZINGS[name]


def load(weights: Path | None = None) -> tuple[Inception, str]:
    """The network with its published weights (96 MB), and their sha256.

    Args:
        weights: their file (default: that of the user's caches, of Sfumato or of torch; else it is fetched once).
    """
    if weights is None:
        ours = files.cache_folder() / "weights" / FILE
        theirs = Path(torch.hub.get_dir()) / "checkpoints"  # where pytorch-fid and torch-fidelity leave it
        known = (ours, theirs / FILE, theirs / FILE.replace("pt_", "weights-"))
        weights = next((path for path in known if path.is_file()), ours)
        if not weights.is_file():
            advice = f"fetch it on a machine with a network, and give its path as weights=PATH or put it at {ours}"
            fetch(URL, ours, SHA256, advice)
    digest = require_sha256(weights, SHA256)
    network = build(read_state(weights))
    fold(network)
    return network, digest
