"""What the README shows is run: its Python, its commands, and (slow) its main job with the numbers it claims."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sfumato
from sfumato.cli import main
from sfumato.data.embedded import SOURCES
from sfumato.data.shapes import shapes
from sfumato.interop import export, save_run
from sfumato.recipes.openai import CLASSIFIERS
from sfumato.recipes.published import EDM, GUIDED, PRESETS
from sfumato.runs.train import train
from sfumato.systems.stages import planned
from tests.interop.edm_reference import Reference
from tests.interop.engines.models import random_model
from tests.interop.test_edm import NCSNPP
from tests.interop.test_guided_diffusion import SMALL, theirs
from tests.training.tiny import LABELLED, flags, tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
PYTHON = [text for language, text in BLOCKS if language == "python"]
OF_OTHERS = [text for text in PYTHON if "sfumato.interop" in text]
COMMANDS = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("sfumato ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the README speaks of: a run, a folder of images, arrays."""
    place = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = place / "path/to/folder" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    lines = [
        json.dumps({"file_name": f"{name}s/{i}.png", "text": f"a {name}"}) for name in ("cat", "dog") for i in range(8)
    ]
    (place / "path/to/folder/captions.jsonl").write_text("\n".join(lines))
    np.savez(place / "images.npz", images=generator.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8))
    np.save(place / "signals.npy", generator.uniform(-1, 1, (20, 2, 32)).astype(np.float32))
    Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(place / "seven.png")
    Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(place / "photo.jpg")
    Image.fromarray(np.array([[255], [0]], dtype=np.uint8).repeat(4, axis=0).repeat(8, axis=1)).save(place / "mask.png")
    label = {"label": {**LABELLED["label"], "drop": 0.1}}
    train(tiny(conditions=label, evaluation={"samples": 50}), run=place / "runs/digits")
    save_run(random_model(), place / "runs/ddpm")
    export(random_model(), "diffusers", place / "ddpm-cifar10-32")
    return place


def test_the_readme_has_what_is_run_here() -> None:
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 10
    assert f"have names, {len(PRESETS) + len(CLASSIFIERS)} with up-samplers" in README
    assert README.count("```\npip install -e . && sfumato train\n```") == 1
    assert README.count('```\npip install -e ".[dev]" && python -m pytest\n```') == 1
    for path in re.findall(r'src="([^"]+)"', README) + re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path


@pytest.mark.filterwarnings("ignore:The run can't make its network")
def test_the_python_of_the_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, object] = dict(globals())
    for block in (text for text in PYTHON if text not in OF_OTHERS):
        # the same code, on a run small enough for a test
        exec(block.replace('"steps": 500', '"steps": 3').replace('"digits", training', "tiny(), training"), names)
    images = names["images"]
    assert tuple(images.shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]


def test_weights_of_others_come_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published names, of networks small enough for a test."""
    program = pytest.importorskip(
        "azula.plugins.adm._src.unet",
        reason="azula is not installed: pip install 'sfumato[peers]'",
        exc_type=ImportError,
    )
    monkeypatch.chdir(place)
    monkeypatch.setitem(GUIDED, "adm-256", SMALL)
    monkeypatch.setitem(EDM, "ncsnpp-cifar10", NCSNPP)
    torch.save(theirs(program, SMALL).state_dict(), "256x256_diffusion.pt")
    reference = Reference(NCSNPP)
    reference(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    save_file(reference.state, "edm.safetensors")
    (block,) = OF_OTHERS
    exec(block, {})
    assert sfumato.load("runs/theirs").denoiser.network.state_dict().keys() >= {"time.features.frequencies"}


def needed(words: list[str]) -> list[str]:
    """The optional packages that a command needs."""
    graphs = {"onnx", "onnxruntime", "openvino"} & set(words)
    own = [name for name in ("onnxruntime", "openvino") if name in words]
    return (["onnx", "onnxscript", *own] if graphs else []) + (["nncf"] if "int8" in words else [])


def brief(words: list[str]) -> list[str]:
    """What makes the training of a classifier, an up-sampler or a cascade brief."""
    steps = "--training.steps 2 --training.batch-size 4 --training.sample-count 0"
    network = "--model.network.channels 8 8"
    if "--system" in words:
        names = tuple(planned(system=words[words.index("--system") + 1]))
        stages = [f"--{name}.{flag}" for name in names for flag in (*steps.split("--")[1:], "evaluation.samples 0")]
        return " ".join(stages).split()
    if {"text", "contrast"} & set(words):
        return f"{steps} --evaluation.samples 0".split()
    if "classify" in words:
        return f"{steps} {network} --model.schedule.kind {tiny().model.schedule.kind}".split()
    # the pictures here are noise, of which much is lost in a smaller one
    data = "--data.tile 64 --data.random-crop 32 --data.holdout 4 --model.schedule.sigma-max 40"
    return f"{steps} {network} {data} --evaluation.samples 4".split()


@pytest.mark.filterwarnings("ignore:With the large reverse variance")
@pytest.mark.filterwarnings("ignore:.*hardly trained")
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_run(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "datasets", None)
    # fewer scenes, of which each has to be drawn
    monkeypatch.setitem(SOURCES, "shapes", lambda part="seen", size=(32, 32): shapes(size[0], 600))
    words = shlex.split(line, comments=True)[1:]
    for package in needed(words):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if "--budget" in words or "--init-from" in words:
        # with the network that they have, but briefly
        words = [{"90s": "10s", "1000": "2"}.get(word, word) for word in words]
        words += [
            "--evaluation.samples",
            "0",
            "--training.sample-count",
            "0",
            "--training.batch-size",
            "4",
            "--overwrite",
        ]
    elif "--task" in words or "--system" in words:
        words = ["path/to/folder" if word == "FOLDER" else word for word in words] + brief(words)
    elif words[0] == "train" and "--resume" not in words:
        extra = flags(steps=2)
        # conditions are those of the README
        at = extra.index("--condition")
        del extra[at : at + 2]
        where = [] if "--run" in words else ["--run", "runs/mine"]
        small = ["--model.network.attention", "1"]
        if "dit" in words:
            at = [i for i, word in enumerate(extra) if word.startswith("--") and not word.startswith("--model.network")]
            extra = extra[at[0] :]
            small = ["--model.network.width", "24", "--model.network.depth", "1", "--model.network.heads", "2"]
        words += [*extra, "--overwrite", *where, *small]
    if words[0] == "generate":
        words.append("--untrained")
    words = ["2" if before == "--captions" else word for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "evaluate" and {"--sweep", "--embedder", "runs/photos"} & set(words):
        words += ["--samples", "20"]
    if words[0] == "sample" and "250" in words:
        words[words.index("250")] = "3"
    with pytest.raises(SystemExit) as exit_:
        main(words)
    said = capsys.readouterr()
    if "hf:" in line:
        assert exit_.value.code == 2 and 'pip install "sfumato[hf]"' in said.err
    else:
        assert not exit_.value.code, said.err


def skeleton(output: str) -> list[str]:
    """The lines of a training without their numbers and rules, and without those that say the step and the time."""
    lines = [re.sub(r"-?[\d.,:]+", "#", " ".join(line.split())) for line in output.splitlines()]
    return [
        re.sub(r"[━─┏┓┡┩└┘┳╇┴├┤┼]+", "-", line) for line in lines if line and not line.startswith(("step ", "time "))
    ]


@pytest.mark.slow
def test_the_main_job_keeps_its_word(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "sfumato", "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    (shown,) = (text for _, text in BLOCKS if text.startswith("$ sfumato train\n"))
    assert skeleton(done.stdout) == skeleton(shown.partition("\n")[2])
    run = tmp_path / "runs/digits"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["counts"] == {"samples": 1000, "training": 1000, "held-out": 797}
    rows = {row["title"]: row for row in found["rows"]}
    assert rows["FD (classifier)"]["ratio"] < 2.0
    assert rows["nearest / real (pixels)"]["value"] > 0.95
    assert rows["nearest / real (classifier)"]["value"] > 0.95
    assert len(list((run / "samples").glob("*.png"))) == 3
    assert sfumato.load(run).sample(2).shape == (2, 1, 8, 8)
