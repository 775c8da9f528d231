"""The agreement of models with captions: of one that draws what it is told, and of trained ones that hardly do."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.conditioning import Label, Text, words
from sfumato.config import Config, merge, parse
from sfumato.data import Column, Dataset
from sfumato.data.dataset import as_tensor
from sfumato.data.shapes import SPLITS, scene, split_of
from sfumato.data.shapes import shapes as scenes
from sfumato.data.shapes.source import COUNTS
from sfumato.diffusion.denoiser import Prediction
from sfumato.diffusion.level import Level
from sfumato.diffusion.schedule import ContinuousCosine
from sfumato.errors import InputError
from sfumato.metrics.agreement import AgreementReport, Share
from sfumato.models.agreement import asked
from sfumato.models.cascade import Cascade
from sfumato.models.evaluate import judge_of, judged
from sfumato.models.model import Model
from sfumato.models.storage import Info
from sfumato.models.sweep import evaluate_sweep
from sfumato.recipes import text
from tests.cli.command import run
from tests.training.tiny import TINY

COUNT, SEED = 3, 1
MEASURES = {"measures": ("agreement",)}
NETWORK = {"channels": (8, 8), "attention": (1,), "groups": 4, "embedding": 16, "time_features": 8}


@cache
def data() -> tuple[Dataset, Dataset]:
    return scenes(32, 8), scenes(32, 8, first=8)


@pytest.fixture(scope="module")
def known() -> Text:
    """A condition that knows the words of all splits."""
    captions = [caption for split in SPLITS for caption in asked(split, COUNT, 32, SEED).captions]
    column = Column(np.array(captions, dtype=object))
    return Text().describe(Dataset(np.zeros((len(captions), 3, 32, 32), np.uint8), {"caption": column}))


class Painter:
    """Draws the pictures of captions; every ``wrong``-th caption it draws as another."""

    schedule, data_std = ContinuousCosine(), 0.5

    def __init__(self, known: Text, wrong: int | None = None) -> None:
        numbers = {word: i for i, word in enumerate(known.words, 1)}
        self.pictures: dict[tuple[int, ...], Tensor] = {}
        for split in SPLITS:
            here = asked(split, COUNT, 32, SEED)
            for i, caption in enumerate(here.captions):
                at = (i + 1) % COUNT if wrong is not None and i % wrong == 0 else i
                key = tuple(numbers[word] for word in words.split(caption))
                self.pictures[key] = as_tensor(here.pictures[at : at + 1])[0]

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        keys = [tuple(number for number in row.tolist() if number != words.PAD) for row in cond["text"]]
        x0 = torch.stack([self.pictures[key] for key in keys]).to(x)
        return Prediction.of_x0(x, x0, level)


def painting(known: Text, wrong: int | None = None) -> Model:
    config = parse(Config, {"sampling": {"steps": 2}})
    model = Model(Painter(known, wrong), (3, 32, 32), config=config, conditions={"text": known})
    model.data = data()
    return model


def test_captions_are_whole_and_of_their_split() -> None:
    for split in SPLITS:
        found = asked(split, COUNT, 32, SEED)
        assert [split_of(caption) for caption in found.captions] == [split] * COUNT
        # a caption of one thing comes again in a training, its picture does not
        trained = {scene(i, split=split).draw().tobytes() for i in range(10)}
        assert not trained & {picture.tobytes() for picture in found.pictures}
        assert asked(split, COUNT, 32, SEED + 1).captions != found.captions


def test_a_model_that_draws_what_it_is_told_agrees(known: Text, tmp_path: Path) -> None:
    model = painting(known)
    page = tmp_path / "page.html"
    report = judged(judge_of(model, data(), **MEASURES), model, captions=COUNT, batch_size=4, page=page)
    assert report.counts["captions of each kind"] == COUNT and "samples" not in report.counts
    assert [row.features for row in report.rows if row.measure == "agreement"] == list(SPLITS)
    assert all(row.value == row.floor == 1.0 and row.interval is not None for row in report.rows)
    details = json.loads(json.dumps(report.to_dict()))["details"]["agreement"]
    assert AgreementReport.from_dict(details["held-out pair"]).right["whole"] == Share(COUNT, COUNT)
    shown = page.read_text()
    assert (
        "agreement (held-out pair)" in shown
        and f"1.000 [{COUNT / (COUNT + 1.959964**2):.3f}, 1.000]" in shown
        and "Chance" in shown
    )
    assert "held-out wording: 3 captions" in shown and "0 pictures refused" in shown
    # two of three draw another caption
    worse = judged(judge_of(model, data(), **MEASURES), painting(known, wrong=2), captions=COUNT)
    assert [worse[f"agreement ({split})"].value for split in SPLITS] == pytest.approx([1 / 3] * 3)


def test_agreement_is_measured_where_it_can_be(known: Text) -> None:
    model = painting(known)

    def why(model: Model, sets: tuple[Dataset, Dataset], **options: Any) -> str:
        with pytest.raises(InputError) as error:
            judged(judge_of(model, sets, **MEASURES), model, **{"captions": COUNT, **options})
        return str(error.value)

    def told(captions: list[str], images: Any) -> tuple[Dataset, Dataset]:
        one = Dataset(images, {"caption": Column(np.array(captions, dtype=object))}, "mine")
        return one, one

    _, heldout = data()
    images = np.asarray(heldout.images[np.arange(8)])
    said = heldout.columns["caption"].texts(range(8))
    assert "give more than 0" in why(model, data(), captions=0)
    assert "captions of its own; leave text out" in why(model, data(), text="a red circle")
    assert "captions of shapes" in why(model, told(["a dog"] * 8, images))
    assert "0 of 8 of mine show what their captions say" in why(model, told(said, np.zeros_like(images)))
    assert "0 of 0 of mine" in why(model, told([""] * 8, images))
    assert "mine has none" in why(model, (Dataset(images, {}, "mine"),) * 2)
    labelled = Model(Painter(known), (3, 32, 32), conditions={"label": Label(names=("a", "b"))})
    assert "no condition of kind text" in why(labelled, data())
    with pytest.raises(InputError, match=r"metrics\.agreement\(captions, pictures\)"):
        judged(judge_of(model, data(), **MEASURES), heldout)


def settings(**over: Any) -> Config:
    small: dict[str, Any] = {
        "conditions": {"text": {"kind": "text", "width": 8, "heads": 2, "layers": 1}},
        "model": {"network": NETWORK},
        "data": {"holdout": 8},
        "training": {**TINY["training"], "steps": 4, "batch_size": 4, "sample_every": 2, "sample_count": 2},
        "optimizer": TINY["optimizer"],
        "sampling": {"steps": 2},
        "evaluation": {"samples": 8, "captions": 2, "features": ("pixels",), "every": 2},
    }
    return parse(Config, merge(merge(text(), small), over))


def test_a_training_logs_and_keeps_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COUNTS, "seen", 16)
    folder = tmp_path / "run"
    config = settings(evaluation={"measures": ("fd", "agreement", "saturation"), "best": "agreement"})
    sfumato.train(config, run=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged_at = [line for line in lines if "agreement (seen)" in line]
    assert [line["step"] for line in judged_at] == [2, 4]
    assert {"FD (pixels)", "relation (held-out wording)", "saturated values"} <= set(judged_at[0])
    losses = [line for line in lines if "heldout_loss shuffled" in line]
    assert [line["step"] for line in losses] == [2, 4] and "heldout_loss" in losses[0]
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["counts"]["captions of each kind"] == 2 and set(kept["details"]["agreement"]) == set(SPLITS)
    assert (folder / "best/evaluation.json").is_file()
    # it rests on three pictures of each split, which are more than the samples before
    assert run("evaluate", str(folder), "--measures", "agreement", "--captions", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["samples"] == 9 and kept["rows"] == found["rows"] and found["counts"]["captions of each kind"] == 3
    # a few steps draw nothing that can be parsed
    first = found["rows"][0]
    assert (first["title"], first["value"], first["floor"]) == ("agreement (seen)", 0.0, 1.0)
    assert run("evaluate", str(tmp_path), "--against", str(folder), "--captions", "3") == 2
    assert "--captions is for runs" in capsys.readouterr().err


def test_a_sweep_of_guidance_shows_agreement(known: Text) -> None:
    from sfumato.analysis.sweeps import plot_sweep
    from sfumato.cli.sweep import _table  # pyright: ignore[reportPrivateUsage]

    model = painting(known)
    curves = evaluate_sweep(model, "steps", [1, 2], captions=COUNT, judging=MEASURES, progress=False)
    assert [report["agreement (seen)"].value for report in curves[0].reports] == [1.0, 1.0]
    figure = plot_sweep(curves, "steps")
    assert figure.axes[0].get_ylabel() == "agreement ↑"
    table = _table(curves[0], "steps")
    heads = [column.header for column in table.columns]
    assert heads[:3] == ["steps", "agreement (seen)", "relation (seen)"]
    assert list(table.columns[0].cells)[-2:] == ["real", "chance"]


def test_a_cascade_is_measured_at_its_last_size(known: Text) -> None:
    facts = {"kind": "text", "width": 8, "heads": 2, "layers": 1, "words": known.words}
    low = {"kind": "low_resolution", "factor": 2, "channels": 3}
    shared = {"std": 0.5, "train": 2}
    stages: dict[str, Model] = {}
    for name, size, conditions in (("base", 32, {"text": facts}), ("up", 64, {"text": facts, "low_resolution": low})):
        plain = {n: {k: v for k, v in c.items() if k not in ("words", "channels")} for n, c in conditions.items()}
        over = {"model": {"network": NETWORK}, "sampling": {"steps": 1}, "conditions": plain}
        info = parse(Info, {"shape": (3, size, size), "conditions": conditions, **shared})
        stages[name] = Model.build(parse(Config, merge(text(), over)), info)
    whole = Cascade(stages)
    whole.data = scenes(64, 8), scenes(64, 8, first=8)
    report = judged(judge_of(whole, whole.data, **MEASURES), whole, captions=1, base={"steps": 1})
    assert all(row.value == 0.0 and row.floor == 1.0 for row in report.rows)
    # a stage that scales up is given the real picture at the size before
    alone = judged(judge_of(stages["up"], whole.data, **MEASURES), stages["up"], captions=1)
    assert alone.counts["captions of each kind"] == 1
