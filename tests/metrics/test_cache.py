"""Kept features: found again, checked when read, computed again where they are damaged; files of statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.data import Dataset
from sfumato.errors import InputError, SfumatoWarning
from sfumato.metrics import Features, Moments, cached_features, extract, features, read_statistics, write_statistics
from sfumato.metrics.cache import content_hash

STORED = torch.randint(0, 256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
DATA = Dataset(STORED, name="noise")


class Counted(nn.Module):
    """A random projection that counts the images it has seen."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 5, generator=torch.Generator().manual_seed(seed)))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.flatten(1) @ self.weight


def counting(seed: int = 0) -> tuple[Features, Counted]:
    own = features(Counted(seed), name="projection")
    assert isinstance(own.embed, Counted)
    return own, own.embed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "features"


def test_features_are_computed_once(folder: Path) -> None:
    own, network = counting()
    first = cached_features(own, DATA, folder=folder)
    torch.testing.assert_close(first, extract(own, DATA))
    network.seen = 0
    again = cached_features(own, Dataset(STORED.copy(), name="another name"), folder=folder)
    assert torch.equal(again, first)
    assert network.seen == 2  # those that are compared
    assert len(list(folder.iterdir())) == 1


def test_other_pictures_features_and_rows_are_others(folder: Path) -> None:
    own, _ = counting()
    other, _ = counting(seed=1)
    changed = STORED.copy()
    changed[29, 2, 7, 7] ^= 1
    images = torch.from_numpy(STORED) / 127.5 - 1.0
    parts = [(own, DATA.subset([4, 2, 2])), (own, DATA.subset([2, 4, 2]))]
    for count, (of, data) in enumerate(
        [(own, DATA), (other, DATA), (own, Dataset(changed)), *parts, (own, images)], start=1
    ):
        found = cached_features(of, data, folder=folder)
        assert len(list(folder.iterdir())) == count
        torch.testing.assert_close(found, extract(of, data))
        assert torch.equal(cached_features(of, data, folder=folder), found)


def test_the_hash_of_content_is_that_of_the_values() -> None:
    assert content_hash(DATA) == content_hash(DATA.subset(range(30)))
    assert content_hash(DATA.subset([3, 1])) != content_hash(DATA.subset([1, 3]))
    assert content_hash(DATA.subset([3, 1])) == content_hash(Dataset(STORED[[3, 1]]))
    assert content_hash(torch.from_numpy(STORED[:, :1] / np.float32(255))) != content_hash(DATA)
    reshaped = Dataset(STORED.reshape(30, 3, 4, 16))
    assert content_hash(reshaped) != content_hash(DATA)


@pytest.mark.parametrize("damage", ["cut", "bytes", "nan", "shape", "others", "emptied"])
def test_damaged_files_are_computed_again_with_a_warning(folder: Path, damage: str) -> None:
    own, network = counting()
    first = cached_features(own, DATA, folder=folder)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "bytes":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        from sfumato.io.tensors import read_tensors, write_tensors
        from sfumato.metrics.cache import _sha256

        _, meta = read_tensors(path)
        wrong = {"nan": first * float("nan"), "shape": first[:, :4], "others": first + 1.0}[damage].contiguous()
        write_tensors(path, {"values": wrong}, {**meta, "sha256": _sha256(wrong)})
    with pytest.warns(SfumatoWarning, match="computed again"):
        assert torch.equal(cached_features(own, DATA, folder=folder), first)
    network.seen = 0
    assert torch.equal(cached_features(own, DATA, folder=folder), first)
    assert network.seen == 2


def test_a_function_that_changed_unseen_is_noticed(folder: Path) -> None:
    """The text of the function is the same; what it refers to is not."""
    scale = [1.0]

    def scaled(images: Tensor) -> Tensor:
        return images.flatten(1) * scale[0]

    own = features(scaled, device="cpu")
    first = cached_features(own, DATA, folder=folder)
    scale[0] = 1.01
    with pytest.warns(SfumatoWarning, match="first picture differ"):
        torch.testing.assert_close(cached_features(own, DATA, folder=folder), first * 1.01)


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    own, _ = counting()
    (tmp_path / "file").write_text("")
    with pytest.warns(SfumatoWarning, match="not kept"):
        found = cached_features(own, DATA, folder=tmp_path / "file" / "features")
    torch.testing.assert_close(found, extract(own, DATA))


def test_it_is_in_the_users_cache_and_pixels_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.io.files.cache_folder", lambda: tmp_path / "cache")
    cached_features(features("pixels"), DATA)
    assert not (tmp_path / "cache").exists()
    cached_features(counting()[0], DATA)
    assert len(list((tmp_path / "cache" / "features").glob("*.safetensors"))) == 1


def test_statistics_are_those_of_numpy_and_come_back(tmp_path: Path) -> None:
    own, _ = counting()
    vectors = extract(own, DATA)
    path = tmp_path / "noise.npz"
    write_statistics(path, Moments.fit(vectors), own)
    with np.load(path) as file:  # as pytorch-fid reads them
        mu, sigma = file["mu"][:], file["sigma"][:]
    np.testing.assert_allclose(mu, vectors.double().numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(sigma, np.cov(vectors.double().numpy(), rowvar=False), rtol=1e-6, atol=1e-9)
    found = read_statistics(path, own, width=5)
    assert found.samples == 30
    np.testing.assert_array_equal(found.mean.numpy(), mu)
    np.testing.assert_array_equal(found.covariance.numpy(), sigma)
    back = Moments.of(found.mean, found.covariance, found.samples)
    assert back.distance(Moments.fit(vectors)) == pytest.approx(0.0, abs=1e-6 * float(np.trace(sigma)))


def test_statistics_of_others_and_of_other_features(tmp_path: Path) -> None:
    own, other = counting()[0], counting(seed=1)[0]
    mu, sigma = np.zeros(5), np.eye(5, dtype=np.float32)
    np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    found = read_statistics(tmp_path / "theirs.npz", own, width=5)
    assert found.samples is None and found.covariance.dtype == torch.float64
    with pytest.raises(InputError, match=r"5 features, and projection has 7"):
        read_statistics(tmp_path / "theirs.npz", own, width=7)
    write_statistics(tmp_path / "ours.npz", Moments.fit(extract(own, DATA)), own)
    with pytest.raises(InputError, match=r"projection of another version or with other weights"):
        read_statistics(tmp_path / "ours.npz", other)
    with pytest.raises(InputError, match=r"features projection, which cannot be compared with pixels"):
        read_statistics(tmp_path / "ours.npz", features("pixels"))
    with pytest.raises(InputError, match=r"another ending; call it ours\.npz"):
        write_statistics(tmp_path / "ours.pt", Moments.fit(extract(own, DATA)), own)


def test_damaged_statistics_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    for message, arrays in (
        ("no 'sigma'", {"mu": np.zeros(3)}),
        (r"shapes \(d,\) and \(d, d\)", {"mu": np.zeros(3), "sigma": np.eye(4)}),
        (r"shapes \(d,\) and \(d, d\)", {"mu": np.zeros((3, 1)), "sigma": np.eye(3)}),
        ("expected floats", {"mu": np.zeros(3, int), "sigma": np.eye(3)}),
        ("NaN", {"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}),
        ("cannot be read", {"mu": np.array([object()]), "sigma": np.eye(3)}),
    ):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            read_statistics(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK nothing"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            read_statistics(path)
    with pytest.raises(InputError, match="no file of statistics"):
        read_statistics(tmp_path / "none.npz")
    save_file({"mu": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert load_file(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_statistics(tmp_path / "other.safetensors")
