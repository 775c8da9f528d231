"""Guidance, editing and films of a model: what depends on its seeds, its labels and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.config import GuidanceConfig, SamplingConfig, merge, parse
from sfumato.diffusion.level import Level
from sfumato.errors import InputError, SfumatoWarning
from sfumato.models.model import Model
from sfumato.models.storage import Info
from tests.training.tiny import LABELLED, tiny

PLAIN = Info(shape=(1, 8, 8), std=0.7, train=100, heldout=10)
CLASSES = {"kind": "label", "drop": 0.1, "names": ("a", "b", "c"), "frequencies": (0.5, 0.25, 0.25)}
INFO = PLAIN.override({"conditions.label": CLASSES})


def fresh(info: Info = INFO, **over: Any) -> Model:
    """A model with weights of chance, all of which matter: the last layer of a new network is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model.build(tiny(**over), info)
        for parameter in model.denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return fresh()


@pytest.fixture(scope="module")
def vp() -> Model:
    """On a schedule that keeps the variance and all but ends in pure noise."""
    return fresh(model={"schedule": {"kind": "linear", "steps": 1000}, "parameterization": {"kind": "v"}})


def sampling(**values: Any) -> SamplingConfig:
    return parse(SamplingConfig, {"sampler": {"kind": "ddim"}, "grid": {"kind": "uniform"}, "steps": 6, **values})


def image(seed: int = 0) -> Tensor:
    return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


MASK = torch.arange(8)[:, None].expand(8, 8) < 4

SAMPLERS: dict[str, dict[str, Any]] = {
    "deterministic": {"sampler": {"kind": "dpm_solver"}},
    "stochastic": {"sampler": {"kind": "ancestral"}},
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_image_i_of_a_seed_is_the_same_for_any_batch_with_guidance(model: Model, sampler: dict[str, Any]) -> None:
    for guidance in ({"scale": 3.0, "rescale": 0.5, "interval": (0.1, 10.0)}, {"threshold": 0.9}):
        asked = sampling(**sampler, guidance=guidance)
        whole = model.sample(9, seed=4, sampling=asked)
        for size in (1, 4):
            assert torch.allclose(model.sample(9, seed=4, sampling=asked, batch_size=size), whole, atol=1e-5)
        assert torch.allclose(model.sample(2, seed=4, first=5, sampling=asked), whole[5:7], atol=1e-5)
        if "scale" in guidance:
            assert not torch.allclose(model.sample(9, seed=4, sampling=sampling(**sampler)), whole, atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_answer_i_of_a_seed_is_the_same_for_any_batch(model: Model, sampler: dict[str, Any]) -> None:
    asked = sampling(**sampler, guidance={"scale": 2.0})
    for edit in (
        lambda **k: sfumato.inpaint(model, image(), MASK, sampling=asked, repeats=3, **k),
        lambda **k: sfumato.sdedit(model, image(), 0.6, sampling=asked, **k),
    ):
        whole = edit(count=5, seed=2)
        assert torch.allclose(edit(count=5, seed=2, batch_size=2), whole, atol=1e-5)
        assert torch.allclose(edit(count=2, seed=2, first=3), whole[3:], atol=1e-5)
        assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    one = sfumato.interpolate(model, 1, 2, 5, sampling=asked)
    assert torch.allclose(sfumato.interpolate(model, 1, 2, 5, sampling=asked, batch_size=2), one, atol=1e-5)


def test_guidance_is_the_formula(model: Model) -> None:
    levels = model.sampler(sampling())[1]
    level = list(levels)[2]
    guided = model.sampler(sampling(guidance={"scale": 2.5}))[0]
    x, label = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        given, null = model.denoiser(x, level, label=label), model.denoiser(x, level)
        found = guided(x, level, label=label)
    assert torch.allclose(found.x0, null.x0 + 2.5 * (given.x0 - null.x0), atol=1e-4)


def test_autoguidance_takes_another_run(model: Model, tmp_path: Path) -> None:
    over = {"conditions": LABELLED, "training": {"steps": 2}}
    weak = sfumato.train(tiny(**over), run=tmp_path / "weak")
    strong = sfumato.train(tiny(**merge(over, {"training": {"steps": 8}})), run=tmp_path / "strong")
    asked = {"scale": 2.0, "weak_run": str(tmp_path / "weak")}
    denoise, levels, _ = strong.sampler(sampling(guidance=asked))
    level = list(levels)[2]
    x, label = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = 2.0 * strong.denoiser(x, level, label=label).x0 - weak.denoiser(x, level, label=label).x0
        assert torch.allclose(denoise(x, level, label=label).x0, expected, atol=1e-4)
    # it needs no null condition, which this recipe does not train
    assert strong.conditions["label"].drop == 0.0
    assert strong.sample(2, sampling=sampling(guidance=asked)).isfinite().all()
    with pytest.raises(InputError, match=r"trained with conditions\.label\.drop 0 and knows no null condition"):
        strong.sample(2, sampling=sampling(guidance={"scale": 2.0}))
    with pytest.raises(InputError, match=r"\(10 classes\).*\(3 classes\).*one task"):
        model.sample(2, sampling=sampling(guidance=asked))
    renamed = strong.info.override({"conditions.label.names": tuple("abcdefghij")})
    with pytest.raises(InputError, match="one task"):
        fresh(renamed).sample(2, sampling=sampling(guidance=asked))
    other = fresh(strong.info, model={"schedule": {"kind": "edm", "sigma_max": 20.0}})
    with pytest.raises(InputError, match="another noise schedule"):
        other.sample(2, sampling=sampling(guidance=asked))


def test_a_guidance_that_can_not_be_is_refused(model: Model) -> None:
    guided = sampling(guidance={"scale": 2.0})
    plain = fresh(PLAIN)
    with pytest.raises(InputError, match="no condition to guide by"):
        plain.sample(2, sampling=guided)
    with pytest.raises(InputError, match="needs a condition to guide by"):
        model.sample(2, label=-1, sampling=guided)
    assert model.sample(2, label=-1, sampling=sampling()).isfinite().all()
    with pytest.raises(InputError, match="knows no null condition"):
        sfumato.train(tiny(conditions=LABELLED, sampling={"guidance": {"scale": 2.0}}), run="never")
    assert not Path("never").exists()
    with pytest.raises(InputError, match="needs the denoiser of the weaker run"):
        GuidanceConfig(scale=2.0, weak_run=Path("other")).build(model.denoiser, None, None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale": -1.0}, "guidance.scale is -1"),
        ({"rescale": 0.5}, "means nothing at guidance.scale 1"),
        ({"interval": (0.1, 1.0)}, "means nothing at guidance.scale 1"),
        ({"weak_run": "runs/x"}, "means nothing at guidance.scale 1"),
        ({"scale": 2.0, "rescale": 2.0}, "guidance.rescale is 2"),
        ({"scale": 2.0, "interval": (2.0, 1.0)}, "needs 0 <= low < high"),
        ({"scale": 2.0, "weak_run": "runs/x", "rescale": 0.5}, "belongs to guidance by a condition"),
        ({"threshold": 99.5}, "guidance.threshold is 99.5"),
        ({"threshold": 0.0}, "guidance.threshold is 0"),
    ],
)
def test_wrong_settings_of_guidance(values: dict[str, Any], words: str, model: Model) -> None:
    with pytest.raises(InputError, match=words):
        model.sampler(sampling(guidance=values))


def test_inpainting_keeps_what_is_known(model: Model) -> None:
    known = image()
    for mask in (MASK, MASK[None], MASK.float(), MASK[None, None].expand(4, 1, 8, 8)):
        found = sfumato.inpaint(model, known, mask, 4, repeats=2, sampling=sampling())
        assert found.shape == (4, 1, 8, 8)
        assert torch.allclose(found[:, :, :4], known[:, :4].expand(4, 1, 4, 8), atol=1e-6)
        assert not torch.allclose(found[:, :, 4:], known[:, 4:].expand(4, 1, 4, 8), atol=0.1)
    # what lies beyond the mask is not looked at
    for beyond in (-known, torch.tensor(7.0), torch.tensor(float("nan"))):
        other = torch.where(MASK, known, beyond)
        one, two = (sfumato.inpaint(model, i, MASK, 2, repeats=2, sampling=sampling()) for i in (known, other))
        assert torch.equal(one, two)


def test_resampling_costs_as_often_as_it_says(model: Model) -> None:
    calls: list[int] = []
    handle = model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    sfumato.inpaint(model, image(), MASK, repeats=5, sampling=sampling(steps=6))
    handle.remove()
    # five stretches that end in noise, five times each, less the first step's place as the start of the first
    assert len(calls) == 6 + 5 * 4


def test_sdedit_from_nothing_to_all(vp: Model) -> None:
    asked = sampling(steps=20, sampler={"kind": "ddim"})
    free = vp.sample(4, seed=3, label=1, sampling=asked)
    # the trace of the image in the noise of this schedule is 0.006
    full = sfumato.sdedit(vp, image(), 1.0, 4, seed=3, label=1, sampling=asked)
    distances = [(full - free).square().mean().sqrt()]
    assert 0.0 < distances[0] < 0.03
    errors: list[float] = []
    for strength in (0.8, 0.5, 0.2, 0.02):
        found = sfumato.sdedit(vp, image(), strength, 4, seed=3, label=1, sampling=asked)
        errors.append(float((found - image()).square().mean().sqrt()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1


def test_sdedit_starts_at_the_noisy_image(vp: Model) -> None:
    seen: list[tuple[float, Tensor]] = []
    inner = vp.denoiser

    def spy(module: object, arguments: tuple[Tensor, Level], options: object) -> None:
        seen.append((float(arguments[1].t), arguments[0].clone()))

    handle = inner.register_forward_pre_hook(spy, with_kwargs=True)
    sfumato.sdedit(vp, image(), 0.33, 2, seed=3, label=1, sampling=sampling(steps=10))
    handle.remove()
    assert [t for t, _ in seen] == pytest.approx([0.33, 0.3, 0.2, 0.1])
    level = inner.schedule(0.33)
    noise = sfumato.random.normal(3, "prior", 0, 2, (1, 8, 8))
    assert torch.allclose(seen[0][1], level.alpha * image() + level.sigma * noise, atol=1e-5)


def test_inversion_gives_the_image_back(vp: Model) -> None:
    batch = torch.stack([image(0), image(1), image(2)])
    errors = []
    for steps in (50, 100):
        asked = sampling(steps=steps, sampler={"kind": "heun"})
        found = sfumato.invert(vp, batch, label=2, sampling=asked, batch_size=2)
        assert found.noise.shape == batch.shape and found.error.shape == (3,)
        direct = (found.reconstruction - batch).flatten(1).square().mean(1).sqrt()
        assert torch.allclose(found.error, direct, atol=1e-6)
        errors.append(float(found.error.max()))
    assert errors[1] < 0.6 * errors[0] and errors[1] < 0.05
    one = sfumato.invert(vp, image(1), label=2, sampling=asked)
    assert torch.allclose(one.noise[0], found.noise[1], atol=1e-4)
    # the noise is a start like any other
    again = sfumato.interpolate(vp, found.noise[0], found.noise[1], 3, label=2, sampling=asked)
    assert torch.allclose(again[0], found.reconstruction[0].clamp(-1, 1), atol=1e-3)
    assert torch.allclose(again[2], found.reconstruction[1].clamp(-1, 1), atol=1e-3)


def test_an_adaptive_sampler_inverts_to_its_tolerance(vp: Model) -> None:
    batch = torch.stack([image(0), image(1)])
    errors = [
        float(sfumato.invert(vp, batch, label=2, sampling=asked).error.max())
        for asked in (sampling(steps=1, sampler={"kind": "adaptive", "rtol": r, "atol": r}) for r in (1e-2, 1e-3))
    ]
    assert errors[1] < 0.05 and errors[1] < errors[0] + 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_interpolation_begins_and_ends_at_its_seeds(model: Model, sampler: dict[str, Any]) -> None:
    found = sfumato.interpolate(model, 3, 5, 6, label=1, sampling=sampling(**sampler))
    assert torch.allclose(found[0], model.sample(1, seed=3, label=1, sampling=sampling(**sampler))[0], atol=1e-5)
    if sampler == SAMPLERS["deterministic"]:
        assert torch.allclose(found[-1], model.sample(1, seed=5, label=1, sampling=sampling(**sampler))[0], atol=1e-5)
    # without a class, all are of that of the first image
    first = model.conditions["label"].default(3, 0, 1)
    assert first is not None
    free = sfumato.interpolate(model, 3, 5, 3, sampling=sampling(**sampler))
    assert torch.equal(
        free, sfumato.interpolate(model, 3, 5, 3, label=int(first["value"]), sampling=sampling(**sampler))
    )


def test_frames_go_from_the_noise_to_the_image(model: Model) -> None:
    asked = sampling(steps=5)
    frames = list(model.frames(3, seed=2, sampling=asked))
    assert len(frames) == 6 and frames[0].x0 is None and frames[-1].level.sigma == 0.0
    noise = sfumato.random.normal(2, "prior", 0, 3, (1, 8, 8)) * frames[0].level.sigma
    assert torch.equal(frames[0].x, noise)
    assert all(frame.x0 is not None and frame.x0.shape == (3, 1, 8, 8) for frame in frames[1:])
    assert torch.allclose(frames[-1].x.clamp(-1, 1), model.sample(3, seed=2, sampling=asked), atol=1e-5)


def test_the_network_learns_on_after_a_film_that_is_cut(model: Model) -> None:
    model.denoiser.train()
    frames = model.frames(1, sampling=sampling())
    next(frames)
    assert not model.denoiser.training
    frames.close()
    assert model.denoiser.training
    model.denoiser.eval()


CUT = torch.ones(8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sfumato.inpaint(m, image(), CUT), "keeps all"),
        (lambda m: sfumato.inpaint(m, image(), MASK[:, :6]), r"mask has shape \(8, 6\)"),
        (lambda m: sfumato.inpaint(m, image(), MASK.float() * 0.5), "other values"),
        (lambda m: sfumato.inpaint(m, image().expand(3, 8, 8), MASK), r"image has shape \(3, 8, 8\)"),
        (lambda m: sfumato.inpaint(m, image()[:, :6], MASK), r"image has shape \(1, 6, 8\)"),
        (lambda m: sfumato.inpaint(m, torch.stack([image()] * 2), MASK, 3), "2 images for 3 results"),
        (lambda m: sfumato.inpaint(m, image() * 255.0, MASK), r"in \[-1, 1\]"),
        (lambda m: sfumato.inpaint(m, image() * float("nan"), MASK), r"in \[-1, 1\]"),
        (lambda m: sfumato.inpaint(m, image(), MASK, repeats=0), "at least 1 repetition"),
        (lambda m: sfumato.inpaint(m, image(), MASK, count=0), "at least 1 image"),
        (lambda m: sfumato.sdedit(m, image(), 0.0), "strength"),
        (lambda m: sfumato.sdedit(m, image(), 1.1), "strength"),
        (lambda m: sfumato.sdedit(m, image(), float("nan")), "strength"),
        (lambda m: sfumato.sdedit(m, torch.zeros(1, 9, 9), 0.5), "image has shape"),
        (lambda m: sfumato.invert(m, torch.zeros(2, 1, 9, 9)), "image has shape"),
        (lambda m: sfumato.invert(m, image(), sampling=sampling(sampler={"kind": "ancestral"})), "adds noise"),
        (
            lambda m: sfumato.invert(m, image(), sampling=sampling(sampler={"kind": "sa_solver"}, steps=20)),
            "adds noise",
        ),
        (lambda m: m.sample(2, label=torch.tensor([1.5, 0.5])), "whole numbers"),
        (lambda m: m.sample(2, label=torch.tensor([[1], [0]])), "Labels must be 2 numbers"),
        (lambda m: m.sample(1, first=2**62), "2\\^40"),
        (lambda m: m.sample(1, first=9999999999999999999), "2\\^40"),
        (lambda m: sfumato.interpolate(m, 0, 1, 1), "at least 2 images"),
        (lambda m: sfumato.interpolate(m, torch.zeros(1, 9, 9), 1), "noise has shape"),
    ],
)
def test_wrong_edits(call: Any, words: str, model: Model, unchecked: None) -> None:
    with pytest.raises(InputError, match=words):
        call(model)


def test_a_mask_that_keeps_nothing_is_said(model: Model) -> None:
    nothing = torch.zeros(model.info.shape[1:], dtype=torch.bool)
    with pytest.warns(SfumatoWarning, match="keeps nothing of the image"):
        sfumato.inpaint(model, torch.zeros(model.info.shape), nothing, 1, repeats=1, steps=2)
