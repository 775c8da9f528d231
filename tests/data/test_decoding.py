"""Images are decoded once, whatever happens to the file that keeps them, and in constant memory."""

import errno
import gc
import os
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.reading import load

from sfumato.config import DataConfig
from sfumato.data import Dataset, Loader, decoding
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.files import cache_folder

OLD = 1_500_000_000


class Decoded:
    """Counts the pictures that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        decode, lock = decoding.decode_image, threading.Lock()

        def counted(*arguments: object, **options: object) -> np.ndarray:
            with lock:
                self.count += 1
            return decode(*arguments, **options)

        monkeypatch.setattr(decoding, "decode_image", counted)

    def during(self, load_it: object) -> tuple[Dataset, int]:
        before = self.count
        return load_it(), self.count - before


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    return Decoded(monkeypatch)


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with images that fit in memory, once with images that don't."""
    if request.param == "file":
        monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    return request.param


def folder_of_pictures(folder: Path, count: int = 10, at: int = OLD) -> Path:
    for index in range(count):
        picture(folder / f"{index % 2}" / f"{index:05d}.png", index, at)
    return folder


def picture(path: Path, seed: int, at: int = OLD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    os.utime(path, (at, at))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def mapped(data: Dataset) -> bool:
    array = np.asarray(data.images) if isinstance(data.images, np.ndarray) else data.images._array
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def test_second_start_decodes_nothing(tmp_path: Path, decoded: Decoded, place: str) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    first, number = decoded.during(lambda: load(source, columns=("label",), cache=kept))
    second, none = decoded.during(lambda: load(source, columns=("label",), cache=kept))
    assert (number, none) == (10, 0)
    assert mapped(first) == mapped(second) == (place == "file")
    names = sorted(source.rglob("*.png"), key=lambda path: path.parts)
    expected = np.stack([np.asarray(Image.open(name)).transpose(2, 0, 1) for name in names])
    for data in (first, second):
        assert np.array_equal(data.images, expected)
        assert np.asarray(data.columns["label"].values).tolist() == [0] * 5 + [1] * 5
    assert len(files(kept)) == 1 and files(kept)[0].endswith(".npy")
    assert np.array_equal(np.load(kept / files(kept)[0]), expected)  # any reader of .npy files can have them


def test_options_of_pixels_have_files_of_their_own(tmp_path: Path, decoded: Decoded) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    for options in ({}, {"size": 4}, {"size": 4, "crop": "none"}, {"channels": "grey"}):
        assert [decoded.during(lambda o=options: load(source, cache=kept, **o))[1] for _ in range(2)] == [10, 0]
    assert decoded.during(lambda: load(source, cache=kept, columns=("label",), workers=1))[1] == 0
    assert len(files(kept)) == 4


def changed(source: Path) -> None:
    picture(source / "1" / "00003.png", 99, OLD + 1)


def added(source: Path) -> None:
    picture(source / "1" / "00011.png", 11)


def removed(source: Path) -> None:
    (source / "1" / "00003.png").unlink()


def renamed(source: Path) -> None:
    (source / "1" / "00003.png").rename(source / "1" / "00012.png")


@pytest.mark.parametrize("change", [changed, added, removed, renamed])
def test_changed_folder_is_decoded_again(tmp_path: Path, decoded: Decoded, place: str, change: object) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    load(source, cache=kept)
    change(source)
    data, number = decoded.during(lambda: load(source, cache=kept))
    assert number == len(data) == len(list(source.rglob("*.png")))
    fresh = load(source, cache=tmp_path / "another")
    assert np.array_equal(data.images, fresh.images)
    assert len(files(kept)) == 1  # the old state does not fill the disk


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 this is another kind of file")


def other_note(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b'{"listing"')] + b'["a list"]')


@pytest.mark.parametrize("damage", [truncated, halved, emptied, foreign, other_note])
def test_damaged_file_is_rebuilt(tmp_path: Path, decoded: Decoded, place: str, damage: object) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    expected = np.array(load(source, cache=kept).images)
    damage(kept / files(kept)[0])
    data, number = decoded.during(lambda: load(source, cache=kept))
    assert number == 10
    assert np.array_equal(data.images, expected)
    assert decoded.during(lambda: load(source, cache=kept))[1] == 0


def test_files_that_may_still_change_are_not_trusted(tmp_path: Path, decoded: Decoded, place: str) -> None:
    source, kept = folder_of_pictures(tmp_path / "data", at=int(time.time())), tmp_path / "cache"
    data, number = decoded.during(lambda: load(source, cache=kept))
    _, again = decoded.during(lambda: load(source, cache=kept))
    assert number == again == 10 and len(files(kept)) == 1
    assert np.array_equal(data.images, load(source, cache=tmp_path / "another").images)


def test_folder_that_changes_while_it_is_decoded_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    decode = decoding.decode_image

    def disturbed(*arguments: object, **options: object) -> np.ndarray:
        picture(source / "1" / "00001.png", 77, OLD + 5)
        return decode(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_image", disturbed)
        load(source, cache=kept, workers=1)
    picture(source / "1" / "00001.png", 1)  # as it was when the folder was listed
    assert np.array_equal(load(source, cache=kept).images, load(source, cache=tmp_path / "another").images)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_decoding_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    source, kept = folder_of_pictures(tmp_path / "data", 40), tmp_path / "cache"
    decode = decoding.decode_image
    left = [7]

    def interrupted(*arguments: object, **options: object) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return decode(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_image", interrupted)
        with pytest.raises(error):
            load(source, cache=kept, workers=1)
    assert left[0] >= -1 - decoding._AHEAD  # the others stop with the first
    assert files(kept) == []
    assert len(load(source, cache=kept)) == 40


def test_remains_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    load(source, cache=kept)
    old, new = (kept / f".{files(kept)[0]}.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (OLD, OLD))
    changed(source)
    load(source, cache=kept)
    assert not old.exists() and new.exists()


def test_race_of_several_ends_with_one_whole_file(tmp_path: Path, place: str) -> None:
    source, kept = folder_of_pictures(tmp_path / "data", 40), tmp_path / "cache"
    found: list[Dataset] = []
    threads = [threading.Thread(target=lambda: found.append(load(source, cache=kept, workers=1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(files(kept)) == 1
    for data in found[1:]:
        assert np.array_equal(data.images, found[0].images)


def test_broken_pictures_are_named_every_time(tmp_path: Path, decoded: Decoded, place: str) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    good = np.array(load(source, cache=kept).images)
    broken = source / "0" / "00004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    os.utime(broken, (OLD, OLD))
    for expected in (10, 0):
        with pytest.warns(SfumatoWarning, match=r"1 of the 10 images .* skipped: 0/00004\.png \(.*trunc"):
            data, number = decoded.during(lambda: load(source, columns=("label",), cache=kept))
        assert number == expected
        assert np.array_equal(data.images, np.delete(good, 2, axis=0))
        assert np.asarray(data.columns["label"].values).tolist() == [0] * 4 + [1] * 5
        assert data.split(3, 0)[0].batch([0, 1]).shape == (2, 3, 6, 5)
    with pytest.warns(SfumatoWarning, match=r"1 of the 10 .* 0/00004\.png"):  # without a look at headers first
        assert len(load(source, size=4, channels="grey", cache=kept)) == 9


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    kept.write_text("a file where the folder should be")
    with pytest.warns(SfumatoWarning, match=r"cannot be kept; .*at the next start.* File exists.* Set cache"):
        assert len(load(source, cache=kept)) == 10
    monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    with pytest.raises(InputError, match=r"10 decoded images of .* cannot be kept.* File exists.* Set cache"):
        load(source, cache=kept)


def test_full_disk_is_said_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Decoded
) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"
    monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: SimpleNamespace(free=8))
    with pytest.raises(InputError, match=r"cannot be kept.* the disk is full.* Set cache"):
        load(source, cache=kept)
    assert decoded.count == 0 and files(kept) == []


def test_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    source, kept = folder_of_pictures(tmp_path / "data"), tmp_path / "cache"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = r"cannot be kept.* the disk is full"
    with pytest.raises(InputError, match=words) if place == "file" else pytest.warns(SfumatoWarning, match=words):
        load(source, cache=kept)
    assert files(kept) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sfumato"
    for value in ("", "relative"):  # to be passed over, says the specification of base directories
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path.home() / ".cache" / "sfumato"


def test_setting_of_a_configuration(tmp_path: Path, decoded: Decoded) -> None:
    source = folder_of_pictures(tmp_path / "data")
    config = DataConfig(source=str(source), cache=str(tmp_path / "mine"))
    assert decoded.during(config.build)[1] == 10
    assert len(files(tmp_path / "mine")) == 1
    assert decoded.during(config.build)[1] == 0


def peak(source: Path, kept: Path) -> int:
    """The most bytes allocated while a folder is decoded, split and read for an epoch."""
    gc.collect()
    tracemalloc.start()
    try:
        train, heldout = load(source, cache=kept, columns=("label",), channels="rgb", size=32).split(0.25, 0)
        loader = Loader(train, 0, flip=True)
        for start in range(0, len(train), 32):
            loader.batch(start, 32)
        loader.std(len(train))
        heldout.subset(range(8)).batch(range(8))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    monkeypatch.setattr("sfumato.data.loader._AT_ONCE", 1 << 14)
    side, few, many = 32, 300, 900
    for name, count in (("warm", 64), ("few", few), ("many", many)):
        one = tmp_path / "one.png"
        Image.fromarray(np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)).save(one)
        os.utime(one, (OLD, OLD))
        for index in range(count):
            path = tmp_path / name / str(index % 2) / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(one, path)
    peak(tmp_path / "warm", tmp_path / "cache")
    for start in ("first", "second"):
        growth = peak(tmp_path / "many", tmp_path / "cache") - peak(tmp_path / "few", tmp_path / "cache")
        # a path, a label and a place in the order; the pixels alone would be 3,072 bytes each
        assert growth < 400 * (many - few), start


def test_std_in_parts_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), dtype=np.uint8)
    loader = Loader(Dataset(images, name="noise"), 0)
    x = (images / 127.5 - 1.0).astype(np.float32).astype(np.float64)
    assert loader.std(50) == pytest.approx(float(x.std()), rel=1e-6)
    whole = loader.std(50)
    monkeypatch.setattr("sfumato.data.loader._AT_ONCE", 7 * 16)
    assert loader.std(50) == pytest.approx(whole, rel=1e-12)
    flat = Loader(Dataset(np.full((50, 1, 4, 4), 77, dtype=np.uint8), name="flat"), 0)
    assert flat.std(50) == 0.0


def test_rows_share_the_array_and_compose() -> None:
    images = np.arange(20 * 6, dtype=np.uint8).reshape(20, 1, 2, 3)
    data = Dataset(images, name="numbered")
    chosen = data.subset([5, 3, 9]).subset([2, 0])
    assert chosen.shape == (1, 2, 3) and len(chosen) == 2
    assert np.array_equal(chosen.images, images[[9, 5]])
    assert np.array_equal(chosen.images[:, 0, 1], images[[9, 5], 0, 1])
    assert chosen.images.ndim == 4 and chosen.images.size == 12
    assert [image.sum() for image in chosen.images] == [images[9].sum(), images[5].sum()]
    assert torch.equal(chosen.batch([1]), data.batch([5]))
    images[9] = 0  # no copy was made
    assert not np.asarray(chosen.images[0]).any()
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(chosen.images, copy=False)
