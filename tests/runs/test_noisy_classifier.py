"""Noisy classifiers as runs: trained by the usual loop, resumed, judged, and what they can't do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.config import Config, merge, parse
from sfumato.data import Column, Dataset
from sfumato.diffusion.classifier import NoisyClassifier
from sfumato.errors import InputError
from sfumato.models.data import data_of
from sfumato.models.model import Model
from sfumato.recipes import classify, named
from sfumato.runs.resolving import default_name
from sfumato.runs.train import train
from tests.cli.command import run
from tests.runs.test_resume import assert_same_bytes
from tests.training.tiny import LABELLED, TINY, tiny


def small(**over: Any) -> Config:
    """The recipe of the classifier of digits, shrunk."""
    network = {"channels": (8, 16), "groups": 4, "embedding": 16, "time_features": 8, "heads": 1}
    training = {**TINY["training"], "log_every": 4}
    shrunk = {**TINY, "training": training, "model": {"network": network}, "evaluation": {"samples": 60}}
    return parse(Config, merge(merge(named(None, "digits", task="classify"), {**shrunk, "conditions": {}}), over))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    train(small(training={"steps": 60, "sample_every": 30}), run=folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of digits after two steps: without a condition, and with labels and their null."""
    folder = tmp_path_factory.mktemp("models")
    dropped = {"label": {**LABELLED["label"], "drop": 0.1}}
    for name, conditions in (("plain", {}), ("labelled", dropped)):
        train(tiny(conditions=conditions, training={"steps": 2}), run=folder / name)
    return {name: folder / name for name in ("plain", "labelled")}


def test_the_recipe_fits_the_default_run_of_digits() -> None:
    digits, recipe = (parse(Config, named(None, "digits", task=task)) for task in ("generate", "classify"))
    assert digits.model.schedule == recipe.model.schedule and digits.data == recipe.data
    assert default_name(recipe) == "digits-classifier" and recipe.classifies and not digits.classifies
    assert named(None, "mnist", task="classify")["data"] == {"source": "mnist"} and "data" not in classify()


@pytest.mark.parametrize("times", ["uniform", "loss_second_moment"])
def test_stopped_and_resumed_is_never_stopped(tmp_path: Path, times: str) -> None:
    """Bit for bit, with dropout in the network and times that learn of the losses."""
    config = small(evaluation={"samples": 0}, objective={"times": times})
    for name in ("whole", "parts"):
        train(config, run=tmp_path / name)
    max((tmp_path / "parts" / "checkpoints").iterdir()).unlink()
    train(run=tmp_path / "parts", resume=True)
    assert_same_bytes(tmp_path / "whole", tmp_path / "parts", *(["loss"] if times != "uniform" else []))


def test_it_learns_and_says_how_well_at_each_level(classifier: Path) -> None:
    lines = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    reported = [line for line in lines if "heldout_accuracy" in line]
    assert [line["step"] for line in reported] == [30, 60]
    assert sum(name.startswith("heldout_accuracy at log-SNR") for name in reported[-1]) == 8
    evaluation = json.loads((classifier / "evaluation.json").read_text())
    rows = {row["title"]: row["value"] for row in evaluation["rows"]}
    levels = [value for title, value in rows.items() if "σ/α" in title]
    assert rows["accuracy"] == pytest.approx(np.mean(levels)) and evaluation["counts"]["held-out"] == 60
    # it tells digits apart where they are seen, and guesses in noise
    assert levels[0] > 0.4 and levels[0] > levels[-1] + 0.2
    assert not list((classifier / "samples").glob("*.png"))
    model = sfumato.load(classifier)
    assert isinstance(model.classifier, NoisyClassifier) and model.info.classes == tuple("0123456789")
    # by hand, of nearly clean held-out images: the accuracy of the averaged weights
    heldout = data_of(model)[1]
    level = model.classifier.schedule.at(torch.tensor(9.0, dtype=torch.float64))
    guess = model.classifier(heldout.batch(range(400)), level).argmax(1)
    found = float((guess == heldout.rows(range(400))["label"]).float().mean())
    assert found == pytest.approx(levels[0], abs=0.12)


def test_info_and_evaluate_work(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", str(classifier)) == 0
    said = capsys.readouterr().out
    assert "10 to tell apart" in said and "accuracy at σ/α 0.01" in said
    before = json.loads((classifier / "evaluation.json").read_text())
    assert run("evaluate", str(classifier), "--json") == 0
    # the same images, the same noise
    assert json.loads(capsys.readouterr().out)["rows"] == before["rows"]


@pytest.mark.parametrize("arguments", ["sample RUN", "edit RUN interpolate", "likelihood RUN", "tune RUN --steps 4"])
def test_what_it_cannot_do_is_refused(
    classifier: Path, arguments: str, capsys: pytest.CaptureFixture[str], unchecked: None
) -> None:
    assert run(*(str(classifier) if word == "RUN" else word for word in arguments.split())) == 2
    assert "is a classifier of noisy data, which samples nothing" in capsys.readouterr().err


def test_exports_but_of_its_weights_are_refused(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", str(classifier), "--to", "onnx") == 2
    assert "is a classifier" in capsys.readouterr().err
    assert run("export", str(classifier), "--to", "safetensors") == 0
    model = sfumato.load(classifier)
    for call in (lambda: model.sample(2), lambda: sfumato.bits_per_dim(model, torch.zeros(2, 1, 8, 8))):
        with pytest.raises(InputError, match="is a classifier"):
            call()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow"])
def test_any_schedule(tmp_path: Path, schedule: str) -> None:
    model = train(small(model={"schedule": {"kind": schedule}}, training={"steps": 8}), run=tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]
    assert model.classifier is not None and len(rows) > 5 and all(0.0 <= row["value"] <= 1.0 for row in rows)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"model": {"network": {"kind": "unet"}}}, "take the network classifier"),
        ({"objective": {"kind": "denoising"}}, "predicts no images"),
        ({"conditions": LABELLED}, "given no conditions"),
        ({"objective": {"column": "lable"}}, "no column 'lable'"),
        ({"model": {"residual": True}}, "model.residual is of a model that samples"),
        ({"model": {"schedule": {"kind": "linear"}, "learned_variance": True}}, "model.learned_variance is of a model"),
    ],
)
def test_settings_that_do_not_belong_together(tmp_path: Path, over: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        train(small(**over), run=tmp_path / "run")


def test_data_that_have_no_classes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (40, 1, 8, 8)).astype(np.float32)
    one = Dataset(images, {"label": Column(np.zeros(40, np.int64), ("cat",))}, "cats")
    for data, words in ((one, "a single class, cat"), (images, "no column 'label'")):
        with pytest.raises(InputError, match=words):
            train(small(data={"holdout": 4}), data=data, run=tmp_path / "run")


def test_it_guides_models_with_and_without_labels(
    classifier: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    guide: dict[str, Any] = {"classifier": str(classifier), "scale": 3.0}
    judge = sfumato.load(classifier).classifier
    assert judge is not None
    level = judge.schedule.at(torch.tensor(1.0, dtype=torch.float64))

    def sure(images: Tensor) -> float:
        with torch.no_grad():
            return float(judge.log_prob(images, level, torch.full((len(images),), 3)).mean())

    for name in ("plain", "labelled"):
        model = sfumato.load(models[name])
        given: dict[str, Any] = {"seed": 4, "steps": 6, "progress": False}
        free = model.sample(12, **given, **({"label": "3"} if name == "labelled" else {}))
        for solver in ("ancestral", "ddim"):
            guided = model.sample(12, guidance=guide, label="3", solver=solver, **given)
            assert sure(guided) > sure(free) + 0.02
            # image by image, in any batch
            part = model.sample(3, guidance=guide, label="3", solver=solver, first=9, batch_size=2, **given)
            assert torch.allclose(part, guided[9:], atol=1e-5)
        none = model.sample(12, guidance={**guide, "scale": 0.0}, label="3", **given)
        assert torch.allclose(none, free, atol=1e-6)
        # no class: no guidance; nobody names one: each in turn
        if name == "plain":
            assert torch.allclose(model.sample(12, guidance=guide, label=-1, **given), free, atol=1e-5)
            turns = model.sample(12, guidance=guide, label=[str(i) for i in range(10)], **given)
            assert torch.allclose(model.sample(12, guidance=guide, **given), turns, atol=1e-6)
    out = str(classifier / "x.png")
    options = ["--label", "3", "--guidance.classifier", str(classifier), "--guidance.scale", "2", "--count", "2"]
    assert run("sample", str(models["plain"]), *options, "--out", out) == 0


def test_a_classifier_that_does_not_fit_is_refused(
    classifier: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, labelled = (sfumato.load(models[name]) for name in ("plain", "labelled"))

    def other(name: str, config: Config, **info: Any) -> dict[str, Any]:
        """Settings of guidance by an untrained classifier of other data."""
        known = sfumato.load(classifier).info.override(info)
        sfumato.save(Model.build(config, known), tmp_path / name)
        return {"classifier": tmp_path / name}

    cosine = other("cosine", small(model={"schedule": {"kind": "cosine"}}))
    larger = other("larger", small(), shape=(1, 16, 16))
    letters = other("letters", small(), classes=tuple("abcdefghij"))
    cases: list[tuple[Model, dict[str, Any], str]] = [
        (plain, cosine, r"another noise schedule \(cosine.*than this model \(edm"),
        (plain, larger, "data of 1x16x16, and this model samples 1x8x8"),
        (labelled, letters, r"knows the classes a, b, c.*label of this model are 0, 1"),
        (plain, {"classifier": models["labelled"]}, "is no classifier"),
        (plain, {"classifier": tmp_path / "nowhere"}, "no run directory"),
        (plain, {"classifier": classifier, "rescale": 0.5}, "guidance.rescale belongs"),
        (plain, {"classifier": classifier, "weak_run": classifier, "scale": 2.0}, "guidance.weak_run belongs"),
        (plain, {"weak_run": classifier, "scale": 2.0}, "is a classifier, and no weaker model"),
    ]
    for model, guidance, words in cases:
        with pytest.raises(InputError, match=words):
            model.sample(2, guidance=guidance, progress=False)
    with pytest.raises(InputError, match="inference_mode"), torch.inference_mode():
        plain.sample(2, guidance={"classifier": classifier}, label=2, steps=3, progress=False)
    # at scale 1 it guides, within an interval if one is said
    more = {"classifier": classifier, "interval": (0.5, 5.0)}
    assert plain.sample(2, guidance=more, label=2, steps=3, progress=False).shape == (2, 1, 8, 8)
    for label, words in (("sevn", "There is no class 'sevn'"), (12, "There is no class 12")):
        with pytest.raises(InputError, match=words):
            plain.sample(2, guidance=more, label=label, progress=False)
    assert run("sample", str(models["plain"]), "--label", "3") == 2
    assert "--label" in capsys.readouterr().err
    # the task of a run that another starts from is that of its settings
    assert run("train", "--task", "classify", "--init-from", str(models["plain"]), "--run", str(tmp_path / "x")) == 2
    assert "leave --recipe and --task out" in capsys.readouterr().err
