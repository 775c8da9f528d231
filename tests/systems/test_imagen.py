"""Imagen: its stages read the same captions, are trained and resumed by name, and are sampled as one model."""

from __future__ import annotations

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
from sfumato.config import merge
from sfumato.data.shapes import shapes
from sfumato.errors import InputError
from sfumato.models.cascade import Cascade
from sfumato.models.storage import read_config, read_system, write_config
from sfumato.systems.stages import planned
from sfumato.systems.train import train

TEXT = {"width": 8, "layers": 1, "heads": 1}


def small(**training: Any) -> dict[str, Any]:
    """The settings of both stages, small enough for tests."""
    network = {"channels": (8, 8, 8), "groups": 4, "embedding": 16, "heads": 1}
    stage = {key: TINY[key] for key in ("training", "optimizer", "sampling", "evaluation")}
    stage = merge(stage, {"conditions": {"text": TEXT}, "model": {"network": network}, "training": training})
    scales = {"base": 2.0, "up": 1.0}
    stages = {name: merge(stage, {"sampling": {"guidance": {"scale": scale}}}) for name, scale in scales.items()}
    layout = {key: value for key, value in stage.items() if key != "model"}
    return {"layout": {**layout, "model": {"network": {"width": 8}}}, **stages}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("systems") / "shapes"
    settings = small(steps=4, checkpoint_every=2, sample_count=2)
    assert isinstance(train(settings, system="imagen", data=shapes(32, count=32), run=folder), Cascade)
    return folder


def test_each_stage_reads_the_captions(system: Path) -> None:
    assert read_system(system).system == "imagen"
    # by the captions of held-out pictures, whose guidance needs some
    assert [path.name for path in (system / "samples").iterdir()] == ["step-0000008.png"]
    (base, base_info), (up, up_info) = (read_config(system / f"stages/{name}") for name in ("base", "up"))
    assert read_system(system).before == ("layout",) and read_system(system).stages == ("base", "up")
    assert base_info.shape == (3, 8, 8) and up_info.shape == (3, 32, 32)
    assert list(base.conditions) == ["text", "colours"]
    assert list(up.conditions) == ["text", "colours", "low_resolution"]
    known: Any = base_info.conditions["text"]
    assert known.words == up_info.conditions["text"].words and "red" in known.words  # type: ignore[attr-defined]
    # as the recipe says, not as many positions as another size would have
    assert (base.model.network.patch, up.model.network.patch) == (1, 2)


def test_the_base_keeps_the_layout_that_was_trained_before(system: Path) -> None:
    config, info = read_config(system / "stages/layout")
    # the expected picture of a caption and its edges, two times smaller than those of the base, whatever the noise is
    assert info.shape == (8, 4, 4) and config.model.parameterization.kind == "regression"
    layout, base = (
        dict(sfumato.load(system / f"stages/{name}").module.named_parameters()) for name in ("layout", "base")
    )
    part = "network.encoders.text.layout."
    kept = [name for name in layout if name.startswith(part)]
    assert kept and kept == [name for name in base if name.startswith(part)]
    assert all(torch.equal(base[name], layout[name]) for name in kept)
    # words that are attended to are the base's own, and are trained
    assert any(name.startswith("network.encoders.text.words.") for name in base)
    assert not any(name.startswith("network.encoders.text.words.") for name in layout)


def test_a_system_that_was_moved_goes_on_without_its_layout(system: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(system, moved)
    shutil.rmtree(moved / "stages/layout")
    settings = {"base": {"training": {"steps": 5}}}
    model = train(settings, data=shapes(32, count=32), run=moved, resume=True)
    assert isinstance(model, Cascade) and sfumato.load(moved / "stages/base").step == 5
    # its weights are in the base, but not for one that is trained again
    with pytest.raises(InputError, match=r"layout.*(not trained|no run)|no run directory"):
        train(settings, data=shapes(32, count=32), run=moved, resume=True, stage="base", overwrite=True)


def test_the_layout_has_its_part_of_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[float] = []

    def sized(config: Any, seconds: float, measured: Any) -> tuple[Any, str]:
        parts.append(seconds)
        return config.override({"training.steps": 2}), "as fits"

    monkeypatch.setattr("sfumato.runs.train.sized", sized)
    train(small(steps=4), system="imagen", data=shapes(32, count=32), run=tmp_path / "s", budget=100.0)
    assert sum(parts) == pytest.approx(100.0) and 12.0 < parts[0] < 16.0 and parts[1] < parts[2]


def test_a_base_needs_a_layout_that_was_trained_to_its_end(system: Path, tmp_path: Path) -> None:
    data, folder = shapes(32, count=32), tmp_path / "s"
    with pytest.raises(InputError, match=r"layout.*not trained yet"):
        train(small(steps=4), system="imagen", data=data, run=folder, stage="base")
    train(small(steps=4, checkpoint_every=2), data=data, run=folder, resume=True, stage="layout")
    longer = {"layout": {"training": {"steps": 400}}}
    monkeyed = sfumato.load(folder / "stages/layout").config.override({"training.steps": 400})
    write_config(folder / "stages/layout", monkeyed, sfumato.load(folder / "stages/layout").info)
    with pytest.raises(InputError, match=r"'base' needs 'layout'.*--stage layout"):
        train(longer, data=data, run=folder, resume=True, stage="base")


def test_the_caption_reaches_both_stages(system: Path) -> None:
    model = sfumato.load(system)
    assert isinstance(model, Cascade)
    base, up = model.stages.values()
    words, noise = "a red circle", sfumato.random.fold(3, "before up")
    low = base.sample(2, seed=noise, text=words)
    found = model.sample(2, seed=3, text=words, input_noise=0.2)
    torch.testing.assert_close(
        found, up.sample(2, seed=3, text=words, low_resolution=low, input_noise=0.2), atol=1e-5, rtol=0.0
    )
    assert found.shape == (2, 3, 32, 32)
    # without a caption, and with options of the base alone
    assert model.sample(1, seed=3, text=None, base={"steps": 1, "guidance": 1.0}).isfinite().all()


def test_one_stage_is_trained_again_and_the_other_kept(system: Path, tmp_path: Path) -> None:
    data = shapes(32, count=32)
    settings, folder = small(steps=4, checkpoint_every=2), tmp_path / "s"
    assert train(settings, system="imagen", data=data, run=folder, stage="up") is None
    before = (folder / "stages/up/model.safetensors").read_bytes()
    # stopped in the middle of the other one: its run is as if there had been no stop
    done = train(settings, data=data, run=folder, resume=True)
    assert isinstance(done, Cascade) and (folder / "stages/up/model.safetensors").read_bytes() == before
    again = (system / "stages/base/model.safetensors").read_bytes()
    assert (folder / "stages/base/model.safetensors").read_bytes() == again


def test_stages_of_other_captions_are_refused(system: Path, tmp_path: Path) -> None:
    other = sfumato.Dataset(
        shapes(32, count=8).images[np.arange(8)],
        {"caption": sfumato.data.Column(np.array(["ein roter Kreis"] * 8))},
        "German",
    )
    folder = tmp_path / "s"
    train(small(steps=1), system="imagen", data=other, run=folder, stage="up")
    up = sfumato.load(folder / "stages/up")
    with pytest.raises(InputError, match=r"other texts, .*small.*kreis.* same data"):
        Cascade({"base": sfumato.load(system / "stages/base"), "up": up})
    with pytest.raises(InputError, match="autoguidance needs one task"):
        up.sample(1, low_resolution=torch.zeros(3, 8, 8), guidance={"scale": 2.0, "weak_run": system / "stages/up"})


def test_a_weaker_run_of_the_same_captions_guides(system: Path) -> None:
    base = system / "stages/base"
    model = sfumato.load(base)
    plain = model.sample(2, text="a red circle", guidance=1.0)
    guided = model.sample(2, text="a red circle", guidance={"scale": 2.0, "weak_run": base})
    # a model is no better than itself
    torch.testing.assert_close(guided, plain, atol=1e-4, rtol=0.0)


def test_what_is_planned() -> None:
    stages = planned(system="imagen")
    assert {name: c.data.source for name, c in stages.items()} == dict.fromkeys(("layout", "base", "up"), "shapes")
    assert [config.data.scale_down for config in stages.values()] == [8, 4, 1] and stages["up"].data.size == 64
    assert all(c.conditions["text"].drop == 0.1 for c in stages.values())
    assert [c.objective.balance for c in stages.values()] == [False, True, True]
    assert stages["up"].conditions["low_resolution"].noise > 0.0 and stages["up"].model.residual  # type: ignore[attr-defined]
    # a base that starts from another run needs no layout of its own
    own = {"base": {"training": {"init_from": "runs/other"}}}
    assert {name: c.data.scale_down for name, c in planned(own, system="imagen").items()} == {"base": 4, "up": 1}
    with pytest.raises(InputError, match=r"layout .*8 times smaller.*data\.size.*20"):
        planned({"data": {"size": 20}}, system="imagen")
    # edges are for the layout alone, and for images that are not flipped
    assert [config.data.edges for config in stages.values()] == [True, False, False]
    flipped = planned({"data": {"flip": True, "source": "path/to/folder"}}, system="imagen")
    assert [(c.data.edges, c.data.flip) for c in flipped.values()] == [(False, True)] * 3
    with pytest.raises(InputError, match="left and right"):
        planned({"data": {"flip": True}}, system="imagen")
    with pytest.raises(InputError, match=r"leave data\.edges out"):
        planned({"data": {"edges": True}}, system="imagen")
    frozen = {name: {"conditions": {"text": {"encoder": "minilm"}}} for name in ("layout", "base", "up")}
    assert all(c.conditions["text"].encoder == "minilm" for c in planned(frozen, system="imagen").values())  # type: ignore[attr-defined]
    for setting, value in (("encoder", "minilm"), ("length", 8)):
        other = {"up": {"conditions": {"text": {setting: value}}}}
        with pytest.raises(InputError, match=rf"captions alike.*text\.{setting} is .*{value}.* in up"):
            planned(other, system="imagen")
    with pytest.raises(InputError, match=r"no system 'imagine'.*imagen"):
        planned(system="imagine")


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "shapes", "--system", "imagen", "--up.training.steps", "7", "--print-config") == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["up"]["training"]["steps"] == 7
    assert settings["base"]["model"]["network"]["coordinates"]
