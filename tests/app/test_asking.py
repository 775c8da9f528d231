"""What the page asks for, and what pictures say of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sfumato[app]'")

import sfumato
from sfumato import pretrained
from sfumato.app import asking, compare, edit, pictures
from sfumato.app.asking import AS_TRAINED, Asked, request, restored
from sfumato.app.jobs import Job
from sfumato.app.library import Library
from sfumato.errors import InputError
from sfumato.io.pictures import read_facts
from tests import painters
from tests.app.pages import classes
from tests.cli.command import run


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    place = tmp_path_factory.mktemp("library")
    classes(place / "runs" / "digits")
    painters.system(place / "runs" / "painter")
    return Library(place / "runs")


def named(library: Library, name: str) -> str:
    return str(library.runs / name)


def test_what_is_there(library: Library) -> None:
    entries = library.refresh()
    assert list(entries)[:2] == [named(library, "digits"), named(library, "painter")]
    assert set(pretrained.SAID) < set(entries)
    digits, painter, photos = entries[named(library, "digits")], entries[named(library, "painter")], entries["photos"]
    assert digits.classes == tuple("0123456789") and digits.guided and digits.edits and not digits.upscales
    assert painter.base == "base" and painter.text == "text" and not painter.edits and painter.shape == (3, 16, 16)
    assert photos.upscales and not photos.samples
    assert entries["unclip"].system == "unclip" and entries["unclip"].base == "decoder"
    assert {name for _, name in library.choices("upscales")} == {"photos"}


def test_what_is_no_model_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "a file").write_text("")
    assert set(Library(tmp_path).entries) == set(pretrained.SAID)
    with pytest.raises(InputError, match="no run directory"):
        Library(tmp_path, [tmp_path / "nowhere"])


def test_images_are_those_of_the_library(library: Library) -> None:
    asked = Asked(named(library, "digits"), label="7", seed=3, first=2, count=2, steps=4, solver="ddim", scale=2.0)
    what = request(library, asked)
    model = sfumato.load(named(library, "digits"))
    same = model.sample(2, seed=3, first=2, steps=4, solver="ddim", guidance=2.0, label="7")
    assert torch.equal(what.sample(library.load(asked.model)), same)


def test_a_system_is_asked_by_the_stage_that_paints(library: Library) -> None:
    what = request(library, Asked(named(library, "painter"), prompt="a red  circle", steps=5, scale=3.0))
    assert what.prompt == "a red circle" and what.base_sampling.steps == 5 and what.base_sampling.guidance.scale == 3.0
    assert what.sampling.steps == library.entry(named(library, "painter")).last.steps
    model = sfumato.load(named(library, "painter"))
    same = model.generate("a red circle", count=4, seed=0, base={"steps": 5, "guidance": 3.0})
    assert torch.equal(what.sample(model), same)


@pytest.mark.parametrize("name", ["digits", "painter"])
def test_a_dropped_picture_restores_everything(library: Library, tmp_path: Path, name: str) -> None:
    asked = Asked(
        named(library, name), prompt="a blue square", label="4", seed=9, first=5, count=3, steps=4, solver="heun",
        grid="karras", scale=1.5, low=0.1, high=4.0,
    )  # fmt: skip
    what = request(library, asked)
    model = library.load(asked.model)
    images = what.sample(model)
    paths = pictures.written(images, tmp_path, what.facts(model), what.first)
    back = restored(library, paths[1])
    assert (back.model, back.seed, back.first, back.count, back.steps) == (asked.model, 9, 6, 1, 4)
    assert (back.scale, back.low, back.high, back.solver) == (1.5, "0.1", "4", AS_TRAINED)
    assert back.prompt == ("a blue square" if name == "painter" else "") and back.label == (
        "4" if name == "digits" else "any"
    )
    again = request(library, back)
    assert again.base_sampling == what.base_sampling and again.sampling == what.sampling
    torch.testing.assert_close(again.sample(model), images[1:2], atol=1e-4, rtol=0.0)
    # a control that is changed afterwards changes this alone
    other = request(library, replace(back, steps=7)).base_sampling
    assert other.steps == 7 and other.sampler == what.base_sampling.sampler


def test_the_command_line_makes_the_same_picture_again(library: Library, tmp_path: Path) -> None:
    what = request(library, Asked(named(library, "painter"), prompt="a red circle", seed=4, count=3, steps=4))
    model = library.load(what.entry.name)
    paths = pictures.written(what.sample(model), tmp_path, what.facts(model), 0)
    assert run("generate", "--like", str(paths[2]), "--out", str(tmp_path / "again.png"), "--device", "cpu") == 0
    with Image.open(paths[2]) as one, Image.open(tmp_path / "again.png") as two:
        assert one.tobytes() == two.tobytes()


def test_the_page_takes_pictures_of_the_command_line(library: Library, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    words = ["a red circle", "--model", named(library, "painter"), "--count", "2", "--out", str(out), "--seed", "5"]
    assert run("generate", *words, "--base.steps", "6", "--untrained", "--device", "cpu") == 0
    back = restored(library, sorted(out.iterdir())[1])
    assert (back.prompt, back.seed, back.first, back.steps) == ("a red circle", 5, 1, 6)


def forged(library: Library, tmp_path: Path, **changes: Any) -> Path:
    """A picture whose metadata were changed by hand."""
    from sfumato.io import images as image_files

    what = request(library, Asked(named(library, "digits"), steps=2, count=1))
    model = library.load(what.entry.name)
    (path,) = pictures.written(what.sample(model), tmp_path, what.facts(model), 0)
    facts = read_facts(path)
    for key, value in changes.items():
        target, _, name = key.rpartition("__")
        (facts["settings"][target] if target else facts)[name] = value
    with Image.open(path) as image:
        image_files.save_png(image.copy(), tmp_path / "forged.png", facts)
    return tmp_path / "forged.png"


def test_metadata_are_not_trusted(library: Library, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not on this page"):
        restored(library, forged(library, tmp_path, model="/etc"))
    with pytest.raises(InputError, match="second model"):
        restored(library, forged(library, tmp_path, guidance__weak_run="/etc", guidance__scale=2.0))
    with pytest.raises(InputError):
        restored(library, forged(library, tmp_path, sampler__kind="os:system"))
    with pytest.raises(InputError, match="settings"):
        restored(library, forged(library, tmp_path, settings=None))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="how it was made"):
        restored(library, tmp_path / "plain.png")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"model": None}, "Choose a model"),
        ({"model": "nothing"}, "no model"),
        ({"model": "photos"}, "tab Edit"),
        ({"count": 17}, "count"),
        ({"count": float("inf")}, "count"),
        ({"seed": "x"}, "seed"),
        ({"steps": 5000}, "steps"),
        ({"solver": "magic"}, "solver"),
        ({"low": "x", "scale": 2.0}, "noise level"),
        ({"scale": float("nan")}, "guidance scale"),
        ({"scale": "much"}, "guidance scale"),
    ],
)
def test_wrong_values_are_sentences(library: Library, changes: dict[str, Any], words: str) -> None:
    asked = replace(Asked(named(library, "painter"), prompt="a red circle"), **changes)
    with pytest.raises(InputError, match=words):
        request(library, asked)


def test_a_plot_over_two_settings(library: Library) -> None:
    what = request(library, Asked(named(library, "digits"), seed=1, count=1))
    columns, rows = compare.values_of("guidance scale", " 1, 2 ,4"), compare.values_of("steps", "2,3")
    every = compare.cells(what, "guidance scale", columns, "steps", rows)
    assert [(one.base_sampling.steps, one.base_sampling.guidance.scale) for one in every] == [
        (2, 1.0), (2, 2.0), (2, 4.0), (3, 1.0), (3, 2.0), (3, 4.0),
    ]  # fmt: skip
    image = compare.plotted(library, what, "guidance scale", columns, "steps", rows, Job())
    assert image.width > 3 * 160 and image.height > 2 * 160
    seeds = compare.cells(what, "seed", ["3", "4"], "class", ["7"])
    assert [(one.seed, one.given["label"]) for one in seeds] == [(3, "7"), (4, "7")]
    for axes, words in (
        (("seed", ["1"], "seed", ["2"]), "same setting"),
        (("seed", ["x"], "steps", ["2"]), "whole number"),
        (("prompt", ["x"], "steps", ["2"]), "no prompt"),
        (("class", ["12"], "steps", ["2"]), "no class"),
        (("sampler", ["os:system"], "steps", ["2"]), "no sampler"),
        (("steps", ["1000000"], "seed", ["1"]), "at most"),
        (("seed", list("123456789"), "steps", list("12345678")), "more than"),
    ):
        with pytest.raises(InputError, match=words):
            compare.cells(what, *axes)
    with pytest.raises(InputError, match="commas"):
        compare.values_of("steps", " , ")
    with pytest.raises(InputError, match="no setting"):
        compare.values_of("precision", "1")


def test_what_is_painted_over_is_filled_in() -> None:
    layer = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    layer.paste((255, 0, 0, 255), (0, 40, 80, 80))
    kept = edit.mask_of([layer], (1, 8, 8))
    assert kept[:4].all() and not kept[4:].any()
    assert edit.mask_of([], (3, 4, 4)).all()


def test_a_picture_in_memory_is_that_of_its_file(tmp_path: Path) -> None:
    image = Image.effect_noise((20, 12), 60).convert("RGB")
    image.save(tmp_path / "a.png")
    for shape in ((3, 8, 8), (1, 6, 10)):
        one, two = pictures.from_pillow(image, shape), pictures.of_model(str(tmp_path / "a.png"), shape)
        torch.testing.assert_close(one, two)


def test_results_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_KEPT", 3)
    for _ in range(10):
        pictures.written(torch.zeros(1, 1, 4, 4), tmp_path, {}, 0)
    assert len(list(tmp_path.iterdir())) <= 4


def test_whole_numbers() -> None:
    assert asking.whole("7", 1, 9, "The count") == 7 and asking.whole(7.0, 1, 9, "The count") == 7
    for value in (0, 10, "seven", None, float("nan"), float("inf"), 1e40):
        with pytest.raises(InputError, match="count"):
            asking.whole(value, 1, 9, "The count")
