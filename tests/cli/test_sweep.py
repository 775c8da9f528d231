"""Several classes by name, and sweeps over a setting, on the command line and in Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.conditioning import Label
from sfumato.config import SamplingConfig
from sfumato.errors import InputError
from sfumato.io.images import grid
from sfumato.io.lettering import lettered
from sfumato.models.sweep import swept
from sfumato.runs.train import train
from tests.cli.command import run
from tests.training.tiny import LABELLED, tiny


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of digits with classes and their null, after four steps."""
    folder = tmp_path_factory.mktemp("runs") / "guided"
    train(tiny(conditions={"label": {**LABELLED["label"], "drop": 0.1}}, training={"steps": 4}), run=folder)
    return str(folder)


def test_classes_take_turns() -> None:
    label = Label(names=("tiger cat", "dog, wet", "frog"))
    assert label.given(["frog", "tiger cat"], 5)["value"].tolist() == [2, 0, 2, 0, 2]
    # image i of a seed has the same class, whichever is the first
    assert label.given(["frog", "tiger cat"], 3, first=3)["value"].tolist() == [0, 2, 0]
    assert label.given(["dog, wet"], 2)["value"].tolist() == [1, 1]
    # as many as images are one for each, and a tensor always is
    assert label.given(["frog", "dog, wet"], 2, first=1)["value"].tolist() == [2, 1]
    assert label.given(torch.tensor([2, 0]), 2, first=1)["value"].tolist() == [2, 0]
    assert label.given([2, None], 4)["value"].tolist() == [2, -1, 2, -1]
    for value, words in (
        (["frog", "dgo, wet"], "no class 'dgo, wet'; did you mean 'dog, wet'"),
        (["frog"] * 3, "3 classes are given for 2 images"),
        ([], "whole numbers"),
        (torch.tensor([1]), "must be 2 numbers"),
    ):
        with pytest.raises(InputError, match=words):
            label.given(value, 2)
    numbers = Label(names=("10", "20", "30"))
    assert numbers.given(["20", 10], 4)["value"].tolist() == [1, 0, 1, 0]


def test_a_grid_with_a_class_per_column(guided: str, tmp_path: Path) -> None:
    array, picture = tmp_path / "x.npz", tmp_path / "x.png"
    asked = ("--label", "7", "1", "3", "--count", "6", "--seed", "2")
    assert run("sample", *asked, guided, "--out", str(array)) == 0
    assert run("sample", guided, *asked, "--out", str(picture)) == 0
    images = torch.from_numpy(np.load(array)["images"])
    expected = sfumato.load(guided).sample(6, seed=2, label=torch.tensor([7, 1, 3, 7, 1, 3]), progress=False)
    assert torch.allclose(images, expected, atol=1e-6)
    # three columns, two rows, names above
    plain, found = np.asarray(grid(images, 3)), np.asarray(Image.open(picture))
    extra = found.shape[0] - plain.shape[0]
    assert extra > 10 and found.shape[1] == plain.shape[1]
    assert np.array_equal(found[extra:], plain)
    thirds = np.array_split(found[:extra], 3, axis=1)
    assert all(int(third.min()) < 128 for third in thirds)
    # a grid that begins elsewhere has the names of its columns
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    assert run("sample", guided, "--label", "7", "1", "--count", "4", "--first", "1", "--out", str(one)) == 0
    assert run("sample", guided, "--label", "1", "7", "--count", "4", "--first", "0", "--out", str(other)) == 0
    top = slice(0, extra)
    assert np.array_equal(np.asarray(Image.open(one))[top], np.asarray(Image.open(other))[top])


def test_words_on_grids() -> None:
    for mode in ("L", "RGB", "RGBA"):
        sheet = Image.new(mode, (60, 40))
        found = lettered([sheet, sheet], above=["a", "a name far too long for it"], beside=["1", "2000"], title="key")
        assert found.mode == mode and found.width > 60 and found.height > 80 + 2 * 15
    wide = lettered([Image.new("L", (30, 30))], title="a title that is wider than the grid below it")
    assert wide.width > 200


def test_a_sweep_is_one_labelled_figure(guided: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.png"
    asked = ("--label", "7", "1", "--guidance.rescale", "0.5", "--seed", "5", "--out", str(out))
    assert run("sample", guided, "--sweep", "guidance.scale", "0", "1", "3", *asked) == 0
    model = sfumato.load(guided)
    found = np.asarray(Image.open(out))
    plain = {"scale": 3.0, "rescale": 0.5}
    sheets = [
        np.asarray(grid(model.sample(2, seed=5, guidance=guidance, label=["7", "1"], progress=False), 2))
        for guidance in (0.0, 1.0, plain)
    ]
    height, width = sheets[0].shape
    # the last block is the last value's, at the same place in each row
    assert np.array_equal(found[-height:, -width:], sheets[2])
    assert any(np.array_equal(found[y : y + height, -width:], sheets[1]) for y in range(len(found) - height))
    assert run("sample", guided, "--sweep", "sampler", "ddim", "heun", "--count", "3", "--steps", "2") == 0
    assert (Path(guided) / "samples" / "sweep-sampler-seed-0.png").exists()
    assert "2 values of sampler, 3 images of each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sweep", "a setting and its values"),
        ("--sweep steps", "a setting and its values"),
        ("--sweep stepz 1 2", "did you mean 'steps'"),
        ("--sweep steps 2 many", "steps is 'many'"),
        ("--sweep sampler ddim eluer", "sampler.kind is 'eluer'"),
        ("--sweep guidance.scale 1 -2", "guidance.scale is '-2'"),
        ("--sweep steps 2 3 --out x.npz", "written as a .png"),
        ("--sweep steps 2 3 --animation x.gif", "leave --animation or --sweep out"),
        ("--label 7 eleven", "There is no class 'eleven'"),
    ],
)
def test_bad_sweeps(guided: str, arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", guided, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_settings_of_a_sweep() -> None:
    guidance = {"scale": 3.0, "interval": (0.1, 5.0), "threshold": 0.99, "consistent": False}
    base = SamplingConfig().override({"guidance": guidance})
    found = swept(base, "guidance.scale", ["0", "1", 2])
    assert [one.guidance.scale for one in found] == [0.0, 1.0, 2.0]
    assert [one.guidance.interval for one in found] == [(0.1, 5.0), None, (0.1, 5.0)]
    assert all(one.guidance.threshold == 0.99 and one.guidance.consistent is False for one in found)
    assert [one.guidance.interval for one in swept(base, "guidance.interval", ["0.2,3", "1,2"])] == [(0.2, 3), (1, 2)]
    # however 1 is written
    for one in ("1.00", "1.", "+1", 1.0):
        assert swept(base, "guidance.scale", [one])[0].guidance.interval is None
    kinds = swept(base, "grid", ["karras", "uniform"])
    assert [one.grid.kind for one in kinds] == ["karras", "uniform"] and kinds[0].steps == base.steps


def test_a_sweep_of_what_is_measured(guided: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--sweep", "guidance.scale", "1", "2.5", "--samples", "40", "--features", "pixels")
    measures = ("--measures", "fd", "prdc")
    assert run("evaluate", guided, *asked, *measures) == 0
    table = capsys.readouterr().out
    assert "precision" in table and "classifier-free" in table and "2.5" in table
    result = json.loads((Path(guided) / "evaluation-sweep.json").read_text())
    (curve,) = result["curves"]
    assert curve["name"] == "classifier-free guidance" and curve["values"] == ["1", "2.5"]
    # as one evaluation with this scale
    model = sfumato.load(guided)
    alone = sfumato.evaluate(
        model, samples=40, features="pixels", measures=("fd", "prdc"), guidance=2.5, progress=False, overwrite=True
    )
    rows = {row["title"]: row["value"] for row in curve["reports"][1]["rows"]}
    assert rows["FD (pixels)"] == pytest.approx(alone["FD"].value, rel=1e-4)
    assert rows["recall k=3 (pixels)"] == pytest.approx(alone["recall k=3"].value)
    assert Image.open(Path(guided) / "evaluation-sweep.png").width > 500
    # nothing is replaced unasked
    assert run("evaluate", guided, "--sweep", "steps", "2", "3", *asked[4:], *measures, "--json") == 0
    assert json.loads(capsys.readouterr().out)["key"] == "steps"
    assert json.loads((Path(guided) / "evaluation-sweep-2.json").read_text())["key"] == "steps"
    for arguments, words in (
        (("--sweep", "steps", "2", "--page", "x.html"), "leave other sets"),
        (("--sweep", "steps", "2", "--measures", "kid", *asked[4:]), "measure one of these"),
    ):
        assert run("evaluate", guided, *arguments) == 2
        assert words in capsys.readouterr().err
