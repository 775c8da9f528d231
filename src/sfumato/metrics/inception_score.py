"""The inception score: how sure a classifier is of each sample, and how many classes the samples cover."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import InputError
from sfumato.metrics.estimate import Estimate
from sfumato.random import permutation

_LEAST = 10  # samples in a split


def inception_score(probabilities_or_logits: Float[Tensor, "n classes"], splits: int = 10, seed: int = 0) -> Estimate:
    r"""The inception score (Salimans et al., 2016) of a classifier's outputs ``(n, classes)``, in float64.

    .. math::
        \exp \left( \frac{1}{n} \sum_i \sum_y p(y \mid x_i) \ln \frac{p(y \mid x_i)}{p(y)} \right), \qquad
        p(y) = \frac{1}{n} \sum_i p(y \mid x_i)

    as the mean over ``splits`` of the shuffled samples, each with its own :math:`p(y)`. It lies between 1 and the
    number of classes, and is lower in smaller splits: compare it only at equal numbers of samples and splits. The error
    is the standard deviation over the splits, as in published tables; that of the mean is smaller.

    Args:
        probabilities_or_logits: probabilities if none is negative and every row sums to 1 (to 0.001), else logits.
        splits: how many; each must have at least 10 samples.
        seed: of the shuffling.
    """
    outputs = probabilities_or_logits.detach()
    outputs = (outputs.cpu() if outputs.device.type == "mps" else outputs).double()
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(f"the outputs must be (n, classes) with 2 classes or more, not {tuple(outputs.shape)}.")
    if splits < 1 or len(outputs) < _LEAST * splits:
        raise InputError(
            f"each split needs at least {_LEAST} samples, and {len(outputs)} samples are to be cut into {splits}"
            " splits; give more samples or fewer splits."
        )
    if not bool(torch.isfinite(outputs).all()):
        raise InputError("the outputs hold NaN or infinite values; the images they come from are broken.")
    if bool((outputs >= 0.0).all()) and bool(((outputs.sum(dim=1) - 1.0).abs() < 1e-3).all()):
        probabilities = outputs / outputs.sum(dim=1, keepdim=True)
    else:
        probabilities = outputs.softmax(dim=1)
    order = torch.from_numpy(permutation(seed, "inception score", 0, len(outputs))).to(outputs.device)
    cuts = [len(order) * split // splits for split in range(1, splits)]
    scores = torch.stack([_score(part) for part in probabilities[order].tensor_split(cuts)])
    method = f"standard deviation over {splits} splits"
    return Estimate(float(scores.mean()), float(scores.std(correction=0)) if splits > 1 else None, method)


def _score(probabilities: Tensor) -> Tensor:
    marginal = probabilities.mean(dim=0)
    entropies = torch.special.entr(probabilities).sum(dim=1)
    return (torch.special.entr(marginal).sum() - entropies.mean()).exp()
