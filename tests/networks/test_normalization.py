"""Group normalization with the channels last, against double precision; normalization per pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.networks.cpu_kernels import GroupNorm
from sfumato.networks.layers import PixelNorm, group_norm
from sfumato.networks.unet import UNet

LAST = torch.channels_last


def both(module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output and the gradients of the input and of the parameters."""
    x = x.detach().requires_grad_()
    out = module(x)
    if isinstance(module, GroupNorm):
        assert type(out.grad_fn).__name__ == "_ChannelsLastBackward"
    found = torch.autograd.grad(out, [x, *module.parameters()], gradient)
    return [out.detach(), *found]


@pytest.mark.parametrize(("mean", "error"), [(0.0, 8e-3), (1.0, 3e-2)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (9, 15), (16, 16), (32, 33)])
def test_channels_last_in_bf16(size: tuple[int, int], groups: int, affine: bool, mean: float, error: float) -> None:
    """All three ways to compute it: channels brought first and back, sums over positions, the kernel forward."""
    torch.manual_seed(0)
    module = group_norm(16, groups, affine)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.5)
    # means of several deviations, as activations have them
    x = (torch.randn(3, 16, *size) + 3.0 * torch.randn(3, 16, 1, 1)).bfloat16().to(memory_format=LAST)
    gradient = (torch.randn(3, 16, *size) + mean).bfloat16().to(memory_format=LAST)
    found = both(module, x, gradient)
    exact = both(nn.GroupNorm(groups, 16, affine=affine).double(), x.double(), gradient.double())
    if affine:
        copied = nn.GroupNorm(groups, 16).double()
        copied.load_state_dict(module.state_dict())
        exact = both(copied, x.double(), gradient.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        # a few roundings of 8 bits
        assert float((ours.double() - theirs).norm() / theirs.norm()) < error
    assert found[0].is_contiguous(memory_format=LAST) and found[1].is_contiguous(memory_format=LAST)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * (2 * affine)


def test_other_layouts_and_types_are_the_kernels_own() -> None:
    module, plain = GroupNorm(4, 8), nn.GroupNorm(4, 8)
    for x in (torch.randn(2, 8, 5), torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5).to(memory_format=LAST)):
        assert torch.equal(module(x), plain(x))
    first = torch.randn(2, 8, 5, 5).bfloat16()
    assert torch.equal(module(first), plain(first))


def test_what_needs_no_gradient_gets_none() -> None:
    x = torch.randn(2, 8, 9, 9).bfloat16().to(memory_format=LAST)
    for module in (GroupNorm(4, 8, bias=False), GroupNorm(4, 8).requires_grad_(False), GroupNorm(4, 8)):
        given = x.clone().requires_grad_(not module.weight.requires_grad)
        module(given).sum().backward()
        assert all((t.grad is not None) == t.requires_grad for t in (given, *module.parameters()))


def test_a_network_in_bf16_has_the_same_gradients_in_both_layouts() -> None:
    torch.manual_seed(0)
    network = UNet(1, 1, (16, 32), blocks=1, groups=8, attention=(1,), middle=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    x, time, target = torch.randn(4, 1, 32, 32), torch.rand(4), torch.randn(4, 1, 32, 32)

    def gradients(bf16: bool) -> Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = network(x, time)
        (out.float() - target).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    exact, first = gradients(bf16=False), gradients(bf16=True)
    network.to(memory_format=LAST)  # type: ignore[call-overload]
    last = gradients(bf16=True)
    # each against float32, not one rounding against the other: every CPU rounds in another way
    assert all(0.0 < float((found - exact).norm() / exact.norm()) < 0.03 for found in (first, last))


def test_a_part_of_an_image_has_the_output_that_it_has_in_the_whole() -> None:
    """Per-pixel normalization: what is far from the edge of a part does not see the rest."""
    torch.manual_seed(0)
    options = {"attention": (), "middle_attention": False, "skips": "blocks", "resample": "fixed", "blocks": 1}
    whole = {}
    x, time = torch.randn(1, 3, 16, 160), torch.zeros(1)
    for kind in ("pixel", "group"):
        net = UNet(3, 3, (8, 16), normalization=kind, middle=1, **options)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        whole[kind] = float((net(x, time)[..., 48:80] - net(x[..., :128], time)[..., 48:80]).abs().max())
    assert whole["pixel"] < 1e-5 < 1e-3 < whole["group"]


def test_the_normalization_of_a_pixel_is_layer_norm_over_its_channels() -> None:
    x = torch.randn(2, 6, 4, 5)
    norm = PixelNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    by_hand = (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), by_hand, atol=1e-5)
    assert torch.allclose(norm(x.to(memory_format=torch.channels_last)), by_hand, atol=1e-5)
