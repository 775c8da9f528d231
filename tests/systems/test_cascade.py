"""A cascade: its stages trained, stopped and resumed, then sampled as one model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.command import run
from tests.training.tiny import TINY

import sfumato
from sfumato.config import Config, merge
from sfumato.errors import InputError
from sfumato.models.cascade import Cascade
from sfumato.models.data import examples, read_data
from sfumato.models.evaluate import evaluate
from sfumato.models.model import Model
from sfumato.models.storage import read_config
from sfumato.runs.directory import Interrupted
from sfumato.runs.reporting import Reporter
from sfumato.runs.resolving import default_name
from sfumato.systems.stages import planned
from sfumato.systems.train import train
from sfumato.training.loop import Record


def small(**training: Any) -> dict[str, Any]:
    """The settings of both stages of a cascade of digits, small enough for tests."""
    stage = {key: TINY[key] for key in ("model", "training", "optimizer", "sampling", "evaluation")}
    return {name: merge(stage, {"training": training}) for name in ("base", "up")}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems") / "digits"
    settings = merge(
        small(sample_count=4),
        {"up": {"evaluation": {"samples": 40, "features": ["pixels"], "measures": ["fd", "pairs"]}}},
    )
    assert isinstance(train(settings, run=folder), Cascade)
    return folder


def hashes(folder: Path, name: str = "*") -> dict[str, str]:
    """What the weights of the stages are."""
    files = sorted(folder.glob(f"stages/{name}/model.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_is_a_run_for_each_stage_and_what_the_whole_is_worth(system: Path) -> None:
    assert json.loads((system / "system.json").read_text())["stages"] == ["base", "up"]
    assert read_config(system / "stages/base")[1].shape == (1, 4, 4)
    assert read_config(system / "stages/up")[1].shape == (1, 8, 8)
    assert (system / "samples/step-0000024.png").is_file()
    whole, up = (json.loads((p / "evaluation.json").read_text()) for p in (system, system / "stages/up"))
    # the whole is judged by what it samples, a stage that scales up also by the images that it should give back
    titles = [[row["title"] for row in found["rows"]] for found in (whole, up)]
    assert "PSNR" not in titles[0] and "PSNR" in titles[1] and titles[0][0] == titles[1][0] == "FD (pixels)"
    assert whole["settings"]["sampling"]["base"]["steps"] == 3
    assert sfumato.load(system / "stages/base").sample(2).shape == (2, 1, 4, 4)


def test_the_base_is_trained_on_what_the_next_stage_is_given() -> None:
    """Its images are the conditions, to the rounding of 8 bits, and held out are the same."""
    stages = planned({"data": {"source": "digits"}})
    condition = stages["up"].conditions["low_resolution"].build()
    for low, high in zip(read_data(stages["base"]), read_data(stages["up"]), strict=True):
        at = range(50)
        torch.testing.assert_close(low.batch(at), condition.of(high.batch(at), {}))
        assert torch.equal(low.rows(at)["label"], high.rows(at)["label"])


def test_8_bits_stay_8_bits_and_are_those_of_pillow() -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from sfumato.models.data import scaled_down

    photo = load_sample_image("china.jpg")[:400, :640]
    data = sfumato.Dataset(np.moveaxis(photo, -1, 0)[None].copy(), name="china")
    found = np.asarray(scaled_down(data, 4).images)[0]
    size = (160, 100)
    known = np.moveaxis(np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC)), -1, 0)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - known).max() <= 1


def test_images_do_not_depend_on_the_batch(system: Path) -> None:
    model = sfumato.load(system)
    whole = model.sample(7, seed=5)
    assert whole.shape == (7, 1, 8, 8)
    torch.testing.assert_close(model.sample(7, seed=5, batch_size=3), whole, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(model.sample(2, seed=5, first=5), whole[5:], atol=1e-5, rtol=0.0)
    *_, last = model.frames(7, seed=5)
    torch.testing.assert_close(last.x.clamp(-1, 1), whole, atol=1e-5, rtol=0.0)


def test_each_stage_is_given_the_class_and_its_own_options(system: Path) -> None:
    model = sfumato.load(system)
    assert isinstance(model, Cascade)
    base, up = model.stages.values()
    noise = sfumato.random.fold(3, "before up")
    first = base.sample(4, seed=noise, label="7", steps=2)
    second = up.sample(4, seed=3, label="7", low_resolution=first, input_noise=0.3)
    found = model.sample(4, seed=3, label="7", input_noise=0.3, base={"steps": 2})
    torch.testing.assert_close(found, second, atol=1e-5, rtol=0.0)
    assert not torch.allclose(model.sample(4, seed=3, label="7", input_noise=0.3), found, atol=1e-3)
    # classes that nobody names are the same for both
    classes = torch.arange(4) % 10
    given = up.sample(4, seed=3, label=classes, low_resolution=base.sample(4, seed=noise, label=classes))
    torch.testing.assert_close(model.sample(4, seed=3), given, atol=1e-5, rtol=0.0)
    # the base is not sampled where its images are given
    torch.testing.assert_close(
        model.sample(4, seed=3, low_resolution=first, label="7"),
        up.sample(4, seed=3, low_resolution=first, label="7"),
        atol=1e-5,
        rtol=0.0,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": 3}, "base is 3; .*as dictionaries"),
        ({"up": {"steps": 3}}, "options of the last stage, up, are given as they are"),
        ({"base": {"input_noise": 0.1}}, "this model was trained without"),
        ({"input_noise": 0.7}, r"input_noise is 0.7; .* 0 to 0.4"),
        ({"low_level": 1}, "no condition or option 'low_level'"),
        ({"guidance": 2.0, "label": -1}, "none was given"),
    ],
)
def test_options_that_mean_nothing_are_refused(system: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sfumato.load(system).sample(2, **options)


def test_a_stage_is_judged_with_the_class_of_each_image(system: Path) -> None:
    """The class goes with the low-resolution image, and is not drawn beside it."""
    up = sfumato.load(system / "stages/up")
    heldout = read_data(up.config)[1]
    parts, truths = examples(up, heldout, 20, seed=3, sampling=up.config.sampling.override(input_noise=0.0))
    assert truths is not None and parts["low_resolution"]["level"].tolist() == [0.0] * 20
    torch.testing.assert_close(parts["low_resolution"]["value"], up.conditions["low_resolution"].of(truths, {}))
    images, labels = heldout.batch(range(len(heldout))), heldout.rows(range(len(heldout)))["label"]
    for truth, label in zip(truths, parts["label"]["value"], strict=True):
        same = (images == truth).flatten(1).all(1)
        assert int(label) in labels[same].tolist()


def test_the_level_of_a_single_stage_can_be_chosen(system: Path) -> None:
    """The same as a run that says it, in sampling and in evaluation."""
    up = sfumato.load(system / "stages/up")
    low = torch.zeros(2, 1, 4, 4)
    stored = up.config.override({"sampling.input_noise": 0.4}).sampling
    assert torch.equal(
        up.sample(2, low_resolution=low, input_noise=0.4), up.sample(2, low_resolution=low, sampling=stored)
    )
    assert not torch.equal(up.sample(2, low_resolution=low, input_noise=0.4), up.sample(2, low_resolution=low))
    made = [
        evaluate(up, samples=20, features="pixels", measures="pairs", input_noise=level, overwrite=True)
        for level in (0.0, 0.4)
    ]
    assert made[0]["consistency PSNR"].value != made[1]["consistency PSNR"].value


def test_stopped_between_and_within_stages_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    class Stopping(Reporter):
        def __init__(self, at: int) -> None:
            self.left = at

        def step(self, record: Record) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    settings = small(steps=6, checkpoint_every=2)
    train(settings, run=tmp_path / "whole")
    parts = tmp_path / "parts"
    # in the first stage, which has a checkpoint; at the start of the second one, which has none; in the second one
    with pytest.raises(Interrupted, match=f"at step 2; resume with: sfumato train --resume {parts}$"):
        train(settings, run=parts, reporter=Stopping(3))
    with pytest.raises(InputError, match=r"stage 'up' of .* is not trained yet; train it with: sfumato train --resume"):
        sfumato.load(parts)
    with pytest.raises(Interrupted):
        train(run=parts, resume=True, reporter=Stopping(5))
    base = hashes(parts, "base")
    with pytest.raises(Interrupted):
        train(run=parts, resume=True, reporter=Stopping(3))
    assert hashes(parts, "base") == base
    train(run=parts, resume=True)
    assert hashes(parts) == hashes(tmp_path / "whole") and len(hashes(parts)) == 2


def test_a_budget_is_divided_among_the_stages_that_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By positions: the base sees a quarter of those that the up-sampler sees."""
    parts: list[float] = []

    def sized(config: Config, seconds: float, measured: Any) -> tuple[Config, str]:
        parts.append(seconds)
        return config.override({"training.steps": 2 + len(parts)}), "as fits"

    monkeypatch.setattr("sfumato.runs.train.sized", sized)
    settings, folder = small(steps=1000), tmp_path / "system"
    model = train(settings, run=folder, budget=100.0)
    assert parts == [20.0, 80.0] and model is not None
    assert [stage.step for stage in model.stages.values()] == [3, 4]
    # all of it for one that is trained again; none for what has begun
    train(run=folder, resume=True, stage="up", overwrite=True, budget="1m")
    assert parts[2:] == [60.0] and sfumato.load(folder).step == 3 + 5
    with pytest.raises(InputError, match="have begun, and have their steps"):
        train(run=folder, resume=True, budget="1m")
    more = ["--system", "cascade", "--run", str(tmp_path / "other"), "--budget", "1m"]
    assert run("train", "digits", *more, "--up.training.steps", "5") == 2
    assert "--budget decides the steps" in capsys.readouterr().err


def test_a_stage_is_trained_by_name_and_touches_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "system"
    settings = small(steps=3)
    assert train(settings, run=folder, stage="up") is None
    assert list(hashes(folder)) == ["stages/up/model.safetensors"]
    up = hashes(folder)
    model = train(run=folder, resume=True)
    assert model is not None and len(hashes(folder)) == 2 and hashes(folder, "up") == up
    base = hashes(folder, "base")
    # longer, and again from the start
    train({"up": {"training": {"steps": 5}}}, run=folder, resume=True, stage="up")
    assert sfumato.load(folder).step == 8 and hashes(folder, "base") == base
    train({"up": {"training": {"steps": 3}}}, run=folder, resume=True, stage="up", overwrite=True)
    assert hashes(folder) == base | up
    with pytest.raises(InputError, match="already exists; go on with --resume"):
        train(settings, run=folder)
    with pytest.raises(InputError, match="name the stage that is to be replaced"):
        train(run=folder, resume=True, overwrite=True)
    with pytest.raises(InputError, match="no stage 'upper'; known are base, up"):
        train(run=folder, resume=True, stage="upper")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="not a system of Sfumato"):
        train(settings, run=tmp_path / "notes", overwrite=True)
    train(small(steps=2), run=folder, overwrite=True)
    assert sfumato.load(folder).step == 4 and not list(tmp_path.glob(".system*"))


def test_data_in_python_are_scaled_down_for_the_base(tmp_path: Path) -> None:
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    data = {"image": images, "label": torch.arange(40) % 2}
    settings = merge(
        small(steps=2),
        {"data": {"holdout": 10}, "up": {"evaluation": {"samples": 12, "features": ["pixels"], "measures": ["fd"]}}},
    )
    model = train(settings, data=data, run=tmp_path / "run")
    assert model is not None and model.sample(2, label=1).shape == (2, 1, 8, 8)
    assert sfumato.load(tmp_path / "run/stages/base").info.shape == (1, 4, 4)
    assert (tmp_path / "run/evaluation.json").is_file()
    assert train(run=tmp_path / "run", resume=True, data=data) is not None


def test_a_larger_factor_and_patches(tmp_path: Path) -> None:
    over = {"data": {"source": "x.npz"}, "up": {"conditions": {"low_resolution": {"factor": 4}}}}
    stages = planned(over, recipe="small")
    assert [stages[name].data.scale_down for name in ("base", "up")] == [4, 1]
    assert [stages[name].model.network.patch for name in ("base", "up")] == [1, 2]
    for wrong, words in (
        ({"middle": {}}, "'middle' is no stage"),
        ({"base": {"data": {"source": "y.npz"}}}, "same data"),
        ({"data": {"random_crop": 4}}, "whole images"),
        ({"up": {"conditions": {"low_resolution": {"down": "area"}}}}, "leave down out"),
    ):
        with pytest.raises(InputError, match=words):
            planned(wrong)


def test_stages_that_do_not_fit_are_refused(system: Path, tmp_path: Path) -> None:
    base, up = (sfumato.load(system / "stages" / name) for name in ("base", "up"))
    with pytest.raises(InputError, match="'base' has 0 low-resolution conditions"):
        Cascade({"up": up, "base": base})
    with pytest.raises(InputError, match="'one' makes images of 1x8x8, and 'up' scales 1x4x4 up to 1x8x8"):
        Cascade({"one": Model.build(base.config, up.info.override(conditions={})), "up": up})
    with pytest.raises(InputError, match="at least two stages"):
        Cascade({"up": up})
    folder = tmp_path / "system"
    shutil.copytree(system, folder)
    config = folder / "stages/base/config.json"
    config.write_text(config.read_text().replace('"9"', '"nine"'))
    with pytest.raises(InputError, match="trained with other labels"):
        sfumato.load(folder)
    config.write_text(config.read_text().replace('"nine"', '"9"').replace('"steps": 12', '"steps": 1200'))
    with pytest.raises(InputError, match=r"'base' of .* was hardly trained, 12 of 1,200 steps; go on with: .*--stage"):
        sfumato.load(folder)
    (folder / "system.json").write_text('{"format": 1, "stages": ["base", "../up"]}')
    with pytest.raises(InputError, match="stages are at least two different names"):
        sfumato.load(folder)


def test_what_works_on_one_stage_says_so(system: Path, tmp_path: Path) -> None:
    model = sfumato.load(system)
    images = torch.zeros(1, 1, 8, 8)
    for work in (
        lambda: sfumato.bits_per_dim(model, images, bins=3),
        lambda: sfumato.tune(model, steps=3),
        lambda: sfumato.sdedit(model, images, 0.5, 1),
        lambda: sfumato.interop.engines.compile(model, "onnxruntime"),
        lambda: sfumato.interop.export(model, "safetensors", tmp_path / "x.safetensors"),
    ):
        with pytest.raises(InputError, match=r"works on one stage, .* of base, up: take .*/stages/up"):
            work()
    with pytest.raises(InputError, match="system of the stages base and up, and this takes one of them"):
        read_config(system)


def test_two_runs_are_made_a_system_and_saved(system: Path, tmp_path: Path) -> None:
    stages = {name: sfumato.load(system / "stages" / name) for name in ("base", "up")}
    sfumato.save(Cascade(stages), tmp_path / "own")
    assert torch.equal(sfumato.load(tmp_path / "own").sample(2), sfumato.load(system).sample(2))
    with pytest.raises(InputError, match="holds a model already"):
        sfumato.save(Cascade(stages), tmp_path / "own")
    with pytest.raises(InputError, match="of another kind"):
        sfumato.save(stages["up"], tmp_path / "own", overwrite=True)


def test_three_stages(system: Path) -> None:
    """A cascade is the stage before another one, whose options are given by their names too."""
    base, up = (sfumato.load(system / "stages" / name) for name in ("base", "up"))
    top = Model.build(up.config, up.info.override(shape=(1, 16, 16)))
    model = Cascade({"base": base, "middle": up, "top": top})
    assert model.conditions.keys() == {"label", "low_resolution"}
    middle = Cascade({"base": base, "middle": up}).sample(
        2, seed=sfumato.random.fold(1, "before top"), label=2, steps=2, base={"steps": 1}
    )
    found = model.sample(2, seed=1, label=2, middle={"steps": 2}, base={"steps": 1})
    torch.testing.assert_close(found, top.sample(2, seed=1, label=2, low_resolution=middle), atol=1e-5, rtol=0.0)
    described = model.described({"middle": {"steps": 2}, "base": {"steps": 1}})
    assert (described["middle"]["steps"], described["middle"]["base"]["steps"]) == (2, 1)


def test_on_the_command_line(system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(system)
    array = tmp_path / "x.npz"
    options = ["--base.steps", "2", "--base.sampler", "ddim", "--input-noise", "0.2", "--label", "7", "--count", "3"]
    assert run("sample", folder, *options, "--out", str(array)) == 0
    options = {"steps": 2, "solver": "ddim"}
    known = sfumato.load(system).sample(3, label="7", input_noise=0.2, base=options)
    assert np.allclose(np.load(array)["images"], known, atol=1e-5)
    judged = ["--samples", "20", "--features", "pixels", "--measures", "fd", "--base.steps", "1", "--overwrite"]
    assert run("evaluate", folder, *judged) == 0
    report = json.loads((system / "evaluation.json").read_text())
    assert report["settings"]["sampling"]["base"]["steps"] == 1 and report["settings"]["sampling"]["steps"] == 3
    assert run("info", folder) == 0
    said = capsys.readouterr().out
    assert "stage base" in said and "stage up" in said and "2x up-scaling" in said
    sweep = ["--sweep", "input_noise", "0", "0.4", "--overwrite"]
    assert run("sample", folder, *sweep, "--label", "3", "5", "--out", str(tmp_path / "sweep.png")) == 0
    judged = ["--samples", "20", "--features", "pixels", "--measures", "fd", "--base.steps", "1"]
    assert run("evaluate", folder, *judged, *sweep) == 0
    swept = json.loads((system / "evaluation-sweep.json").read_text())
    one, two = (report["rows"][0]["value"] for report in swept["curves"][0]["reports"])
    assert one != two and (system / "evaluation-sweep.png").is_file()
    out = tmp_path / "exported"
    assert run("export", folder, str(out), "--to", "safetensors") == 0
    assert {path.name for path in out.iterdir()} == {"base.safetensors", "up.safetensors", "system.json"}
    capsys.readouterr()
    for words, *command in (
        ("The stage 'base': diffusers can't express", "export", folder, "--to", "diffusers"),
        ("did you mean --base.steps", "sample", folder, "--base.step", "2"),
        ("works on one stage", "tune", folder, "--steps", "3"),
        (f"takes one of them: {folder}/stages/up", "edit", folder, "sdedit", "x.png"),
        ("works on one stage", "likelihood", folder),
        ("leave DATA, --recipe and --factor out", "train", "--resume", folder, "--factor", "3"),
        ("no stage 'middle'", "train", "--resume", folder, "--stage", "middle"),
        ("no system 'cascada'; did you mean 'cascade'", "train", "--system", "cascada"),
        ("--factor is 1", "train", "--system", "cascade", "--factor", "1"),
        ("did you mean --base.training.steps", "train", "--system", "cascade", "--base.training.step", "3"),
    ):
        assert run(*command) == 2
        assert words in (error := capsys.readouterr().err) and "Traceback" not in error


def test_trained_and_resumed_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "small.json", tmp_path / "system"
    file.write_text(json.dumps(small(steps=3)))
    more = ["--config", str(file), "--run", str(folder), "--data.holdout", "100", "--up.training.steps", "2"]
    assert run("train", "digits", "--system", "cascade", "--stage", "base", *more) == 0
    assert f"lacks up; go on with: sfumato train --resume {folder}" in " ".join(capsys.readouterr().out.split())
    assert run("info", str(folder)) == 0 and "not trained yet" in capsys.readouterr().out
    assert run("sample", str(folder)) == 2 and "stage 'up'" in capsys.readouterr().err
    assert run("train", "--resume", str(folder)) == 0
    model = sfumato.load(folder)
    assert [stage.step for stage in model.stages.values()] == [3, 2] and model.info.heldout == 100
    assert run("train", "digits", "--system", "cascade", "--print-config") == 0
    out = capsys.readouterr().out
    printed = json.loads(out[out.index("\n{") :])
    assert printed["base"]["data"]["scale_down"] == 2 and default_name(planned()["base"]) == "digits"
