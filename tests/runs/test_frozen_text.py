"""A training on captions by a frozen encoder: two steps, a resume that changes nothing, and samples of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import load, train
from sfumato.conditioning import Text, text_cache
from sfumato.conditioning.base import null_of
from sfumato.conditioning.language import facts, frozen
from sfumato.data import Dataset
from sfumato.data.dataset import Column
from sfumato.errors import InputError, SfumatoWarning
from sfumato.io.text import packed
from sfumato.random import Draws
from tests.conditioning import tiny_encoders

pytest.importorskip("transformers")

CAPTIONS = ["a red circle", "a blue square", "the large red square left of a green circle", "two green circle"]
NETWORK = {"kind": "unet", "channels": [8], "blocks": 1, "groups": 4, "attention": [0], "middle": 1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.save(tmp_path_factory.mktemp("encoders") / "bert", "bert")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines: list[str] = []
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": CAPTIONS[index % 4]}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def settings(pictures: Path, encoder: Path, steps: int = 2) -> dict[str, Any]:
    return {
        "data": {"source": str(pictures), "holdout": 0.25},
        "conditions": {"text": {"kind": "text", "encoder": str(encoder), "drop": 0.25}},
        "model": {"network": NETWORK},
        "training": {"steps": steps, "batch_size": 4, "sample_every": 2, "sample_count": 1},
        "evaluation": {"samples": 0},
        "sampling": {"steps": 2},
    }


def test_a_run_trains_resumes_and_samples_a_prompt(
    bert: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(name: str, **options: Any) -> Any:
        loaded.append(name)
        return frozen(name, **options)

    monkeypatch.setattr(text_cache, "frozen", counted)
    run = tmp_path / "run"
    train(settings(pictures, bert), run=run)
    assert len(loaded) == 1  # once for all captions, before the first step
    condition = load(run).conditions["text"]
    assert isinstance(condition, Text)
    assert condition.identity == facts(str(bert)).identity and condition.features == 16
    assert condition.encoder == str(bert)
    train({"training": {"steps": 4}}, run=run, resume=True)
    whole = train(settings(pictures, bert, steps=4), run=tmp_path / "whole")
    assert len(loaded) == 1
    model = load(run)
    for (name, one), other in zip(model.module.state_dict().items(), whole.module.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    for parameter in model.module.parameters():  # branches that are zero at the start would hide the prompt
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    images = model.sample(4, text=["a large blue circle", "red"], seed=1)
    assert images.shape == (4, 3, 8, 8) and len(loaded) == 2
    alone = model.sample(2, text="red", seed=1)
    torch.testing.assert_close(images[1], alone[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(images[0], alone[0], atol=1e-3)
    torch.testing.assert_close(model.sample(1, text="", seed=1), model.sample(1, text=None, seed=1))
    assert len(loaded) == 2 + 1  # the empty prompt is encoded too, and passed over


def test_another_encoder_in_its_place_is_refused(bert: Path, pictures: Path, tmp_path: Path) -> None:
    place = tiny_encoders.save(tmp_path / "encoder", "bert")
    train(settings(pictures, place), run=tmp_path / "run")
    tiny_encoders.save(place, "bert", seed=1)
    with pytest.raises(InputError, match=f"{place} is not the one that the model was trained with"):
        load(tmp_path / "run").sample(1, text="red")
    load(tmp_path / "run").sample(1, text=None)  # needs no encoder
    with pytest.raises(InputError, match=r"'text' of .* was trained with features of the encoder"):
        train({"training": {"steps": 4}}, run=tmp_path / "run", resume=True)
    (place / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load(tmp_path / "run").sample(1, text="red")


def described(encoder: Path, captions: list[str] = CAPTIONS) -> Text:
    images = np.zeros((len(captions), 3, 8, 8), dtype=np.uint8)
    return Text(encoder=str(encoder)).describe(Dataset(images, {"caption": Column(np.array(captions))}, "pictures"))


def test_captions_of_training_and_prompts_are_the_same_tokens(bert: Path) -> None:
    text, captions = described(bert), [*CAPTIONS[:2], ""]
    columns = {"caption": packed(captions)}
    parts = text.training(torch.zeros(3, 3, 8, 8), columns, Draws(0, 0, 3, 3))
    given = text.given(captions, 3)
    expected, mask = frozen(str(bert), device="cpu").encode(captions)
    assert torch.equal(parts["mask"], given["mask"]) and parts["value"].dtype == torch.float32
    torch.testing.assert_close(parts["value"], given["value"], equal_nan=True)
    torch.testing.assert_close(parts["value"][:2], expected[:2], rtol=2e-3, atol=2e-3)
    assert torch.equal(parts["mask"][:2], mask[:2])
    assert text.null_rows(parts).tolist() == [False, False, True]
    turns = text.given(captions[:2], 3, first=1)
    assert torch.equal(turns["mask"], given["mask"][[1, 0, 1]])
    # what is dropped, an empty caption and none are one to the encoder that is trained
    encoder = text.build_encoder((3, 8, 8), 12, 16)
    dropped = encoder(**{name: null_of(rows) for name, rows in parts.items()})
    none, empty = encoder(**text.missing(1)), encoder(**parts)
    torch.testing.assert_close(dropped["vector"][0], none["vector"][0])
    torch.testing.assert_close(empty["vector"][2], none["vector"][0])
    assert not torch.allclose(empty["vector"][0], empty["vector"][1], atol=1e-3)


def test_prompts_that_are_cut_are_named(bert: Path) -> None:
    with pytest.warns(SfumatoWarning, match="more than the 12 tokens"):
        described(bert).given("red " * 20, 1)
    with pytest.raises(InputError, match="There is no text encoder 'wordz'"):
        described(Path("wordz"))
    with pytest.raises(InputError, match="without captions"):
        Text(encoder=str(bert)).given("red", 1)
