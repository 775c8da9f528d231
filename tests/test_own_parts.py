"""A person's own schedule, weighting, loss and condition: trained, resumed, loaded, on the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.cli import main
from sfumato.conditioning.base import Condition, Filled
from sfumato.conditioning.labels import Label
from sfumato.config import Config, SamplingConfig, parse
from sfumato.config.component import settings_of
from sfumato.diffusion.denoiser import embed_log_sigma
from sfumato.diffusion.gaussian import diffuse
from sfumato.diffusion.parameterization import edm
from sfumato.diffusion.times import LogNormal, Times
from sfumato.errors import InputError
from sfumato.sampling.defaults import best_step
from tests.test_api import Own
from tests.training.tiny import tiny

HERE = __name__


class Line(sfumato.Schedule):
    """alpha = 1 - t and sigma = t * top: rectified flow with more noise."""

    def __init__(self, top: float = 1.0) -> None:
        super().__init__()
        self.top = top

    def kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t, self.top * t

    def time(self, log_snr: Tensor) -> Tensor:
        ratio = (-0.5 * log_snr).exp()
        return ratio / (ratio + self.top)


def softened(level: sfumato.Level, power: float = 0.5) -> Any:
    return level.sigma**power


class Early(Times):
    """Times that crowd near the data."""

    def __init__(self, schedule: sfumato.Schedule, power: float = 2.0) -> None:
        self.schedule, self.power = schedule, power

    def sample(self, u: Tensor) -> sfumato.Level:
        return self.schedule((1.0 - u).clamp(0.01, 0.99) ** self.power)


class Absolute(nn.Module):
    """The absolute error of the estimate of the data; it counts its batches, which a resumed run must go on with."""

    def __init__(self, denoiser: sfumato.Denoiser, factor: float = 1.0) -> None:
        super().__init__()
        self.model, self.factor = denoiser, factor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: Any, draws: Any) -> Tensor:
        self.seen += 1
        level = self.model.schedule(draws.stratified("time").clamp(0.01, 0.99))
        x = diffuse(batch.x0, level, draws.normal("noise", batch.x0.shape[1:]))
        error = (self.model(x, level).x0 - batch.x0).abs().flatten(1).mean(1)
        return self.factor * error * (1.0 + 0.01 * self.seen)


@dataclass(frozen=True)
class Brightness(Condition):
    """The mean of an image."""

    scale: float = 1.0

    def training(self, x0: Tensor, columns: Any, draws: Any) -> dict[str, Tensor]:
        return {"value": x0.flatten(1).mean(1)}

    def given(self, value: Any, count: int, *, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """The brightness, from -1 to 1."""
        return {"value": torch.full((count,), float(value))}

    def missing(self, count: int) -> dict[str, Tensor]:
        return {"value": torch.full((count,), torch.nan)}

    def slots(self, shape: Any) -> Filled:
        return Filled(vector=True)

    def encoder(self, shape: Any, width: int, tokens: int) -> nn.Module:
        return BrightnessEncoder(width, self.scale)


class BrightnessEncoder(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.line, self.scale = nn.Linear(2, width), scale

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        null = value.isnan()
        return {"vector": self.line(torch.stack([value.nan_to_num() * self.scale, null.float()], 1))}


def small(**changes: Any) -> Config:
    """Four steps on random images, checkpoints after two."""
    base: dict[str, Any] = {"training": {"steps": 4, "checkpoint_every": 2, "batch_size": 8, "sample_count": 0}}
    base |= {"data": {"source": "digits"}, "evaluation": {"samples": 0}, "sampling": {"steps": 3}}
    return tiny(**base).override(changes)


OWN: dict[str, dict[str, Any]] = {
    "loss": {"objective": Absolute},
    "loss with options": {"objective": partial(Absolute, factor=2.0)},
    "schedule": {
        "model": {"schedule": Line(3.0), "parameterization": {"kind": "x0"}},
        "sampling": {"grid": {"kind": "uniform"}},
    },
    "weight": {"objective": {"weight": partial(softened, power=1.0)}},
    "times": {"objective": {"times": partial(Early, power=1.5)}},
    "condition": {"conditions": {"brightness": Brightness(scale=2.0, drop=0.2)}},
}


@pytest.mark.parametrize("part", OWN)
def test_own_parts_are_trained_resumed_and_loaded(part: str, tmp_path: Path) -> None:
    whole = sfumato.train(small(), run=tmp_path / "whole", **OWN[part])
    sfumato.train(small(), run=tmp_path / "cut", **{**OWN[part], "training": {"steps": 2}})
    resumed = sfumato.train(run=tmp_path / "cut", resume=True, trust=True, training={"steps": 4})
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert stored[0] == stored[1]
    with pytest.raises(InputError, match="trust"):
        sfumato.load(tmp_path / "whole")
    loaded = sfumato.load(tmp_path / "whole", trust=True)
    assert loaded.config == whole.config == resumed.config
    assert torch.equal(loaded.sample(2), whole.sample(2))
    plain = sfumato.train(small(), run=tmp_path / "plain")
    assert not torch.equal(plain.sample(2), whole.sample(2))


def test_an_own_condition_guides_and_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sfumato.train(small(), run=tmp_path / "run", **OWN["condition"])
    dark, bright = (model.sample(2, brightness=value, guidance=2.0) for value in (-0.9, 0.9))
    assert not torch.equal(dark, bright)
    command = ["sample", str(tmp_path / "run"), "--trust", "--brightness=0.9", "--guidance.scale", "2", "--count", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "x.npz")])
    assert ended.value.code == 0
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "x.npz")["images"]), bright, atol=1e-6)
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "run"), "--trust", "--help"])
    assert "The brightness, from -1 to 1" in capsys.readouterr().out


def test_an_own_loss_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--objective.kind", f"{HERE}:Absolute", "--objective.factor", "3", "--print-config"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["objective"] == {"kind": f"{HERE}:Absolute", "factor": 3.0}


def test_the_kind_that_is_the_default_anyway_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    for more in ([], ["--objective.kind", "denoising"]):
        with pytest.raises(SystemExit):
            main(["train", "--recipe", "ddpm", *more, "--print-config"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and json.loads(printed[0])["objective"]["stratified"] is False


def test_objects_of_the_package_are_named_by_their_kind() -> None:
    schedule = sfumato.linear(50)
    config = Config().override({"model.schedule": schedule, "model.time": "index"})
    assert config.model.schedule.kind == "table"
    assert torch.allclose(config.model.schedule.build().log_alpha_bar, schedule.log_alpha_bar, atol=1e-12)
    times = LogNormal(sfumato.Karras(), mean=-0.5, std=0.7)
    config = parse(Config, {"objective": {"times": times}, "conditions": {"label": Label(drop=0.3)}})
    assert config.objective.times.model_dump() == {"kind": "log_normal", "mean": -0.5, "std": 0.7}
    assert config.conditions["label"].kind == "label" and config.conditions["label"].drop == 0.3
    assert parse(Config, config.model_dump(mode="json")) == config


def test_what_can_not_be_named_is_refused_in_words() -> None:
    def local(level: sfumato.Level) -> float:
        return 1.0

    for thing in (local, lambda level: 1.0):
        with pytest.raises(InputError, match="define it in a module"):
            parse(Config, {"objective": {"weight": thing}})
    with pytest.raises(InputError, match="'s' of the schedule"):
        settings_of(type("Lost", (sfumato.ContinuousCosine,), {"__module__": HERE})(), "schedule")


class Fixed(Own):
    """A network with arguments that the data decide, unless they are said."""

    def __init__(self, inputs: int, tokens: int = 3, width: int = 4) -> None:
        super().__init__(inputs, inputs, width + tokens)
        self.width = width


def test_an_argument_that_the_data_decide_can_be_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sfumato.train(small(), network=partial(Fixed, inputs=1, tokens=5), run=run)
    assert sfumato.load(run, trust=True).denoiser.network.first.out_channels == 9


def test_what_nothing_gives_is_named() -> None:
    config = parse(Config, {"model": {"network": {"kind": f"{HERE}:Needy"}}}, trust=True)
    with pytest.raises(InputError, match="needs schedule, denoiser, which nothing"):
        config.model.build((1, 8, 8))


class Needy(Own):
    def __init__(self, schedule: Any, denoiser: Any) -> None:
        super().__init__()


def test_a_grid_of_ones_own_decides_the_steps() -> None:
    model = sfumato.Model(sfumato.Denoiser(Own(), sfumato.Karras(), edm(0.5), embed_log_sigma), (1, 8, 8))
    grid = sfumato.Karras()(torch.linspace(1.0, 0.0, 8, dtype=torch.float64))
    expected = model.sample(2, grid=grid, solver=best_step(sfumato.Karras(), 7))
    assert torch.equal(model.sample(2, grid=grid), expected)
    fitted = SamplingConfig().override({"sampler": "fitted", "grid": "fitted"})
    with pytest.raises(InputError, match="its own grid"):
        model.sample(2, grid=grid, sampling=fitted)


class Tied(Own):
    """A network with one weight under two names."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(1, 1, width)
        self.again = self.last

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x, time) + self.again.bias.sum()


def test_tied_weights_are_stored_once_and_averaged(tmp_path: Path) -> None:
    trained = sfumato.train(small(), network=Tied(), run=tmp_path / "run")
    loaded = sfumato.load(tmp_path / "run", trust=True)
    assert loaded.denoiser.network.again.weight is loaded.denoiser.network.last.weight
    assert torch.equal(loaded.sample(2), trained.sample(2))


def test_a_network_that_is_passed_needs_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vanishing.py").write_text("from tests.test_api import Own\n\n\nclass Net(Own):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from vanishing import Net  # type: ignore[import-not-found]

    trained = sfumato.train(small(), network=Net(width=4), run=tmp_path / "run")
    (tmp_path / "vanishing.py").unlink()
    loaded = sfumato.load(tmp_path / "run", network=Own(width=4))
    assert torch.equal(loaded.sample(2), trained.sample(2))


def test_resuming_with_settings_keeps_the_others(tmp_path: Path) -> None:
    sfumato.train(small(), run=tmp_path / "run")
    more = sfumato.train({"training": {"steps": 6}}, run=tmp_path / "run", resume=True)
    assert more.step == 6 and more.config.training.batch_size == 8
