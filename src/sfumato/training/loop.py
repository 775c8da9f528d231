"""The trainer: a generator that yields one record per optimizer step, for any loss."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data import Dataset, Loader
from sfumato.diffusion.denoiser import Denoiser
from sfumato.diffusion.level import broadcast
from sfumato.errors import InputError, Terminated
from sfumato.random import Draws, fold
from sfumato.training.ema import Ema, EmaDecay, power_law
from sfumato.training.losses import Denoising
from sfumato.training.optimization import LearningRate, adamw, learning_rate_schedule


class Diverged(RuntimeError):
    """The loss or its gradient is not finite, or exploded; the weights are those before the step."""

    saved = "nothing was saved"  # what is left of the run, in words


@dataclass(frozen=True, slots=True)
class Record:
    """What happened in one optimizer step."""

    step: int  # from 1
    images: int  # seen so far
    loss: float  # the mean of the batch
    grad_norm: float  # before clipping
    learning_rate: float
    ema_decay: float  # of the average of the weights
    seconds: float  # of wall time


class Trainer:
    """The state of a training run, and the generator that moves it on.

    Every random number is a function of the seed and of the global index of a sample, so that neither the accumulation
    nor the number of processes nor an interruption changes what is trained on.

    Args:
        loss: a loss (see :mod:`sfumato.training.losses`), or a denoiser, which is trained by :class:`Denoising`.
        data: a Loader, or what :meth:`sfumato.data.Dataset.of` takes.
        optimizer: the optimizer of the trained module, whose learning rate is set at each step; AdamW by default.
        learning_rate: the learning rate, or its schedule; by default 2e-4 after a warm-up of 500 steps.
        ema: the decay of the average of the weights as a function of the step; by default a power law.
        batch_size: samples per optimizer step, over all processes.
        accumulate: parts in which a process computes its share of a batch.
        clip: the largest norm of the gradient; None to leave it.
        bf16: whether the loss is computed in bfloat16 (autocast).
        seed: the seed of all random numbers.
        accelerator: the engine: device, processes, gradient synchronization.

    Attributes:
        loss: the loss.
        model: the trained module, whose weights are averaged and saved.
        stop: set it in any process to end the loop of all after the same step.
        stopping: whether it has ended so.
    """

    def __init__(
        self,
        loss: nn.Module,
        data: Any,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        learning_rate: LearningRate | float | None = None,
        ema: EmaDecay | None = None,
        batch_size: int = 64,
        accumulate: int = 1,
        clip: float | None = 1.0,
        bf16: bool = False,
        seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        if not isinstance(loss, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"A trainer trains a loss or a denoiser, a torch module; got a {type(loss).__name__}.")
        self.accelerator = accelerator or Accelerator()
        parts = accumulate * self.accelerator.num_processes
        if batch_size < 1 or accumulate < 1 or batch_size % parts:
            cut = f"{accumulate} parts on {self.accelerator.num_processes} processes"
            raise InputError(f"A batch of {batch_size} does not divide into {cut}; take a multiple of {parts}.")
        self.loss = (Denoising(loss) if isinstance(loss, Denoiser) else loss).to(self.accelerator.device)
        self.loader = data if isinstance(data, Loader) else Loader(Dataset.of(data), seed)
        self.model: nn.Module = getattr(self.loss, "model", self.loss)
        self.optimizer = adamw(self.model) if optimizer is None else optimizer
        if learning_rate is None:
            learning_rate = learning_rate_schedule(2e-4, warmup=500)
        self.learning_rate = learning_rate if callable(learning_rate) else learning_rate_schedule(learning_rate)
        self.batch_size, self.accumulate, self.clip, self.seed = batch_size, accumulate, clip, seed
        self.bf16 = bf16
        self.step = 0
        self.stop = self.stopping = False
        self.ema = Ema(self.model, power_law() if ema is None else ema)
        self._adaptive = bool(getattr(self.loss, "adaptive", False))
        self._prepared = self.accelerator.prepare_model(self.loss)
        self._usual_loss = math.nan

    def run(self, steps: int) -> Iterator[Record]:
        """Train until ``steps`` optimizer steps are done, a record each; :class:`Diverged` if the loss explodes."""
        self._prepared.train()
        while self.step < steps and not self.stopping:
            began = time.perf_counter()
            device = self.accelerator.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
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
        device, losses_seen = self.accelerator.device, list[Tensor]()
        share = self.batch_size // (self.accumulate * self.accelerator.num_processes)
        # the wish to stop travels with the loss, so that all processes end after the same step
        total = torch.tensor([0.0, float(self.stop)], device=device)
        for part in range(self.accumulate):
            place = part * self.accelerator.num_processes + self.accelerator.process_index
            start = self.step * self.batch_size + place * share
            last = part == self.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self._prepared):
                batch, draws = self.loader.batch(start, share).to(device), self._draws(start, share)
                # of torch's own generator, for layers of others such as nn.Dropout
                torch.manual_seed(fold(self.seed, "torch", start))
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    losses: Tensor = self._prepared(batch, draws)
                if losses.shape != (share,):
                    raise InputError(f"A loss gives one number per sample, ({share},); got {tuple(losses.shape)}.")
                if self._adaptive:
                    losses_seen.append(losses.detach())
                    importance: Tensor = self.loss.importance(draws)  # pyright: ignore[reportCallIssue]
                    losses = losses * broadcast(importance, losses)
                loss = losses.mean() / self.accumulate
                self.accelerator.backward(loss)
            total[0] += loss.detach()
        limit = math.inf if self.clip is None else self.clip
        length = nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
        shared = self.accelerator.reduce(total, reduction="mean")
        assert isinstance(shared, Tensor)
        # all numbers of a step at once: on a GPU, each reading waits for everything before it
        mean, stop, norm = torch.cat([shared, length.reshape(1)]).tolist()
        self.stopping = stop > 0.0
        gathered = self._gathered(losses_seen) if self._adaptive else None
        # a rare level with a large importance is no divergence
        self._judge(mean if gathered is None else min(mean, float(gathered.mean())))
        if not math.isfinite(norm):
            raise Diverged(f"The gradient is {norm} at step {self.step + 1} (loss {mean:.4g}).")
        self.optimizer.step()
        if gathered is not None:
            whole = self._draws(self.step * self.batch_size, self.batch_size)
            self.loss.observe(whole, gathered)  # pyright: ignore[reportCallIssue]
        return mean, norm, rate

    def _draws(self, start: int, count: int) -> Draws:
        return Draws(self.seed, start, count, self.batch_size, self.accelerator.device)

    def _gathered(self, parts: list[Tensor]) -> Float[Tensor, "batch"]:
        """The numbers per sample of the whole batch, in the order of the samples, from the parts of each process."""
        gathered = self.accelerator.gather(torch.stack(parts)[None])
        assert isinstance(gathered, Tensor)
        # process, part, sample: the processes share each part
        return gathered.transpose(0, 1).flatten()

    def _judge(self, loss: float) -> None:
        usual = self._usual_loss
        if not math.isfinite(loss) or (loss > 1e3 * max(usual, 1e-3) and self.step > 20):
            raise Diverged(f"The loss is {loss:.4g} at step {self.step + 1}; it was about {usual:.4g} before.")
        self._usual_loss = loss if math.isnan(usual) else usual + 0.05 * (loss - usual)

    def _extra(self) -> dict[str, Tensor]:
        """Buffers and extra state of the loss: all that is no weight of the model."""
        weights = {id(p) for p in self.model.parameters()}
        extra: dict[str, Tensor] = {}
        for name, value in self.loss.state_dict(keep_vars=True).items():
            if isinstance(value, dict):
                extra |= {f"{name}/{key}": tensor for key, tensor in value.items()}  # pyright: ignore[reportUnknownVariableType]
            elif id(value) not in weights:
                extra[name] = value
        return extra

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that resuming needs: tensors, and facts for JSON."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weights/{name}"] = parameter
            tensors[f"ema/{name}"] = self.ema.average[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        tensors |= {f"loss/{name}": tensor for name, tensor in self._extra().items()}
        return tensors, {"step": self.step, "usual_loss": self._usual_loss, "tensors": len(tensors)}

    def check(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """An error if this is not the whole state of a training like this one; nothing is touched."""
        expected = self._expected()
        for name, tensor in tensors.items():
            of = expected.get(name)
            if of is None:
                if name.startswith("loss/"):
                    raise InputError(
                        f"The checkpoint is of another loss, objective.times or objective.balance, which has {name!r}."
                    )
                raise InputError(f"The checkpoint is of another model or optimizer, which has {name!r}.")
            if (tensor.shape, tensor.dtype) != (of.shape, of.dtype):
                held = f"is {tensor.dtype} of shape {tuple(tensor.shape)}; expected {of.dtype} of {tuple(of.shape)}"
                raise InputError(f"The checkpoint is of another model, optimizer or loss: {name!r} {held}.")
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise InputError(f"The checkpoint is damaged: {name!r} is not finite.")
        # a weight that never had a gradient has no optimizer state
        if absent := sorted(name for name in expected.keys() - tensors.keys() if not name.startswith("optimizer/")):
            what = "loss or objective.times" if absent[0].startswith("loss/") else "model"
            raise InputError(f"The checkpoint is of another {what}: it has no {absent[0]!r}.")
        step, count = facts.get("step"), facts.get("tensors")
        usual = facts.get("usual_loss")  # NaN before the first step
        known = isinstance(usual, float) and (math.isfinite(usual) or step == 0)
        if type(step) is not int or step < 0 or not known or count != len(tensors):
            raise InputError(f"The checkpoint is not whole: it has {len(tensors)} tensors and the facts {dict(facts)}.")

    def _expected(self) -> dict[str, Tensor]:
        """The tensors of :meth:`state` with their shapes and types, also before the first step."""
        expected = self.state()[0]
        for name, fields in _moments(self.optimizer, dict(self.model.named_parameters())).items():
            expected |= {f"optimizer/{field}/{name}": torch.as_tensor(value) for field, value in fields.items()}
        return expected

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take up the state that :meth:`state` gave, after it was checked."""
        self.check(tensors, facts)
        parameters = dict(self.model.named_parameters())
        weights, moments, extra, average = (
            {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            for part in ("weights/", "optimizer/", "loss/", "ema/")
        )
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        for key, value in moments.items():
            field, name = key.split("/", 1)
            self.optimizer.state[parameters[name]][field] = _as_beside(parameters[name], value)
        nested: dict[str, Any] = {name: value for name, value in extra.items() if "/" not in name}
        for name in extra.keys() - nested.keys():
            place, _, key = name.rpartition("/")
            nested.setdefault(place, {})[key] = extra[name]
        self.loss.load_state_dict(nested, strict=False)
        self.ema.load(average)
        self.step, self._usual_loss = int(facts["step"]), float(facts["usual_loss"])


def _moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """The state that an optimizer keeps of each parameter: it is asked, by a step of a copy on gradients of zero."""
    copies = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    place = {id(parameter): copies[name] for name, parameter in parameters.items()}
    groups = [
        {**group, "params": [place[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    other = copy.copy(optimizer)
    other.param_groups, other.state = groups, defaultdict(dict)
    for parameter in copies.values():
        parameter.grad = torch.zeros_like(parameter)
    other.step()
    return {name: dict(other.state.get(parameter, {})) for name, parameter in copies.items()}


def _as_beside(parameter: Tensor, value: Tensor) -> Tensor:
    """A stored optimizer state in the memory layout of its weights: fused kernels walk both side by side."""
    if value.shape != parameter.shape:
        # such as the number of steps
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals that ask a process to end; Windows has no SIGHUP."""


@contextmanager
def stopping_on_signals(trainer: Trainer) -> Generator[list[int]]:
    """Within the context, a signal to end asks the trainer to stop after the step; a second one stops at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def ask(number: int, frame: object) -> None:
        if received:
            raise Terminated(number)
        received.append(number)
        trainer.stop = True

    # a signal that is ignored, as SIGHUP is under nohup, stays so
    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
