"""Convolutions whose gradient is a product of matrices, against double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.networks.cpu_kernels import Conv3x3
from sfumato.networks.layers import conv

LAST = torch.channels_last


def both(module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of the parameters."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = module(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], gradient)]


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 7), (1, 2), (2, 1)])
@pytest.mark.parametrize("given", [LAST, torch.contiguous_format])
def test_the_gradient_of_few_positions(size: tuple[int, int], given: torch.memory_format) -> None:
    torch.manual_seed(0)
    module = conv(2, 128, 136)
    assert isinstance(module, Conv3x3)
    x = torch.randn(3, 128, *size).bfloat16().to(memory_format=LAST)
    # a gradient may come in another layout than the input had
    gradient = torch.randn(3, 136, *size).bfloat16().to(memory_format=given)
    found = both(module, x, gradient)
    copied = nn.Conv2d(128, 136, 3, padding=1).double()
    copied.load_state_dict(module.state_dict())
    exact = both(copied, x.double(), gradient.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 5e-3
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_a_line_of_unusual_strides() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 128).bfloat16().permute(0, 2, 1).unsqueeze(-1).transpose(2, 3)
    module, exact = conv(2, 128, 128).bfloat16(), nn.Conv2d(128, 128, 3, padding=1)
    exact.load_state_dict(module.state_dict())
    gradient = torch.randn(3, 128, 1, 7).bfloat16()
    # in float32 and not in bfloat16, which every CPU rounds in another way
    for ours, truth in zip(both(module, x, gradient), both(exact, x.float(), gradient.float()), strict=True):
        assert float((ours.float() - truth).norm() / truth.norm()) < 5e-3


def test_where_it_is_taken() -> None:
    few = torch.randn(2, 128, 4, 4).bfloat16().to(memory_format=LAST)

    def gradient_of(module: nn.Module, x: Tensor) -> str:
        with torch.autocast("cpu", torch.bfloat16):
            return type(module(x).grad_fn).__name__

    assert gradient_of(conv(2, 128, 128), few) == "_UnfoldedBackward"
    kernel = "ConvolutionBackward0"
    assert gradient_of(conv(2, 128, 128), few.contiguous()) == kernel
    assert gradient_of(conv(2, 128, 128), few.float().to(memory_format=LAST)) == kernel
    assert gradient_of(conv(2, 128, 128), torch.randn(2, 128, 9, 9).bfloat16().to(memory_format=LAST)) == kernel
    assert gradient_of(conv(2, 64, 128), few[:, :64].to(memory_format=LAST)) == kernel
    for other in (conv(2, 128, 8, kernel=4, stride=2, pad=1), conv(2, 128, 8, stride=2), conv(2, 128, 8, pad=0)):
        assert type(other) is nn.Conv2d
    # few outputs, or another type
    assert gradient_of(conv(2, 128, 8), few) == kernel
    with torch.autocast("cpu", torch.float16):
        assert type(conv(2, 128, 128)(few).grad_fn).__name__ == kernel
    # nothing is trained: no gradient, or none of the weights
    with torch.no_grad():
        assert conv(2, 128, 128)(few.float()).grad_fn is None
    assert gradient_of(conv(2, 128, 128).requires_grad_(False), few.requires_grad_()) == kernel
