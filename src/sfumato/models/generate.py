"""Text to image: pictures of prompts, each of which depends on its prompt, the seed and its index alone."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.conditioning.base import Condition, keys_of
from sfumato.conditioning.low_resolution import LowResolution
from sfumato.conditioning.text import Text
from sfumato.errors import InputError, SfumatoWarning, check_arguments, shown
from sfumato.io.progress import Progress, progress_bar
from sfumato.models.batch import SamplingBatch, collected, cut, repeated


@dataclass(frozen=True)
class Part:
    """Pictures that are computed together: those of indices ``first ... first + count - 1`` of each of the prompts."""

    prompts: tuple[str, ...]
    first: int
    count: int

    def __len__(self) -> int:
        return len(self.prompts) * self.count


def laid_out(prompts: Sequence[str], count: int, first: int, size: int) -> list[Part]:
    """Which of ``count`` pictures of each of the prompts are computed together, at most ``size`` of them."""
    parts: list[Part] = []
    for start, number in cut(len(prompts) * count, size, count):
        begin, each = start // count, min(number, count)
        parts.append(Part(tuple(prompts[begin : begin + number // each]), first + start % count, each))
    return parts


def text_of(conditions: Mapping[str, Condition], run: Path | None = None) -> tuple[str, Text]:
    """The name of the condition of a model, in a ``run``, that is a caption, and the condition."""
    what = "This model" if run is None else str(run)
    found = [(name, c) for name, c in conditions.items() if isinstance(c, Text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{what} has several captions, {' and '.join(name for name, _ in found)}; sample it instead.")
    others = ", ".join(f"{name} ({c.summary})" for name, c in conditions.items()) or "none"
    raise InputError(
        f"{what} was not trained with captions, so that it can't be given prompts; its conditions: {others}. Sample it "
        f"with: sfumato sample {run or 'RUN'}, or train one with the captions of pictures: sfumato train FOLDER "
        "--condition text."
    )


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse what is no prompt, and say which come twice."""
    if not prompts:
        raise InputError('There is no prompt; give one at least, such as "a small red circle".')
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"A prompt is a text; number {number} is {shown(prompt)}.")
        if not prompt.strip():
            raise InputError(
                f"Prompt {number} of {len(prompts)} is empty, and an empty caption is none: name what the picture "
                "shows, or sample without a caption: sfumato sample RUN."
            )
    seen = set[str]()
    twice = next((p for p in prompts if p in seen or seen.add(p)), None)
    if twice is not None:
        sentence = f"The prompt {shown(twice)} comes twice, and its pictures are the same; --count gives several."
        warnings.warn(sentence, SfumatoWarning, stacklevel=4)


class TextToImage:
    """What a model does with prompts, if one of its conditions is a :class:`~sfumato.conditioning.Text`."""

    if TYPE_CHECKING:
        # of the model
        conditions: dict[str, Condition]
        supplied: Collection[str]
        run: Path | None

        def settings(self, options: Mapping[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]: ...
        def given(self, *args: Any, **options: Any) -> dict[str, Tensor]: ...
        def batches(self, count: int, **options: Any) -> Iterator[SamplingBatch]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        progress: Progress = None,
        **options: Any,
    ) -> Float[Tensor, "samples channels *space"]:
        """Generate pictures from prompts: ``count`` of each.

        Picture ``j`` of every prompt has the index ``first + j`` of the seed: prompts are compared from the same noise,
        and a picture is the same, to rounding, whatever other prompts stand beside it and for any batch size.

        ::

            painter = sfumato.load("runs/painter")
            images = painter.generate(["a red circle", "a blue square"], count=4, seed=0, guidance=3.0)

        Args:
            prompts: one, or several.
            count: number of pictures of each prompt.
            seed: the seed of their noise.
            first: the index, of the seed, of the first picture of each prompt.
            batch_size: pictures computed at once.
            progress: False for no progress bar, or a function that is called with the number of pictures done; by
                default a bar is shown in terminals and notebooks.
            options: the others of :meth:`sample`: ``steps``, ``solver``, ``grid``, ``guidance``, ``sampling``, ..., and
                other conditions by name, which are those of all prompts.

        Returns:
            float32 pictures in [-1, 1], on the CPU: ``count`` of the first prompt, then those of the next.
        """
        check_arguments(TextToImage.generate, locals())
        if not isinstance(prompts, str | Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"prompts is {shown(prompts)}; expected a text, or several.")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        more: dict[str, Any] = {"seed": seed, "first": first, "batch_size": batch_size, **options}
        done: list[Tensor] = []
        with progress_bar("generating", len(prompts) * count, progress) as advance:
            for _, images in self.generate_parts(prompts, count=count, **more):
                done.append(images)
                advance(sum(map(len, done)))
        return torch.cat(done)

    def generate_parts(
        self,
        prompts: Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[tuple[Part, Float[Tensor, "samples channels *space"]]]:
        """The pictures of :meth:`generate`, those that are computed together one part after the other.

        What can be wrong with a prompt is said before the first of them. For many prompts, whose pictures together
        would not fit into memory.
        """
        check_prompts(prompts)
        if count < 1:
            raise InputError(f"There is at least one picture of a prompt; count is {count}.")
        name, condition = text_of(self.conditions, self.run)
        sampling, _, _, others = self.settings(options)
        if name in others:
            raise InputError(f"The captions are given as prompts; leave {name} out.")
        for low, c in self.conditions.items():
            if isinstance(c, LowResolution) and not c.optional and low not in (*others, *self.supplied):
                raise InputError(
                    f"This model makes pictures {c.factor} times larger and needs one to begin with: give the system "
                    f"that it is a stage of, or a picture as {low}."
                )
        size: int = sampling.batch_size if batch_size is None else batch_size
        if size < 1:
            raise InputError(f"A batch has at least one picture; batch_size is {size}.")
        parts = laid_out(prompts, count, first, size)
        for start in range(0, len(prompts), size):
            some = list(prompts[start : start + size])
            condition.given(some, len(some))
        how = {key: value for key, value in options.items() if key not in others}
        guided = {"input_noise": sampling.input_noise, "guidance": sampling.guidance}
        for part in parts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SfumatoWarning)  # said above
                text = condition.given(list(part.prompts), len(part.prompts))
            text = {key: rows.repeat_interleave(part.count, 0) for key, rows in text.items()}
            of_one = {name: {key: rows[: part.count] for key, rows in text.items()}}
            rows = self.given({**others, **of_one}, seed, part.first, part.count, **guided)
            cond = {**self._for_each(rows, len(part.prompts)), name: text}
            asked = {"seed": seed, "first": part.first, "period": part.count, "batch_size": len(part)}
            batches = self.batches(len(part), **asked, **how, **cond)
            yield part, collected(batches, lambda batch: batch, len(part), False)

    def _for_each(self, rows: Mapping[str, Tensor], prompts: int) -> dict[str, Any]:
        """The conditions of the pictures of one prompt, as those of the pictures of several prompts."""
        rows = {key: repeated(tensor, prompts) for key, tensor in rows.items()}
        found: dict[str, Any] = {}
        for name, condition in self.conditions.items():
            keys = keys_of(name, condition)
            if keys.keys() <= rows.keys():
                found[name] = {part: rows.pop(key) for key, part in keys.items()}
        return {**rows, **found}
