"""The training loop: a generator that yields one record per optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor, nn

from sfumato import random
from sfumato.conditioning.encoders import drop
from sfumato.data import Batch, Loader
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.importance import LossSecondMoment
from sfumato.diffusion.level import Level, broadcast
from sfumato.diffusion.objective import TimeLaw, Weight, training_loss
from sfumato.diffusion.weighting import OfDenoiser
from sfumato.errors import InputError
from sfumato.networks.dropout import Dropout
from sfumato.training.ema import Ema, EmaLaw
from sfumato.training.optimization import LearningRate


class Diverged(RuntimeError):
    """The loss or its gradient is not finite, or exploded; the weights are those before the step.

    Attributes:
        saved: what is left of the run, in words.
    """

    saved = "nothing was saved"


@dataclass(frozen=True, slots=True)
class Record:
    """What happened in one optimizer step.

    Attributes:
        step: the step, from 1.
        images: images seen so far.
        loss: the mean loss of the batch.
        grad_norm: the norm of the gradient before clipping.
        learning_rate: the learning rate of the step.
        ema_decay: the decay of the average of the weights.
        seconds: the wall time of the step.
    """

    step: int
    images: int
    loss: float
    grad_norm: float
    learning_rate: float
    ema_decay: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimized.

    Attributes:
        law: the law of the levels; one that adapts to the losses is replaced after each step.
        weight: the weighting of the squared error of the noise, or how to make it for the denoiser at hand.
        label_dropout: the fraction of samples whose condition is dropped.
        stratified: spread the levels of a batch evenly over their law (Kingma et al. 2021, app. I.1), instead of
            drawing them independently.
        bins: the number of values of the data, where a learned variance or schedule is taught by their likelihood.
    """

    law: TimeLaw | LossSecondMoment
    weight: Weight | OfDenoiser
    label_dropout: float = 0.0
    stratified: bool = True
    bins: int = 256

    def uniforms(self, seed: int, start: int, count: int, batch: int) -> Float64[Tensor, "count"]:
        """What the law maps to the levels of samples ``start ... start + count - 1``, in batches of ``batch``."""
        if not self.stratified:
            return random.uniform(seed, "time", start, count)
        index = torch.arange(start, start + count)
        steps = index.div(batch, rounding_mode="floor")
        first, last = int(steps[0]), int(steps[-1])
        shift = random.uniform(seed, "time", first, last - first + 1)[steps - first]
        return (shift + (index % batch) / batch) % 1.0

    def levels(self, seed: int, start: int, count: int, batch: int) -> Level:
        """The levels of these samples."""
        return self.law(self.uniforms(seed, start, count, batch))


class _Loss(nn.Module):
    """The loss as a module, so that data-parallel wrappers see a forward pass from tensors to a tensor."""

    def __init__(self, denoiser: Denoiser, weight: Weight | OfDenoiser, bins: int) -> None:
        super().__init__()
        self.denoiser, self.weight, self.bins = denoiser, weight, bins

    def forward(self, x0: Tensor, level: Level, noise: Tensor, cond: dict[str, Tensor]) -> Float[Tensor, "batch"]:
        return training_loss(self.denoiser, x0, level, noise, self.weight, bins=self.bins, **cond)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU computes on meanwhile, which only pinned memory allows."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _as_beside(parameter: Tensor, value: Tensor) -> Tensor:
    """A stored optimizer state as the optimizer would have made it: on the device, in the memory layout of its weights.

    The fused kernels walk the memory of weights and moments side by side, whatever their strides say.
    """
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Trainer:
    """The state of a training run, and the generator that moves it on.

    Every draw is a function of the seed and of the global index of a sample, so that neither the accumulation nor
    the number of processes nor an interruption changes what is trained on.

    Args:
        denoiser: what is trained.
        loader: the data.
        objective: what is minimized.
        optimizer: its learning rate is set at each step.
        learning_rate: the law of the learning rate.
        ema: the law of the average of the weights.
        batch_size: samples per optimizer step, over all processes.
        accumulate: parts in which a process computes its share of a batch.
        clip: the largest norm of the gradient; None to leave it.
        bf16: whether the network computes in bfloat16 (autocast).
        seed: the seed of every draw.
        accelerator: the engine: device, processes, gradient synchronization.
        sample_seconds: what a forward and backward pass took per sample, where that was measured; for those who tell.

    Raises:
        InputError: if the batch does not divide by the processes times the parts.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loader: Loader,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        learning_rate: LearningRate,
        ema: EmaLaw,
        *,
        batch_size: int,
        accumulate: int = 1,
        clip: float | None = 1.0,
        bf16: bool = False,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        sample_seconds: float | None = None,
    ) -> None:
        self.sample_seconds = sample_seconds
        self.accelerator = accelerator or Accelerator()
        parts = accumulate * self.accelerator.num_processes
        if batch_size < 1 or accumulate < 1 or batch_size % parts:
            raise InputError(
                f"A batch of {batch_size} does not divide into {accumulate} parts on "
                f"{self.accelerator.num_processes} processes; take a multiple of {parts}."
            )
        self.denoiser, self.loader, self.objective = denoiser, loader, objective
        self.optimizer, self.learning_rate = optimizer, learning_rate
        self.batch_size, self.accumulate, self.clip, self.seed = batch_size, accumulate, clip, seed
        self.autocast = bf16
        self.step = 0
        self.stop = False
        self.stopping = False
        self.model = self.accelerator.prepare_model(_Loss(denoiser, objective.weight, objective.bins))
        self.ema = Ema(denoiser, ema)
        self._usual_loss = math.nan
        self._dropout = any(isinstance(module, Dropout) for module in denoiser.modules())

    def run(self, steps: int) -> Iterator[Record]:
        """Train until ``steps`` optimizer steps are done; yields a record after each.

        Setting ``stop`` in any process ends the loop of all after the same step; ``stopping`` tells that it has.

        Raises:
            Diverged: if the loss explodes or is not finite; nothing of that step is applied.
        """
        self.model.train()
        while self.step < steps and not self.stopping:
            began = time.perf_counter()
            loss, grad_norm, rate = self._step()
            self.step += 1
            decay = self.ema.update(self.step)
            seconds = time.perf_counter() - began
            yield Record(self.step, self.step * self.batch_size, loss, grad_norm, rate, decay, seconds)

    def _step(self) -> tuple[float, float, float]:
        rate = self.learning_rate(self.step + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        share = self.batch_size // (self.accumulate * self.accelerator.num_processes)
        law, plain = self.objective.law, list[Tensor]()
        # the wish to stop travels with the loss, so that all processes end after the same step
        total = torch.tensor([0.0, float(self.stop)], device=self.accelerator.device)
        for part in range(self.accumulate):
            place = part * self.accelerator.num_processes + self.accelerator.process_index
            start = self.step * self.batch_size + place * share
            last = part == self.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self._loss(self.loader.batch(start, share))
                if isinstance(law, LossSecondMoment):
                    plain.append(losses.detach())
                    u = self.objective.uniforms(self.seed, start, share, self.batch_size)
                    losses = losses * broadcast(law.importance(u), losses)
                loss = losses.mean() / self.accumulate
                self.accelerator.backward(loss)
            total[0] += loss.detach()
        limit = math.inf if self.clip is None else self.clip
        length = nn.utils.clip_grad_norm_(self.denoiser.parameters(), limit, foreach=True)
        shared = self.accelerator.reduce(total, reduction="mean")
        assert isinstance(shared, Tensor)
        # all numbers of a step at once: on a GPU, each reading waits for everything before it
        mean, stop, norm = torch.cat([shared, length.reshape(1)]).tolist()
        self.stopping = stop > 0.0
        recorded = self._gathered(plain) if isinstance(law, LossSecondMoment) else None
        # a rare level with a large importance is no divergence
        self._judge(mean if recorded is None else min(mean, float(recorded.mean())), "loss")
        if not math.isfinite(norm):
            raise Diverged(f"The gradient is {norm} at step {self.step + 1} (loss {mean:.4g}).")
        self.optimizer.step()
        if isinstance(law, LossSecondMoment) and recorded is not None:
            u = self.objective.uniforms(self.seed, self.step * self.batch_size, self.batch_size, self.batch_size)
            self.objective = replace(self.objective, law=law.update(u, recorded))
        return mean, norm, rate

    def _gathered(self, parts: list[Tensor]) -> Float[Tensor, "batch"]:
        """The numbers per sample of the whole batch, in the order of the samples, from the parts of each process."""
        found = self.accelerator.gather(torch.stack(parts)[None])
        assert isinstance(found, Tensor)
        # process, part, sample: the processes share each part
        return found.transpose(0, 1).flatten()

    def _loss(self, batch: Batch) -> Float[Tensor, "batch"]:
        device, count, start = self.accelerator.device, len(batch.x0), batch.start
        x0 = _sent(batch.x0, device)
        noise = _sent(random.normal(self.seed, "noise", start, count, tuple(x0.shape[1:])), device)
        level = self.objective.levels(self.seed, start, count, self.batch_size)
        cond: dict[str, Tensor] = {}
        if batch.labels is not None:
            dropped = random.uniform(self.seed, "drop", start, count) < self.objective.label_dropout
            cond["label"] = _sent(drop(batch.labels, dropped), device)
        if self._dropout:
            words = random.uniform(self.seed, "dropout", start, count) * 2.0**31
            cond["keys"] = _sent(words.int(), device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.model(x0, level, noise, cond)

    def _judge(self, loss: float, name: str) -> None:
        usual = self._usual_loss
        if not math.isfinite(loss) or (loss > 1e3 * max(usual, 1e-3) and self.step > 20):
            raise Diverged(f"The {name} is {loss:.4g} at step {self.step + 1}; it was about {usual:.4g} before.")
        self._usual_loss = loss if math.isnan(usual) else usual + 0.05 * (loss - usual)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that resuming needs: tensors, and facts for JSON."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.denoiser.named_parameters():
            tensors[f"weights/{name}"] = parameter
            tensors[f"ema/{name}"] = self.ema.average[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        if isinstance(self.objective.law, LossSecondMoment):
            tensors |= {"times/losses": self.objective.law.losses, "times/seen": self.objective.law.seen}
        return tensors, {"step": self.step, "usual_loss": self._usual_loss}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take up the state that :meth:`state` gave.

        Raises:
            InputError: if it is that of another model.
        """
        names = {name for name, _ in self.denoiser.named_parameters()}
        stored = {name.removeprefix("weights/") for name in tensors if name.startswith("weights/")}
        if names != stored:
            odd = sorted(names ^ stored)
            raise InputError(f"The checkpoint is of another model: {len(odd)} weights differ, the first is {odd[0]!r}.")
        for name, parameter in self.denoiser.named_parameters():
            value = tensors[f"weights/{name}"]
            if value.shape != parameter.shape:
                raise InputError(
                    f"The checkpoint is of another model: {name} has shape {tuple(value.shape)} there and "
                    f"{tuple(parameter.shape)} here."
                )
            parameter.copy_(value)
            state = {
                key.split("/", 2)[1]: _as_beside(parameter, value)
                for key, value in tensors.items()
                if key.startswith("optimizer/") and key.split("/", 2)[2] == name
            }
            if state:
                self.optimizer.state[parameter] = state
        if isinstance(self.objective.law, LossSecondMoment):
            law = self.objective.law.restored(tensors.get("times/losses"), tensors.get("times/seen"))
            self.objective = replace(self.objective, law=law)
        self.ema.load({name: tensors[f"ema/{name}"] for name in names})
        self.step, self._usual_loss = int(facts["step"]), float(facts["usual_loss"])
