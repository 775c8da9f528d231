"""The memory layout of a training: measured at its start, harmless to what is trained, kept by those who resume."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import sfumato.training.layout as layout
from sfumato import load
from sfumato.config import Config, merge, parse
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.io.files import read_tensors
from sfumato.models.model import Model
from sfumato.models.storage import Facts
from sfumato.runs.reporting import Terminal
from sfumato.runs.train import engine, make_trainer, train
from tests.training.tiny import tiny

FACTS = Facts(shape=(1, 8, 8), std=0.5, train=32, heldout=0)


def undecided(**training: object) -> Config:
    over = {"optimizer": {"decay": "constant"}, "training": {"channels_last": None, **training}}
    return parse(Config, merge(tiny().model_dump(), over))


def pictures() -> Loader:
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    return Loader(Dataset(images, None, (), "noise"), 0)


def model(config: Config, facts: Facts = FACTS) -> Model:
    torch.manual_seed(0)
    return Model(config, facts)


def say(monkeypatch: pytest.MonkeyPatch, first: float, last: float) -> None:
    """Pretend that the two layouts took so many seconds."""
    monkeypatch.setattr(layout, "layout_seconds", lambda *_, **__: torch.tensor([first, last]))


def state(run: Path) -> dict[str, bytes]:
    tensors = read_tensors(max((run / "checkpoints").glob("*.safetensors")))[0]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_measuring_touches_nothing() -> None:
    made = model(undecided())
    network = made.denoiser.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    strides = {name: p.stride() for name, p in network.named_parameters()}
    generator = torch.get_rng_state()
    seconds = layout.layout_seconds(network, pictures().batch(0, 4).x0, bf16=False, rounds=1)
    assert seconds.shape == (2,) and bool((seconds > 0).all()) and bool(seconds.isfinite().all())
    assert torch.equal(torch.get_rng_state(), generator)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.stride() == strides[name]
        assert parameter.grad is None


@pytest.mark.parametrize(("first", "last", "chosen"), [(2.0, 1.0, True), (1.0, 2.0, False), (1.0, 0.99, False)])
def test_the_faster_one_is_taken(first: float, last: float, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, first, last)
    made = model(undecided())
    trainer = make_trainer(made, pictures(), engine())
    assert made.config.training.channels_last is chosen
    kernel = next(p for p in trainer.denoiser.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last) is chosen


def test_the_time_that_was_measured_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the faster layout, for all samples of a step: 16 of 64, in four parts."""
    monkeypatch.setattr(layout, "measured_batch", lambda *_, **__: 4)
    say(monkeypatch, 2.0, 1.0)
    wanted = undecided(batch_size=64, accumulate=4)
    made = model(wanted)
    trainer = make_trainer(made, pictures(), engine())
    assert trainer.sample_seconds == 0.25
    with StringIO() as told:
        terminal = Terminal(Console(file=told, width=200))
        terminal.start(made.config, FACTS, made, trainer, tmp_path)
        terminal.close()
        assert "about 16 s per step, as measured here" in told.getvalue()
    # what was decided before is not measured
    assert make_trainer(model(made.config), pictures(), engine()).sample_seconds is None


def test_what_is_trained_is_what_the_setting_would_train(tmp_path: Path) -> None:
    """Whichever layout the measurement takes, the run is bit for bit the one with that layout asked for."""
    found = train(undecided(), run=tmp_path / "measured")
    chosen = found.config.training.channels_last
    assert isinstance(chosen, bool)
    assert (
        json.loads((tmp_path / "measured" / "config.json").read_text())["config"]["training"]["channels_last"] is chosen
    )
    train(undecided(channels_last=chosen), run=tmp_path / "asked")
    assert state(tmp_path / "measured") == state(tmp_path / "asked")


@pytest.mark.parametrize("chosen", [True, False])
def test_resuming_keeps_the_layout_whatever_is_faster_then(
    chosen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, 1.0, 0.5 if chosen else 2.0)
    train(undecided(steps=8), run=tmp_path / "whole")
    train(undecided(steps=4), run=tmp_path / "parts")
    # the other one is the faster now, were it measured
    say(monkeypatch, 1.0, 2.0 if chosen else 0.5)
    resumed = train(undecided(steps=8), run=tmp_path / "parts", resume=True)
    assert resumed.config.training.channels_last is chosen
    assert state(tmp_path / "whole") == state(tmp_path / "parts")
    with pytest.raises(InputError, match=r"training\.channels_last differs"):
        train(undecided(steps=9, channels_last=not chosen), run=tmp_path / "parts", resume=True)


def test_a_loaded_model_has_the_layout_of_its_training(tmp_path: Path) -> None:
    for chosen in (True, False):
        made = train(undecided(channels_last=chosen, steps=2), run=tmp_path / str(chosen))
        read = load(tmp_path / str(chosen))
        for one, other in zip(made.denoiser.parameters(), read.denoiser.parameters(), strict=True):
            assert one.stride() == other.stride()
        assert torch.equal(made.sample(3), read.sample(3))


def test_networks_without_kernels_of_two_dimensions_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("measured")

    monkeypatch.setattr(layout, "layout_seconds", fail)
    dit = {"kind": "dit", "patch": 2, "width": 32, "depth": 1, "heads": 2, "time_features": 16}
    transformer = parse(Config, merge(undecided().model_dump(), {"model": {"network": dit}}))
    made = model(transformer)
    make_trainer(made, pictures(), engine())
    assert made.config.training.channels_last is False
    waves = Loader(Dataset(np.zeros((4, 1, 8), dtype=np.float32), None, (), "waves"), 0)
    made = model(undecided(), FACTS.model_copy(update={"shape": (1, 8)}))
    make_trainer(made, waves, engine())
    assert made.config.training.channels_last is False


def test_a_measurement_stays_short() -> None:
    network = model(undecided()).denoiser.network
    assert layout.measured_batch(network, (1, 8, 8), 16, bf16=False) == 16
    assert layout.measured_batch(network, (1, 4096, 4096), 16, bf16=True) == 1
