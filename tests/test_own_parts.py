"""A person's own schedule, weighting, loss and condition: trained, resumed, loaded, on the command line."""

from __future__ import annotations

import json
import math
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
from sfumato.errors import InputError, SfumatoWarning
from sfumato.sampling.defaults import best_step
from sfumato.training.losses import Denoising
from tests.test_api import Own
from tests.training.tiny import flags, tiny

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

    def build_encoder(self, shape: Any, width: int, tokens: int) -> nn.Module:
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
    "optimizer": {"optimizer": {"method": {"kind": "torch.optim:SGD", "momentum": 0.9}}},
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


class Logarithm(sfumato.Karras):
    """A schedule that keeps something else than its argument."""

    def __init__(self, top: float = 20.0) -> None:
        super().__init__(sigma_max=top)
        self.top = math.log(top)


class Lost(sfumato.ContinuousCosine):
    """A schedule that does not keep its arguments."""


class Inherited(Denoising):
    """A loss without an __init__ of its own, as the number of bins and the times are those of its base."""

    def forward(self, batch: Any, draws: Any) -> Tensor:
        return 2.0 * super().forward(batch, draws)


class Dropping(Own):
    """A network with torch's own dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(1, 1, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.drop(super().forward(x, time))


def test_attributes_that_are_no_arguments_are_noticed() -> None:
    with pytest.raises(InputError, match="not known"):
        parse(Config, {"model": {"schedule": Logarithm(30.0)}})
    settings = {"model": {"schedule": partial(Logarithm, top=30.0)}}
    assert parse(Config, settings).model.schedule.build().sigma_max == 30.0


def test_a_class_has_the_options_of_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = partial(Inherited, bins=17)
    config = sfumato.train(small(), objective=objective, run=tmp_path / "run").config
    assert config.objective.bins == 17 and config.objective.times.kind == "uniform"
    kind = ["--objective.kind", f"{HERE}:Inherited"]
    with pytest.raises(SystemExit):
        main(["train", *kind, "--objective.times.kind", "log_normal", "--objective.bins", "5", "--print-config"])
    printed = json.loads(capsys.readouterr().out)["objective"]
    assert printed["bins"] == 5 and printed["times"]["kind"] == "log_normal"


def test_layers_of_torch_that_draw_numbers_resume_to_the_same_bytes(tmp_path: Path) -> None:
    for name, stop in (("whole", 4), ("cut", 2)):
        torch.rand(stop)
        sfumato.train(small(), network=Dropping, run=tmp_path / name, training={"steps": stop})
    sfumato.train(run=tmp_path / "cut", resume=True, trust=True, training={"steps": 4})
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert stored[0] == stored[1]


def test_a_network_is_a_module_or_what_makes_one(tmp_path: Path) -> None:
    options = {"channels": (8, 8), "groups": 4, "blocks": 1, "attention": ()}
    for place, network in enumerate((sfumato.UNet, partial(sfumato.UNet, **options), f"{HERE}:Fixed", {"kind": "mlp"})):
        data = (
            {"data": torch.rand(40, 1, 8, 8) * 2 - 1}
            if network != {"kind": "mlp"}
            else {"data": torch.rand(40, 3) * 2 - 1}
        )
        run = tmp_path / str(place)
        config = "vectors" if network == {"kind": "mlp"} else small(**{"data.holdout": 4})
        trained = sfumato.train(
            config,
            network=network,
            trust=True,
            run=run,
            training={"steps": 1, "sample_count": 0},
            evaluation={"samples": 0},
            **data,
        )
        assert torch.equal(sfumato.load(run, trust=True).sample(2), trained.sample(2))
    with pytest.raises(InputError, match="wdth"):
        sfumato.train(small(), network=partial(Fixed, wdth=4), run=tmp_path / "bad")
    with pytest.raises(InputError, match="is no network"):
        sfumato.train(small(), network=(1, 2), run=tmp_path / "bad")


def test_a_network_that_can_not_be_made_again_is_said(tmp_path: Path) -> None:
    class Local(Own):
        pass

    with pytest.warns(SfumatoWarning, match="pass it again"):
        trained = sfumato.train(small(), network=Local, run=tmp_path / "run")
    assert torch.equal(sfumato.load(tmp_path / "run", network=Local).sample(2), trained.sample(2))


def test_resuming_trusts_no_more_than_it_is_told(tmp_path: Path) -> None:
    sfumato.train(small(), network=Own(width=4), objective=Absolute, run=tmp_path / "run")
    with pytest.raises(InputError, match="trust"):
        sfumato.train(network=Own(width=4), run=tmp_path / "run", resume=True)


def test_a_denoiser_is_not_judged_by_data_that_it_does_not_know() -> None:
    denoiser = sfumato.Denoiser(Own(), sfumato.Karras(), edm(0.5), embed_log_sigma)
    model = sfumato.Model(denoiser, (1, 8, 8))
    for act in (sfumato.evaluate, sfumato.tune):
        with pytest.raises(InputError, match="pass them"):
            act(model)
        with pytest.raises(InputError, match="pass them"):
            act(denoiser)
    data = torch.rand(40, 1, 8, 8) * 2 - 1
    assert sfumato.tune(denoiser, data, images=8, levels=5).gamma is not None
    assert 3 in sfumato.tune(denoiser, data, steps=3, noises=16).solvers


def test_conditions_of_any_kind_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bright = ["bright", "--conditions.bright.kind", f"{HERE}:Brightness", "--conditions.bright.scale", "3"]
    with pytest.raises(SystemExit):
        main(["train", "--condition", *bright, "--print-config"])
    condition = json.loads(capsys.readouterr().out)["conditions"]["bright"]
    assert condition["kind"] == f"{HERE}:Brightness" and condition["scale"] == 3.0
    with pytest.raises(SystemExit):
        main(["train", "--condition", "words", "--conditions.words.kind", "tokens", "--print-config"])
    assert json.loads(capsys.readouterr().out)["conditions"]["words"]["kind"] == "tokens"
    data = {"images": np.zeros((20, 1, 8, 8), np.uint8) + 12 * np.arange(20, dtype=np.uint8)[:, None, None, None]}
    np.savez(tmp_path / "d.npz", **data, tokens=np.random.default_rng(0).normal(size=(20, 3, 4)))
    small_network = [*flags("tokens", steps=1), "--model.network.attention", "1", "--data.holdout", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "d.npz"), "--run", str(tmp_path / "run"), *small_network])
    assert ended.value.code == 0, capsys.readouterr().err


def test_what_can_not_be_named_is_refused_in_words() -> None:
    def local(level: sfumato.Level) -> float:
        return 1.0

    for thing in (local, lambda level: 1.0):
        with pytest.raises(InputError, match="define it in a module"):
            parse(Config, {"objective": {"weight": thing}})
    with pytest.raises(InputError, match="'s' of the schedule"):
        settings_of(Lost(), "schedule")


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
    expected = model.sample(2, grid=grid, solver=best_step(sfumato.Karras(), grid))
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
