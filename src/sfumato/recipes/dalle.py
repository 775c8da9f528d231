"""The networks of DALL-E 2 at their published sizes."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.recipes.settings import Published, resolutions


def unclip_prior(length: int, width: int, depth: int, heads: int, features: int) -> Published:
    """The diffusion prior of DALL-E 2 (Ramesh et al. 2022, sec. 2.2 and app. C), from captions to embeddings of images.

    The paper does not say what encodes its text; here tokens have the ``features`` of those of its CLIP. It drops all
    text together; here the tokens and the embedding of a caption are each dropped at the same rate. It scales
    embeddings by 17.2; here vectors come standardized, within [-1, 1]. It samples with the analytic variance, which is
    estimated after a training (``sfumato tune``), so that samples have the small one until that is asked for; and takes
    the better of two samples, for which a model must know its contrastive model (``sampling.candidates``). Adam's
    epsilon is 1e-6 there, and that of torch here.
    """
    network = {"kind": "prior", "width": width, "depth": depth, "heads": heads}
    model = {"schedule": {"kind": "cosine"}, "parameterization": {"kind": "x0"}, "network": network}
    others = {
        "text": {"kind": "tokens", "mask_column": "mask", "drop": 0.1, "pooling": "none"},
        "caption_embedding": {"kind": "embedding", "column": "caption_embedding", "drop": 0.1, "extra_tokens": 1},
    }
    sampling = {"sampler": {"kind": "ancestral"}, "steps": 64}
    return Published(model, (length,), 0, sampling, others=others, features=features, embedding=length)


def unclip_decoder(
    width: int, multiples: Sequence[int], blocks: int, size: int, dropout: float, features: int, embedding: int
) -> Published:
    """The decoder of DALL-E 2 (sec. 2.1 and app. C), the network of GLIDE (Nichol et al. 2021, sec. 4.1).

    Its embedding of the image is added to that of time, and four further tokens of the text. GLIDE trains a transformer
    of text with it, of width 2048 and 24 blocks; here tokens are those of an encoder that is given, as wide, and pooled
    by attention where GLIDE takes the last one. The guidance is that of the best FID (table 2 there).
    """
    network = {
        "kind": "unet",
        "channels": tuple(width * multiple for multiple in multiples),
        "blocks": blocks,
        "attention": resolutions((32, 16, 8), size, len(multiples)),
        "resample": "block",
        "head_channels": 64,
        "dropout": dropout,
        "cross": "joined",
    }
    model = {
        "schedule": {"kind": "cosine"},
        "parameterization": {"kind": "eps"},
        "network": network,
        "learned_variance": True,
    }
    others = {
        "text": {"kind": "tokens", "mask_column": "mask", "drop": 0.5},
        "image_embedding": {"kind": "embedding", "column": "image_embedding", "drop": 0.1, "extra_tokens": 4},
    }
    sampling = {"sampler": {"kind": "ancestral", "variance": "learned"}, "steps": 250, "guidance": {"scale": 1.25}}
    return Published(model, (3, size, size), 0, sampling, others=others, features=features, embedding=embedding)


def unclip_up(
    width: int,
    multiples: Sequence[int],
    blocks: int,
    low: int,
    size: int,
    schedule: str,
    steps: int,
    dropout: float = 0.0,
    blur: float = 0.0,
) -> Published:
    """An up-sampler of DALL-E 2 (sec. 2.1 and app. C), from a side ``low`` to ``size``.

    The network is that of ADM without attention. It is trained on random crops of a quarter of the side. How images are
    scaled is not printed, and is as in ADM. The blur of the first one has a standard deviation of 0.6 pixels and a
    kernel of 3 there; here it is uniform up to that, and its kernel is of 5 at most. The second one is trained there
    with the degradations of BSR (Rombach et al. 2022), which are not built here: its low resolution is clean.
    """
    network = {
        "kind": "unet",
        "channels": tuple(width * multiple for multiple in multiples),
        "blocks": blocks,
        "middle_attention": False,
        "resample": "block",
        "dropout": dropout,
    }
    model = {"schedule": {"kind": schedule}, "parameterization": {"kind": "eps"}, "network": network}
    sampling = {"sampler": {"kind": "ddim"}, "steps": steps}
    # as of ADM's up-samplers
    low_resolution = {"kind": "low_resolution", "factor": size // low, "down": "area", "up": "bilinear", "blur": blur}
    return Published(model, (3, size, size), 0, sampling, others={"low_resolution": low_resolution}, crop=size // 4)
