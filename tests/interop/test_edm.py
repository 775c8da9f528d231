"""EDM's networks give here what their formulas give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from sfumato.conditioning import Augmentation
from sfumato.errors import InputError
from sfumato.interop import export, load_edm, save_run
from sfumato.interop.engines.graph import graph_of
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.models.model import Model, load
from sfumato.models.storage import write_config
from sfumato.networks.execution import Bfloat16Copy, copy_sharing_weights
from sfumato.recipes.published import PRESETS
from tests.interop.edm_reference import Reference
from tests.interop.published import network_of

SONG: dict[str, Any] = {
    "class_name": "SongUNet",
    "img_resolution": 8,
    "model_channels": 128,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}
NCSNPP: dict[str, Any] = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
    "img_resolution": 16,
    "channel_mult": (1, 1, 1),
    "attn_resolutions": (8,),
}
FREQUENCIES = "network.time.features.frequencies"
DHARIWAL: dict[str, Any] = {**SONG, "class_name": "DhariwalUNet"}
# 8 groups of 32 channels, 24 of 96 and 32 of more
SMALL: dict[str, Any] = {**SONG, "model_channels": 32, "channel_mult": (1, 2, 4)}


@pytest.mark.parametrize("settings", [SONG, NCSNPP, DHARIWAL, SMALL], ids=["ddpm++", "ncsn++", "adm", "small"])
@pytest.mark.parametrize("classes", [0, 3])
def test_equal_outputs(settings: dict[str, Any], classes: int) -> None:
    settings = {**settings, "label_dim": classes}
    reference = Reference(settings)
    x, noise = torch.randn(2, 3, *[settings["img_resolution"]] * 2), torch.tensor([-1.3, 0.8])
    labels = torch.tensor([2, 0])
    expected = reference(x, noise, functional.one_hot(labels, 3).float() if classes else None)
    state = {f"model.{name}": value for name, value in reference.state.items()}
    model = load_edm({**state, "model.map_augment.weight": torch.ones(2, 9)}, settings)
    with torch.no_grad():
        found = model.denoiser.network(x, noise, **({"label": labels} if classes else {}))
        assert expected.std() > 0.1
        assert (found - expected).abs().max() < 1e-5
        if classes:
            # no class is a vector of zeros
            expected = reference(x, noise, torch.zeros(2, 3))
            assert (model.denoiser.network(x, noise) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("settings", [SONG, NCSNPP], ids=["ddpm++", "ncsn++"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_augmentation_comes_along(settings: dict[str, Any], classes: int, tmp_path: Path) -> None:
    """Told of a transform, the network gives what theirs gives; told of none, what it gives without the condition."""
    settings = {**settings, "label_dim": classes, "augment_dim": 9}
    reference = Reference(settings)
    x, noise = torch.randn(2, 3, *[settings["img_resolution"]] * 2), torch.tensor([-1.3, 0.8])
    one_hot = functional.one_hot(torch.tensor([2, 0]), 3).float() if classes else None
    label = {"label": torch.tensor([2, 0])} if classes else {}
    done = torch.randn(2, 9)
    expected, untold = reference(x, noise, one_hot, done), reference(x, noise, one_hot, torch.zeros(2, 9))
    assert (expected - untold).abs().max() > 0.01
    model = load_edm(reference.state, settings)
    assert (model.denoiser.network(x, noise, augmentation=done, **label) - expected).abs().max() < 1e-5
    assert (model.denoiser.network(x, noise, **label) - untold).abs().max() < 1e-5
    # samples are those of the network without the condition
    without = {name: tensor for name, tensor in reference.state.items() if name != "map_augment.weight"}
    plain = load_edm(without, settings)
    assert "augmentation" not in plain.conditions
    assert torch.equal(model.sample(2, steps=2), plain.sample(2, steps=2))
    save_run(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.conditions["augmentation"] == Augmentation(probability=0.12)
    assert torch.equal(again.sample(2, steps=2), plain.sample(2, steps=2))


@torch.no_grad()
def test_the_augmentation_is_exported() -> None:
    reference = Reference({**SONG, "augment_dim": 9})
    x, noise, done = torch.randn(2, 3, 8, 8), torch.tensor([-1.3, 0.8]), torch.randn(2, 9)
    expected = reference(x, noise, None, done)
    graph = graph_of(load_edm(reference.state, {**SONG, "augment_dim": 9}))
    assert "augmentation" in graph.inputs
    assert (graph.exported.module()(x, noise, done) - expected).abs().max() < 1e-5


def test_preconditioning() -> None:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4) with the coefficients of their table 1."""
    reference = Reference(SONG)
    x, sigma, data = torch.randn(2, 3, 8, 8), 2.5, 0.5
    total = (sigma**2 + data**2) ** 0.5
    f = reference(x / total, torch.full((2,), sigma).log() / 4.0)
    expected = data**2 / total**2 * x + sigma * data / total * f
    denoiser = load_edm(reference.state, SONG).denoiser
    level = denoiser.schedule((sigma / 80.0) ** (1.0 / 7.0))
    assert (denoiser(x, level).x0 - expected).abs().max() < 2e-5


def test_from_a_file_and_sampled(tmp_path: Path) -> None:
    reference = Reference(SONG)
    reference(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    save_file(reference.state, tmp_path / "network.safetensors")
    model = load_edm(tmp_path / "network.safetensors", SONG)
    assert model.sample(2, steps=2).isfinite().all()


def ncsnpp() -> tuple[Reference, Model]:
    """A network whose random frequencies were drawn otherwise than ours are."""
    reference = Reference(NCSNPP)
    reference(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    return reference, load_edm(reference.state, NCSNPP)


def test_random_frequencies_are_kept_by_a_run(tmp_path: Path) -> None:
    reference, model = ncsnpp()
    save_run(model, tmp_path / "run")
    again = load(tmp_path / "run").denoiser
    x, noise = torch.randn(2, 3, 16, 16), torch.tensor([-1.3, 0.8])
    expected = reference(x, noise)
    with torch.no_grad():
        assert (again.network(x, noise) - expected).abs().max() < 1e-5
        # in the memory of a copy, at another precision of the weights
        assert torch.equal(copy_sharing_weights(again.network)(x, noise), again.network(x, noise))
    frequencies = model.denoiser.state_dict()[FREQUENCIES]
    assert torch.equal(Bfloat16Copy(again.network).state_dict()[FREQUENCIES], frequencies)
    assert not torch.equal(Model.build(model.config, model.info).denoiser.state_dict()[FREQUENCIES], frequencies)


def test_a_run_without_frequencies_has_those_of_its_configuration(tmp_path: Path) -> None:
    """So are runs of before they were stored."""
    _, model = ncsnpp()
    write_config(tmp_path, model.config, model.info)
    parameters = dict(model.denoiser.named_parameters())
    write_tensors(tmp_path / "model.safetensors", parameters, {"format": 1, "step": 0})
    fresh = Model.build(model.config, model.info).denoiser.state_dict()[FREQUENCIES]
    assert torch.equal(load(tmp_path).denoiser.state_dict()[FREQUENCIES], fresh)
    short = {**parameters, FREQUENCIES: fresh[:-1]}
    write_tensors(tmp_path / "model.safetensors", short, {"format": 1, "step": 0})
    with pytest.raises(InputError, match=f"1 differ, the first is '{FREQUENCIES}'"):
        load(tmp_path)


def test_random_frequencies_are_exported(tmp_path: Path) -> None:
    reference, model = ncsnpp()
    export(model, "safetensors", tmp_path / "x.safetensors")
    kept = read_tensors(tmp_path / "x.safetensors")[0][FREQUENCIES]
    assert torch.equal(kept, model.denoiser.state_dict()[FREQUENCIES])
    # what the graphs of ONNX and OpenVINO are made from
    x, noise = torch.randn(2, 3, 16, 16), torch.tensor([-1.3, 0.8])
    found = graph_of(model).exported.module()(x, noise)
    assert (found - reference(x, noise)).abs().max() < 1e-5


def test_published_sizes() -> None:
    """The counts of parameters that their program prints, 55.7 M and 295.9 M, less what is folded."""
    for name, expected in (("ddpmpp-cifar10", 55_733_891), ("edm-imagenet64", 295.9e6)):
        published = PRESETS[name]
        with torch.device("meta"):
            network = network_of(published)
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(expected, abs=0.1e6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("ddpmpp-cifar", "did you mean 'ddpmpp-cifar10'"),
        ({"class_name": "VUNet"}, "class 'VUNet'"),
        ({**SONG, "num_block": 3}, "did you mean 'num_blocks'"),
        ({**SONG, "augment_dim": 5}, "augment_dim is 5"),
        ({**SONG, "decoder_type": "skip"}, "decoder_type is 'skip'"),
        ({**DHARIWAL, "encoder_type": "residual"}, "encoder_type is 'residual'"),
        ({**SONG, "attn_resolutions": (16,)}, "side of 16 .* 8, 4"),
        ({**SONG, "model_channels": 130}, "normalizes 130 channels in 32 groups, which do not divide them"),
        ({**SONG, "num_blocks": 2}, "missing: 'enc.8x8_block1.norm0.weight'"),
        ({**SONG, "label_dim": 2}, "missing: 'map_label.weight'"),
        ({**SONG, "channel_mult": (1, 1)}, "another shape"),
        ({**DHARIWAL}, "'out_norm.weight'|another shape"),
    ],
)
def test_wrong_settings_and_weights(settings: Any, words: str) -> None:
    reference = Reference(SONG)
    reference(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(InputError, match=words):
        load_edm(reference.state, settings)
