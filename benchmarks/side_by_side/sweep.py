"""Which peer is the best in each cell: all of them on few samples, then the best few on all; kept between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from sfumato.io.files import atomic_write
from side_by_side.peers import Peer, Result, measure
from side_by_side.problem import Problem

KEPT = {20: 40, 50: 20}
"""After so many evaluations, so many of the best go on to more, with the best of each of :data:`SAMPLERS` samplers."""

SAMPLERS = 10


class Store:
    """Results by configuration and cell, in a JSON file; only what is missing is computed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, peer: Peer, problem: Problem, nfe: int) -> Result:
        """The result of a peer on a problem."""
        key = f"{peer.name} | {problem.key} | {nfe}"
        if key not in self.found:
            self.found[key] = asdict(measure(peer, problem, nfe))
        return Result(**self.found[key])  # pyright: ignore[reportArgumentType]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        atomic_write(self.path, lambda temporary: temporary.write_text(json.dumps(self.found, indent=0)))


Ranked = list[tuple[Peer, Result]]


def _ranked(results: Iterable[tuple[Peer, Result]]) -> Ranked:
    return sorted(((p, r) for p, r in results if r.rms is not None), key=lambda pair: pair[1].rms or 0.0)


def _family(peer: Peer) -> str:
    return peer.name.split("(")[0]


def best(
    peers: list[Peer], problem: Problem, numbers: list[int], store: Store, *, few: int, finalists: int
) -> dict[int, Ranked]:
    """The finalists of each number of evaluations, measured on all samples, the best first."""
    candidates = [peer for peer in peers if problem.schedule_name in peer.schedules]
    small = problem.first(few)
    found: dict[int, Ranked] = {}
    for nfe in sorted(numbers):
        ranked = _ranked((peer, store.get(peer, small, nfe)) for peer in candidates)
        found[nfe] = _ranked((peer, store.get(peer, problem, nfe)) for peer, _ in ranked[:finalists])
        kept = [count for number, count in KEPT.items() if nfe >= number]
        if kept:
            leaders: dict[str, Peer] = {}
            for peer, _ in ranked:
                leaders.setdefault(_family(peer), peer)
            names = {peer.name for peer in [*(p for p, _ in ranked[: min(kept)]), *list(leaders.values())[:SAMPLERS]]}
            candidates = [peer for peer in candidates if peer.name in names]
        store.save()
    return found
