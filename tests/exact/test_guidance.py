"""Guidance against closed forms: Gaussians whose scores extrapolate, mixtures whose classes are known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import schedule as schedules
from sfumato.diffusion.denoiser import Denoise, Denoiser, Prediction, embed_thousand
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.oracle import Covariances, GaussianOracle, MixtureOracle
from sfumato.diffusion.parameterization import eps, v
from sfumato.errors import InputError
from sfumato.sampling import grids
from sfumato.sampling.guidance import Autoguided, ClassifierFree, ClassifierGuided, Clipped, Thresholded
from sfumato.sampling.published import dpm_solver_pp
from sfumato.sampling.sample import initial, sample, seeded_noise
from sfumato.sampling.steps import ancestral, ddim, heun

MEANS = torch.tensor([[1.0, 0.5, -0.3], [-0.8, 0.2, 0.9]], dtype=torch.float64)
WIDTHS = torch.tensor([0.3, 0.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
COVARIANCES = Covariances.isotropic(WIDTHS**2, 3)
CLASSES = [GaussianOracle(m, w**2 * torch.eye(3, dtype=torch.float64)) for m, w in zip(MEANS, WIDTHS, strict=True)]
ALL = MixtureOracle(MEANS, COVARIANCES, WEIGHTS)

LEVELS = {
    "linear": schedules.linear(1000)(0.5),
    "edm": schedules.Karras()(0.7),
    "flow, no data left": schedules.RectifiedFlow()(1.0),
    "near the data": schedules.Karras()(0.2),
    "per sample": schedules.ContinuousCosine()(torch.tensor([0.2, 0.5, 0.7, 0.95], dtype=torch.float64)),
}
every_level = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


class ByLabel:
    """The exact denoiser of two classes of Gaussian data: of a class by its label, of all with -1 or without one."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.fraction: Tensor | None = None

    def __call__(self, x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        self.calls.append(len(x))
        labels = cond["label"] if "label" in cond else torch.full((len(x),), -1)
        found = [oracle(x, level) for oracle in (ALL, *CLASSES)]
        target = torch.stack([p.mix(-1.0 * level.sigma, level.alpha) for p in found])
        fraction = None if self.fraction is None else torch.cat([self.fraction] * (len(x) // len(self.fraction)))
        if fraction is not None:
            fraction = fraction + broadcast(labels.double(), x)
        return Prediction(x, target[labels + 1, torch.arange(len(x))], v(level), fraction)


def points(level: Level) -> Tensor:
    noise = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = level.like(noise)
    return at.alpha * MEANS.repeat(2, 1) + at.sigma * noise


LABEL = torch.tensor([0, 1, 1, 0])


def by_hand(level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """The estimates of the noise with and without the condition, from the formula of a Gaussian and of Bayes."""
    at = level.like(x)
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (at.alpha, at.sigma))
    scores, logs = [], []
    for mean, width, weight in zip(MEANS, WIDTHS, WEIGHTS, strict=True):
        variance = alpha**2 * width**2 + sigma**2
        apart = x - alpha * mean
        scores.append(-apart / variance)
        logs.append(weight.log() - 0.5 * (apart**2 / variance + torch.log(variance)).sum(1))
    responsibility = torch.stack(logs, 1).softmax(1)
    every = sum(responsibility[:, k, None] * scores[k] for k in range(2))
    chosen = torch.stack(scores)[LABEL, torch.arange(4)]
    return -sigma * chosen, -sigma * torch.as_tensor(every)


@every_level
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_classifier_free_guidance_extrapolates_scores(level: Level, scale: float) -> None:
    x, oracle = points(level), ByLabel()
    found = ClassifierFree(oracle, scale)(x, level, label=LABEL)
    given, null = by_hand(level, x)
    expected = null + scale * (given - null)
    assert (found.eps - expected).abs().max() < 1e-9
    at = level.like(x)
    assert (at.alpha * found.x0 + at.sigma * found.eps - x).abs().max() < 1e-9 * x.abs().max()
    # two predictions, one call
    assert oracle.calls == [8]


def test_scale_one_is_the_condition_alone_and_costs_no_second_half() -> None:
    oracle, level = ByLabel(), LEVELS["edm"]
    x = points(level)
    found = ClassifierFree(oracle, 1.0, rescale=0.7)(x, level, label=LABEL)
    assert torch.equal(found.x0, ByLabel()(x, level, label=LABEL).x0) and oracle.calls == [4]


def test_the_interval_of_guidance() -> None:
    """Within it, guided; beyond it, the condition alone and half of the batch; sample by sample where levels are."""
    schedule, oracle = schedules.Karras(), ByLabel()
    guided = ClassifierFree(oracle, 3.0, interval=(0.2, 2.0))
    levels = schedule.at(-2.0 * torch.tensor([0.1, 0.3, 1.9, 2.1], dtype=torch.float64).log())
    x = points(levels)
    full, plain = ClassifierFree(ByLabel(), 3.0)(x, levels, label=LABEL), ByLabel()(x, levels, label=LABEL)
    found = guided(x, levels, label=LABEL)
    inside = torch.tensor([False, True, True, False])
    expected = torch.where(inside[:, None], full.x0, plain.x0)
    assert (found.x0 - expected).abs().max() < 1e-12 and (full.x0 - plain.x0).abs().amax(1).min() > 1e-7
    oracle.calls.clear()
    for k, level in enumerate(levels):
        one = guided(x[k : k + 1], level, label=LABEL[k : k + 1])
        assert (one.x0 - expected[k]).abs().max() < 1e-12
    assert oracle.calls == [1, 2, 2, 1]
    outside = schedule(torch.ones(4, dtype=torch.float64))
    guided(points(outside), outside, label=LABEL)
    assert oracle.calls[-1] == 4
    # the whole interval holds the end of a flow, where sigma / alpha is infinite
    whole = ClassifierFree(oracle, 3.0)
    whole(x, schedules.RectifiedFlow()(1.0), label=LABEL)
    assert oracle.calls[-1] == 8


@every_level
def test_rescaling_keeps_the_standard_deviation_of_the_condition(level: Level) -> None:
    x = points(level)
    plain = ByLabel()(x, level, label=LABEL).x0
    full = ClassifierFree(ByLabel(), 4.0)(x, level, label=LABEL).x0
    found = ClassifierFree(ByLabel(), 4.0, rescale=1.0)(x, level, label=LABEL).x0
    assert (found.std(1) / plain.std(1) - 1.0).abs().max() < 1e-9
    # a multiple of the guided estimate, sample by sample
    ratio = found / full
    assert (ratio - ratio[:, :1]).abs().max() < 1e-9
    part = ClassifierFree(ByLabel(), 4.0, rescale=0.3)(x, level, label=LABEL).x0
    assert (part - (0.3 * found + 0.7 * full)).abs().max() < 1e-9


def test_a_constant_estimate_is_not_rescaled_to_nothing() -> None:
    def flat(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return Prediction.of_x0(x, torch.ones_like(x) * (cond["label"].double()[:, None] + 2.0), level)

    found = ClassifierFree(flat, 2.0, rescale=1.0)(torch.zeros(1, 3).double(), LEVELS["edm"], label=torch.tensor([1]))
    assert found.x0[0].tolist() == pytest.approx([5.0, 5.0, 5.0])


def log_class(x: Tensor, level: Level, *, label: Tensor) -> Tensor:
    """The exact classifier of the classes: the rule of Bayes."""
    joint = torch.stack([w.log() + o.marginal_log_prob(x, level) for w, o in zip(WEIGHTS, CLASSES, strict=True)], dim=1)
    return joint.log_softmax(1)[torch.arange(len(x)), label]


@every_level
def test_the_exact_classifier_gives_the_exact_conditional(level: Level) -> None:
    x = points(level)
    # the mixture knows no label, the classifier does
    found = ClassifierGuided(ALL, log_class)(x, level, label=LABEL)
    expected = ByLabel()(x, level, label=LABEL)
    assert (found.eps - expected.eps).abs().max() < 1e-9
    if level is not LEVELS["flow, no data left"]:
        assert (found.x0 - expected.x0).abs().max() < 1e-9
    else:
        assert torch.equal(found.x0, ALL(x, level).x0)
    # twice the scale is classifier-free guidance of scale 2: both add the score of the implicit classifier
    twice = ClassifierGuided(ALL, log_class, 2.0)(x, level, label=LABEL)
    free = ClassifierFree(ByLabel(), 2.0)(x, level, label=LABEL)
    assert (twice.eps - free.eps).abs().max() < 1e-9


def test_a_level_without_data_among_others_is_not_guided_by_a_classifier() -> None:
    level = schedules.RectifiedFlow()(torch.tensor([0.3, 0.6, 0.9, 1.0], dtype=torch.float64))
    x = points(level)
    found, expected = ClassifierGuided(ALL, log_class)(x, level, label=LABEL), ByLabel()(x, level, label=LABEL)
    assert (found.x0 - expected.x0)[:3].abs().max() < 1e-9
    assert torch.equal(found.x0[3], ALL(x, level).x0[3])


def test_classifier_guidance_beyond_its_interval_calls_no_classifier() -> None:
    def refuse(x: Tensor, level: Level, **cond: Tensor) -> Tensor:
        raise AssertionError("called")

    level = schedules.Karras()(0.9)
    assert torch.equal(
        ClassifierGuided(ALL, refuse, interval=(0.0, 1.0))(points(level), level).x0, ALL(points(level), level).x0
    )


@every_level
def test_autoguidance_extrapolates_from_the_weaker_model(level: Level) -> None:
    x = points(level)
    weak = GaussianOracle(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    found = Autoguided(CLASSES[0], weak, 2.5)(x, level)
    expected = 2.5 * CLASSES[0](x, level).x0 - 1.5 * weak(x, level).x0
    assert (found.x0 - expected).abs().max() < 1e-9
    assert torch.equal(Autoguided(CLASSES[0], weak, 2.5, (1e6, 1e7))(x, level).x0, CLASSES[0](x, level).x0) or (
        level is LEVELS["flow, no data left"]
    )


def test_autoguidance_passes_conditions_to_both() -> None:
    level = LEVELS["edm"]
    strong, weak = ByLabel(), ByLabel()
    found = Autoguided(strong, weak, 3.0)(points(level), level, label=LABEL)
    assert (found.x0 - ByLabel()(points(level), level, label=LABEL).x0).abs().max() < 1e-12


def test_two_gaussians_guided_are_a_third() -> None:
    """Gaussians of one width: guidance moves the mean to m + (w - 1)(m - m'), and samplers follow it there."""
    one = GaussianOracle(MEANS[0], torch.eye(3, dtype=torch.float64) * 0.25)
    two = GaussianOracle(MEANS[1], torch.eye(3, dtype=torch.float64) * 0.25)
    guided = GaussianOracle(MEANS[0] + 1.5 * (MEANS[0] - MEANS[1]), torch.eye(3, dtype=torch.float64) * 0.25)

    def labelled(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        found = torch.stack([o(x, level).mix(-1.0 * level.sigma, level.alpha) for o in (two, one)])
        return Prediction(x, found[cond["label"] + 1, torch.arange(len(x))], v(level))

    for schedule in (schedules.linear(1000), schedules.Karras(), schedules.RectifiedFlow()):
        levels = grids.uniform(schedule, 100)
        x = initial(levels, (3,), 0, count=5).double()
        for step in (ddim, heun, dpm_solver_pp(2), ancestral):
            free = partial(sample, x=x, levels=levels, step=step)
            label = torch.zeros(5, dtype=torch.long)
            found = list(free(ClassifierFree(labelled, 2.5), noise=seeded_noise(1), label=label))[-1].x
            auto = list(free(Autoguided(one, two, 2.5), noise=seeded_noise(1)))[-1].x
            expected = list(free(guided, noise=seeded_noise(1)))[-1].x
            assert (found - expected).abs().max() < 1e-9 and (auto - expected).abs().max() < 1e-9


def test_dynamic_thresholding() -> None:
    level = LEVELS["edm"]
    values = torch.linspace(-3.0, 1.0, 101, dtype=torch.float64)
    x0 = torch.stack([values, values / 3.0])

    def given(x: Tensor, level: Level, **cond: Tensor) -> Prediction:
        return Prediction.of_x0(x, x0, level)

    found = Thresholded(given, 0.9)(torch.zeros(2, 101).double(), level)
    # |x0| of the first sample: 0.9 of its values lie below the 91st of 101 in order
    s = float(values.abs().sort()[0][90])
    assert s > 1.0
    assert (found.x0[0] - values.clamp(-s, s) / s).abs().max() < 1e-12
    # what lies within the range of the data stays as it is
    assert (found.x0[1] - x0[1]).abs().max() < 1e-12
    assert (level.sigma * found.eps + found.x0).abs().max() < 1e-9
    whole = Thresholded(given, 1.0, limit=2.0)(torch.zeros(2, 101).double(), level)
    assert (whole.x0[0] - values * 2.0 / 3.0).abs().max() < 1e-12
    capped = Thresholded(given, 0.9, cap=1.5)(torch.zeros(2, 101).double(), level)
    assert s > 1.5 and (capped.x0[0] - values.clamp(-1.5, 1.5) / 1.5).abs().max() < 1e-12
    assert torch.equal(capped.x0[1], found.x0[1])
    clipped = Thresholded(given, 0.9, cap=1.0)(torch.zeros(2, 101).double(), level)
    assert torch.equal(clipped.x0, x0.clamp(-1.0, 1.0))
    half = Thresholded(given, 0.9)(torch.zeros(2, 101).bfloat16(), level)
    assert half.x0.isfinite().all()


@pytest.mark.parametrize(
    "wrap",
    [
        Clipped,
        Thresholded,
        lambda d: ClassifierFree(d, 2.0),
        lambda d: ClassifierFree(d, 2.0, rescale=0.5),
        lambda d: ClassifierFree(d, 2.0, interval=(1e6, 1e7)),
        lambda d: Autoguided(d, CLASSES[0], 2.0),
        lambda d: ClassifierGuided(d, log_class, 2.0),
    ],
)
def test_every_wrapper_keeps_the_fraction_of_the_variance(wrap: object) -> None:
    oracle = ByLabel()
    oracle.fraction = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    for level in (LEVELS["edm"], LEVELS["per sample"]):
        found = wrap(oracle)(points(level), level, label=LABEL)  # type: ignore[operator]
        # that of the condition, not of the null condition
        assert torch.equal(found.variance_fraction, oracle.fraction + LABEL[:, None])


def test_guidance_of_a_network() -> None:
    """float32 and channels: one call of twice the batch, labels and then -1."""
    seen: list[tuple[tuple[int, ...], list[int]]] = []

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            seen.append((tuple(x.shape), label.tolist()))
            assert time.shape == label.shape == x.shape[:1]
            return x * 0.1 + label[:, None, None, None]

    schedule = schedules.linear(100)
    denoiser = Denoiser(Net(), schedule, eps, embed_thousand)
    x, label = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 5])
    for level in (schedule(0.5), schedule(torch.tensor([0.5, 0.9], dtype=torch.float64))):
        found = ClassifierFree(denoiser, 2.0)(x, level, label=label)
        assert seen[-1] == ((4, 1, 4, 4), [3, 5, -1, -1])
        expected = x * 0.1 - 1.0 + 2.0 * (label[:, None, None, None] + 1.0)
        assert (found.eps - expected).abs().max() < 1e-4 and found.eps.dtype == torch.float32


def test_another_null_condition() -> None:
    oracle, level = ByLabel(), LEVELS["linear"]
    x = points(level)
    found = ClassifierFree(oracle, 2.0, null=lambda cond: {name: 1 - given for name, given in cond.items()})(
        x, level, label=LABEL
    )
    expected = 2.0 * oracle(x, level, label=LABEL).x0 - oracle(x, level, label=1 - LABEL).x0
    assert (found.x0 - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: ClassifierFree(d, -1.0), "guidance scale"),
        (lambda d: ClassifierFree(d, math.nan), "guidance scale"),
        (lambda d: Autoguided(d, d, math.inf), "guidance scale"),
        (lambda d: ClassifierFree(d, 2.0, rescale=1.5), "rescaling"),
        (lambda d: ClassifierFree(d, 2.0, interval=(2.0, 1.0)), "interval"),
        (lambda d: ClassifierGuided(d, log_class, interval=(-1.0, 1.0)), "interval"),
        (lambda d: Thresholded(d, 0.0), "percentile"),
        (lambda d: Thresholded(d, 99.5), "percentile"),
        (lambda d: Thresholded(d, limit=0.0), "limit"),
        (lambda d: Thresholded(d, cap=0.5), "cap"),
        (lambda d: ClassifierFree(d, 2.0)(torch.zeros(2, 3).double(), LEVELS["edm"]), "needs a condition"),
        (
            lambda d: ClassifierFree(d, 2.0)(torch.zeros(2, 3).double(), LEVELS["edm"], text=torch.zeros(2, 5)),
            "'text'.* null",
        ),
        (
            lambda d: ClassifierGuided(d, lambda x, level: x)(torch.zeros(2, 3).double(), LEVELS["edm"]),
            "one log-probability per sample",
        ),
        (
            lambda d: ClassifierGuided(d, lambda x, level: torch.zeros(2))(torch.zeros(2, 3).double(), LEVELS["edm"]),
            "differentiable",
        ),
    ],
)
def test_wrong_guidance(make: object, words: str) -> None:
    denoiser: Denoise = ALL
    with pytest.raises(InputError, match=words):
        make(denoiser)  # type: ignore[operator]
