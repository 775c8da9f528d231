"""Networks, which know nothing of diffusion.

Any ``torch.nn.Module`` can be one that is called as ``network(x, time, **slots)`` and returns a tensor of the batch
size and the spatial sides of ``x``:

- ``x``: the input, of shape ``(batch, channels, *space)``;
- ``time``: one number per sample that stands for the noise level, of shape ``(batch,)``;
- slots, each an optional keyword that the network has only if its ``forward`` names it, and that may be None:

  - ``vector`` ``(batch, width)``, added to the time embedding;
  - ``tokens`` ``(batch, any number, features)``, attended to; ``mask`` ``(batch, any number)``, False for those that
    are not to be seen;
  - ``channels`` ``(batch, concatenated, *space)``, concatenated to ``x``;
  - ``keys`` ``(batch,)``, one integer per sample that decides what dropout leaves out; without keys nothing is.

Three attributes say how large its slots are: ``width`` of the vector, ``tokens``, the features of a token (None for a
network without tokens), and ``concatenated``, the number of further channels. A method ``check(shape)``, if there is
one, raises ``InputError`` for a shape ``(channels, *space)`` that the network cannot take.
"""
