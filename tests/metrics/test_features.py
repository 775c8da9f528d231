"""Features by name and of one's own: names, identities, batches, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.data import Dataset
from sfumato.errors import InputError
from sfumato.metrics import Features, Row, default_features, extract, features, train_classifier

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
LABELS = (IMAGES.mean(dim=(1, 2, 3)) > 0.0).long() * 3


def halves(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :32] * 0.5


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.layer(images.flatten(1)))


def test_pixels_are_the_values() -> None:
    pixels = features("pixels", device="cpu")
    assert torch.equal(pixels(IMAGES), IMAGES.reshape(40, 64))
    assert pixels.name == "pixels"


def test_the_classifier_is_the_datas_own() -> None:
    own = features("classifier", train=(IMAGES, LABELS), device="cpu")
    assert own.classes is not None and own.classes.tolist() == [0, 3]
    assert bool((own.classes[own.logits(IMAGES).argmax(1)] == LABELS).float().mean() > 0.9)
    with pytest.raises(InputError, match="train="):
        features("classifier")


def test_a_trained_classifier_is_features() -> None:
    trained, other = (train_classifier(IMAGES, LABELS, seed=seed, steps=2) for seed in (0, 1))
    own = features(trained)
    assert torch.equal(own(IMAGES), trained(IMAGES))
    torch.testing.assert_close(own.logits(IMAGES), trained.head(trained.network(IMAGES)))
    assert own.identity == features(trained).identity != features(other).identity


def test_a_module_and_a_function_of_ones_own() -> None:
    module = Own()
    own = features(module, name="mine")
    expected = module.layer(IMAGES.flatten(1))
    torch.testing.assert_close(own(IMAGES), expected)  # without dropout
    assert module.training
    assert own.name == "mine" and features(module).name == "Own" and features(halves).name == "halves"
    assert torch.equal(features(halves, device="cpu")(IMAGES), halves(IMAGES))
    assert features(own) is own


def test_identities_differ_with_what_decides_the_numbers() -> None:
    module = Own()
    first = features(module).identity
    assert features(module).identity == first
    assert features(module, name="other").identity != first
    with torch.no_grad():
        module.layer.weight[0, 0] += 1.0
    assert features(module).identity != first
    assert features(halves).identity != features(lambda images: images.flatten(1), name="halves").identity


@pytest.mark.parametrize("batch", [1, 7, 40, 100])
def test_extract_of_data_sets_tensors_and_rows_of_them(batch: int) -> None:
    stored = ((IMAGES + 1.0) * 127.5).round().to(torch.uint8).numpy()
    data = Dataset(stored, name="noise")
    seen = torch.from_numpy(stored).float() / 127.5 - 1.0
    pixels = features("pixels", device="cpu")
    torch.testing.assert_close(extract(pixels, data, batch=batch), seen.flatten(1))
    rows = np.array([3, 3, 39, 0])
    torch.testing.assert_close(extract(pixels, data, indices=rows, batch=batch), seen.flatten(1)[rows])
    torch.testing.assert_close(extract(pixels, seen, indices=[5, 2], batch=batch), seen.flatten(1)[[5, 2]])


def test_few_batches_are_read_ahead() -> None:
    """However many images there are, and however slow the network is, memory holds a few batches."""
    read, most = [0], [0]

    class Watched(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> Tensor:
            read[0] = max(read[0], index + 1)
            return IMAGES[index % 40]

    done = [0]

    def slow(images: Tensor) -> Tensor:
        time.sleep(0.005)
        most[0] = max(most[0], read[0] - done[0])
        done[0] += len(images)
        return images.flatten(1)

    found = extract(features(slow, device="cpu"), Dataset.of(Watched()), batch=10)
    assert torch.equal(found, IMAGES.flatten(1).repeat(5, 1))
    assert 10 < most[0] <= 30  # the batch in the network, and at most two that wait


def test_an_error_while_reading_is_said() -> None:
    class Broken(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Tensor:
            if index == 60:
                raise OSError("no such picture")
            return IMAGES[index % 40]

    with pytest.raises(OSError, match="no such picture"):
        extract(features("pixels", device="cpu"), Dataset.of(Broken()), batch=8)


SWITCHES = ["torch.set_float32_matmul_precision('high')", "torch.backends.fp32_precision = 'tf32'"]


@pytest.mark.parametrize("setting", SWITCHES)
def test_published_networks_compute_in_full_float32_and_leave_the_switches(setting: str) -> None:
    """In a process of its own for each way to set them, of which torch forbids mixtures."""
    program = f"""
import torch
from sfumato.metrics.features import full_precision
if "fp32_precision" not in {setting!r} or hasattr(torch.backends, "fp32_precision"):
    {setting}
def state():
    found = []
    for read in (lambda: torch.backends.cuda.matmul.allow_tf32, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError as error:
            found.append("mixture")
    return found
before = state()
try:
    with full_precision():
        if hasattr(torch.backends.cudnn, "conv"):
            assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        else:
            assert state() == [False, False]
        raise KeyError
except KeyError:
    pass
assert state() == before, (before, state())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_titles() -> None:
    def named(name: str) -> Features:
        return Features(name, "0" * 64, halves, torch.device("cpu"))

    inception = named("inception (clean-fid)")
    assert Row("FD", inception.name, 0.0).title == "FID (clean-fid)"
    assert Row("FD", named("dinov2").name, 0.0).title == "FD (dinov2)"


@pytest.mark.parametrize(
    ("shape", "labelled", "expected"),
    [
        ((3, 32, 32), True, "efficientnet-lite0"),
        ((3, 64, 48), False, "efficientnet-lite0"),
        ((3, 31, 64), True, "classifier"),
        ((1, 64, 64), True, "classifier"),
        ((1, 64, 64), False, "pixels"),
        ((3, 500), False, "pixels"),
        ((2,), False, "pixels"),
    ],
)
def test_default(shape: tuple[int, ...], labelled: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.metrics.efficientnet.PACKAGE", "torch")  # one that is installed
    assert default_features(shape, labelled) == expected
    monkeypatch.setattr("sfumato.metrics.efficientnet.PACKAGE", "no_such_package_here")
    assert default_features(shape, labelled) == ("classifier" if labelled else "pixels")


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean 'efficientnet-lite0'"):
        features("efficientnet")
    with pytest.raises(InputError, match="known are"):
        features("xyz")
    with pytest.raises(InputError, match="not a int"):
        features(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"\(batch, features\)"):
        features(lambda images: images, name="map")(IMAGES)
    with pytest.raises(InputError, match=r"\(batch, features\)"):
        features(lambda images: images.flatten(1)[:3], name="short")(IMAGES)
    with pytest.raises(InputError, match="tuple"):
        features(lambda images: (images, images), name="pair")(IMAGES)
    with pytest.raises(InputError, match="NaN"):
        features(lambda images: images.flatten(1) / 0.0, name="division")(IMAGES)
    with pytest.raises(InputError, match="no classes"):
        features("pixels").logits(IMAGES)
    with pytest.raises(InputError, match="of no images"):
        extract(features("pixels"), IMAGES[:0])
    with pytest.raises(InputError, match="batch=-1"):
        extract(features("pixels"), IMAGES, batch=-1)
    with pytest.raises(InputError, match="no option 'weights'"):
        features("pixels", weights="x.pth")
