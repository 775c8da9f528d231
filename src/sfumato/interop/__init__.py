"""Weights of other libraries, taken into our networks, and our models, written for other programs."""

from sfumato.interop.diffusers import load_diffusers
from sfumato.interop.edm import load_edm
from sfumato.interop.export import export
from sfumato.interop.guided_diffusion import load_guided_classifier, load_guided_diffusion, load_guided_upsampler
from sfumato.interop.model import save_run

__all__ = [
    "export",
    "load_diffusers",
    "load_edm",
    "load_guided_classifier",
    "load_guided_diffusion",
    "load_guided_upsampler",
    "save_run",
]
