"""What the pages show, found and run: their fenced Python, and their commands, made brief enough for a test."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.data.embedded import SOURCES
from sfumato.data.shapes import shapes
from sfumato.interop import export, save_run
from sfumato.runs.train import train
from sfumato.systems.stages import planned
from tests.interop.engines.models import random_model
from tests.training.tiny import LABELLED, flags, tiny

ROOT = Path(__file__).parents[1]


def text(page: str) -> str:
    """The Markdown of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.S | re.M)


def python(page: str) -> list[str]:
    """The blocks of Python."""
    return [content for language, content in blocks(page) if language == "python"]


def commands(page: str) -> list[str]:
    """The commands of sfumato, also those at the end of a line that installs it first."""
    lines = [line for language, content in blocks(page) if not language for line in content.splitlines()]
    lines = [line.removeprefix('pip install -e ".[app]" && ') for line in lines]
    return [line for line in lines if line.startswith("sfumato ")]


def missing(page: str) -> list[str]:
    """The pictures and pages that a page links to and that are not there."""
    links = re.findall(r'src="([^"]+)"', text(page)) + re.findall(r"\]\(([^)#:]+)\)", text(page))
    return [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def furnish(place: Path) -> Path:
    """A working directory with what the pages speak of: a run, a folder of images, arrays."""
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


def run_python(content: str, names: dict[str, object]) -> None:
    """The same code, on a run small enough for a test."""
    exec(content.replace('"steps": 500', '"steps": 3').replace('"digits", training', "tiny(), training"), names)


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


def run_command(line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run one command in the directory, as briefly as it allows."""
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "datasets", None)
    # fewer scenes, of which each has to be drawn
    monkeypatch.setitem(SOURCES, "shapes", lambda part="seen", size=(32, 32): shapes(size[0], 600))
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "app":
        pytest.skip("sfumato app is a server, which does not end by itself")
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
        # conditions are those of the page
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
        # captions that are drawn, and features of a large network, take minutes
        words += ["--features", "pixels", "--captions", "2"] if "--embedder" in words else []
    if words[0] == "sample" and "250" in words:
        words[words.index("250")] = "3"
    with pytest.raises(SystemExit) as exit_:
        main(words)
    said = capsys.readouterr()
    if "hf:" in line:
        assert exit_.value.code == 2 and 'pip install "sfumato[hf]"' in said.err
    else:
        assert not exit_.value.code, said.err
