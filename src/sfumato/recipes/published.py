"""Published models by name: their networks, how their authors trained and sample them, and their sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.errors import InputError, nearest
from sfumato.recipes.dalle import unclip_decoder, unclip_prior, unclip_up
from sfumato.recipes.openai import CLASSIFIERS, GUIDED, UPSAMPLERS, guided, upsampler
from sfumato.recipes.settings import PUBLISHED, Published, Settings, resolutions, settings_of, with_defaults


def sinusoid_period(features: int) -> float:
    """The period with which the last of the frequencies is 1 / 10,000, not the one after the last."""
    half = features // 2
    return 10_000.0 ** (half / (half - 1))


def ddpm(channels: Sequence[int], attention: int, size: int, dropout: float) -> Published:
    """The network of DDPM (Ho et al. 2020, app. B)."""
    network = {
        "kind": "unet",
        "channels": tuple(channels),
        "attention": (attention,),
        "resample": "asymmetric",
        "heads": 1,
        "eps": 1e-6,
        "time_period": sinusoid_period(channels[0]),
        "modulation": "additive",
        "dropout": dropout,
        "initialization": "xavier",
    }
    model = {"schedule": {"kind": "linear"}, "parameterization": {"kind": "eps"}, "network": network}
    sampling = {"sampler": {"kind": "ancestral", "variance": "large"}, "steps": 1000}
    return Published(model, (3, size, size), 0, sampling)


# fmt: off
EDM_DEFAULTS: dict[str, Any] = {
    "class_name": "SongUNet", "img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 0,
    "augment_dim": 0, "model_channels": 128, "channel_mult": (2, 2, 2), "channel_mult_emb": 4, "channel_mult_noise": 1,
    "num_blocks": 4, "attn_resolutions": (16,), "dropout": 0.1, "label_dropout": 0.0, "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": (1, 1), "sigma_data": 0.5,
}
# fmt: on
"""The defaults of the settings of EDM's networks."""


def edm(settings: Settings) -> Published:
    """A model by the settings of EDM's ``SongUNet`` (DDPM++ and NCSN++) or ``DhariwalUNet`` (ADM)."""
    name = settings.get("class_name", "SongUNet")
    if name not in ("SongUNet", "DhariwalUNet"):
        raise InputError(f"EDM's class {name!r} is not known here; SongUNet and DhariwalUNet can be loaded.")
    given = with_defaults(settings, EDM_DEFAULTS, name)
    song = name == "SongUNet"
    for key, values in (
        ("embedding_type", ("positional", "fourier") if song else ("positional",)),
        ("encoder_type", ("standard", "residual") if song else ("standard",)),
        ("decoder_type", ("standard",)),
        ("out_channels", (given["in_channels"],)),
        ("augment_dim", (0, 9)),
    ):
        if given[key] not in values:
            raise InputError(
                f"A {name} whose {key} is {given[key]!r} has no equivalent here; "
                f"{' or '.join(map(repr, values))} can be loaded."
            )
    width, size = given["model_channels"], given["img_resolution"]
    channels = tuple(int(multiple * width) for multiple in given["channel_mult"])
    network: dict[str, Any] = {
        "kind": "unet",
        "channels": channels,
        "blocks": given["num_blocks"],
        "attention": resolutions(given["attn_resolutions"], size, len(channels)),
        "embedding": width * given["channel_mult_emb"],
        "dropout": given["dropout"],
        "group_channels": 4,
    }
    if song:
        features, fourier = width * given["channel_mult_noise"], given["embedding_type"] == "fourier"
        network |= {
            "first": width,
            "up_attention": "last",
            "resample": "projected",
            "taps": tuple(map(float, given["resample_filter"])),
            "residual_input": given["encoder_type"] == "residual",
            "rescale": True,
            "heads": 1,
            "eps": 1e-6,
            "time_features": features,
            "time_kind": "fourier" if fourier else "sinusoidal",
            "time_scale": 16.0 * 2.0 * math.pi if fourier else 1.0,
            "time_period": sinusoid_period(features),
            "vector_in": "features",
            "modulation": "additive",
            "initialization": "xavier",
        }
    else:
        network |= {"resample": "block", "head_channels": 64, "time_features": width, "modulation": "adaptive"}
    parameterization = {"kind": "edm", "sigma_data": given["sigma_data"]}
    model = {"schedule": {"kind": "edm"}, "parameterization": parameterization, "network": network}
    sampling = {"sampler": {"kind": "heun"}, "grid": {"kind": "karras"}, "steps": 18 if size <= 32 else 40}
    # the larger probability is that of faces and animals (app. F.2)
    augmentation = {"kind": "augmentation", "probability": 0.12 if size <= 32 else 0.15}
    others = {"augmentation": augmentation} if song and given["augment_dim"] else {}
    return Published(model, (given["in_channels"], size, size), given["label_dim"], sampling, others=others)


def dit(preset: str) -> Published:
    """A transformer of Peebles and Xie 2023 on the latents of ImageNet at 256x256; their autoencoder is not part of it.

    The variance is learned (sec. 4 there), and samples take 250 steps.
    """
    model = {
        "schedule": {"kind": "linear"},
        "parameterization": {"kind": "eps"},
        "network": {"kind": "dit", "preset": preset},
        "learned_variance": True,
    }
    sampling = {"sampler": {"kind": "ancestral", "variance": "learned"}, "steps": 250, "clip": False}
    return Published(model, (4, 32, 32), 1000, sampling, drop=0.1)


def sr3(width: int, multiples: Sequence[int], blocks: int, low: int, size: int, dropout: float = 0.0) -> Published:
    """A super-resolution network of Saharia et al. 2021 (app. A), from a side ``low`` to ``size``.

    The paper gives widths, blocks and the number of parameters, to which this network comes within 3 %: with residual
    blocks that change the resolution, as in BigGAN, and attention at a side of 16, as in DDPM. It has 2000 steps, but
    prints no betas; these are those of public re-implementations, from 1e-6 to 0.01. Samples take 100 steps, the most
    that the paper takes, but evenly spread, where its levels were searched for. The error of the noise is squared, not
    absolute, and the low resolution is not blurred in training, which gave the paper an FID of 11.3 in place of 13.1.
    """
    network = {
        "kind": "unet",
        "channels": tuple(width * multiple for multiple in multiples),
        "blocks": blocks,
        "attention": resolutions((16,), size, len(multiples)),
        "resample": "block",
        "heads": 1,
        "modulation": "additive",
        "dropout": dropout,
        "group_channels": 4,
    }
    # the schedule states its betas for 1000 steps
    schedule = {"kind": "linear", "steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}
    model = {"schedule": schedule, "parameterization": {"kind": "eps"}, "network": network}
    sampling = {"sampler": {"kind": "ancestral", "variance": "large"}, "steps": 100, "clip": True}
    others = {"low_resolution": {"kind": "low_resolution", "factor": size // low}}
    return Published(model, (3, size, size), 0, sampling, others=others)


def imagen(
    width: int, multiples: Sequence[int], blocks: int | Sequence[int], size: int, low: int = 0, crops: int = 0
) -> Published:
    """A stage of Imagen (Saharia et al. 2022, app. B and F): the base model, or an up-sampler from a side ``low``.

    Its text is the tokens of the encoder of T5-XXL, 4096 features each. They are keys and values of self-attention; the
    last stage, trained on ``crops`` of this side, has them in its place. The paper prints no number of sampling steps
    per stage; samples take 250 here. The base is trained by Adafactor there, and by AdamW here.
    """
    channels = tuple(width * multiple for multiple in multiples)
    network: dict[str, Any] = {"kind": "unet", "channels": channels, "cross": "only" if crops else "joined"}
    if low:
        network |= {
            "blocks": tuple(blocks) if not isinstance(blocks, int) else blocks,
            "attention": (len(channels) - 1,),
            "down_attention": "last",
            "up_attention": "last",
            "middle": 0,
            "order": "resampling",
            "skips": "blocks",
            "skip_scale": math.sqrt(0.5),
            "heads": 8,
        }
    else:
        attention = resolutions((32, 16, 8), size, len(channels))
        network |= {"blocks": blocks, "attention": attention, "resample": "block", "head_channels": 64}
    schedule = {"kind": "linear" if crops else "cosine"}
    model = {"schedule": schedule, "parameterization": {"kind": "eps"}, "network": network}
    # the best FID; the level is of the range that looks best (sec. 4.4 and app. A)
    guidance = {"scale": 8.0 if low else 1.35, "threshold": 0.995}
    sampling = {"sampler": {"kind": "ancestral"}, "steps": 250, "guidance": guidance}
    others: dict[str, dict[str, Any]] = {"text": {"kind": "tokens", "mask_column": "mask", "drop": 0.1}}
    if low:
        others["low_resolution"] = {"kind": "low_resolution", "factor": size // low, "noise": 1.0, "level": 0.2}
    return Published(model, (3, size, size), 0, sampling, others=others, features=4096)


EDM: dict[str, Settings] = settings_of("edm")
"""The settings of the published networks of Karras et al. 2022."""

PRESETS: dict[str, Published] = {
    **{name: ddpm(**settings) for name, settings in settings_of("ddpm").items()},
    **{name: guided(flags) for name, flags in GUIDED.items()},
    **{name: upsampler(flags) for name, flags in UPSAMPLERS.items()},
    **{name: edm(settings) for name, settings in EDM.items()},
    **{name: sr3(**settings) for name, settings in settings_of("sr3").items()},
    **{name: imagen(**settings) for name, settings in settings_of("imagen").items()},
    **{name: unclip_prior(**settings) for name, settings in settings_of("unclip_prior").items()},
    **{name: unclip_decoder(**settings) for name, settings in settings_of("unclip_decoder").items()},
    **{name: unclip_up(**settings) for name, settings in settings_of("unclip_up").items()},
    **{name: dit(**settings) for name, settings in settings_of("dit").items()},
}
"""Published models by name."""


@dataclass(frozen=True)
class Training:
    """The size of a published model, and how it was trained.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of one call for one sample.
        steps: optimizer steps.
        batch: images, or vectors, per step.
        learning_rate: its peak.
        flip: whether half of the images are mirrored.
        warmup: steps of linear warm-up.
        decay: what follows it.
        weight_decay: that of AdamW.
        beta2: the decay of its second moment.
        clip: largest norm of the gradient.
        half_life: half-life of the average of the weights, in images; None for a constant decay of 0.9999.
    """

    parameters: int
    macs: int
    steps: int
    batch: int
    learning_rate: float
    flip: bool = True
    warmup: int = 0
    decay: str = "constant"
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float | None = None
    half_life: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Groups of the configuration: the optimizer, the average of the weights and the length of the training."""
        optimizer = {
            "method": {"kind": "adamw", "betas": (0.9, self.beta2), "weight_decay": self.weight_decay},
            "learning_rate": self.learning_rate,
            "warmup": self.warmup,
            "decay": self.decay,
            "clip": self.clip,
        }
        return {
            "optimizer": optimizer,
            "ema": self.ema,
            "training": {"steps": self.steps, "batch_size": self.batch},
        }

    @property
    def ema(self) -> dict[str, float]:
        """The average of the weights.

        EDM's half-life is at most a twentieth of the images so far, 0.5^(20 / k) at step k: a power law.
        """
        if self.half_life is None:
            return {"gamma": 0.0, "limit": 0.9999}
        return {"gamma": 20.0 * math.log(2.0) - 1.0, "limit": 0.5 ** (self.batch / self.half_life)}


TRAINED = {name: Training(**entry["size"], **entry["training"]) for name, entry in PUBLISHED.items()}
"""The size of the published models and classifiers, and how they were trained, by name."""


def preset(name: str) -> dict[str, Any]:
    """The whole configuration of a published model, for data of any size and channels that its network takes.

    Resolutions keep their number and widths, and attention its resolutions counted from the finest, at any size.
    A conditional model and a classifier need data with labels; an up-sampler makes its low resolution of the images; a
    prior takes vectors, of an array file.
    EDM's loss in half precision, the random crops of ADM's classifiers (which see data of unit variance here) and the
    distribution of a batch over devices are not part of it.

    ::

        config = sfumato.recipes.preset("ddpm-cifar10")
    """
    if name not in TRAINED:
        raise InputError(f"There is no published model {name!r}{nearest(name, TRAINED)}")
    trained = TRAINED[name]
    objective: dict[str, Any] = {"weight": {"kind": "simple"}, "times": {"kind": "uniform"}}
    if name in CLASSIFIERS:
        network = {"kind": "classifier", **CLASSIFIERS[name].network}
        return {
            "data": {"flip": trained.flip},
            "model": {"schedule": {"kind": "linear"}, "network": network},
            "objective": {"kind": "classification", "times": objective["times"]},
            **trained.settings,
            # the last weights, not their average
            "ema": {"gamma": 0.0, "limit": 0.0},
        }
    published = copy.deepcopy(PRESETS[name])
    if name in EDM:
        times = {"kind": "log_normal", "mean": -1.2, "std": 1.2}
        objective = {"weight": {"kind": "edm", "sigma_data": 0.5}, "times": times}
    if published.model["parameterization"]["kind"] == "x0":
        # the squared error of what is predicted
        objective["weight"] = {"kind": "output"}
    crop = {"random_crop": published.crop} if published.crop else {}
    vectors = {"layout": "NC"} if len(published.shape) == 1 else {}
    return {
        "data": {"flip": trained.flip, **crop, **vectors},
        "conditions": published.conditions,
        "model": published.model,
        "objective": objective | {"stratified": False},
        **trained.settings,
        "sampling": published.sampling,
    }
