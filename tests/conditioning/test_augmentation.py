"""Augmentation of training images: what is done, what it conditions, and that nothing of it is left in samples."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from sfumato.conditioning import Augmentation, Label, LowResolution
from sfumato.conditioning.augmentation import Told, encoded, warp
from sfumato.conditioning.base import altered, training_tensors
from sfumato.data import Batch, Column, Dataset
from sfumato.errors import InputError
from sfumato.models.model import load
from sfumato.random import Draws
from sfumato.runs.train import train
from sfumato.training.losses import Denoising
from tests.runs.test_resume import assert_same_bytes, losses
from tests.training.tiny import tiny

ALWAYS = Augmentation(probability=1.0)
AUGMENTED: dict[str, Any] = {"augmentation": {"kind": "augmentation", "probability": 0.5}}
NOTHING: dict[str, Any] = {"kind": "augmentation", "probability": 0.0, "mirror": 0.0}
MANY = Draws(3, 0, 20_000, 64)


def smooth(x: Tensor, y: Tensor) -> Tensor:
    """A picture that is smooth against a pixel, of points in pixels from the centre, to the right and down."""
    return 0.4 * torch.sin(0.21 * x + 0.6) * torch.cos(0.17 * y - 0.4) + 0.3 * torch.cos(0.13 * x + 0.19 * y)


def points(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return x - (width - 1) / 2.0, y - (height - 1) / 2.0


def by_formulas(a: list[float], width: int, height: int) -> tuple[Tensor, Tensor]:
    """The map p -> A p + b of the paper's table 6 in its words: scalings and rotations in homogeneous coordinates."""

    def scaled(x: float, y: float) -> np.ndarray[Any, Any]:
        return np.diag([x, y, 1.0])

    def rotated(angle: float) -> np.ndarray[Any, Any]:
        cos, sin = math.cos(angle), math.sin(angle)
        return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    whole = scaled(1.0 - 2.0 * a[0], 1.0 - 2.0 * a[1])
    whole = scaled(2.0 ** (0.2 * a[2]), 2.0 ** (0.2 * a[2])) @ whole
    whole = rotated(-a[3]) @ whole
    whole = rotated(a[4]) @ scaled(2.0 ** (0.2 * a[5]), 2.0 ** (-0.2 * a[5])) @ rotated(-a[4]) @ whole
    shift = np.eye(3)
    shift[:2, 2] = a[6] * width / 8.0, a[7] * height / 8.0
    whole = torch.from_numpy(shift @ whole)
    return whole[:2, :2], whole[:2, 2]


@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
@pytest.mark.parametrize("rotation", ["any", "none"])
def test_images_are_transformed_as_the_table_of_the_paper_says(shape: tuple[int, int], rotation: Any) -> None:
    """Against a smooth function at the points where the formulas come from, away from the edges."""
    condition, draws = Augmentation(probability=0.7, rotation=rotation), Draws(1, 0, 40, 64)
    height, width = shape
    x, y = points(height, width)
    images = smooth(x, y).float().expand(40, 1, height, width)
    found, a = condition.alter(images, draws), condition.drawn(draws).tolist()
    checked = 0
    for image, parameters in zip(found, a, strict=True):
        linear, offset = by_formulas(parameters, width, height)
        back = linear.inverse() @ (torch.stack([x, y]).flatten(1) - offset[:, None])
        from_x, from_y = back.reshape(2, height, width)
        inside = (from_x.abs() < width / 2.0 - 2.0) & (from_y.abs() < height / 2.0 - 2.0)
        checked += int(inside.sum())
        assert (image[0].double() - smooth(from_x, from_y))[inside].abs().max() < 0.01
    assert checked > 0.5 * found.numel()
    if rotation == "none":
        assert all(parameters[3] == 0.0 for parameters in a)


def test_edges_are_reflected() -> None:
    """Against SciPy's bilinear resampling with half-sample symmetry, of an image of large pixels."""
    fine = ndimage.zoom(np.random.default_rng(0).uniform(-0.7, 0.7, (6, 6)), 4, order=3, mode="nearest")
    image = torch.from_numpy(fine).float().clamp(-1.0, 1.0)
    linear = torch.tensor([[0.8, 0.5], [-0.5, 0.8]], dtype=torch.float64)
    offset = torch.tensor([3.0, -2.0], dtype=torch.float64)
    found = warp(image[None, None], linear[None], offset[None])[0, 0]
    # SciPy counts rows, then columns, from the corner
    back = linear.inverse().flip(0).flip(1).numpy()
    middle = (np.array(image.shape) - 1.0) / 2.0
    start = middle - back @ (middle + offset.numpy()[::-1])
    expected = ndimage.affine_transform(image.numpy(), back, start, order=3, mode="reflect")
    assert np.abs(found.numpy() - expected.clip(-1.0, 1.0)).max() < 0.04


def test_flips_and_quarter_turns_are_exact() -> None:
    images = torch.randn(64, 2, 6, 6).clamp(-1.0, 1.0)
    condition = Augmentation(probability=0.7, rotation="quarter", scale=0.0, stretch=0.0, shift=0.0)
    draws = Draws(5, 0, 64, 64)
    a, found = condition.drawn(draws), condition.alter(images, draws)
    seen = set[tuple[int, int, int]]()
    for image, one, result in zip(images.numpy(), a, found.numpy(), strict=True):
        mirror, flip, turns = int(one[0]), int(one[1]), round(float(one[3]) / (0.5 * math.pi))
        seen.add((mirror, flip, turns))
        image = image[..., ::-1] if mirror else image
        image = image[:, ::-1] if flip else image
        # as seen, counter-clockwise
        assert np.array_equal(np.rot90(image, turns, axes=(1, 2)), result)
    assert len(seen) == 16 and torch.equal(encoded(a)[:, 3:5].round(), encoded(a)[:, 3:5].float().round().double())
    # quarter turns are rotations by these angles
    linear = torch.stack([by_formulas([0.0, 0.0, 0.0, float(one[3]), *[0.0] * 4], 6, 6)[0] for one in a])
    plain = Augmentation(probability=0.7, rotation="quarter", scale=0.0, stretch=0.0, shift=0.0, mirror=0.0, flip=False)
    x, y = points(6, 6)
    coarse = smooth(x, y).float().expand(64, 1, 6, 6)
    assert (warp(coarse, linear, torch.zeros(64, 2).double()) - plain.alter(coarse, draws)).abs().max() < 0.02


def test_what_is_drawn_has_the_distributions_of_the_paper() -> None:
    condition = Augmentation(probability=0.4)
    a = condition.drawn(MANY).numpy()
    shares = [0.5, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    error = 4.0 * 0.5 / math.sqrt(len(a))
    assert np.abs((a != 0.0).mean(0) - shares).max() < error
    assert set(np.unique(a[:, :2])) == {0.0, 1.0}
    for column in (2, 5, 6, 7):
        assert stats.kstest(a[a[:, column] != 0.0, column], "norm").pvalue > 1e-3
    for column in (3, 4):
        angle = a[a[:, column] != 0.0, column]
        assert stats.kstest(angle, stats.uniform(-math.pi, 2.0 * math.pi).cdf).pvalue > 1e-3
    # both shifts, and direction and strength of the stretch, together; all else apart
    assert np.array_equal(a[:, 6] != 0.0, a[:, 7] != 0.0) and np.array_equal(a[:, 4] != 0.0, a[:, 5] != 0.0)
    drawn = (a[:, [0, 1, 2, 3, 5, 6]] != 0.0).astype(float)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.04
    assert np.abs(np.corrcoef(a[a[:, 6] != 0.0][:, [6, 7]].T)[0, 1]) < 0.05


def test_what_the_network_is_conditioned_on() -> None:
    """The nine numbers of the table, zeros exactly where nothing is done."""
    a = torch.tensor([[1.0, 0.0, -0.5, 0.3, 2.0, 1.5, 0.2, -0.7], [0.0] * 8], dtype=torch.float64)
    expected = [1.0, 0.0, -0.5, math.cos(0.3) - 1.0, math.sin(0.3), 1.5 * math.cos(2.0), 1.5 * math.sin(2.0), 0.2, -0.7]
    assert torch.allclose(encoded(a)[0], torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert not encoded(a)[1].any()
    condition, draws = Augmentation(), Draws(0, 0, 400, 64)
    images = torch.rand(400, 1, 8, 8) * 2.0 - 1.0
    values = condition.training(images, {}, draws)["value"]
    untouched = ~values.any(1)
    # all but the mirroring are left out with 0.88^4 0.94, and that in half of the cases
    assert float(untouched.float().mean()) == pytest.approx(0.5 * 0.88**4 * 0.94, abs=0.1)
    assert torch.equal(condition.alter(images, draws)[untouched], images[untouched])
    changed = (condition.alter(images, draws) != images).flatten(1).any(1)
    assert torch.equal(changed, ~untouched)


def test_the_same_numbers_however_a_batch_is_cut() -> None:
    conditions = {"augmentation": ALWAYS, "low": LowResolution(factor=2)}
    images = torch.rand(24, 1, 8, 8) * 2.0 - 1.0

    def made(start: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        draws = Draws(0, start, count, 24)
        x0 = altered(conditions, images[start : start + count], draws)
        return x0, training_tensors(conditions, x0, {}, draws)

    whole, tensors = made(0, 24)
    parts = [made(start, count) for start, count in ((0, 7), (7, 1), (8, 16))]
    assert torch.equal(whole, torch.cat([x0 for x0, _ in parts]))
    for key, tensor in tensors.items():
        assert torch.equal(tensor, torch.cat([part[key] for _, part in parts]))
    # what is derived from the images is derived from the altered ones
    assert torch.equal(tensors["low"], LowResolution(factor=2).of(whole, {}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("augmented") / "run"
    train(tiny(conditions=AUGMENTED), run=path)
    return path


def test_it_trains_and_samples_have_no_transform(run: Path) -> None:
    model = load(run)
    plain = model.sample(3, steps=3)
    zeros = torch.zeros(3, 9)
    assert torch.equal(plain, model.sample(3, steps=3, augmentation=zeros))
    assert torch.equal(plain, model.sample(3, steps=3, augmentation=None))
    assert torch.equal(model.given({}, 0, 0, 3)["augmentation"], zeros)
    assert not torch.equal(plain, model.sample(3, steps=3, augmentation=[1.0, *[0.0] * 8]))
    images = torch.rand(5, 1, 8, 8) * 2.0 - 1.0
    assert not model.of_data(images, {}, Draws(0, 0, 5, 5))["augmentation"].any()


def test_evaluation_sees_the_images_as_they_are(run: Path) -> None:
    """Losses of held-out images are those without the condition; training ones are of transformed images."""
    model = load(run)
    loss = Denoising(model.denoiser)
    draws = Draws(0, 0, 16, 16)
    batch = Batch(torch.rand(16, 1, 8, 8) * 2.0 - 1.0, {}, 0)
    bare = Denoising(model.denoiser, conditions={})
    with torch.no_grad():
        assert torch.equal(loss.eval()(batch, draws), bare.eval()(batch, draws))
        trained, never = loss.train()(batch, draws), bare.train()(batch, draws)
    touched = loss.conditions["augmentation"].training(batch.x0, {}, draws.within("augmentation"))["value"].any(1)
    assert touched.any() and not touched.all()
    assert torch.equal(trained[~touched], never[~touched]) and bool((trained != never)[touched].all())


def test_without_transforms_the_run_is_the_one_without_the_condition(tmp_path: Path) -> None:
    """Bit for bit: nothing else is drawn otherwise, and the weights of the condition get no gradient."""
    over = {"training": {"steps": 4, "threads": 1}}
    with_it = train(tiny(conditions={"augmentation": NOTHING}, **over), run=tmp_path / "with")
    without = train(tiny(conditions={"label": None}, **over), run=tmp_path / "without")
    other = dict(without.denoiser.network.named_parameters())
    for name, parameter in with_it.denoiser.network.named_parameters():
        if not name.startswith("encoders."):
            assert torch.equal(parameter, other[name.removeprefix("network.")]), name


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, run: Path) -> None:
    """From an older checkpoint, as after a crash; and a batch in parts sees the same transforms."""
    shutil.copytree(run, tmp_path / "parts")
    max((tmp_path / "parts" / "checkpoints").iterdir()).unlink()
    train(run=tmp_path / "parts", resume=True)
    assert_same_bytes(run, tmp_path / "parts")
    config = tiny(conditions=AUGMENTED, training={"accumulate": 4})
    train(config, run=tmp_path / "four")
    assert losses(tmp_path / "four") == pytest.approx(losses(run), rel=1e-4)


def test_what_can_not_be_augmented(unchecked: None) -> None:
    vectors = Dataset(np.zeros((4, 3), np.float32))
    wide = Dataset(np.zeros((4, 1, 6, 8), np.uint8))
    with pytest.raises(InputError, match=r"is of images; .* has shape \(3,\)"):
        Augmentation().describe(vectors)
    with pytest.raises(InputError, match="Quarter turns need square images"):
        Augmentation(rotation="quarter").describe(wide).build_encoder(wide.shape, 8, 8)
    assert isinstance(Augmentation(rotation="quarter").build_encoder((1, 8, 8), 8, 8), Told)
    assert Augmentation().describe(wide) == Augmentation()
    small = Dataset(np.zeros((4, 1, 8, 8), np.uint8), {"small": Column(np.zeros((4, 1, 2, 2), np.uint8))})
    with pytest.raises(InputError, match="not those of their column 'small'"):
        Augmentation().describe(small)
    for options, words in (
        ({"drop": 0.1}, "never dropped"),
        ({"column": "x"}, "has no column"),
        ({"probability": 1.5}, r"probability .* lies in \[0, 1\]; got 1.5"),
        ({"mirror": -0.5}, "mirror .* got -0.5"),
        ({"shift": 2.0}, "shift .* standard deviation .* got 2"),
    ):
        with pytest.raises(InputError, match=words):
            Augmentation(**options)
    with pytest.raises(InputError, match=r"expected \(9\) for all samples"):
        Augmentation().given([1.0, 2.0], 3)
    assert Label().optional and not Label(drop=0.0).optional
