"""How far pictures of shapes agree with the captions that they were drawn from, by an exact parser."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from sfumato.data.shapes import Agreement, Facts, Parsed, facts_of, parse
from sfumato.data.shapes import agreement as of_one
from sfumato.errors import InputError
from sfumato.metrics.estimate import Estimate, share, wilson
from sfumato.metrics.report import Row, row
from sfumato.random import permutation

WHOLE = "whole"
FACTS = ("count", "shape", "colour", "size", "relation")
"""The kinds of facts; a caption states one count, and each of the others once for each thing of which it says it."""

TITLE = "agreement"
"""The measure of whole captions in a report; that of a kind of facts has the name of the kind."""

_FEW = 32  # pictures that are parsed sooner than processes start
_CHUNK = 8  # pictures that a process is sent at once
_REASONS = 5


@dataclass(frozen=True)
class Share:
    """How many of how many hold."""

    right: int = 0
    asked: int = 0

    @property
    def value(self) -> float | None:
        """From 0 to 1; None if none was asked."""
        return self.right / self.asked if self.asked else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval of 95 %."""
        return wilson(self.right, self.asked) if self.asked else None

    @property
    def estimate(self) -> Estimate | None:
        """The value with its standard error."""
        return share(self.right, self.asked) if self.asked else None

    def __str__(self) -> str:
        if self.interval is None:
            return "none"
        low, high = (100.0 * bound for bound in self.interval)
        return f"{self.right}/{self.asked} = {100.0 * self.right / self.asked:.1f} % [{low:.1f}, {high:.1f}]"


Shares = Mapping[str, Share]
"""By kind of fact, and of whole captions as ``"whole"``; without the kinds that no caption states."""


@dataclass(frozen=True)
class AgreementReport:
    """How far pictures agree with their captions.

    Attributes:
        captions: how many there are.
        right: what holds. Nothing holds of a picture that the parser refuses.
        things: whole captions by the number of things that they name.
        refused: how many pictures were refused.
        refusals: for the most frequent reasons how many pictures, and of all others as ``"others"``.
        chance: the same pictures with the captions of others.
        ceiling: the real pictures of the captions; empty if there are none.
    """

    captions: int
    right: Shares
    things: Mapping[int, Share]
    refused: int
    refusals: Mapping[str, int]
    chance: Shares
    ceiling: Shares

    def __str__(self) -> str:
        lines = [f"{kind:9} {one}{self._beside(kind)}" for kind, one in self.right.items()]
        lines += [f"{count} thing{'s' if count > 1 else ' '}  {one}" for count, one in self.things.items()]
        return "\n".join([*lines, f"refused   {self.refused} of {self.captions}{_listed(self.refusals)}"])

    def _beside(self, kind: str) -> str:
        known = {"chance": self.chance, "real pictures": self.ceiling}
        values = {name: shares[kind].value for name, shares in known.items() if kind in shares}
        return "".join(f", {name} {100.0 * value:.1f} %" for name, value in values.items() if value is not None)

    def rows(self, of: str) -> list[Row]:
        """The rows of a report, for captions of the kind ``of``, such as ``"seen"``."""
        rows: list[Row] = []
        for kind, one in self.right.items():
            low = self.ceiling.get(kind)
            value, floor = one.estimate, None if low is None else low.estimate
            assert value is not None
            title = TITLE if kind == WHOLE else kind
            chance = self.chance[kind].value if kind in self.chance else None
            rows.append(row(title, of, value, floor, better="higher", interval=one.interval, chance=chance))
        return rows

    def note(self, of: str) -> str:
        """What a person must know beside the rows."""
        by_things = ", ".join(f"{count}: {one}" for count, one in self.things.items())
        many = "" if len(self.things) < 2 else f", by their number of things {by_things}"
        return f"{of}: {self.captions:,} captions{many}; {self.refused} pictures refused{_listed(self.refusals)}."

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON, with the intervals."""
        value = {name: _for_json(getattr(self, name)) for name in ("right", "things", "chance", "ceiling")}
        return {**asdict(self), **value, "refusals": dict(self.refusals)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AgreementReport:
        """What :meth:`to_dict` gave, also after it was JSON."""
        shares = {name: _read(value[name]) for name in ("right", "chance", "ceiling")}
        things = {int(count): one for count, one in _read(value["things"]).items()}
        return cls(value["captions"], things=things, refused=value["refused"], refusals=value["refusals"], **shares)


def _for_json(shares: Mapping[Any, Share]) -> dict[str, dict[str, Any]]:
    return {
        str(name): {**asdict(one), "value": one.value, "interval": None if one.interval is None else [*one.interval]}
        for name, one in shares.items()
    }


def _read(shares: Mapping[str, Mapping[str, Any]]) -> dict[str, Share]:
    return {name: Share(one["right"], one["asked"]) for name, one in shares.items()}


def _listed(refusals: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{count} x {reason}' for reason, count in refusals.items())})" if refusals else ""


Pictures = Shaped[Tensor, "batch 3 size size"] | Shaped[np.ndarray[Any, Any], "batch 3 size size"]
"""uint8, or floats in [-1, 1]; of 32 or 64 pixels."""


def agreement(
    captions: Sequence[str | Facts],
    pictures: Pictures | Sequence[Parsed],
    *,
    real: Pictures | Sequence[Parsed] | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> AgreementReport:
    """Measure how far pictures of shapes agree with their captions: of each kind of facts, and of whole captions.

    A picture that the parser refuses agrees with nothing. Things are matched so that the most facts hold, and so chance
    is above that of a guess: it is measured with the captions of other pictures.

    ::

        import numpy as np

        from sfumato.data.shapes import scene
        from sfumato.metrics.agreement import agreement

        scenes = [scene(i) for i in range(4)]
        print(agreement([one.caption for one in scenes], np.stack([one.draw() for one in scenes])))

    Args:
        captions: in the words that :func:`sfumato.data.shapes.facts_of` reads, or facts.
        pictures: one for each caption; or what :func:`parsed` made of them.
        real: real pictures of the captions, of which the most that can be reached is measured.
        seed: of the order in which captions are given to other pictures for the chance.
        workers: processes that parse, by default as many as this process may use cores.
    """
    asked = [facts_of(one) if isinstance(one, str) else one for one in captions]
    if not asked:
        raise InputError("There are no captions; agreement needs at least one.")
    shown = _parsed(pictures, len(asked), "pictures", workers)
    order = permutation(seed, "agreement", 0, len(asked))
    # one cycle through all of them leaves none with its own caption
    others = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True)) if len(asked) > 1 else {}
    found = _judged(asked, shown)
    reasons = Counter(_kind(one.refusal) for one in shown if one.refusal is not None)
    refusals = dict(reasons.most_common(_REASONS))
    if rest := reasons.total() - sum(refusals.values()):
        refusals["others"] = rest
    return AgreementReport(
        captions=len(asked),
        right=_shares(asked, shown, found),
        things={
            count: Share(sum(one.whole for one in of), len(of))
            for count in sorted({len(facts.things) for facts in asked})
            if (of := [one for facts, one in zip(asked, found, strict=True) if len(facts.things) == count])
        },
        refused=reasons.total(),
        refusals=refusals,
        chance=_all([asked[others[i]] for i in range(len(asked))], shown) if others else {},
        ceiling={} if real is None else _all(asked, _parsed(real, len(asked), "real pictures", workers)),
    )


def _all(asked: Sequence[Facts], shown: Sequence[Parsed]) -> dict[str, Share]:
    return _shares(asked, shown, _judged(asked, shown))


def _judged(asked: Sequence[Facts], shown: Sequence[Parsed]) -> list[Agreement]:
    return [of_one(facts, one) for facts, one in zip(asked, shown, strict=True)]


def _shares(asked: Sequence[Facts], shown: Sequence[Parsed], found: Sequence[Agreement]) -> dict[str, Share]:
    """What holds of whole captions and of each kind of facts that is stated."""
    counted = [
        one.facts is not None and len(one.facts.things) == len(facts.things)
        for facts, one in zip(asked, shown, strict=True)
    ]
    shares = {WHOLE: Share(sum(one.whole for one in found), len(found)), "count": Share(sum(counted), len(counted))}
    for kind in FACTS[1:]:
        shares[kind] = Share(sum(one.right[kind] for one in found), sum(one.said[kind] for one in found))
    return {kind: one for kind, one in shares.items() if one.asked}


def _kind(refusal: str) -> str:
    """The reason without its numbers, so that like ones are counted together."""
    return re.sub(r"\d+\.\d+", "x", re.sub(r" \(.*\)|;.*", "", refusal))


def _parsed(pictures: Any, count: int, what: str, workers: int | None) -> Sequence[Parsed]:
    if len(pictures) != count:
        raise InputError(f"There are {count} captions and {len(pictures)} {what}; give one for each.")
    if isinstance(pictures, Tensor | np.ndarray):
        return parsed(pictures, workers=workers)  # pyright: ignore[reportUnknownArgumentType]
    return pictures


def parsed(pictures: Pictures, *, workers: int | None = None) -> list[Parsed]:
    """What each picture shows, in order (:func:`sfumato.data.shapes.parse`), by several processes where there are many.

    Floats outside of [-1, 1] are clipped, as when they are saved.

    Args:
        pictures: uint8, or floats in [-1, 1]; of 32 or 64 pixels.
        workers: processes, by default as many as this process may use cores. Other systems than Linux, where a process
            can't be forked safely, have one.
    """
    values = pictures.detach().cpu() if isinstance(pictures, Tensor) else torch.from_numpy(pictures)
    if values.is_floating_point():
        values = values.float().clamp(-1.0, 1.0)
    rows: Iterable[Any] = values.numpy()
    forks = hasattr(os, "sched_getaffinity") and "fork" in multiprocessing.get_all_start_methods()
    workers = (len(os.sched_getaffinity(0)) if workers is None else workers) if forks else 1
    if workers < 1:
        raise InputError(f"{workers} processes can't parse; expected at least 1.")
    if workers == 1 or len(values) < _FEW:
        return [parse(one) for one in rows]
    workers = min(workers, -(-len(values) // _CHUNK))
    # forked, not started: a fresh process would first import all that this one has
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(parse, rows, chunksize=_CHUNK))
