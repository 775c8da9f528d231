"""What a U-Net is made of: coordinates beside the input, and blocks by resolution."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from sfumato.config import Config, parse
from sfumato.errors import InputError
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
