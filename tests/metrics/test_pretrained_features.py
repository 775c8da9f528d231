"""DINOv2 and CLIP from folders of tiny random networks: their preprocessing, their features, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from sfumato.errors import InputError
from sfumato.metrics import extract, features

transformers: Any = pytest.importorskip("transformers")

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(0, 256, (3, 3, 50, 70), generator=GENERATOR) / 127.5 - 1.0


def colours_of(picture: Tensor) -> Image.Image:
    return Image.fromarray(((picture + 1.0) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Dinov2Config(**{**VISION, "mlp_ratio": 2}, image_size=28, patch_size=14)
        transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    text = {**VISION, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**VISION, "image_size": 42, "patch_size": 14}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_dinov2_is_the_class_token_of_the_published_preprocessing(dino: Path) -> None:
    own = features("dinov2", weights=dino, device="cpu")
    assert own.name == "dinov2-32"
    assert own.name == "dinov2-32"
    model = transformers.AutoModel.from_pretrained(dino).eval()
    resized = [colours_of(picture).resize((224, 224), Image.Resampling.BICUBIC) for picture in PICTURES]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255.0 for picture in resized])
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        token = model((pixels - mean) / deviation).last_hidden_state[:, 0]
    # Pillow rounds between its two passes, so that some pixels differ by one of 255
    torch.testing.assert_close(own(PICTURES), token, rtol=0, atol=2e-3)


def test_clip_is_the_projected_embedding_of_length_one(clip: Path) -> None:
    own = features("clip", weights=str(clip), device="cpu")
    assert own.name == "clip-16-42"
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    images = functional.interpolate((PICTURES + 1.0) / 2.0, (42, 42), mode="bicubic")
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    inputs = processor(images=list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    with torch.no_grad():
        embeds = model.visual_projection(model.vision_model(**inputs).pooler_output)
    found = own(PICTURES)
    torch.testing.assert_close(found, embeds / embeds.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(extract(own, PICTURES, batch=2), found, rtol=0, atol=1e-5)


def test_a_folder_of_the_vision_part_alone_gives_the_same(clip: Path, tmp_path: Path) -> None:
    whole = transformers.CLIPModel.from_pretrained(clip)
    config = whole.config.vision_config
    config.projection_dim = 16
    part = transformers.CLIPVisionModelWithProjection(config)
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("vis")})
    part.save_pretrained(tmp_path)
    first, second = (features("clip", weights=folder, device="cpu") for folder in (clip, tmp_path))
    assert torch.equal(first(PICTURES), second(PICTURES))
    assert first.identity == second.identity


def test_identity_is_that_of_the_weights(dino: Path, tmp_path: Path) -> None:
    state = load_file(dino / "model.safetensors")
    name = "embeddings.cls_token"
    assert name in state
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    save_file({**state, name: state[name] + 1.0}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first, other = (features("dinov2", weights=folder, device="cpu").identity for folder in (dino, tmp_path))
    assert first == features("dinov2", weights=dino, device="cpu").identity != other


def test_damaged_and_other_networks_are_refused(dino: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kind 'clip'; expected dinov2"):
        features("dinov2", weights=clip, device="cpu")
    state = load_file(dino / "model.safetensors")
    config = (dino / "config.json").read_text()

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        return tmp_path / name

    lacking = folder("lacking")
    del state["layernorm.weight"]
    save_file(state, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights, such as layernorm\.weight"):
        features("dinov2", weights=lacking, device="cpu")
    damaged = folder("damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot be loaded.*weights=PATH"):
        features("dinov2", weights=damaged, device="cpu")
    pickled = folder("pickled")
    torch.save(state, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot be loaded.*safetensors"):
        features("dinov2", weights=pickled, device="cpu")
    code = folder("code")
    (code / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})
    )
    (code / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(InputError, match="cannot be loaded"):
        features("dinov2", weights=code, device="cpu")


def test_no_such_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"no/such-model cannot be loaded.*weights=PATH"):
        features("clip", weights="no/such-model", device="cpu")


def test_without_transformers_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install "sfumato\[transformers\]"'):
        features("dinov2")
