"""Captions: beside pictures, in lists, in tables of the hub, in arrays; and every way in which they can be wrong."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.hub_stand_in import Feature, Table, library
from tests.data.hub_stand_in import Image as ImageFeature
from tests.data.reading import load
from tests.training.tiny import tiny
from torch.utils.data import DataLoader

from sfumato.data import Column, Dataset, Loader
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.text import packed, unpacked
from sfumato.runs.train import train

WORDS = {"a.png": "a red circle", "b.png": "ein blaues Quadrat, größer", "sub/c.png": "🙂 und 赤い円", "sub/d.png": "x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(WORDS):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 80 * i, dtype=np.uint8)).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def lines(path: Path, *entries: Any) -> None:
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries), encoding="utf-8")


def entry(name: str, text: Any = "a caption") -> dict[str, Any]:
    return {"file_name": name, "text": text}


def every(folder: Path, **changes: Any) -> None:
    lines(folder / "captions.jsonl", *(entry(name, changes.get(Path(name).stem, text)) for name, text in WORDS.items()))


def captions(folder: Path, **options: Any) -> list[str]:
    data = load(folder, columns=("caption",), cache=folder.parent / "cache", **options)
    column = data.columns["caption"]
    assert column.is_text and all(type(text) is str for text in np.asarray(column.values))
    return column.texts(range(len(data)))


def of_pictures(data: Dataset) -> dict[int, str]:
    """The caption of each picture by its grey value."""
    return {int(data.images[i].max()): data.columns["caption"].texts([i])[0] for i in range(len(data))}


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl"])
def test_a_list(folder: Path, name: str) -> None:
    backwards = [entry(key, text) for key, text in reversed(WORDS.items())]
    lines(folder / name, *backwards[:2], "", *backwards[2:], "")
    assert captions(folder) == list(WORDS.values())


def test_a_list_in_each_folder_with_other_keys_and_forms_of_paths(folder: Path) -> None:
    lines(folder / "metadata.jsonl", {"file_name": "./a.png", "caption": "A", "width": 4}, entry("b.png", " B \n b "))
    lines(folder / "sub" / "metadata.jsonl", entry("c.png", "C"), entry("../sub/d.png", "D"))
    assert captions(folder) == ["A", "B b", "C", "D"]
    (folder / "sub" / "metadata.jsonl").unlink()
    lines(folder / "metadata.jsonl", *(entry(name.replace("/", "\\"), text) for name, text in WORDS.items()))
    assert captions(folder) == list(WORDS.values())


def test_texts_beside_pictures_with_a_mark_of_the_byte_order(folder: Path) -> None:
    for name, text in WORDS.items():
        (folder / name).with_suffix(".txt").write_text(text + "\r\n", encoding="utf-8-sig")
    assert captions(folder) == list(WORDS.values())


def test_captions_are_read_on_demand_and_never_reported_as_strange_files(folder: Path) -> None:
    lines(folder / "captions.jsonl", "no JSON")
    assert not load(folder, cache=folder.parent / "cache").columns
    (folder / "captions.jsonl").unlink()
    (folder / "a.txt").write_text("one of four")
    assert not load(folder, cache=folder.parent / "cache").columns
    (folder / "a.txt").unlink()
    (folder / "README.txt").write_text("what this is")
    with pytest.warns(SfumatoWarning, match="README.txt"):
        load(folder, cache=folder.parent / "cache")


def test_with_labels_and_in_tiles(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).unlink()
    lines(folder / "captions.jsonl", entry("sub/c.png", "C"), entry("sub/d.png", "D"))
    data = load(folder, columns="all", cache=folder.parent / "cache")
    assert set(data.columns) == {"label", "caption"} and data.columns["label"].names == ("sub",)
    for name in ("c", "d"):
        grey = np.full((8, 14, 3), 60 + 180 * (name == "d"), dtype=np.uint8)
        Image.fromarray(grey).save(folder / "sub" / f"{name}.png")
    tiles = load(folder, columns=("caption",), tile=8, cache=folder.parent / "cache")
    assert len(tiles) == 4 and of_pictures(tiles) == {60: "C", 240: "D"}


def test_a_picture_that_cannot_be_read_takes_its_caption_with_it(folder: Path) -> None:
    every(folder)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.warns(SfumatoWarning, match="cannot be read"):
        assert captions(folder) == [text for name, text in WORDS.items() if name != "b.png"]


def test_missing_pictures(folder: Path) -> None:
    every(folder)
    with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:
        file.writelines("\n" + json.dumps(entry(f"lost{i}.png")) for i in range(5))
    with pytest.warns(SfumatoWarning, match=r"9 pictures, and 5 of them cannot be found, such as lost0.png, lost1.png"):
        assert captions(folder) == list(WORDS.values())
    lines(folder / "captions.jsonl", entry("e.png"), entry("f.png"))
    with pytest.raises(InputError, match=r"2 pictures, and 2 of them cannot be found, such as e.png, f.png;.*path"):
        captions(folder)


def test_pictures_without_caption_or_with_an_empty_one(folder: Path) -> None:
    every(folder, a="  ")
    with pytest.warns(SfumatoWarning, match=r"missing for 1 of 4 pictures, such as a.png; of 1 it is empty"):
        assert captions(folder) == ["", *list(WORDS.values())[1:]]
    lines(folder / "captions.jsonl", entry("a.png"), entry("b.png"))
    with pytest.warns(SfumatoWarning, match=r"missing for 2 of 4 pictures, such as sub/c.png, sub/d.png. They"):
        assert captions(folder) == ["a caption", "a caption", "", ""]
    lines(folder / "captions.jsonl", entry("a.png"))
    with pytest.raises(InputError, match=r"missing for 3 of 4 pictures.*half"):
        captions(folder)
    (folder / "captions.jsonl").unlink()
    with pytest.raises(InputError, match=r"no captions: add captions.jsonl"):
        captions(folder)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('{"file_name": "a.png", ', "line 2: .*no JSON"),
        ('["a.png", "text"]', "line 2: .*no JSON"),
        ({"file_name": "a.png", "txt": "x"}, "line 2 has no 'text', but 'file_name', 'txt'"),
        ({"text": "x"}, "line 2 has no 'file_name'"),
        (entry("a.png", ["x", "y"]), "line 2: 'text' is .*expected a text"),
        ('{"file_name": "a.png", "text": "\\ud83d"}', "line 2: .*half of a character"),
        (entry("b.png"), r"b.png has two captions, in line 1 of captions.jsonl and in line 2 of captions.jsonl"),
    ],
)
def test_wrong_lines(folder: Path, wrong: Any, words: str) -> None:
    lines(folder / "captions.jsonl", entry("b.png"), wrong)
    with pytest.raises(InputError, match=words):
        captions(folder)


def test_other_encodings(folder: Path) -> None:
    (folder / "captions.jsonl").write_bytes(json.dumps(entry("a.png")).encode() + b'\n{"text": "gr\xfcn"}')
    with pytest.raises(InputError, match=r"captions.jsonl, line 2, is not UTF-8"):
        captions(folder)
    (folder / "captions.jsonl").unlink()
    (folder / "a.txt").write_text("grün", encoding="utf-16")
    with pytest.raises(InputError, match=r"a.txt, line 1, is not UTF-8"):
        captions(folder)


def test_two_kinds_at_once(folder: Path) -> None:
    every(folder)
    (folder / "b.txt").write_text("two")
    with pytest.raises(InputError, match=r"captions of two kinds, captions.jsonl and b.txt"):
        captions(folder)
    (folder / "b.txt").unlink()
    lines(folder / "metadata.jsonl", entry("a.png"))
    with pytest.raises(InputError, match=r"both captions.jsonl and metadata.jsonl"):
        captions(folder)


def test_columns_of_texts_select_split_and_batch(folder: Path) -> None:
    every(folder)
    data = load(folder, columns=("caption",), cache=folder.parent / "cache")
    truth = dict(enumerate(WORDS.values()))
    truth = {80 * i: text for i, text in truth.items()}
    assert of_pictures(data) == truth
    assert data[-1]["caption"] == "x" and data[0]["image"].shape == (3, 4, 4)
    assert of_pictures(data.subset([3, 1]).subset([1])) == {80: truth[80]}
    train, held = data.split(1, 0)
    assert len(held) == 1 and {**of_pictures(train), **of_pictures(held)} == truth
    batch = Loader(train, seed=3).batch(5, 7).to(torch.device("cpu"))
    values = ((batch.x0[:, 0, 0, 0] + 1.0) * 127.5).round().int().tolist()
    assert unpacked(batch.cond["caption"]) == [truth[value] for value in values]
    # also as PyTorch's own loader makes batches
    assert next(iter(DataLoader(data, batch_size=4)))["caption"] == list(WORDS.values())


@pytest.mark.parametrize("texts", [["", "a", "ä🙂"], ["", ""], []])
def test_packed_texts_come_back(texts: list[str]) -> None:
    rows = packed(texts)
    assert rows.dtype == torch.uint8 and len(rows) == len(texts)
    assert unpacked(rows) == texts == unpacked(rows.long())


def test_texts_given_in_python() -> None:
    images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
    words = ["a", "bb", "é"]
    for texts in (words, np.array(words, dtype=object), np.char.encode(words, "utf-8")):
        data = Dataset.of({"image": images, "caption": texts})
        assert data.columns["caption"].texts([2, 0]) == ["é", "a"]
    items = [{"image": torch.zeros(1, 8, 8), "caption": text} for text in ("a", "long one", "é")]
    data = Dataset.of(items)
    assert data.columns["caption"].texts([1, 2]) == ["long one", "é"]
    assert [data[i]["caption"] for i in range(3)] == ["a", "long one", "é"]
    with pytest.raises(InputError, match="a text for each of 3 images"):
        Dataset(images, {"caption": Column(np.array(["a", "b"]))})
    with pytest.raises(InputError, match="holds a NoneType"):
        Dataset(images, {"caption": Column(np.array(["a", None, "b"], dtype=object))})


def test_captions_of_an_archive(tmp_path: Path) -> None:
    images, texts = np.zeros((3, 8, 8), dtype=np.uint8), np.array(["a", "bb", "é"])
    np.savez(tmp_path / "x.npz", images=images, caption=texts, labels=[0, 1, 1])
    for columns in (("caption",), "caption", "all"):
        data = load(tmp_path / "x.npz", columns=columns)
        assert data.columns["caption"].texts(range(3)) == ["a", "bb", "é"] and "label" in data.columns


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Sets the columns of texts of a data set of the hub with the pictures of the folder."""

    def with_texts(**columns: tuple[Any, list[Any]]) -> None:
        cells = [{"bytes": (folder / name).read_bytes(), "path": None} for name in WORDS]
        table = Table(image=(ImageFeature(), cells), **columns)
        monkeypatch.setitem(sys.modules, "datasets", library(lambda *_, **__: table))

    return with_texts


def of_hub(columns: tuple[str, ...] | str = ("caption",)) -> list[str] | None:
    data = load("hf:a/b", columns=columns)
    return data.columns["caption"].texts(range(len(data))) if "caption" in data.columns else None


def test_captions_of_the_hub(hub: Any) -> None:
    text, words = Feature("string"), list(WORDS.values())
    hub(id=(text, ["1"] * 4), text=(text, words), n=(Feature("int64"), [1] * 4))
    assert of_hub() == of_hub("all") == words and of_hub(()) is None
    hub(prompt=(Feature("large_string"), words))
    assert of_hub() == words and of_hub("all") == words
    for feature in (Feature("list", Feature("string")), [Feature("string")]):
        hub(captions=(feature, [[word, "another"] for word in words]))
        with pytest.warns(SfumatoWarning, match="4 of 4 rows have several captions"):
            assert of_hub() == words
    hub(caption=(text, [None, *words[1:]]))
    with pytest.warns(SfumatoWarning, match="missing for 1 of 4 pictures, such as row 0"):
        assert of_hub() == ["", *words[1:]]
    hub(a=(text, words), b=(text, words))
    with pytest.raises(InputError, match=r"several columns of texts \(a, b\)"):
        of_hub()
    assert of_hub("all") is None
    hub(n=(Feature("int64"), [1] * 4))
    with pytest.raises(InputError, match="no column of texts"):
        of_hub()


def test_a_model_without_text_ignores_captions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    data = Dataset.of({"image": images, "caption": [f"number {i}" for i in range(40)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", SfumatoWarning)
        model = train(tiny(data={"holdout": 8}, training={"steps": 2}), data=data, run=tmp_path / "run")
    assert model.step == 2 and not model.conditions
