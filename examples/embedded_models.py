"""How the models that come along were made.

    python examples/embedded_models.py pictures PHOTOGRAPHS pictures/
    sfumato train pictures --task upscale --training.steps 2600 --data.holdout 0 --evaluation.samples 0 --run RUN
    python examples/embedded_models.py store RUN src/sfumato/pretrained/photos

    sfumato train && python examples/embedded_models.py store runs/digits src/sfumato/pretrained/digits

PHOTOGRAPHS is a folder of large JPEG files; they are made smaller, which takes away the traces of JPEG. Five pictures
of scikit-image and two of scikit-learn are added. The weights are stored in half precision, those of a system stage by
stage.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from PIL import Image

import sfumato
from sfumato.data.embedded import SOURCES
from sfumato.io.tensors import read_tensors, write_tensors
from sfumato.models.storage import System, is_system, read_system, stage_of, write_config, write_system


def pictures(source: Path, out: Path) -> None:
    import skimage.data
    from sklearn.datasets import load_sample_images

    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        times = 2 if max(image.size) < 2000 else 3
        size = (image.width // times, image.height // times)
        image.resize(size, Image.Resampling.BICUBIC).save(out / f"{path.stem}.png")
    for name in ("chelsea", "coffee", "rocket", "hubble_deep_field", "retina"):
        Image.fromarray(getattr(skimage.data, name)()).save(out / f"{name}.png")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(out / f"{name}.png")


def store(run: Path, out: Path) -> None:
    if is_system(run):
        system = read_system(run)
        out.mkdir(parents=True, exist_ok=True)
        # what was trained first is in the stages
        write_system(out, System(system=system.system, stages=system.stages))
        for name in system.stages:
            store(stage_of(run, name), stage_of(out, name))
        return
    model = sfumato.load(run)
    out.mkdir(parents=True, exist_ok=True)
    # where pictures and other runs were means nothing elsewhere
    source = model.config.data.source if model.config.data.source in SOURCES else "photos"
    own: dict[str, object] = {"data.source": source, "training.init_from": None, "training.freeze": ()}
    if source != "digits":
        own["data.holdout"] = 0.1
    write_config(out, model.config.override(own), model.info)
    tensors, meta = read_tensors(run / "model.safetensors")
    half = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
    path = out / "model.safetensors"
    write_tensors(path, half, meta)
    count = sum(parameter.numel() for parameter in model.module.parameters())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path}: {count:,} parameters, {path.stat().st_size / 1e6:.2f} MB, sha256 {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pictures", "store"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    (pictures if options.what == "pictures" else store)(options.source, options.out)


if __name__ == "__main__":
    main()
