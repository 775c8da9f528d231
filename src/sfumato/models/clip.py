"""CLIP as transformers saves it: embeddings of images and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.conditioning import Text
from sfumato.conditioning.contrast import Contrast
from sfumato.conditioning.language import facts
from sfumato.config import Config, parse
from sfumato.errors import InputError
from sfumato.io.files import read_json
from sfumato.io.hub import load_network
from sfumato.metrics.pretrained import Pretrained, of_clip
from sfumato.models.model import Model
from sfumato.models.storage import Info


def is_clip(folder: Path) -> bool:
    """Whether a folder holds a whole CLIP that transformers saved."""
    path = folder / "config.json"
    try:
        return path.is_file() and read_json(path).get("model_type") == "clip"
    except (InputError, AttributeError):
        return False


def load_clip(folder: Path, device: str | torch.device = "cpu") -> Model:
    """The embeddings of a CLIP that transformers saved, as those of a run of ``train --task contrast``.

    Its images are RGB images of any size, which are scaled as it wants them. Needs
    ``pip install "sfumato[transformers]"``.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and a tokenizer.
        device: where the weights go.
    """
    known = facts(str(folder))
    network: Any = load_network(folder, {"clip": "CLIPModel"}, "give a folder with a whole CLIP: both its networks")
    project, side = network.text_projection, int(network.config.vision_config.image_size)
    text = Text(drop=0.0, encoder=str(folder.absolute()), features=known.features, identity=known.identity)
    vision = _Vision(of_clip(network))
    contrast = Contrast(vision, text, _Projection(project), resizes=True).eval().requires_grad_(False).to(device)
    condition = {"kind": "text", "drop": 0.0, "encoder": text.encoder, "features": text.features}
    info = parse(Info, {"shape": (3, side, side), "conditions": {"text": {**condition, "identity": text.identity}}})
    config = parse(Config, {"model": {"features": project.out_features}})
    return Model(contrast, info, config=config, run=folder)


class _Vision(nn.Module):
    """The network of images, with what prepares them."""

    def __init__(self, found: Pretrained) -> None:
        super().__init__()
        self.network, self._embed = found.network, found.embed

    def forward(
        self, x: Float[Tensor, "batch channels height width"], time: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch features"]:
        return self._embed(x)


class _Projection(nn.Module):
    """The last token of a text, which is the mark of its end, projected."""

    def __init__(self, project: nn.Module) -> None:
        super().__init__()
        self.project = project

    def forward(
        self, value: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
    ) -> dict[str, Tensor]:
        last = (mask.sum(1) - 1).clamp(min=0)
        rows = value[torch.arange(len(value), device=value.device), last].nan_to_num()
        return {"vector": self.project(rows)}
