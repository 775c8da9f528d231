"""What is fitted to a model after its training, kept in its run, and used by samplers and bounds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.conditioning import Label
from sfumato.config import Config, SamplingConfig, merge, parse
from sfumato.diffusion.variance import Gamma
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.data import read_data
from sfumato.models.model import Model
from sfumato.runs.train import train
from sfumato.sampling import fitting
from sfumato.sampling.fitted_solver import Fitted
from tests.training.tiny import tiny

TABLE: dict[str, Any] = {
    "model": {"schedule": {"kind": "linear", "steps": 50}, "parameterization": {"kind": "eps"}},
    "objective": {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}},
    "sampling": {"sampler": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 4},
}


def config(**over: Any) -> Config:
    values = tiny().model_dump()
    for group in (TABLE, over):
        values = merge(values, group)
    return parse(Config, values)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "table"
    train(config(), run=folder)
    return folder


@pytest.fixture(autouse=True)
def few_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_STARTS", (20.0,))
    monkeypatch.setattr(fitting, "TRIALS", 2)
    monkeypatch.setattr(fitting, "fit", partial(fitting.fit, iterations=3))


def sampling(**values: Any) -> SamplingConfig:
    base = {"sampler": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 4}
    return parse(SamplingConfig, {**base, **values})


ANALYTIC = sampling(sampler={"kind": "ancestral", "variance": "analytic"})


def test_gamma_is_kept_with_the_run(run: Path) -> None:
    model = sfumato.load(run)
    with pytest.raises(InputError, match=r"has none: estimate it with sfumato tune"):
        model.sample(2, sampling=ANALYTIC)
    fitted = sfumato.tune(run, images=40, levels=20)
    assert fitted.gamma is not None and fitted.gamma.samples == 40
    again = sfumato.load(run)
    assert again.fitted == fitted
    images = again.sample(3, sampling=ANALYTIC)
    assert images.shape == (3, 1, 8, 8) and not torch.equal(images, again.sample(3, sampling=sampling()))
    # image i is the same whatever the batch
    assert (again.sample(2, first=1, sampling=ANALYTIC) - images[1:]).abs().max() < 1e-5
    generalized = sampling(sampler={"kind": "ddim", "eta": 0.0, "variance": "analytic"})
    assert not torch.equal(
        again.sample(3, sampling=generalized), again.sample(3, sampling=sampling(sampler={"kind": "ddim"}))
    )


def test_the_optimum_gives_the_lowest_bound(tmp_path: Path) -> None:
    """Of a model that has learned something: the published estimate of its variance is that of a good one."""
    model = train(config(training={"steps": 250, "batch_size": 64}), run=tmp_path / "run")
    sfumato.tune(model, images=200, levels=30)
    _, heldout = read_data(model.config)
    data = heldout.subset(range(40))
    bits: dict[str, float] = {}
    for kind in ("small", "large", "analytic"):
        found = sfumato.bits_per_dim(model, data, bins=17, flow=False, steps=10, variance=kind)  # type: ignore[arg-type]
        assert found.bound is not None
        bits[kind] = found.bound.mean
    assert bits["analytic"] < min(bits["small"], bits["large"])
    with pytest.raises(InputError, match="did not learn its reverse variance"):
        sfumato.bits_per_dim(model, data, bins=17, flow=False, variance="learned")
    with pytest.raises(InputError, match="no variance by name"):
        sfumato.bits_per_dim(model.denoiser, data, bins=17, flow=False, variance="small")


def test_the_optimal_trajectory_is_a_grid(run: Path) -> None:
    optimal = sampling(grid={"kind": "optimal"})
    model = sfumato.load(run)
    model.fitted = Fitted()
    with pytest.raises(InputError, match="optimal grid need Gamma"):
        model.sample(1, sampling=optimal)
    sfumato.tune(model, images=50, levels=20)
    _, levels, _ = optimal.build(model.denoiser, model.fitted)
    assert len(levels) == 5 and levels.t[0] == 1.0 and levels.t[-2] == 1 / 50 and levels.t[-1] == 0.0  # type: ignore[index]
    assert model.sample(2, sampling=optimal).isfinite().all()
    for schedule in ({"kind": "edm"}, {"kind": "flow"}, {"kind": "zero_terminal_snr"}):
        over = {"schedule": schedule, "parameterization": {"kind": "v"}}
        other = Model.build(config(model=over, objective={"weight": {"kind": "output"}}), model.info)
        other.fitted = Fitted(Gamma((-20.0, 0.0, 14.0), (1.0, 0.6, 1e-6)))
        assert other.sample(1, sampling=optimal).isfinite().all()


def test_of_other_weights_it_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    train(config(), run=folder)
    sfumato.tune(folder, images=10, levels=5)
    train(config(training={"steps": 14}), run=folder, resume=True)
    with pytest.raises(InputError, match="for other weights, from step 12"):
        sfumato.load(folder).sample(1, sampling=ANALYTIC)
    (folder / "fitted.json").write_text('{"gamma": {"log_snr": "no"}}')
    with pytest.warns(SfumatoWarning, match="fit again"):
        assert sfumato.load(folder).fitted.gamma is None


def test_of_another_schedule_it_is_refused(run: Path) -> None:
    model = sfumato.load(run)
    model.fitted = dataclasses.replace(model.fitted, gamma=Gamma((-2.0, 2.0), (0.9, 0.1)))
    with pytest.raises(InputError, match="Gamma is known from log-SNR -2 to 2"):
        model.sample(1, sampling=ANALYTIC)


FITTED = sampling(sampler={"kind": "fitted"}, grid={"kind": "fitted"}, steps=3)


def test_a_grid_is_kept_with_the_run(run: Path, tmp_path: Path) -> None:
    model = sfumato.load(run)
    model.fitted = Fitted()
    with pytest.raises(InputError, match="3 steps is needed, and this model has none: fit one"):
        model.sample(2, sampling=FITTED)
    gamma = sfumato.tune(model, images=10, levels=5).gamma
    found = sfumato.tune(model, steps=3, noises=16)
    plan = found.solvers[3]
    assert found.gamma == gamma and plan.noises == 16 and plan.error < plan.baseline
    again = sfumato.load(run)
    assert again.fitted == found
    images = again.sample(3, sampling=FITTED)
    torch.testing.assert_close(again.sample(2, first=1, sampling=FITTED), images[1:], rtol=0.0, atol=1e-5)
    _, levels, _ = again.sampler(FITTED)
    assert levels.t[-1] == 0.0 and bool((torch.as_tensor(levels.t).diff() < 0.0).all())  # type: ignore[index]
    # the grid serves other samplers too, and another number of steps has another grid
    assert again.sample(1, sampling=sampling(sampler={"kind": "dpm_solver"}, grid={"kind": "fitted"}, steps=3)).any()
    with pytest.raises(InputError, match=r"has only for 3: fit one with sfumato tune RUN --steps 4"):
        again.sample(1, sampling=FITTED.model_copy(update={"steps": 4}))
    with pytest.raises(InputError, match=r"choose grid\.kind fitted"):
        sampling(sampler={"kind": "fitted"})
    # another model that was trained for as many steps
    other = train(config(training={"seed": 1}), run=tmp_path / "other")
    assert other.run is not None
    (other.run / "fitted.json").write_text((run / "fitted.json").read_text())
    with pytest.raises(InputError, match="only fits to other weights, from step 12"):
        sfumato.load(other.run).sample(1, sampling=FITTED)


BEST = sampling(sampler={"kind": "best"}, grid={"kind": "best"}, steps=3)


def test_the_best_takes_what_was_fitted(run: Path) -> None:
    model = sfumato.load(run)
    model.fitted = Fitted()
    stock = model.sample(2, sampling=BEST)
    sfumato.tune(model, steps=3, noises=16)
    torch.testing.assert_close(model.sample(2, sampling=BEST), model.sample(2, sampling=FITTED), rtol=0.0, atol=0.0)
    assert not torch.equal(model.sample(2, sampling=BEST), stock)
    # for another number of steps, or another guidance, there is no fit
    assert BEST.model_copy(update={"steps": 4}).tuned(model.fitted).sampler.kind == "best"
    guided = parse(SamplingConfig, merge(BEST.model_dump(), {"guidance": {"scale": 2.0}}))
    assert guided.tuned(model.fitted).sampler.kind == "best"
    with pytest.warns(SfumatoWarning, match=r"fitted with guidance\.scale 1, but 2"):
        parse(SamplingConfig, merge(FITTED.model_dump(), {"guidance": {"scale": 2.0}})).build(
            model.denoiser, model.fitted, conditions={"label": Label(drop=0.1)}
        )


@pytest.mark.parametrize("asked", [BEST, FITTED], ids=["best", "fitted"])
def test_edits_walk_the_fitted_grid_with_a_solver_that_can_turn_round(run: Path, asked: SamplingConfig) -> None:
    model = sfumato.load(run)
    sfumato.tune(model, steps=3, noises=16)
    image, mask = model.sample(1, seed=4)[0], torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    assert sfumato.inpaint(model, image, mask, repeats=2, sampling=asked).isfinite().all()
    assert sfumato.sdedit(model, image, 0.4, sampling=asked).isfinite().all()
    assert sfumato.invert(model, image, sampling=asked).error.isfinite().all()


def test_a_fit_of_another_schedule_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    sfumato.tune(folder, images=10, levels=5)
    found = json.loads((folder / "config.json").read_text())
    found["config"]["model"]["schedule"] = {"kind": "cosine", "steps": 50}
    (folder / "config.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="for other weights"):
        sfumato.load(folder).sample(1, sampling=ANALYTIC)


def test_a_training_that_samples_with_a_grid_fits_it(tmp_path: Path) -> None:
    over = {"sampler": {"kind": "fitted"}, "grid": {"kind": "fitted"}, "steps": 2}
    model = train(config(sampling=over, training={"sample_count": 2, "sample_every": 6}), run=tmp_path / "run")
    assert list(model.fitted.solvers) == [2] and model.sample(2).isfinite().all()


def test_a_training_that_samples_with_it_estimates_it(tmp_path: Path) -> None:
    over = {"sampling": {"sampler": {"variance": "analytic"}}, "training": {"sample_count": 2, "sample_every": 6}}
    model = train(config(evaluation={"samples": 4}, **over), run=tmp_path / "run")
    assert model.fitted.gamma is not None
    assert json.loads((tmp_path / "run" / "fitted.json").read_text())["step"] == 12
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["settings"]["sampling"]["sampler"]["variance"] == "analytic"


def test_a_learned_variance_is_asked_only_of_who_learned_it(tmp_path: Path) -> None:
    learned = {"sampler": {"variance": "learned"}}
    with pytest.raises(InputError, match=r"train it with model\.learned_variance"):
        train(config(sampling=learned), run=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    model = train(config(sampling=learned, model={"learned_variance": True}), run=tmp_path / "b")
    assert model.sample(2).isfinite().all()
    found = sfumato.bits_per_dim(model, read_data(model.config)[1].subset(range(4)), bins=17, flow=False)
    assert found.bound is not None and found.bound.total.isfinite().all()


def test_gamma_reaches_beyond_the_first_step_of_a_table(run: Path) -> None:
    fitted = sfumato.tune(run, images=20, levels=20)
    model = sfumato.load(run)
    first = float(model.denoiser.schedule(1.0 / 50).log_snr)
    known = fitted.require_gamma().log_snr
    assert min(abs(level - first) for level in known) < 1e-9 and known[-1] == pytest.approx(14.0)
    # the grid of the recipe ends at a noise of 0.002, far below the first step of any table
    end = sampling(sampler={"kind": "ancestral", "variance": "analytic"}, grid={"kind": "karras"})
    assert model.sample(2, sampling=end).isfinite().all()


def test_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(list(arguments))
        out = capsys.readouterr()
        return int(exit_.value.code or 0), out.out, out.err

    code, out, _ = command("tune", str(run), "--images", "30", "--levels", "12")
    assert code == 0 and "from 30 images" in out
    code, out, _ = command("tune", str(run), "--steps", "2", "--noises", "16", "--no-coefficients")
    assert code == 0 and "a grid of 2 steps, from 16 noises" in out
    # what was fitted is taken unasked, but not where a sampler is named
    fitted = ("--sampler.kind", "fitted", "--grid.kind", "fitted")
    drawn: dict[str, list[bytes]] = {}
    for name, kinds in {"unasked": (), "fitted": fitted, "ddim": ("--sampler.kind", "ddim")}.items():
        assert command("sample", str(run), "--count", "2", *kinds, "--steps", "2", "--out", str(run / name))[0] == 0
        drawn[name] = [Image.open(path).tobytes() for path in sorted((run / name).iterdir())]
    assert drawn["unasked"] == drawn["fitted"] != drawn["ddim"]
    code, out, _ = command("likelihood", str(run), "--images", "6", "--steps", "10", "--variance", "analytic", "--json")
    value = json.loads(out)
    assert code == 0 and value["bins"] == 17 and value["images"] == 6
    bound = value["bound"]
    assert bound["bits_per_dim"] == pytest.approx(bound["prior"] + bound["steps"] + bound["decoder"])
    written = json.loads((run / "likelihood.json").read_text())
    assert len(written["ledger"]["images"]) == 6 and len(written["ledger"]["steps"]) == 9
    assert value["flow"]["probes"] == 1
    code, out, _ = command("likelihood", str(run), "--images", "4", "--steps", "5", "--what", "bound", "--overwrite")
    assert code == 0 and "variational bound" in out and "probability flow" not in out
    code, out, _ = command("likelihood", str(run), "--images", "1", "--steps", "5", "--json", "--overwrite")
    # JSON has no NaN
    strict = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and strict["bound"]["standard_error"] is strict["flow"]["standard_error"] is None
    for arguments, words in {
        ("likelihood", str(run), "--images", "0"): "at least 1 image",
        ("likelihood", str(run), "--variance", "learned"): "did not learn",
        ("likelihood", str(run), "--bins", "16"): "grid of 16 values",
        ("tune", str(run), "--levels", "1"): "2 levels",
        ("tune", str(run), "--steps", "0"): "1 to 50 steps; got 0",
        ("tune", str(run), "--steps", "2", "--noises", "3"): "at least 16 noises",
        ("sample", str(run), *fitted, "--steps", "9"): "9 steps is needed",
        ("tune", "nowhere"): "no run directory",
    }.items():
        code, _, err = command(*arguments)
        assert code == 2 and words in err
