"""The three lines, what stands behind them, and a person's own network, data and solver in their place."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sfumato
from sfumato.config.component import settings_of
from sfumato.diffusion.denoiser import embed_thousand
from sfumato.diffusion.oracle import Covariances, GaussianOracle
from sfumato.diffusion.parameterization import v
from sfumato.errors import InputError, SfumatoWarning
from tests.training.tiny import LABELLED, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sfumato.Model:
    run = tmp_path_factory.mktemp("runs") / "digits"
    label = {"label": {**LABELLED["label"], "drop": 0.1, "draw": "frequency"}}
    sfumato.train(tiny(conditions=label, training={"steps": 30}), run=run)
    return sfumato.load(run)


class Own(nn.Module):
    """A network of somebody else: two convolutions, the time as a further channel."""

    def __init__(self, inputs: int = 1, outputs: int = 1, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv2d(inputs + 1, width, 3, padding=1)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        channel = (time / 1000.0).reshape(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
        return self.last(torch.nn.functional.silu(self.first(torch.cat([x, channel], 1))))


def images(count: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 8, 8), generator=generator) / 127.5 - 1.0


SETTINGS = {
    "training": {"steps": 4, "batch_size": 8, "sample_count": 0, "threads": 1, "precision": "fp32", "log_every": 1},
    "evaluation": {"samples": 0},
    "optimizer": {"warmup": 1},
}


def test_every_public_name_is_there() -> None:
    for name in sfumato.__all__:
        assert getattr(sfumato, name) is not None
    assert set(sfumato.__all__) <= set(dir(sfumato))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sfumato.nonsense  # type: ignore[attr-defined]


def test_modules_are_there_without_being_imported() -> None:
    code = "import sfumato\nprint(sfumato.interop.load_edm.__name__, sfumato.recipes.preset.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["load_edm", "preset"]


def test_three_lines(model: sfumato.Model) -> None:
    loaded = sfumato.load(str(model.run))
    samples = loaded.sample(64, seed=0)
    assert samples.shape == (64, 1, 8, 8) and samples.dtype == torch.float32
    assert samples.min() >= -1.0 and samples.max() <= 1.0
    assert torch.equal(samples, loaded.sample(64, seed=0))
    assert not torch.allclose(samples, loaded.sample(64, seed=1))
    assert "UNet" in repr(loaded) and "1x8x8" in repr(loaded) and "label" in repr(loaded)


@pytest.mark.parametrize("solver", [None, "ancestral"])
def test_image_i_of_a_seed_is_the_same_for_any_batch(model: sfumato.Model, solver: str | None) -> None:
    options = {"steps": 5, "solver": solver} if solver else {}
    whole = model.sample(20, seed=4, **options)
    for size in (1, 7, 19):
        assert torch.allclose(model.sample(20, seed=4, batch_size=size, **options), whole, atol=1e-5)
    assert torch.allclose(model.sample(3, seed=4, first=11, **options), whole[11:14], atol=1e-5)


def test_what_is_not_named_comes_from_the_run(model: sfumato.Model) -> None:
    own = model.config.sampling
    assert torch.equal(model.sample(4), model.sample(4, steps=own.steps))
    full = own.override({"steps": 4, "sampler": {"kind": "dpm_solver", "order": 2}})
    assert torch.equal(model.sample(4, steps=4, solver="dpm++2m"), model.sample(4, sampling=full))
    guided = model.sample(4, guidance=2.0, label="7")
    assert not torch.allclose(guided, model.sample(4, label="7"))
    assert torch.equal(guided, model.sample(4, guidance={"scale": 2.0}, label=7))
    with pytest.raises(InputError, match="did you mean 'steps'"):
        model.sample(4, step=3)
    with pytest.raises(InputError, match="did you mean 'unipc'"):
        model.sample(4, solver="unipcc")


def test_a_solver_of_ones_own(model: sfumato.Model) -> None:
    def euler(denoise, x, t, s, memory):  # type: ignore[no-untyped-def]
        return denoise(x, t).mix(s.alpha, s.sigma)

    assert torch.allclose(model.sample(4, solver=euler), model.sample(4, solver="ddim"), atol=1e-6)


def test_labels(model: sfumato.Model) -> None:
    sevens = model.sample(4, label=7)
    assert torch.allclose(sevens, model.sample(4, label="7"))
    assert torch.allclose(sevens, model.sample(4, label=torch.tensor([7, 7, 7, 7])))
    assert not torch.allclose(sevens, model.sample(4, label=1))
    drawn = model.given({}, 0, 0, 1000)["label"]
    expected = torch.tensor(model.info.conditions["label"].frequencies) * 1000
    assert (drawn.bincount() - expected).abs().max() < 5
    for wrong in (torch.tensor([1, 2]), 10, "ten", -2):
        with pytest.raises(InputError):
            model.sample(4, label=wrong)


def test_a_model_without_labels_refuses_them(tmp_path: Path) -> None:
    plain = sfumato.train(tiny(training={"steps": 1}), run=tmp_path / "run")
    with pytest.raises(InputError, match="knows no condition"):
        plain.sample(2, label=3)
    with pytest.raises(InputError, match="no condition to guide by"):
        plain.sample(2, guidance=2.0)


def test_sampling_does_not_disturb_the_global_generator(model: sfumato.Model) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model.sample(3)
    assert torch.equal(torch.rand(2), expected)


def test_progress(model: sfumato.Model, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    model.sample(10, batch_size=4, progress=seen.append)
    assert seen == [4, 8, 10]
    model.sample(10, batch_size=4)
    assert capsys.readouterr().err == "", "no bar where nobody sees it"


def test_evaluate(model: sfumato.Model) -> None:
    result = sfumato.evaluate(model, samples=60)
    assert result.counts == {"samples": 60, "training": 1000, "held-out": 797}
    assert (result["accuracy"].floor or 0.0) > 0.95 and result.main.title == "FD (classifier)"


def test_of_many_images_a_part_is_evaluated(model: sfumato.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.metrics.evaluator.MOST_VALUES", 300 * 64)
    result = sfumato.evaluate(model, samples=60)
    whole = sfumato.evaluate(model, samples=60, measures="neighbours", features="pixels")
    assert result["nearest / real (pixels)"] == whole["nearest / real (pixels)"]
    assert result.counts["training"] == 1000


def test_any_denoiser_is_sampled_edited_and_evaluated(tmp_path: Path) -> None:
    """An oracle, and a network that somebody else made."""
    torch.manual_seed(0)
    own = sfumato.Denoiser(Own(), sfumato.cosine(), v, embed_thousand)
    for denoiser in (
        own,
        GaussianOracle(
            torch.zeros(1, 8, 8), Covariances.isotropic(torch.tensor([0.25]), 64), schedule=sfumato.Karras()
        ),
    ):
        samples = sfumato.generate(denoiser, (6, 1, 8, 8), steps=5, solver="heun", seed=1)
        assert samples.shape == (6, 1, 8, 8)
        assert torch.allclose(samples[:2], sfumato.generate(denoiser, (2, 1, 8, 8), steps=5, solver="heun", seed=1))
        image, mask = images(1)[0], torch.zeros(8, 8, dtype=torch.bool)
        mask[:4] = True
        painted = sfumato.inpaint(denoiser, image, mask, 2, steps=4, repeats=2)
        assert torch.allclose(painted[:, :, :4], image[:, :4].expand(2, 1, 4, 8), atol=1e-5)
        assert sfumato.sdedit(denoiser, image, 0.5, 3, steps=4).shape == (3, 1, 8, 8)
        noise = sfumato.invert(denoiser, images(2), steps=8, solver="ddim").noise
        assert sfumato.interpolate(denoiser, noise[0], noise[1], 4, steps=4).shape == (4, 1, 8, 8)
        report = sfumato.evaluate(denoiser, images(), samples=10, steps=3)
        assert report.counts == {"samples": 10, "real": 60}
        assert sfumato.evaluate(denoiser, images(), heldout=images(8), samples=10, steps=3).counts["held-out"] == 8
        found = sfumato.bits_per_dim(denoiser, images(2), bins=256, steps=3, probes=1)
        assert found.bound is not None and found.flow is not None


@pytest.mark.parametrize("kind", ["tensor", "array", "dataset", "loader", "dict"])
def test_own_data_and_an_own_network_train_resume_and_load(kind: str, tmp_path: Path) -> None:
    x = images()
    data = {
        "tensor": x,
        "array": x.numpy(),
        "dataset": TensorDataset(x, torch.arange(60) % 3),
        "loader": DataLoader(TensorDataset(x, torch.arange(60) % 3)),
        "dict": {"image": x, "label": torch.arange(60) % 3},
    }[kind]
    more = {**SETTINGS, "training": {**SETTINGS["training"], "checkpoint_every": 2}}
    whole = sfumato.train("ddpm", data=data, network=partial(Own, width=4), run=tmp_path / "whole", **more)
    half = {**more, "training": {**more["training"], "steps": 2}}
    sfumato.train("ddpm", data=data, network=partial(Own, width=4), run=tmp_path / "cut", **half)
    sfumato.train(data=data, network=partial(Own, width=4), run=tmp_path / "cut", resume=True, training={"steps": 4})
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert stored[0] == stored[1]
    with pytest.raises(InputError, match="trust"):
        sfumato.load(tmp_path / "whole")
    loaded = sfumato.load(tmp_path / "whole", trust=True)
    assert isinstance(loaded.denoiser.network, Own) and loaded.denoiser.network.width == 4
    assert torch.equal(loaded.sample(3, steps=3), whole.sample(3, steps=3))
    given = sfumato.load(tmp_path / "whole", network=Own(width=4))
    assert torch.equal(given.sample(3, steps=3), whole.sample(3, steps=3))
    assert sfumato.evaluate(whole, samples=10, steps=3).counts["held-out"] == 6
    assert json.loads((tmp_path / "whole/evaluation.json").read_text())["settings"]["sampling"]["steps"] == 3
    with pytest.raises(InputError, match="given in Python"):
        sfumato.evaluate(given, samples=10, steps=3)


def test_a_network_that_can_not_be_named_is_given_again(tmp_path: Path) -> None:
    class Local(Own):
        pass

    with pytest.warns(SfumatoWarning, match="pass it again"):
        trained = sfumato.train("ddpm", data=images(), network=Local(), run=tmp_path / "run", **SETTINGS)
    with pytest.raises(InputError, match="network="):
        sfumato.load(tmp_path / "run", trust=True)
    assert torch.equal(sfumato.load(tmp_path / "run", network=Local()).sample(2, steps=2), trained.sample(2, steps=2))


class Forgetful(Own):
    """A network whose attributes do not say how it was made."""

    def __init__(self, inputs: int = 1, outputs: int = 1, wide: int = 8) -> None:
        super().__init__(inputs, outputs, wide)


def test_how_a_network_is_made_is_known_or_not_claimed() -> None:
    kind = f"{__name__}:Own"
    assert settings_of(Own(width=4), "network") == {"kind": kind, "width": 4}
    assert settings_of(partial(Own, width=4), "network") == {"kind": kind, "width": 4}
    assert settings_of(partial(Own, 1, 1, 4), "network") == {"kind": kind, "inputs": 1, "outputs": 1, "width": 4}
    with pytest.raises(InputError, match="arguments of the network"):
        settings_of(Forgetful(wide=4), "network")


def test_what_can_not_be_made_again_is_not_saved(tmp_path: Path) -> None:
    denoiser = sfumato.Denoiser(Own(), sfumato.linear(), v, embed_thousand)
    with pytest.raises(InputError, match="from a configuration"):
        sfumato.save(sfumato.Model(denoiser, (1, 8, 8)), tmp_path / "run")


def test_a_model_is_saved_and_loaded(model: sfumato.Model, tmp_path: Path) -> None:
    sfumato.save(model, tmp_path / "copy")
    assert torch.equal(sfumato.load(tmp_path / "copy").sample(3), model.sample(3))
    with pytest.raises(InputError, match="holds a model already"):
        sfumato.save(model, tmp_path / "copy")
    sfumato.save(model, tmp_path / "copy", overwrite=True)


def test_a_trainer_of_ones_own() -> None:
    denoiser = sfumato.Denoiser(Own(), sfumato.cosine(), v, embed_thousand)
    trainer = sfumato.Trainer(denoiser, DataLoader(TensorDataset(images())), batch_size=8)
    losses = [record.loss for record in trainer.run(3)]
    assert len(losses) == 3 and trainer.step == 3


def test_settings_are_overridden() -> None:
    config = tiny().override({"training.steps": 7, "sampling.sampler.kind": "heun"})
    assert config.training.steps == 7 and config.sampling.sampler.kind == "heun"
    assert config.sampling.sampler.churn == 0.0 and "heun" in repr(config.sampling.sampler)
    with pytest.raises(InputError, match=r"did you mean 'training\.steps'"):
        config.override({"training.stepz": 7})


def test_the_readme_in_a_process_of_its_own(model: sfumato.Model) -> None:
    code = f"import sfumato\nmodel = sfumato.load({str(model.run)!r})\nprint(tuple(model.sample(2, seed=0).shape))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 1, 8, 8)"


def test_training_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sfumato.train(tiny(training={"steps": 1}))
    assert (tmp_path / "runs" / "digits" / "model.safetensors").exists()
