"""Models of guided-diffusion give here what azula's copy of their network gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.config import ModelConfig, parse
from sfumato.diffusion.level import Level
from sfumato.errors import InputError
from sfumato.interop import load_guided_classifier, load_guided_diffusion, load_guided_upsampler
from sfumato.recipes.openai import CLASSIFIERS, GUIDED, GUIDED_DEFAULTS, UPSAMPLERS, guided
from sfumato.recipes.published import PRESETS
from sfumato.recipes.settings import numbers
from tests.interop.published import named, network_of

SMALL: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "channel_mult": "1,2,3",
    "num_res_blocks": 1,
    "attention_resolutions": "8,4",
    "num_classes": 5,
}
MULTIPLES = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


@pytest.fixture(scope="module")
def program() -> Any:
    return pytest.importorskip(
        "azula.plugins.adm._src.unet",
        reason="azula is not installed: pip install 'sfumato[peers]'",
        exc_type=ImportError,
    )


def theirs(program: Any, flags: dict[str, Any], kind: str = "UNetModel") -> Any:
    flags = {**GUIDED_DEFAULTS, **flags}
    size = flags["image_size"]
    return getattr(program, kind)(
        image_size=size,
        in_channels=3,
        model_channels=flags["num_channels"],
        out_channels=6 if flags["learn_sigma"] else 3,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions={size // int(side) for side in numbers(flags["attention_resolutions"])},
        channel_mult=numbers(flags["channel_mult"]) or MULTIPLES[size],
        num_classes=flags["num_classes"] if flags["class_cond"] else None,
        num_heads=flags["num_heads"],
        num_head_channels=flags["num_head_channels"],
        use_scale_shift_norm=flags["use_scale_shift_norm"],
        resblock_updown=flags["resblock_updown"],
        use_new_attention_order=flags["use_new_attention_order"],
        conv_resample=flags["conv_resample"],
    )


def randomized(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.06 * noise if parameter.ndim > 1 else parameter.data + 0.2 * noise
    return network.eval()


@pytest.mark.parametrize(
    "extra",
    [
        {"class_cond": True, "learn_sigma": True, "resblock_updown": True, "num_head_channels": 16},
        {"num_heads": 2, "use_new_attention_order": True},
        {"use_scale_shift_norm": False, "conv_resample": False, "dropout": 0.1},
        {"channel_mult": "0.5,1", "image_size": 8, "attention_resolutions": "4", "num_channels": 64},
    ],
)
@torch.no_grad()
def test_equal_outputs(program: Any, extra: dict[str, Any], tmp_path: Path) -> None:
    flags = {**SMALL, **extra}
    network = randomized(theirs(program, flags))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    model = load_guided_diffusion(tmp_path / "model.pt", flags)
    x, time = torch.randn(2, 3, *[flags["image_size"]] * 2), torch.tensor([3.0, 900.0])
    label = {"y": torch.tensor([0, 3])} if "class_cond" in flags else {}
    expected = network(x, time, **label)
    found = model.denoiser.network(x, time, **({"label": label["y"]} if label else {}))
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


@torch.no_grad()
def test_times_of_improved_diffusion_are_rescaled(program: Any) -> None:
    """Step i of 4000 is told as 1000 i / 4000."""
    flags = {**SMALL, "rescale_timesteps": True, "diffusion_steps": 4000}
    network = randomized(theirs(program, flags))
    denoiser = load_guided_diffusion(network.state_dict(), flags).denoiser
    x = torch.randn(1, 3, 16, 16)
    expected = network(x, torch.tensor([0.25 * 1234]))
    assert (denoiser(x, denoiser.schedule(1235 / 4000)).eps - expected).abs().max() < 1e-5


def test_the_published_flags_of_improved_diffusion() -> None:
    """Theirs rescale the time unless they say not to; and a command line has strings."""
    text = "image_size 64 num_channels 128 num_res_blocks 3 learn_sigma True diffusion_steps 4000 noise_schedule cosine"
    words = text.split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    found = guided(flags, "improved-diffusion")
    assert found.model["network"]["time_scale"] == 0.25
    assert found.model == PRESETS["iddpm-64"].model
    assert guided(flags, "guided-diffusion").model["network"]["time_scale"] == 1.0
    assert not guided({"learn_sigma": "False"}).model["learned_variance"]
    with pytest.raises(InputError, match="did you mean 'improved-diffusion'"):
        guided(flags, "improve-diffusion")


@pytest.mark.parametrize(
    ("name", "millions", "classes", "scale"),
    [("iddpm-cifar10", 50, 0, 0.25), ("iddpm-64", 100, 0, 0.25), ("iddpm-64-conditional", 270, 1000, 1.0)],
)
def test_the_models_of_improved_diffusion(name: str, millions: int, classes: int, scale: float) -> None:
    """The sizes that their authors state: 50 M, 100 M and 270 M parameters, roundly."""
    published = PRESETS[name]
    with torch.device("meta"):
        network = network_of(published)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.25)
    assert published.classes == classes and published.model["network"]["time_scale"] == scale


def test_flags_that_change_nothing_are_taken(program: Any) -> None:
    state = theirs(program, SMALL).state_dict()
    more = {"use_fp16": "True", "use_checkpoint": True, "timestep_respacing": "250", "use_kl": False}
    loaded = load_guided_diffusion(
        state, {**SMALL, **more, "num_heads_upsample": -1, "rescale_learned_sigmas": "0", "sigma_small": True}
    )
    assert loaded.config.model == load_guided_diffusion(state, SMALL).config.model
    # but the fixed variance is a choice of the sampler
    assert loaded.config.sampling.sampler.variance == "small"
    assert load_guided_diffusion(state, SMALL).config.sampling.sampler.variance == "large"


def test_the_widths_of_an_upsampler_are_its_own(program: Any) -> None:
    """At 512 they begin with 1, not with the 0.5 of the model of that side."""
    flags = {"num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "16"}
    wide = {**flags, "image_size": 512, "channel_mult": "1,1,2,2,4,4"}
    state = theirs(program, wide, "SuperResModel").state_dict()
    denoiser = load_guided_upsampler(state, {**flags, "large_size": "512", "small_size": 128}).denoiser
    assert torch.equal(denoiser.network.network.last.weight, state["out.2.weight"])  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"small_size .* divides the large_size; got 100 and 512"):
        load_guided_upsampler(state, {**flags, "large_size": 512, "small_size": 100})
    with pytest.raises(InputError, match="no widths for a large_size of 128"):
        load_guided_upsampler(state, {**flags, "large_size": 128})


@torch.no_grad()
def test_an_upsampler(program: Any) -> None:
    flags = {**SMALL, "class_cond": True, "learn_sigma": True}
    network = randomized(theirs(program, flags, "SuperResModel"))
    del flags["image_size"]
    model = load_guided_upsampler(network.state_dict(), {**flags, "large_size": 16, "small_size": 8})
    denoiser = model.denoiser
    x, small, labels = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 8, 8), torch.tensor([4, 1])
    expected = network(x, torch.tensor([499.0, 499.0]), low_res=small, y=labels)
    found = denoiser(x, denoiser.schedule(0.5), low_resolution=small, label=labels)
    assert (found.eps - expected[:, :3]).abs().max() < 1e-5
    assert found.variance_fraction is not None
    assert (found.variance_fraction - 0.5 * (expected[:, 3:] + 1.0)).abs().max() < 1e-5
    # without a picture, one of zeros
    empty = network(x, torch.tensor([499.0, 499.0]), low_res=0.0 * small, y=labels)
    assert (denoiser(x, denoiser.schedule(0.5), label=labels).eps - empty[:, :3]).abs().max() < 1e-5
    # it samples as any model does
    assert model.sample(2, steps=2, low_resolution=small, label=4).shape == (2, 3, 16, 16)


@torch.no_grad()
def test_a_classifier(program: Any) -> None:
    network = randomized(
        program.EncoderUNetModel(
            image_size=16,
            in_channels=3,
            model_channels=64,
            out_channels=7,
            num_res_blocks=1,
            attention_resolutions=(2,),
            channel_mult=(1, 2),
            num_head_channels=64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            pool="attention",
        )
    )
    flags = {
        "image_size": 16,
        "classifier_width": 64,
        "classifier_depth": 1,
        "classifier_attention_resolutions": "8",
        "channel_mult": "1,2",
        "num_classes": 7,
        "classifier_use_fp16": True,
    }
    classifier = load_guided_classifier(network.state_dict(), flags)
    x, time = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 900.0])
    assert network(x, time).std() > 0.1
    assert (classifier(x, time) - network(x, time)).abs().max() < 1e-5
    with pytest.raises(InputError, match="takes a side of 16"):
        classifier(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(InputError, match="classifier_pool 'adaptive'"):
        load_guided_classifier(network.state_dict(), {**flags, "classifier_pool": "adaptive"})


@pytest.mark.parametrize("name", [*sorted(GUIDED), *sorted(UPSAMPLERS)])
def test_published_models_have_their_size(program: Any, name: str) -> None:
    """To the parameter: ours lacks the gains and biases that are folded, and has a vector for no class."""
    published = PRESETS[name]
    with torch.device("meta"):
        if name in GUIDED:
            reference = theirs(program, GUIDED[name])
        else:
            flags = {**UPSAMPLERS[name], "image_size": published.shape[1], "channel_mult": "1,1,2,2,4,4"}
            reference = theirs(program, flags, "SuperResModel")
        ours = network_of(published)
    blocks = [m for m in reference.modules() if isinstance(m, program.ResBlock)]
    folded = sum(2 * block.out_channels for block in blocks)
    null = 4 * reference.model_channels if published.classes else 0
    expected = sum(p.numel() for p in reference.parameters()) - folded + null
    assert sum(p.numel() for p in ours.parameters()) == expected


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_published_classifiers_have_their_size(program: Any, name: str) -> None:
    """As the README of their program makes them."""
    side = CLASSIFIERS[name].shape[1]
    with torch.device("meta"):
        reference = program.EncoderUNetModel(
            image_size=side,
            in_channels=3,
            model_channels=128,
            out_channels=1000,
            num_res_blocks=4 if side == 64 else 2,
            attention_resolutions=tuple(side // attended for attended in (32, 16, 8)),
            channel_mult=MULTIPLES[side],
            num_head_channels=64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            pool="attention",
        )
        ours, _ = named(name)
    folded = sum(2 * block.out_channels for block in reference.modules() if isinstance(block, program.ResBlock))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters()) - folded


def test_the_flags_of_a_schedule() -> None:
    cosine = guided(
        {**SMALL, "noise_schedule": "cosine", "diffusion_steps": 50, "learn_sigma": True}, "guided-diffusion"
    )
    schedule = parse(ModelConfig, cosine.model).build(cosine.shape).schedule
    assert schedule(1.0).alpha < 1e-2 and isinstance(schedule(0.5), Level)
    assert cosine.model["learned_variance"] and cosine.sampling["sampler"]["variance"] == "learned"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("adm-65", "did you mean 'adm-64'"),
        ({**SMALL, "num_chanels": 3}, "did you mean 'num_channels'"),
        ({**SMALL, "attention_resolutions": "8,5"}, "side of 5 .* 16, 8, 4"),
        ({**SMALL, "num_head_channels": 48}, "do not divide 64 channels"),
        ({**SMALL, "noise_schedule": "linera"}, "did you mean 'linear'"),
        ({**SMALL, "channel_mult": "one,two"}, "Numbers between commas"),
        ({**SMALL, "channel_mult": "", "image_size": 48}, "no widths for a side of 48"),
        ({**SMALL, "num_channels": 40}, "normalizes 40 channels"),
        ({**SMALL, "image_size": "sixteen"}, "image_size is 'sixteen'; a whole number .* is expected"),
        ({**SMALL, "num_channels": 32.5}, "num_channels is 32.5; a whole number .* is expected"),
        ({**SMALL, "learn_sigma": "maybe"}, "learn_sigma is 'maybe'; true or false is expected"),
        ({**SMALL, "diffusion_steps": 0}, "diffusion_steps is 0; at least 2 is expected"),
        ({**SMALL, "num_heads_upsample": 2}, "num_heads_upsample is 2 and num_heads 4"),
        ({**SMALL, "diffusion_steps": 4000}, "give rescale_timesteps, or the program"),
        ({**SMALL, "num_res_blocks": 2}, "is missing|are missing"),
        ({**SMALL, "class_cond": True}, "missing: 'label_emb.weight'"),
        ({**SMALL, "learn_sigma": True}, r"'out.2.weight' is \(3, 32, 3, 3\) in place of \(6, 32, 3, 3\)"),
        ({**SMALL, "attention_resolutions": "8"}, "not of this network: 'input_blocks.5.1"),
    ],
)
def test_wrong_flags_and_weights(program: Any, flags: Any, words: str) -> None:
    state = theirs(program, SMALL).state_dict()
    with pytest.raises(InputError, match=words):
        load_guided_diffusion(state, flags)


def test_what_is_no_state_dict(unchecked: None) -> None:
    with pytest.raises(InputError, match="no state dict"):
        load_guided_diffusion({"a": 1}, SMALL)  # type: ignore[dict-item]
