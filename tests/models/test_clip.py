"""CLIP as transformers saves it, against what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.data.shapes import shapes
from sfumato.models.data import prepared
from sfumato.models.embeddings import embed_captions, embed_images, load_embedder
from sfumato.models.storage import read_config
from sfumato.models.unclip import Unclip, vary
from sfumato.systems.train import train
from tests.conditioning import tiny_encoders
from tests.systems.test_unclip import small

transformers = pytest.importorskip("transformers")
CAPTIONS = ["red square", "a blue circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny_encoders.save(tmp_path_factory.mktemp("clip") / "clip", "clip", most=40)
    text = transformers.CLIPTextConfig.from_pretrained(place).to_dict()
    vision = {**tiny_encoders.SIZES, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        )
        for parameter in whole.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    whole.save_pretrained(place)
    return place


def test_embeddings_are_those_of_transformers(folder: Path) -> None:
    model, whole = load_embedder(folder), transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = embed_captions(model, CAPTIONS)
    for caption, row in zip(CAPTIONS, found, strict=True):
        with torch.no_grad():
            made: Any = whole.text_model(**tokenizer(caption, return_tensors="pt")).pooler_output
            wanted = torch.nn.functional.normalize(whole.text_projection(made), dim=1)[0]
        torch.testing.assert_close(row, wanted, atol=1e-3, rtol=1e-2)  # kept in float16
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        pixels = (images / 2 + 0.5 - mean) / std
        hidden = whole.vision_model(pixel_values=pixels).pooler_output
        wanted = torch.nn.functional.normalize(whole.visual_projection(hidden), dim=1)
    torch.testing.assert_close(embed_images(model, images), wanted, atol=1e-3, rtol=1e-2)
    # of any size
    assert embed_images(model, torch.zeros(1, 3, 20, 28)).shape == (1, 8)


def test_a_system_is_trained_with_it(folder: Path, tmp_path: Path) -> None:
    data = shapes(32, count=32)
    settings = small(steps=2, sample_count=0)
    del settings["clip"]
    settings = {name: {**one, "conditions": {"text": {"encoder": str(folder)}}} for name, one in settings.items()}
    model = train({**settings, "data": {"embedder": str(folder)}}, system="unclip", data=data, run=tmp_path / "s")
    assert isinstance(model, Unclip) and model.embedder.contrast is not None and model.embedder.contrast.resizes
    config = read_config(tmp_path / "s/stages/decoder")[0].data
    columns = prepared(data, config).columns
    wanted = embed_images(model.embedder, data.batch(range(32)))
    torch.testing.assert_close(torch.from_numpy(columns["image_embedding"].values), wanted, atol=1e-5, rtol=1e-4)
    assert model.generate(["red square"], count=1).shape == (1, 3, 32, 32)
    assert vary(model, data.batch([0])[0], 2, steps=2).isfinite().all()
    report = sfumato.evaluate(model, data, heldout=data, samples=8, captions=0, measures="kid", embedder=folder)
    assert -1.0 <= report["CLIP score"].value <= 1.0
    sfumato.save(model, tmp_path / "t")
    assert isinstance(sfumato.load(tmp_path / "t"), Unclip)
