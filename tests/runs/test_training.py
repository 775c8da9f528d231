"""Training into a directory: what is logged, what is refused, what stops it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato.runs.train
from sfumato.data import Dataset, Loader
from sfumato.errors import InputError
from sfumato.models.model import load
from sfumato.runs.reporting import Reporter
from sfumato.runs.setup import describe
from sfumato.runs.train import train
from sfumato.training.loop import Record
from sfumato.training.precision import tf32
from tests.runs.test_resume import losses
from tests.training.tiny import LABELLED, command, flags, tiny


def test_diverging_leaves_the_checkpoint_and_exits_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfumato.cli import main
    from tests.training.tiny import flags

    with pytest.raises(SystemExit) as exit_:
        options = [*flags(steps=2000, checkpoint_every=1), "--optimizer.learning-rate", "1e8"]
        main(["train", "digits", "--run", str(tmp_path / "run"), *options])
    assert exit_.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Training stopped; the checkpoint of step" in said and "lower optimizer.learning-rate" in said
    assert load(tmp_path / "run").step > 0


def test_constant_data_are_refused() -> None:
    images = np.zeros((5, 1, 8, 8), np.float32)
    with pytest.raises(InputError, match="one constant"):
        describe(Loader(Dataset(images, name="grey"), 0), 0, tiny())


def test_data_that_do_not_fit_the_network(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 9, 9), np.uint8) + np.arange(9, dtype=np.uint8) * 20)
    with pytest.raises(InputError, match=r"8x8 or 10x10"):
        train(tiny(data={"source": str(tmp_path / "x.npy"), "holdout": 4}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_logs_are_lines_of_json(tmp_path: Path) -> None:
    train(tiny(training={"log_every": 5, "sample_count": 4, "sample_every": 6}), run=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"loss", "grad_norm", "learning_rate", "ema_decay", "images", "seconds"} <= lines[0].keys()
    assert [p.name for p in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "step-0000006.png",
        "step-0000012.png",
    ]


def test_signals_one_dimensional_data_train_too(tmp_path: Path) -> None:
    wave = np.sin(np.linspace(0, 6, 32) + np.random.default_rng(0).uniform(0, 6, (40, 2, 1)))
    np.save(tmp_path / "waves.npy", wave.astype(np.float32))
    data = {"source": str(tmp_path / "waves.npy"), "layout": "NCL", "value_range": (-1, 1), "holdout": 8}
    model = train(tiny(data=data, training={"sample_count": 4}, evaluation={"samples": 16}), run=tmp_path / "run")
    assert model.sample(3).shape == (3, 2, 32)
    assert (tmp_path / "run" / "samples" / "step-0000012.png").exists()


def test_any_number_of_channels_draws_and_trains(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "five.npy", images)
    data = {"source": str(tmp_path / "five.npy"), "layout": "NCHW", "holdout": 10}
    model = train(tiny(data=data, training={"steps": 2, "sample_count": 4}), run=tmp_path / "run")
    assert model.sample(2).shape == (2, 5, 8, 8) and list((tmp_path / "run" / "samples").iterdir())


def test_labels_stay_with_their_images_under_random_crops(tmp_path: Path) -> None:
    from sfumato.models.evaluate import evaluate

    labels = np.arange(200) % 4
    images = (labels[:, None, None] * 60 + np.random.default_rng(0).integers(0, 20, (200, 12, 12))).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    data = {"source": str(tmp_path / "x.npz"), "random_crop": 8, "holdout": 80}
    config = tiny(data=data, conditions=LABELLED, training={"steps": 2})
    result = evaluate(train(config, run=tmp_path / "run"), samples=40)
    assert result["accuracy"].floor == 1.0


def test_an_impossible_evaluation_does_not_cost_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sfumato.runs.reporting import Terminal

    config = tiny(data={"holdout": 1796}, training={"steps": 2}, evaluation={"samples": 20})
    train(config, run=tmp_path / "run", reporter=Terminal())
    assert "No evaluation:" in " ".join(capsys.readouterr().out.split())
    assert load(tmp_path / "run").step == 2


def test_bf16_trains_where_the_processor_has_it(tmp_path: Path) -> None:
    from sfumato.training.precision import supports_bf16

    if not supports_bf16(torch.device("cpu")):
        pytest.skip("no native bfloat16 here")
    for precision in ("bf16", "fp32"):
        train(tiny(training={"precision": precision}), run=tmp_path / precision)
    a, b = (np.array(list(losses(tmp_path / p).values())) for p in ("bf16", "fp32"))
    assert np.abs(a - b).max() < 0.02 and np.abs(a - b).max() > 0.0


def test_bf16_on_a_processor_without_it_falls_back_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sfumato.runs.train
    from sfumato.runs.reporting import Terminal

    monkeypatch.setattr(sfumato.runs.train, "supports_bf16", lambda device: False)
    train(tiny(training={"precision": "bf16", "steps": 1}), run=tmp_path / "run", reporter=Terminal())
    assert "training in fp32" in " ".join(capsys.readouterr().out.split())


def test_a_tracker_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.runs.setup.get_available_trackers", lambda: [])
    with pytest.raises(InputError, match=r"sfumato\[wandb\]"):
        train(tiny(training={"tracker": "wandb"}), run=tmp_path / "run")


def test_tensorboard_has_losses_samples_and_the_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'sfumato[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"steps": 4, "sample_every": 2, "sample_count": 4, "tracker": "tensorboard"}
    train(tiny(training=options, evaluation={"samples": 20}), run=tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "sfumato")).Reload()
    tags = events.Tags()
    assert {"loss", "grad_norm", "heldout_loss", "nearest / real (pixels)"} <= set(tags["scalars"])
    assert [event.step for event in events.Images("samples")] == [2, 4]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    heldout = [line for line in logged if "heldout_loss" in line]
    assert [line["step"] for line in heldout] == [2, 4]
    by_level = [value for name, value in heldout[1].items() if "log-SNR" in name]
    assert len(by_level) == 8 and heldout[1]["heldout_loss"] == pytest.approx(sum(by_level) / 8)
    assert [event.value for event in events.Scalars("heldout_loss")] == pytest.approx(
        [h["heldout_loss"] for h in heldout]
    )


WANDB = """\
'''What Accelerate's tracker calls of wandb, with wandb's own rules; a line of JSON per call.'''
import hashlib, json, os

def _note(*call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Image:
    def __init__(self, data, mode=None, caption=None):
        self.value = [list(data.shape), str(data.dtype), hashlib.sha256(data.tobytes()).hexdigest()]

class Run:
    last = 0
    def log(self, data, step=None, commit=None):
        assert isinstance(step, int) and step >= self.last, "wandb drops what comes with an earlier step"
        self.last = step
        plain = {k: [i.value for i in v] if isinstance(v, list) else float(v) for k, v in data.items()}
        _note("log", step, plain)
    def finish(self, exit_code=None):
        _note("finish")

def init(entity=None, project=None, dir=None, id=None, name=None, config=None, mode=None):
    if os.environ.get("NO_KEY"):
        raise RuntimeError("api_key not configured (no-tty)")
    assert os.path.isdir(dir)
    _note("init", project, name)
    return Run()
"""


def test_wandb_has_losses_samples_and_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Accelerate's own tracker sends them to a module that stands for wandb and writes down its calls."""
    package, calls = tmp_path / "site" / "wandb", tmp_path / "calls"
    package.mkdir(parents=True)
    options = flags(steps=4, sample_every=2, sample_count=4, tracker="wandb")
    options[options.index("--evaluation.samples") + 1] = "20"
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{package.parent}")
    monkeypatch.setenv("CALLS", str(calls))
    # a folder of that name, such as wandb leaves, is no wandb
    if importlib.util.find_spec("wandb") is None:
        process = command("train", "digits", "--run", "none", *options, cwd=tmp_path)
        assert "sfumato[wandb]" in process.communicate()[1] and process.returncode == 2
    (package / "__init__.py").write_text(WANDB)
    (package.parent / "wandb-1.0.dist-info").mkdir()
    (package.parent / "wandb-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n"
    )
    process = command("train", "digits", "--run", "run", *options, cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    (start, *called), finish = [json.loads(line) for line in calls.read_text().splitlines()], ["finish"]
    assert start == ["init", "sfumato", "run"] and called.pop() == finish and finish not in called
    values = [(step, name, value) for _, step, group in called for name, value in group.items()]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    groups = [(line.pop("step"), line) for line in logged]
    expected: list[tuple[int, str, object]] = [
        (step, name, float(value))
        for step, group in groups
        for name, value in group.items()
        if isinstance(value, int | float)
    ]
    for step in (2, 4):
        pixels = np.asarray(Image.open(tmp_path / "run" / "samples" / f"step-{step:07d}.png").convert("RGB"))
        found = [list(pixels.shape), "uint8", hashlib.sha256(pixels.tobytes()).hexdigest()]
        expected.append((step, "samples", [found]))
    assert sorted(map(repr, expected)) == sorted(map(repr, values))
    names = {name for _, name, _ in values}
    assert {"loss", "grad_norm", "heldout_loss", "samples", "nearest / real (pixels)"} <= names
    assert sum("log-SNR" in name for name in names) == 8
    # what wandb can't do is a sentence
    monkeypatch.setenv("NO_KEY", "1")
    process = command("train", "digits", "--run", "refused", *options, cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2 and "api_key not configured" in errors and "Traceback" not in errors
    assert "training.tracker wandb" in errors


def test_the_steps_of_a_training_are_within_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As they would be on a GPU: the processor is taken for one."""
    seen: list[str] = []

    class Watching(Reporter):
        def step(self, record: Record) -> None:
            seen.append(torch.get_float32_matmul_precision())

    @contextmanager
    def pretended(device: torch.device) -> Generator[None]:
        assert device.type == "cpu"
        with tf32(torch.device("cuda")):
            yield

    monkeypatch.setattr(sfumato.runs.train, "tf32", pretended)
    train(tiny(training={"steps": 2}), run=tmp_path / "run", reporter=Watching())
    assert seen == ["high", "high"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_training_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first = train(tiny(training={"steps": 6}, conditions=LABELLED), run=tmp_path / "first")
    rate = {"learning_rate": 1e-12, "warmup": 0}
    start = {"steps": 1, "init_from": str(tmp_path / "first")}
    second = train(tiny(training=start, conditions=LABELLED, optimizer=rate), run=tmp_path / "second")
    assert torch.allclose(second.sample(2, label=3), first.sample(2, label=3), atol=1e-4)
    unlike = {"network": {"channels": (16, 16), "groups": 4, "embedding": 32, "heads": 1}}
    with pytest.raises(InputError, match="another network"):
        train(tiny(training=start, model=unlike), run=tmp_path / "third")
    # without classes: the table of the classes has no place, all else is taken
    assert train(tiny(training=start, optimizer=rate), run=tmp_path / "plain").step == 1


def test_what_is_frozen_stays_as_it_was_and_the_rest_is_trained(tmp_path: Path) -> None:
    train(tiny(training={"steps": 2}), run=tmp_path / "first")
    options = {"init_from": str(tmp_path / "first"), "freeze": ("down", "network.first"), "checkpoint_every": 2}
    whole = train(tiny(training={"steps": 4, **options}), run=tmp_path / "whole")
    first, second = (
        dict(sfumato.load(run).module.named_parameters()) for run in (tmp_path / "first", tmp_path / "whole")
    )
    same = {name for name in first if torch.equal(first[name], second[name])}
    frozen = {name for name in first if name.startswith(("network.down.", "network.first."))}
    assert len(frozen) > 4 and same == frozen
    # the others start from the weights of the run too, which has the same network
    rate = {"learning_rate": 1e-12, "warmup": 0}
    still = train(tiny(training={**options, "steps": 1}, optimizer=rate), run=tmp_path / "still").module
    assert all(torch.allclose(weight, first[name], atol=1e-6) for name, weight in still.named_parameters())
    # resumed, they are frozen too
    train(tiny(training={"steps": 2, **options}), run=tmp_path / "parts")
    again = train({"training": {"steps": 4}}, run=tmp_path / "parts", resume=True)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("nothing",), "no weights in 'nothing'"),
        (("network",), "nothing is left"),
        (("dow",), "did you mean|known are"),
    ],
)
def test_what_can_not_be_frozen(parts: tuple[str, ...], message: str, tmp_path: Path) -> None:
    train(tiny(training={"steps": 1}), run=tmp_path / "first")
    options = {"steps": 1, "init_from": str(tmp_path / "first"), "freeze": parts}
    with pytest.raises(InputError, match=message):
        train(tiny(training=options), run=tmp_path / "second")


def test_frozen_weights_need_a_run_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"freeze.*init_from"):
        train(tiny(training={"steps": 1, "freeze": ("down",)}), run=tmp_path / "second")
    train(tiny(training={"steps": 1}), run=tmp_path / "first")
    options = {"steps": 1, "init_from": str(tmp_path / "first"), "freeze": ("encoders",)}
    with pytest.raises(InputError, match=r"no weights for what is to be frozen.*label"):
        train(tiny(training=options, conditions=LABELLED), run=tmp_path / "second")


def test_what_was_said_is_kept_and_quiet_is_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.cli.command import run

    arguments = ["train", "digits", "--run", str(tmp_path / "run"), "--quiet", *flags(steps=3)]
    assert run(*arguments) == 0
    out, errors = capsys.readouterr()
    assert (out, errors) == ("", "")
    log = (tmp_path / "run" / "train.log").read_text()
    assert "data      digits" in log and "step 3/3" in log and "use it" in log
    assert run(*arguments) == 2 and "already exists" in capsys.readouterr().err
