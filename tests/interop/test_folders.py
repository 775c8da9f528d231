"""Every way in which diffusers keeps a network, and settings that no network of these weights can have."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.cli.exchange import import_weights
from sfumato.diffusion.gaussian import diffuse
from sfumato.errors import InputError
from sfumato.interop import export, load_diffusers, load_edm, load_guided_diffusion, save_run

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**SMALL).eval()


def equal(network: Any, model: Any, atol: float = 1e-5) -> bool:
    x, times = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        theirs, ours = network(x, times).sample, model.denoiser.network(x, times.float())
    return torch.allclose(theirs, ours, atol=atol)


def test_an_average_of_the_weights(tmp_path: Path, network: Any) -> None:
    from diffusers.training_utils import EMAModel

    average = EMAModel(network.parameters(), decay=0.5, model_cls=diffusers.UNet2DModel, model_config=network.config)
    for _ in range(3):
        for parameter in network.parameters():
            parameter.data += 0.1
        average.step(network.parameters())
    average.save_pretrained(str(tmp_path))
    assert "inv_gamma" in json.loads((tmp_path / "config.json").read_text())
    assert not equal(network, load_diffusers(tmp_path))
    average.copy_to(network.parameters())
    assert equal(network, load_diffusers(tmp_path))


def test_variants_and_parts(tmp_path: Path, network: Any) -> None:
    for name, options in {
        "half": {"variant": "fp16"},
        "parts": {"max_shard_size": "20KB"},
        "parts of a variant": {"max_shard_size": "20KB", "variant": "ema"},
        "pickles": {"safe_serialization": False, "variant": "fp16"},
        "pickles in parts": {"safe_serialization": False, "max_shard_size": "20KB"},
    }.items():
        network.save_pretrained(tmp_path / name, **options)
        assert not any(path.name.endswith("model.safetensors") for path in (tmp_path / name).iterdir())
        assert equal(network, load_diffusers(tmp_path / name)), name
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1


def test_which_of_several_variants(tmp_path: Path, network: Any) -> None:
    network.save_pretrained(tmp_path, variant="ema")
    other = diffusers.UNet2DModel(**SMALL).eval()
    other.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(InputError, match=r"of no variant.*ema, fp16"):
        load_diffusers(tmp_path)
    with pytest.raises(InputError, match=r"variant 'fp8'.*ema, fp16"):
        load_diffusers(tmp_path, variant="fp8")
    assert equal(network, load_diffusers(tmp_path, variant="ema"))
    assert import_weights([str(tmp_path), "--variant", "fp16", "--run", str(tmp_path / "run")]) == 0
    assert equal(other, sfumato.load(tmp_path / "run"))
    other.save_pretrained(tmp_path)
    assert equal(other, load_diffusers(tmp_path))


def test_parts_are_beside_their_index(tmp_path: Path, network: Any) -> None:
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    (index,) = tmp_path.glob("*.index.json")
    listed = json.loads(index.read_text())
    name = next(iter(listed["weight_map"]))
    for value, words in (("../elsewhere.safetensors", "beside it"), ("none.safetensors", "no file of weights")):
        index.write_text(json.dumps({**listed, "weight_map": {**listed["weight_map"], name: value}}))
        with pytest.raises(InputError, match=words):
            load_diffusers(tmp_path)
    for broken in ({}, {"weight_map": [1]}, {"weight_map": {name: 3}}):
        index.write_text(json.dumps(broken))
        with pytest.raises(InputError, match="weight_map"):
            load_diffusers(tmp_path)


def test_import_fine_tune_export(tmp_path: Path, network: Any) -> None:
    """diffusers to a run, trained on, and back: each step keeps the network and how it is sampled."""
    scheduler = diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False)
    diffusers.DDIMPipeline(network, scheduler).save_pretrained(tmp_path / "theirs")
    assert import_weights([str(tmp_path / "theirs"), "--run", str(tmp_path / "run")]) == 0
    model = sfumato.load(tmp_path / "run")
    trained = sfumato.load(tmp_path / "run")
    optimizer = torch.optim.Adam(trained.denoiser.parameters(), 1e-3)
    data = torch.rand(8, 1, 8, 8) * 2.0 - 1.0
    for _ in range(3):
        level, noise = trained.denoiser.schedule(torch.rand(8, dtype=torch.float64)), torch.randn_like(data)
        error = trained.denoiser(diffuse(data, level, noise), level).eps - noise
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    assert not equal(network, trained)
    save_run(trained, tmp_path / "tuned")
    trained = sfumato.load(tmp_path / "tuned")
    export(trained, "diffusers", tmp_path / "back")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "back")
    assert equal(pipeline.unet, trained)
    kept = ("timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "clip_sample_range")
    assert {name: pipeline.scheduler.config[name] for name in kept} == {name: scheduler.config[name] for name in kept}
    again = load_diffusers(tmp_path / "back")
    assert again.config.sampling == model.config.sampling
    assert torch.allclose(again.sample(2, steps=5), trained.sample(2, steps=5), atol=1e-4)


HUGE = [10**9, 10**18, 2**63, 2**70]


def quickly(action: Any) -> str:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        action()
    assert time.process_time() - start < 1.0 and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize(
    "name",
    [
        *("in_channels", "block_out_channels", "layers_per_block", "num_class_embeds", "sample_size"),
        *("time_embedding_dim", "norm_num_groups", "attention_head_dim"),
    ],
)
def test_sizes_that_the_weights_do_not_have(tmp_path: Path, network: Any, name: str, size: int) -> None:
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    changes: dict[str, Any] = {name: [size, 8] if name == "block_out_channels" else size}
    if name == "in_channels":
        changes["out_channels"] = size
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    quickly(lambda: load_diffusers(tmp_path))


@pytest.mark.parametrize(
    "value",
    [*HUGE, -1, 0, True, float("nan"), float("inf"), "x", "", None, [], [[1]], 10**5000],
    ids=lambda value: str(value)[:9] if value != 10**5000 else "long",
)
def test_flags_of_other_programs(value: Any) -> None:
    state = {"a": torch.zeros(4)}
    guided = ("image_size", "num_channels", "num_res_blocks", "num_heads", "num_classes", "diffusion_steps")
    for name in (*guided, "channel_mult", "attention_resolutions", "dropout", "num_head_channels"):
        quickly(lambda name=name: load_guided_diffusion(state, {name: value, "class_cond": True}))
    song = ("img_resolution", "in_channels", "label_dim", "model_channels", "channel_mult", "channel_mult_emb")
    for name in (*song, "num_blocks", "attn_resolutions", "dropout", "resample_filter", "sigma_data"):
        settings = {name: value, **({"out_channels": value} if name == "in_channels" else {})}
        quickly(lambda settings=settings: load_edm(state, settings))


@pytest.mark.parametrize("name", ["num_channels", "dropout", "num_heads", "channel_mult"])
def test_booleans_are_no_numbers(name: str) -> None:
    with pytest.raises(InputError, match=r"True|Numbers"):
        load_guided_diffusion({}, {name: [True, 2] if name == "channel_mult" else True})


def test_a_run_keeps_the_sampling(tmp_path: Path, network: Any) -> None:
    diffusers.DDPMPipeline(network, diffusers.DPMSolverMultistepScheduler()).save_pretrained(tmp_path / "theirs")
    model = load_diffusers(tmp_path / "theirs")
    save_run(model, tmp_path / "run")
    again = sfumato.load(tmp_path / "run")
    assert again.config.sampling == model.config.sampling and model.config.sampling.sampler.kind == "dpm_solver"
    assert torch.equal(model.sample(2, steps=3), again.sample(2, steps=3))
