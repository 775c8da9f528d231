"""Models, pictures and arrays are judged against real pictures, from Python, the command line and while training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.errors import InputError
from sfumato.metrics import Moments, features
from sfumato.metrics.cache import write_statistics
from tests.training.tiny import LABELLED, tiny


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of 40 and 60 pictures in two classes, an array of the same, and statistics."""
    place = tmp_path_factory.mktemp("pictures")
    for name, count in (("a", 40), ("b", 60)):
        values = np.random.default_rng(count).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        for i, value in enumerate(values):
            (place / name / ("dark", "light")[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(value // 2 + 127 * (i % 2)).convert("L").save(
                place / name / ("dark", "light")[i % 2] / f"{i:03d}.png"
            )
    data = sfumato.data.load(str(place / "b"))
    images = data.batch(range(60))
    np.save(place / "b.npy", np.asarray(data.images)[:, 0])
    write_statistics(place / "b.npz", Moments.fit(images.flatten(1)), features("pixels"))
    return place


def test_one_set_against_another(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--features", "pixels", "--measures", "fd", "neighbours", "--json")
    assert run("evaluate", pictures / "a", "--against", pictures / "b", *options) == 0
    folder = json.loads(capsys.readouterr().out)
    assert folder["counts"] == {"samples": 40, "real": 60}
    assert run("evaluate", pictures / "a", "--against", pictures / "b.npy", *options) == 0
    array = json.loads(capsys.readouterr().out)
    assert array["rows"][0]["value"] == pytest.approx(folder["rows"][0]["value"], rel=1e-6)
    assert run("evaluate", pictures / "a", "--against", pictures / "b.npz", "--features", "pixels", "--json") == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["rows"][0]["value"] == pytest.approx(folder["rows"][0]["value"], rel=1e-5)
    assert run("evaluate", pictures / "b.npz", "--against", pictures / "b", "--features", "pixels", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == pytest.approx(0.0, abs=1e-4)


def test_several_sets_make_one_table(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", pictures / "a", pictures / "b.npy", "--against", pictures / "b", "--measures", "kid") == 0
    table = capsys.readouterr().out
    assert "KID" in table and "a: 40 samples, 60 real" in table and "b: 60 samples, 60 real" in table


def test_classes_of_folders_are_those_of_the_real_ones(pictures: Path, tmp_path: Path) -> None:
    report = sfumato.evaluate(pictures / "a", pictures / "b", measures=("fd", "accuracy"), progress=False)
    assert report["accuracy"].value == 1.0 and report.main.features == "classifier"
    for kind in ("grey", "light"):
        (tmp_path / "c" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), 100 * i, np.uint8)).save(tmp_path / "c" / kind / f"{i}.png")
    with pytest.raises(InputError, match=r"class 'grey'.*dark, light"):
        sfumato.evaluate(tmp_path / "c", pictures / "b", progress=False)
    # distances need no classes, and a single folder around all pictures is none
    assert sfumato.evaluate(tmp_path / "c", pictures / "b", measures="fd", progress=False).main.value > 0.0
    (tmp_path / "d").mkdir()
    (tmp_path / "c" / "grey").rename(tmp_path / "d" / "grey")
    assert "accuracy" not in sfumato.evaluate(tmp_path / "d", pictures / "b", progress=False)
    assert sfumato.evaluate(tmp_path / "c", pictures / "b", measures="accuracy", progress=False)["accuracy"]
    (tmp_path / "d" / "grey").rename(tmp_path / "d" / "all")
    report = sfumato.evaluate(pictures / "b", tmp_path / "d", progress=False)
    assert report.main.features == "pixels" and "diversity" not in report


def test_a_page_is_written_whole(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    options = ("--against", pictures / "b", "--measures", "fd", "--page", page)
    assert run("evaluate", pictures / "a", *options) == 0
    text = page.read_text()
    assert "FD (classifier)" in text and "data:image/png" in text and "dark" in text
    assert run("evaluate", pictures / "a", *options) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("evaluate", pictures / "a", *options, "--overwrite") == 0


def test_training_judges_on_a_schedule_and_keeps_the_best(tmp_path: Path) -> None:
    evaluation = {"samples": 20, "every": 4, "best": "FD", "measures": ("fd", "neighbours")}
    config = tiny(conditions=LABELLED, evaluation=evaluation, training={"steps": 12})
    model = sfumato.train(config, run=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["FD (classifier)"] for line in lines if "FD (classifier)" in line}
    assert list(judged) == [4, 8, 12]
    best = json.loads((tmp_path / "run/best/evaluation.json").read_text())
    assert best["rows"][0]["value"] == min(judged.values())
    assert judged[best["settings"]["step"]] == min(judged.values())
    kept = sfumato.load(tmp_path / "run/best")
    report = sfumato.evaluate(kept, progress=False)
    assert report.main.value == pytest.approx(min(judged.values()), rel=1e-4)
    # what is judged on the way changes no weight
    plain = sfumato.train(tiny(conditions=LABELLED, training={"steps": 12}), run=tmp_path / "plain")
    for mine, other in zip(model.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(mine, other)
    # a complete run that is resumed logs nothing twice
    sfumato.train(run=tmp_path / "run", resume=True)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == len(lines)


def test_a_failed_evaluation_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of an early step whose samples are NaN."""
    from sfumato.runs import train

    judged, steps = train.judged, list[int]()

    def fails_first(judge: Any, model: Any, **options: Any) -> Any:
        steps.append(model.step)
        if len(steps) == 1:
            raise InputError("samples holds NaN")
        return judged(judge, model, **options)

    monkeypatch.setattr(train, "judged", fails_first)
    evaluation = {"samples": 20, "every": 2, "best": "FD", "measures": ("fd",)}
    model = sfumato.train(tiny(conditions=LABELLED, evaluation=evaluation, training={"steps": 4}), run=tmp_path / "run")
    assert model.step == 4 and steps == [2, 4]
    assert json.loads((tmp_path / "run/best/evaluation.json").read_text())["settings"]["step"] == 4


@pytest.mark.usefixtures("unchecked")
def test_bad_input(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/x.png").write_bytes(b"no picture")
    (tmp_path / "sizes").mkdir()
    for side in (8, 9):
        Image.fromarray(np.full((side, 8), 255, np.uint8)).save(tmp_path / "sizes" / f"{side}.png")
    for arguments, words in (
        ((pictures / "a",), "--against REAL"),
        ((pictures / "a", "--against", tmp_path / "empty"), "no images"),
        ((pictures / "a", "--against", "digit"), "digits"),
        ((tmp_path / "damaged", "--against", pictures / "b"), "x.png"),
        ((pictures / "a", "--against", pictures / "b", "--measures", "fd", "--features", "inception"), "wei"),
        ((pictures / "a", "--against", pictures / "b", "--features", "pixel"), "'pixels'"),
        ((pictures / "a", "--against", pictures / "b", "--measures", "kit"), "'kid'"),
        ((pictures / "a", "--against", pictures / "b", "--measures", "kid-subsets"), "1000"),
        ((pictures / "a", pictures / "b", "--against", pictures / "b", "--page", "x.html"), "one set"),
        ((pictures / "a", "--against", pictures / "b", "--samples", "10"), "is for runs"),
        ((tmp_path / "sizes", "--against", pictures / "b"), "pass --size"),
        ((), "which run or which pictures"),
    ):
        assert run("evaluate", *arguments) == 2, arguments
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, (arguments, said)
    with pytest.raises(InputError, match="3x8x8"):
        sfumato.evaluate(pictures / "a", torch.rand(30, 3, 8, 8) * 2 - 1, progress=False)
    with pytest.raises(InputError, match="KIX"):
        sfumato.train(tiny(evaluation={"samples": 8, "every": 1, "best": "KIX"}), run=tmp_path / "r")
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "empty" / f"{i}.png")
    assert run("evaluate", tmp_path / "empty", "--against", pictures / "b") == 2
    assert "pass --value-range 0 2" in capsys.readouterr().err
    options = ("--value-range", "0", "2", "--measures", "fd", "--features", "pixels")
    assert run("evaluate", tmp_path / "empty", "--against", tmp_path / "empty", *options) == 0


def test_bits_per_dimension_on_request(tmp_path: Path) -> None:
    """What the likelihood of the held-out pictures is, beside the other measures."""
    model = sfumato.train(tiny(training={"steps": 2}, data={"holdout": 4}), run=tmp_path / "run")
    report = sfumato.evaluate(model, samples=8, features="pixels", measures=("fd", "bits"), progress=False)
    heldout = sfumato.models.data.data_of(model)[1]
    known = sfumato.bits_per_dim(model, heldout, bins=heldout.bins, flow=False, seed=1, progress=False).bound
    assert known is not None and report["bits/dim"].value == pytest.approx(known.mean, rel=1e-6)
    assert report["bits/dim"].error == pytest.approx(known.standard_error, rel=1e-6)
