"""``sfumato import``: other programs' weights become runs that every command takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato import load
from sfumato.interop import load_edm
from tests.cli.command import run
from tests.interop.edm_reference import Reference

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'sfumato[dev]'")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("theirs") / "ddpm-small"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(tmp_path / "run")
    assert run("import", str(pipeline), "--run", made, "--data", "digits") == 0
    assert "parameters" in capsys.readouterr().out
    few = ("--steps", "2", "--sampler.kind", "ddim")
    assert run("sample", made, "--count", "4", *few, "--out", str(tmp_path / "x.npz")) == 0
    assert np.load(tmp_path / "x.npz")["images"].shape[0] == 4
    assert run("info", made) == 0
    assert "1x8x8" in capsys.readouterr().out
    assert run("evaluate", made, "--samples", "8", *few, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"]
    assert run("export", made, str(tmp_path / "back"), "--to", "diffusers") == 0
    name = "unet/diffusion_pytorch_model.safetensors"
    theirs, back = load_file(pipeline / name), load_file(tmp_path / "back" / name)
    assert theirs.keys() == back.keys() and all(torch.equal(theirs[k], back[k]) for k in theirs)


def test_the_way_is_shown(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (pipeline, pipeline / "unet"):
        assert run("sample", str(folder)) == 2
        assert f"sfumato import {folder} --run runs/{folder.name}" in capsys.readouterr().err
    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    assert run("sample", str(file)) == 2
    assert f"sfumato import {file}" in capsys.readouterr().err
    # without data, nothing is drawn in vain
    wide = tmp_path / "wide"
    save_file(_edm_state(), tmp_path / "edm.safetensors")
    assert run("import", str(tmp_path / "edm.safetensors"), "--run", str(wide), "--origin", "edm", "--flags", EDM) == 0
    assert run("evaluate", str(wide), "--samples", "8") == 2
    assert "1x8x8 and the model samples 3x8x8" in capsys.readouterr().err


SETTINGS: dict[str, Any] = {
    "class_name": "SongUNet",
    "img_resolution": 8,
    "model_channels": 128,
    "channel_mult": (1,),
    "num_blocks": 1,
    "attn_resolutions": (8,),
}
EDM = (
    "--class_name SongUNet --img_resolution 8 --model_channels=128 --channel_mult 1 --num_blocks 1 --attn_resolutions 8"
)


def _edm_state() -> dict[str, torch.Tensor]:
    reference = Reference(SETTINGS)
    reference(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    return reference.state


def test_a_network_of_edm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(_edm_state(), tmp_path / "edm.safetensors")
    made, file = str(tmp_path / "run"), str(tmp_path / "edm.safetensors")
    assert run("import", file, "--run", made, "--origin", "edm", "--flags", EDM) == 0
    model, expected = load(made), load_edm(file, SETTINGS)
    assert torch.equal(model.sample(2, steps=2), expected.sample(2, steps=2))
    # once more: only where it is asked for, and what else was there has gone
    assert run("import", file, "--run", made, "--origin", "edm", "--flags", EDM) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "run" / "fitted.json").write_text("{}")
    assert run("import", file, "--run", made, "--origin", "edm", "--flags", EDM, "--overwrite") == 0
    assert not (tmp_path / "run" / "fitted.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    assert run("import", file, "--run", str(tmp_path / "mine"), "--origin", "edm", "--flags", EDM, "--overwrite") == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_network_of_improved_diffusion(tmp_path: Path) -> None:
    """Through the flags of its program, whose time is rescaled."""
    program = pytest.importorskip("azula.plugins.adm._src.unet", exc_type=ImportError)
    network = program.UNetModel(
        image_size=8,
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions={2},
        channel_mult=(1, 2),
        num_heads=4,
        use_scale_shift_norm=True,
    )
    torch.save(network.state_dict(), tmp_path / "ema.pt")
    text = (
        "--image_size 8 --num_channels 32 --num_res_blocks 1 --attention_resolutions 4 --channel_mult 1,2 "
        "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --use_kl False"
    )
    made = tmp_path / "run"
    assert (
        run("import", str(tmp_path / "ema.pt"), "--run", str(made), "--origin=improved-diffusion", f"--flags={text}")
        == 0
    )
    config = load(made).config
    assert config.model.network.time_scale == 0.25 and config.model.learned_variance


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("nothing",), "no file or folder nothing"),
        (("FILE",), "--origin"),
        (("FILE", "--origin", "edmm"), "did you mean 'edm'"),
        (("FILE", "--origin", "edm"), "with --flags"),
        (("FILE", "--flags", "iddpm-46"), "did you mean 'iddpm-64'"),
        (("FILE", "--flags", "iddpm-64"), "settings that belong to these weights"),
        (("FILE", "--origin", "edm", "--flags", "--num_blocks"), "pairs of a name and a value"),
        (("FILE", "--origin", "edm", "--flags", "num_blocks 1"), "pairs of a name and a value"),
        (("FILE", "--origin", "edm", "--flags", "--num_blocks 'one"), "can't be read"),
        (("FILE", "--origin", "guided-diffusion", "--flags", "--num_chanels 3"), "did you mean 'num_channels'"),
        ((".", "--flags", "iddpm-64"), "leave --flags out"),
        ((".",), "config.json can't be read"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.zeros(1)}, "some.safetensors")
    weights = asked[0].replace("FILE", "some.safetensors")
    assert run("import", weights, "--run", "run", *asked[1:]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("sfumato: ")
    assert not Path("run").exists()
