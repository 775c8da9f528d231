"""Vision transformers of the Hugging Face hub whose features published distances use: DINOv2 and CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sfumato.io.hub import load_network
from sfumato.metrics.pictures import bicubic, colours

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"

_DINOV2_SIDE = 224
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of red, green and blue
_CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Pretrained(NamedTuple):
    """A network of the hub as features."""

    name: str
    network: nn.Module
    embed: Callable[[Tensor], Tensor]  # images in [-1, 1] to features


def dinov2(source: str | Path | None = None) -> Pretrained:
    """DINOv2 (Oquab et al., 2023) as Stein et al. (2023) use it for their Frechet distance: FD-DINOv2.

    ViT-L/14 without registers; pictures as bytes by Pillow's bicubic filter at 224x224, normalized as ImageNet; the
    class token after the last normalization, 1024 features. Transformers interpolates the positions, which are of
    518x518 pixels, at slightly other places than the authors' own program does.

    Args:
        source: a folder that was saved from transformers, or the name of a model of the hub.
    """
    network: Any = _load(source or DINOV2, {"dinov2": "Dinov2Model"})
    width = int(network.config.hidden_size)
    normalize = _Normalize(*_IMAGENET)

    def embed(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        pixels = bicubic(colours(images), _DINOV2_SIDE).round()
        return network(pixel_values=normalize(pixels)).pooler_output

    return Pretrained("dinov2" if width == 1024 else f"dinov2-{width}", network, embed)


def clip(source: str | Path | None = None) -> Pretrained:
    """The image features of CLIP (Radford et al., 2021) as CMMD (Jayasumana et al., 2024) uses them.

    ViT-L/14 at 336x336; PyTorch's bicubic filter (a = -3/4, never widened), not clipped; projected to the 768 features
    that are compared with text, and of length 1.

    Args:
        source: as for :func:`dinov2`.
    """
    kinds = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
    return of_clip(_load(source or CLIP, kinds))


def of_clip(network: Any) -> Pretrained:
    """As :func:`clip`, of a network of transformers, from which what reads text is taken away."""
    vision = getattr(network.config, "vision_config", network.config)
    side, width = int(vision.image_size), int(network.visual_projection.out_features)
    normalize = _Normalize(*_CLIP_COLOURS)
    if hasattr(network, "text_model"):
        # half of the memory, which pictures have no use for
        del network.text_model, network.text_projection, network.logit_scale

    def embed(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        pixels = functional.interpolate(colours(images), size=(side, side), mode="bicubic", align_corners=False)
        hidden = network.vision_model(pixel_values=normalize(pixels)).pooler_output
        return functional.normalize(network.visual_projection(hidden), dim=1)

    published = (width, side, int(vision.patch_size)) == (768, 336, 14)
    return Pretrained("clip" if published else f"clip-{width}-{side}", network, embed)


class _Normalize:
    """Colours 0 ... 255 to a mean of 0 and a standard deviation of 1 over the pictures of a training."""

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        self._mean, self._deviation = (torch.tensor(values).view(1, 3, 1, 1) * 255.0 for values in (mean, deviation))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self._mean.to(pixels.device)) / self._deviation.to(pixels.device)


def _load(source: str | Path, kinds: dict[str, str]) -> nn.Module:
    return load_network(source, kinds, "give a folder with config.json and model.safetensors: weights=PATH")
