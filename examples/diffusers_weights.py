"""Use the library on the weights of a pipeline of diffusers.

    python examples/diffusers_weights.py [FOLDER]

FOLDER is what ``DDPMPipeline.save_pretrained`` writes. Without one, a small pipeline with random weights is made. This
script needs diffusers for the comparison; ``load_diffusers`` does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import sfumato
from sfumato.interop import load_diffusers, save_run

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
else:
    folder = Path("pipeline")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(16, 3, 3, block_out_channels=(32, 32), layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)

model = load_diffusers(folder)
theirs = DDPMPipeline.from_pretrained(folder)
x, step = torch.randn(2, *model.info.shape, generator=torch.Generator().manual_seed(1)), 500
level = model.denoiser.schedule((step + 1) / 1000)
with torch.no_grad():
    difference = (model.denoiser(x, level).eps - theirs.unet(x, step).sample).abs().max()
print(f"largest difference of the predicted noise: {float(difference):.1e}")

images = model.sample(2, seed=0, steps=10, solver="unipc")  # any solver of the library
print("sampled in 10 steps of UniPC:", tuple(images.shape))
save_run(model, "runs/of-diffusers")
print("loaded again:", sfumato.load("runs/of-diffusers"))
