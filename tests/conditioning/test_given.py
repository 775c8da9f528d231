"""Conditions as a person gives them: numbers, names, files, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.conditioning import Embedding, Label, LowResolution, Tokens
from sfumato.errors import InputError
from tests.training.tiny import tiny


def test_numbers_are_typed_or_read_from_a_file(tmp_path: Path) -> None:
    one, two = Embedding(mean=(0.0,), std=(1.0,)), Embedding(mean=(0.0, 0.0), std=(1.0, 1.0))
    assert one.given("0.5", 3)["value"].tolist() == [[0.5]] * 3
    assert two.given("0.5, -2", 2)["value"].tolist() == [[0.5, -2.0]] * 2
    np.save(tmp_path / "e.npy", np.float64([[1, 2], [3, 4]]))
    for path in (tmp_path / "e.npy", str(tmp_path / "e.npy")):
        assert two.given(path, 2)["value"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    for bad, words in (("red", "numbers, or the name of an .npy file"), ({}, "give numbers or a tensor")):
        with pytest.raises(InputError, match=words):
            two.given(bad, 2)
    with pytest.raises(InputError, match="Could not read"):
        two.given("absent.npy", 2)
    np.save(tmp_path / "t.npy", np.ones((4, 5)))
    assert Tokens(features=5).given(str(tmp_path / "t.npy"), 2)["value"].shape == (2, 4, 5)
    assert Label(names=("cat", "dog")).given("dog", 2)["value"].tolist() == [1, 1]


def test_an_image_is_read_with_the_channels_of_the_data(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "low.png")
    colour = LowResolution(channels=3).given(tmp_path / "low.png", 2)["value"]
    assert torch.allclose(colour[1], torch.from_numpy(pixels).movedim(-1, 0) / 127.5 - 1.0)
    assert LowResolution(channels=1).given(str(tmp_path / "low.png"), 2)["value"].shape == (2, 1, 4, 4)
    encoder = LowResolution(channels=3).build_encoder((1, 8, 8), 4, 0)
    with pytest.raises(InputError, match="3 channels; expected 1"):
        encoder(torch.zeros(len(colour), 1, 8, 8), colour)


@pytest.mark.parametrize("name", ["seed", "out", "clip", "count", "two words", "steps"])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    config = tiny(conditions={name: {"kind": "label"}}, model={"network": {"kind": "unet"}})
    with pytest.raises(InputError, match="can't be called"):
        config.model.build((1, 8, 8), {name: Label(names=("a",))})


def test_conditions_are_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    data = {"image": images, "embedding": images.flatten(1).mean(1)}
    conditions = {"embedding": {"kind": "embedding"}, "low": {"kind": "low_resolution", "factor": 2, "drop": 0.1}}
    settings = tiny(conditions=conditions, training={"steps": 2}, data={"holdout": 4})
    model = sfumato.train(settings, data=data, run=tmp_path / "run")
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(tmp_path / "low.png")
    given: dict[str, Any] = {"embedding": 0.25, "low": torch.full((1, 4, 4), 200 / 127.5 - 1)}
    expected = model.sample(2, **given)
    flags = ["--embedding", "0.25", "--low", str(tmp_path / "low.png")]
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(tmp_path / "run"), "--count", "2", *flags, "--out", str(tmp_path / "x.npz")])
    assert ended.value.code == 0
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "x.npz")["images"]), expected, atol=1e-6)
    assert not torch.allclose(model.sample(2), expected, atol=1e-3)
    with pytest.raises(SystemExit) as ended:
        main(["edit", str(tmp_path / "run"), "interpolate", *flags, "--count", "3", "--out", str(tmp_path / "i.png")])
    assert ended.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "run"), "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "an image file" in text and "an .npy file" in text
