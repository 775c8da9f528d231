"""What a U-Net is made of: coordinates beside the input, blocks by resolution, and the order of both."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.nn import functional

from sfumato.config import Config, parse
from sfumato.errors import InputError
from sfumato.networks.execution import count
from sfumato.networks.layers import Coordinates
from sfumato.networks.unet import UNet, UNetBlock
from tests.networks.test_unet import randomized


def places(*sides: int) -> torch.Tensor:
    """The coordinates of each position, by its number along the axis."""
    grid = torch.zeros(len(sides), *sides)
    for at in torch.cartesian_prod(*map(torch.arange, sides)).reshape(-1, len(sides)).tolist():
        for axis, (i, side) in enumerate(zip(at, sides, strict=True)):
            grid[(axis, *at)] = -1.0 + 2.0 * i / (side - 1) if side > 1 else 0.0
    return grid


@pytest.mark.parametrize("sides", [(5,), (4, 6), (1, 3)])
def test_coordinates_are_those_of_positions(sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *sides)
    expected = torch.cat([x, places(*sides).expand(2, -1, *[-1] * len(sides))], dim=1)
    torch.testing.assert_close(Coordinates()(x), expected)
    assert Coordinates()(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("options", [{}, {"residual_input": True, "resample": "projected"}])
def test_coordinates_stand_beside_the_input(dims: Literal[1, 2], options: dict[str, Any]) -> None:
    """The network is the plain one whose slot ``channels`` they fill; the input that is added again is without them."""
    network = randomized(UNet(2, 3, (8, 16), blocks=1, groups=4, dims=dims, coordinates=True, **options))
    plain = UNet(2, 3, (8, 16), blocks=1, groups=4, dims=dims, concatenated=dims, **options)
    state = network.state_dict()
    if options:
        weight = state["residuals.0.conv.weight"]
        state["residuals.0.conv.weight"] = torch.cat([weight, torch.zeros_like(weight)[:, :dims]], dim=1)
    plain.load_state_dict(state)
    for side in (8, 12):
        x, time, where = torch.randn(2, 2, *[side] * dims), torch.rand(2), places(*[side] * dims)
        expected = plain.eval()(x, time, channels=where.expand(2, *where.shape))
        torch.testing.assert_close(network(x, time), expected)


def test_coordinates_tell_places_apart() -> None:
    """Without them, what a periodic convolution sees of a picture of one colour is the same everywhere."""
    x, time = torch.ones(1, 1, 40, 40), torch.zeros(1)
    for coordinates in (False, True):
        options: dict[str, Any] = {"blocks": 1, "middle": 1, "middle_attention": False, "groups": 4}
        network = randomized(UNet(1, 1, (8,), coordinates=coordinates, **options))
        inner = network(x, time)[0, 0, 12:-12, 12:-12].detach()
        assert (float(inner.std()) > 1e-3) == coordinates


def test_coordinates_are_of_patches() -> None:
    network = UNet(3, 3, (8,), patch=2, coordinates=True, groups=4)
    assert network.first.in_channels == 3 * 4 + 2
    assert network(torch.zeros(1, 3, 6, 6), torch.zeros(1)).shape == (1, 3, 6, 6)


@pytest.mark.parametrize(("skips", "more"), [("all", 1), ("blocks", 0)])
def test_blocks_by_resolution(skips: Literal["all", "blocks"], more: int) -> None:
    network = randomized(UNet(1, 1, (4, 8, 8), blocks=(1, 3, 2), groups=4, skips=skips))
    down, up = ([sum(isinstance(m, UNetBlock) for m in s) for s in way] for way in (network.down, network.up))  # type: ignore[union-attr]
    assert down == [1, 3, 2] and up == [2 + more, 3 + more, 1 + more]
    network(torch.randn(2, 1, 8, 8), torch.rand(2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_one_number_of_blocks_is_for_all_resolutions() -> None:
    one, several = (UNet(1, 1, (4, 8), blocks=blocks, groups=4) for blocks in (2, (2, 2)))
    several.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("blocks", "words"), [((1, 2), "2 numbers for 3 resolutions"), ((1, 0, 2), "at least 1"), ((), "0 numbers for 3")]
)
def test_blocks_that_do_not_fit(blocks: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        UNet(1, 1, (4, 8, 8), blocks=blocks, groups=4)


@pytest.mark.parametrize("blocks", [3, (2, 4, 8)])
def test_blocks_in_a_configuration(blocks: int | tuple[int, ...]) -> None:
    network = {"kind": "unet", "blocks": list(blocks) if isinstance(blocks, tuple) else blocks}
    config = parse(Config, {"model": {"network": network}})
    assert config.model.network.blocks == blocks
    assert parse(Config, config.model_dump(mode="json")) == config


EFFICIENT: dict[str, Any] = {
    "channels": (4, 8, 8),
    "blocks": (1, 2, 3),
    "order": "resampling",
    "skips": "blocks",
    "skip_scale": 0.5**0.5,
    "attention": (2,),
    "down_attention": "last",
    "up_attention": "last",
    "middle": 0,
    "heads": 2,
    "groups": 4,
}


@torch.no_grad()
def test_the_efficient_u_net_step_by_step() -> None:
    """Halved before the blocks of each resolution, doubled after them; skips / sqrt 2, attention at the coarsest."""
    unet = randomized(UNet(2, 3, **EFFICIENT))
    x, time = torch.randn(2, 2, 16, 24), torch.rand(2)
    told: Any = unet.time.activated(time, None)  # type: ignore[union-attr, operator]
    h = functional.conv2d(x, unet.first.weight, unet.first.bias, padding=1)  # type: ignore[union-attr, arg-type]
    skips: list[torch.Tensor] = []
    down, up = ([list(stage) for stage in way] for way in (unet.down, unet.up))  # type: ignore[arg-type, union-attr]
    for level, (stage, blocks) in enumerate(zip(down, (1, 2, 3), strict=True)):
        strided, *rest = stage
        assert len(rest) == blocks
        h = functional.conv2d(h, strided.resample.weight, strided.resample.bias, stride=2, padding=1)
        assert h.shape[2:] == (16 // 2 ** (level + 1), 24 // 2 ** (level + 1))
        for i, block in enumerate(rest):
            h = block.res(h, told)
            assert (block.attention is not None) == (level == 2 and i == blocks - 1)
            h = h if block.attention is None else block.attention(h)
            skips.append(h)
    for level, (stage, blocks) in enumerate(zip(up, (3, 2, 1), strict=True)):
        *rest, doubled = stage
        assert len(rest) == blocks
        for i, block in enumerate(rest):
            h = block.res(torch.cat([h, skips.pop() / 2.0**0.5], dim=1), told)
            assert (block.attention is not None) == (level == 0 and i == blocks - 1)
            h = h if block.attention is None else block.attention(h)
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = functional.conv2d(h, doubled.conv.weight, doubled.conv.bias, padding=1)
    assert not skips
    h = functional.silu(unet.norm(h))  # type: ignore[operator]
    expected = functional.conv2d(h, unet.last.weight, unet.last.bias, padding=1)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(unet(x, time), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("skips", ["all", "blocks"])
@pytest.mark.parametrize("resample", ["learned", "asymmetric", "fixed", "block", "projected"])
def test_every_change_of_resolution_can_come_first(
    resample: str, skips: str, dims: Literal[1, 2], unchecked: None
) -> None:
    for residual in (False, True):
        options = {**EFFICIENT, "skips": skips, "resample": resample, "residual_input": residual, "middle": 1}
        unet = randomized(UNet(2, 3, **options, dims=dims))
        out = unet(torch.randn(2, 2, *[16] * dims), torch.rand(2))
        assert out.shape == (2, 3, *[16] * dims)
        out.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())
    with pytest.raises(InputError, match="not divisible by the down-sampling of 8"):
        unet(torch.zeros(1, 2, *[12] * dims), torch.zeros(1))


def test_blocks_after_the_change_of_resolution_cost_a_quarter() -> None:
    """Of the same blocks, at half the sides: all but the first and the last convolution, and what changes the sides."""
    options: dict[str, Any] = {"channels": (8, 8), "blocks": 8, "middle": 1, "groups": 4, "middle_attention": False}
    before, after = (
        count(UNet(1, 1, order=o, skips="blocks", **options), (1, 32, 32)) for o in ("blocks", "resampling")
    )
    assert 0.25 < after.macs / before.macs < 0.3 and after.parameters > before.parameters
