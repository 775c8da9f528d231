"""Super-resolution of pictures of any size, with networks whose weights are not zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sfumato
from sfumato.conditioning.low_resolution import base_of, scale_down
from sfumato.config import Config, parse
from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics.pairs import consistency
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.models.upscale import mirrored, passes, upscale
from sfumato.sampling.fitted_solver import Fitted, FittedSolver


class Local(nn.Module):
    """Sees 3 pixels in each direction; says neither which sizes it takes nor anything of a picture as a whole."""

    def __init__(self, inputs: int, concatenated: int) -> None:
        super().__init__()
        self.concatenated, self.factor, self.width = concatenated, 1, 8
        self.first, self.last = nn.Conv2d(inputs + concatenated, 8, 5, padding=2), nn.Conv2d(8, inputs, 3, padding=1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, time: Tensor, channels: Tensor, vector: Tensor | None = None) -> Tensor:
        self.seen.append(tuple(x.shape))
        embedded = time[:, None] if vector is None else time[:, None] + vector
        return self.last(torch.sin(self.first(torch.cat([x, channels], 1)) + embedded[:, :, None, None]))


def model(
    network: nn.Module | None = None, *, channels: int = 3, size: int = 16, std: float = 0.05, **low: Any
) -> Model:
    """A model of super-resolution by random weights."""
    low = {"kind": "low_resolution", "factor": 4, "channels": channels, **low}
    unet = {"kind": "unet", "channels": (8, 8), "groups": 4, "embedding": 16, "middle_attention": False}
    config = {
        "model": {"schedule": {"kind": "edm"}, "parameterization": {"kind": "edm"}, "network": unet},
        "conditions": {"low_resolution": low},
        "sampling": {"steps": 3},
    }
    info = Info(shape=(channels, size, size), std=0.5, conditions={"low_resolution": low})
    torch.manual_seed(0)
    made = Model.build(parse(Config, config), info, network=network)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter += std * torch.randn(parameter.shape)
    return made


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth, from -0.9 to 0.9."""
    coarse = torch.rand(1, channels, 4, 5, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    return functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def test_at_the_size_of_the_training_it_is_sampling() -> None:
    low = picture(4, 4)
    free: dict[str, Any] = {"guidance": {"consistent": False}}  # what is corrected last is clipped otherwise
    for made, options in ((model(), free), (model(noise=0.5, level=0.2), {"solver": "ancestral"})):
        found = upscale(made, low, seed=3, index=2, progress=False, **options)
        assert torch.equal(found, made.sample(1, seed=3, first=2, low_resolution=low, **options)[0])
        assert not torch.allclose(found, upscale(made, low, seed=3, index=1, **options), atol=1e-2)
        assert not torch.allclose(found, upscale(made, low, seed=2, index=2, **options), atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"solver": "ancestral"}, {"solver": "heun", "clip": True}])
def test_tiles_make_the_same_picture_as_the_whole(options: dict[str, Any]) -> None:
    made = model(Local(3, 3))
    low = picture(33, 50)
    whole = upscale(made, low, tile=0, **options)
    assert whole.shape == (3, 132, 200) and float(whole.std()) > 0.1
    for tile, overlap in ((16, 4), (20, 8), (24, 12)):
        assert (upscale(made, low, tile=tile, overlap=overlap, **options) - whole).abs().max() <= 1 / 127.5
    assert (upscale(made, low, tile=16, overlap=0, **options) - whole).abs().max() > 4 / 127.5


def test_a_network_that_halves_sizes_meets_the_same_grid_in_every_tile() -> None:
    """Of the same network without normalization, so that only the places of the tiles can differ."""
    made = model(size=32, factor=2, std=0.02)
    for block in made.module.modules():
        if hasattr(block, "norm1"):
            block.norm1 = nn.Identity()
            block.norm2 = nn.Identity()
    made.denoiser.network.network.norm = nn.Identity()
    low = picture(63, 50)  # 126 x 100, and the network halves once
    whole = upscale(made, low, tile=0)
    assert whole.shape == (3, 126, 100)
    assert (upscale(made, low, tile=49, overlap=31) - whole).abs().max() <= 1 / 127.5


def test_normalization_over_a_tile_is_said() -> None:
    with pytest.warns(SfumatoWarning, match="GroupNorm"):
        upscale(model(), picture(20, 10), tile=12, overlap=2, steps=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (4, 4), (7, 5)])
def test_pictures_smaller_than_those_of_the_training(size: tuple[int, int]) -> None:
    made = model(size=24)
    found = upscale(made, picture(*size).requires_grad_(), steps=1)
    assert found.shape == (3, 4 * size[0], 4 * size[1]) and bool(found.isfinite().all())
    kept = upscale(made, 0.3 * picture(*size), steps=2, guidance={"consistent": True})
    assert (scale_down(kept[None], 4)[0] - 0.3 * picture(*size)).abs().max() < 1e-4 or float(kept.abs().max()) == 1.0


def test_a_picture_is_continued_by_its_mirror_image() -> None:
    row = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert mirrored(row, 2, 8).tolist() == [[[1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0]] * 2]
    assert torch.equal(mirrored(row, 1, 3), row)


def test_noise_belongs_to_the_pixel_whatever_the_tiles() -> None:
    """A network that returns nothing leaves the noise, scaled: it is the same for any tiles, to rounding."""
    made = model(Local(3, 3))
    torch.nn.init.zeros_(made.denoiser.network.network.last.weight)
    torch.nn.init.zeros_(made.denoiser.network.network.last.bias)
    low = picture(30, 30)
    whole = upscale(made, low, tile=0, solver="ancestral")
    assert torch.allclose(upscale(made, low, tile=11, overlap=3, solver="ancestral"), whole, atol=1e-5)


def test_grey_opacity_and_several_passes() -> None:
    made = model(Local(3, 3))
    grey = picture(6, 7, 1)
    found = upscale(made, grey)
    assert found.shape == (1, 24, 28)
    assert torch.allclose(found[0], upscale(made, grey.expand(3, -1, -1)).mean(0))
    opaque = torch.cat([picture(6, 7), grey])
    for colours in (3, 1):
        both = upscale(made, opaque[-1 - colours :])
        assert torch.allclose(both[:-1], upscale(made, opaque[-1 - colours : -1]))
        expected = functional.interpolate(grey[None], scale_factor=4, mode="bicubic")[0].clamp(-1, 1)
        assert torch.allclose(both[-1:], expected)
    assert upscale(model(Local(1, 1), channels=1), grey).shape == (1, 24, 28)
    seen: list[int] = []
    twice = upscale(made, picture(3, 2), scale=16, seed=5, progress=seen.append)
    assert twice.shape == (3, 48, 32) and seen == sorted(seen) and seen[-1] == 100
    again = upscale(made, upscale(made, picture(3, 2), seed=5), seed=sfumato.random.fold(5, "upscale", 1))
    assert torch.allclose(twice, again)


def test_estimates_are_consistent_with_the_picture() -> None:
    made, low = model(Local(3, 3), noise=0.3, level=0.1), 0.5 * picture(40, 31)
    with torch.no_grad():
        for parameter in made.denoiser.network.network.last.parameters():
            parameter *= 0.2
    options: dict[str, Any] = {"tile": 20, "overlap": 8}
    for height, width in ((40, 31), (4, 4)):
        small = low[:, :height, :width]
        free = upscale(made, small, **options)
        kept = upscale(made, small, **options, guidance={"consistent": True})
        assert float(consistency(free[None], small[None], down).psnr) < 30.0
        assert float(consistency(kept[None], small[None], down).psnr) > 60.0
    # in sampling, where the picture is the condition itself, without noise
    with pytest.raises(InputError, match="level is above 0"):
        made.sample(1, low_resolution=small, guidance={"consistent": True})
    parts = {"value": small[None], "level": torch.zeros(1)}
    sampled = made.sample(1, low_resolution=parts, guidance={"consistent": True}, solver="ancestral")
    assert float(consistency(sampled, small[None], down).psnr) > 60.0


def down(x: Tensor) -> Tensor:
    return scale_down(x, 4)


def test_guidance_labels_and_levels_reach_every_tile() -> None:
    made, low = model(drop=0.1, noise=0.5), picture(12, 12)
    with pytest.warns(SfumatoWarning, match="in tiles"):
        plain = upscale(made, low, tile=8, overlap=2)
    with pytest.warns(SfumatoWarning, match="in tiles"):
        assert not torch.allclose(upscale(made, low, tile=8, overlap=2, guidance=3.0), plain, atol=1e-3)
    assert not torch.allclose(upscale(made, low, input_noise=0.4), upscale(made, low), atol=1e-3)
    assert torch.equal(upscale(made, low, input_noise=0.0), upscale(made, low))


def test_memory_is_that_of_some_tiles() -> None:
    """The pixels at once are those of a batch at the size of the training."""
    network = Local(3, 3)
    made = model(network)
    upscale(made, picture(40, 40), tile=12, overlap=2, batch_size=20, steps=1)
    batches = {(batch, height * width) for batch, _, height, width in network.seen}
    assert max(batch * pixels for batch, pixels in batches) <= 20 * 16 * 16
    assert max(batch for batch, _ in batches) == 2
    network.seen.clear()
    upscale(made, picture(40, 40), steps=1)
    assert network.seen == [(1, 3, 160, 160)]


def test_a_network_of_one_size_gets_tiles_of_that_size() -> None:
    network = Local(3, 3)
    made = model(network)
    del network.factor
    upscale(made, picture(9, 9), overlap=2, steps=1)
    assert {shape[2:] for shape in network.seen} == {(16, 16)}


def test_a_model_of_residuals_starts_around_its_picture() -> None:
    made, low = model(Local(3, 3)), picture(4, 4)
    made.denoiser.base = base_of(made.conditions)
    free: dict[str, Any] = {"guidance": {"consistent": False}}
    found = upscale(made, low, seed=1, **free)
    assert torch.equal(found, made.sample(1, seed=1, low_resolution=low, **free)[0])
    with torch.no_grad():
        for parameter in made.denoiser.network.network.last.parameters():
            parameter.zero_()
    # what adds nothing leaves the picture: of data of EDM, the estimate is a part of x that goes to 0 with the noise
    wide = upscale(made, picture(40, 9), tile=20, overlap=8, steps=5)
    expected = functional.interpolate(picture(40, 9)[None], scale_factor=4, mode="bicubic")[0].clamp(-1, 1)
    assert float((wide - upscale(made, picture(40, 9), tile=0, steps=5)).abs().max()) < 1e-4
    assert float((wide - expected).mean().abs()) < 0.1


def test_a_fitted_solver_is_used_for_tiles_too() -> None:
    made, low = model(Local(3, 3)), picture(4, 4)
    plain = upscale(made, low, steps=2)
    # from sigma 20 to 0.5, then to the estimate of the data
    solver = FittedSolver((-2.0 * math.log(20.0), 2.0 * math.log(2.0)), ((0.025, 0.975), (0.1, 0.0, 0.9)))
    made.fitted = Fitted(solvers={2: solver})
    assert not torch.allclose(upscale(made, low, steps=2), plain, atol=1e-3)
    free: dict[str, Any] = {"steps": 2, "guidance": {"consistent": False}}
    assert torch.equal(upscale(made, low, **free), made.sample(1, low_resolution=low, **free)[0])
    large = picture(30, 30)
    whole = upscale(made, large, steps=2, tile=0)
    assert (upscale(made, large, steps=2, tile=16, overlap=6) - whole).abs().max() <= 1 / 127.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 8}, "4 times larger, and in several passes 4, 16, 64 .*a scale of 8"),
        ({"scale": 1}, "a scale of 1"),
        ({"scale": 0}, "a scale of 0"),
        ({"input_noise": 0.1}, "trained without"),
        ({"tile": -1}, "numbers of pixels"),
        ({"overlap": -1}, "numbers of pixels"),
        ({"index": -1}, "between 0 and 2"),
        ({"step": 3}, "did you mean 'steps'"),
        ({"guidance": 2.0}, "knows no null condition"),
        ({"scale": 4**12}, "lower the scale"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=words):
        upscale(model(), picture(4, 4), **options)


def test_wrong_pictures_and_models_are_refused(unchecked: None) -> None:
    made = model()
    for wrong, words in (
        (torch.zeros(1, 3, 4, 4), "1 to 4 channels"),
        (torch.zeros(5, 4, 4), "1 to 4 channels"),
        (torch.zeros(3, 0, 4), "1 to 4 channels"),
        (torch.full((3, 4, 4), 255.0), "from -1 to 1"),
        (torch.full((3, 4, 4), torch.nan), "from -1 to 1"),
    ):
        with pytest.raises(InputError, match=words):
            upscale(made, wrong)
    with pytest.raises(InputError, match="give it grey"):
        upscale(model(channels=1), picture(4, 4))
    with pytest.raises(InputError, match="a model of super-resolution"):
        upscale(Model(made.denoiser, (3, 16, 16)), picture(4, 4))
    assert passes(made) == 1 and passes(made, 64) == 3
