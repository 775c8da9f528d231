"""What a network of a configuration is told beside the noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sfumato.config.base import Component
from sfumato.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Slots(Component):
    """What a network can be told beside the noise level."""

    labels_in: Literal["vector", "tokens"] = Field(
        default="vector", description="Whether a label is a vector beside that of time, or a token of the slot tokens."
    )
    tokens: int | None = Field(
        default=None, ge=1, description="Features of a token of a condition, which is attended to (default: none)."
    )
    concatenated: int = Field(
        default=0, ge=0, description="Channels of a condition that are concatenated to those of the input."
    )

    def require_told(self, labels: bool) -> None:
        """Check that data with ``labels``, or without, fill the slots there are.

        Raises:
            InputError: if a slot would always be empty.
        """
        if self.labels_in == "tokens" and not labels:
            raise InputError("model.network.labels_in is tokens, but the data are without labels; set data.labels.")
        if self.concatenated or (self.tokens is not None and self.labels_in != "tokens"):
            slot = "concatenated" if self.concatenated else "tokens"
            raise InputError(
                f"model.network.{slot} is a slot for a condition that images and labels do not fill; leave it out, put "
                "labels in tokens (model.network.labels_in), or train in Python with denoising_loss, which takes "
                "conditions by name."
            )


def conditioned(
    network: nn.Module,
    classes: int,
    labels_in: Literal["vector", "tokens"],
    width: int,
    tokens: int | None = None,
    concatenated: int = 0,
) -> nn.Module:
    """The network with the encoder of its labels, if there are classes, before its other slots.

    Args:
        network: the network.
        classes: how many classes its labels have, 0 for none.
        labels_in: the slot of the labels.
        width: that of the slot ``vector``.
        tokens: features of a token of the slot ``tokens``, if it has that slot.
        concatenated: channels of the slot ``channels``.

    Raises:
        InputError: if labels are to be tokens of a network that has no slot for tokens.
    """
    from sfumato.conditioning.encoders import Conditioned, LabelEncoder

    if labels_in == "tokens" and tokens is None:
        raise InputError("model.network.labels_in is tokens; say how many features one has, model.network.tokens.")
    slots = (("tokens", "mask") if tokens is not None else ()) + (("channels",) if concatenated else ())
    if classes == 0:
        return Conditioned(network, {}, slots) if slots else network
    encoder = LabelEncoder(classes, tokens or width, "tokens") if labels_in == "tokens" else None
    return Conditioned(network, {"label": encoder or LabelEncoder(classes, width)}, slots)
