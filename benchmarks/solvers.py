"""How near to the exact answer samplers come with few evaluations: Sfumato beside diffusers and k-diffusion.

The data are known in closed form, so that the denoiser is exact, and so is the end of the probability flow from every
noise (solved to the tolerance that is printed). The error of a sampler is the distance of its samples from those ends,
from the same noises: root mean square over dimensions and samples, and the median over samples. An evaluation is a call
of the denoiser. Sfumato's default for a number of evaluations is the same for all data and schedules; each peer is the
best of hundreds of configurations, chosen for the cell. All are tried on a few of the samples up to 20 evaluations,
with more the best 40 go on, then 20, and the best of each of 10 samplers; the first few of a cell are measured on all.

What is fitted to the denoiser, for 5 and 10 evaluations, is fitted on other noises than it is measured on.

Steps that add noise have no exact end: a table of its own shows the sliced Wasserstein distance of their samples to
exact ones, beside that of exact samples to exact ones.

    pip install -e ".[bench]" && pip install --no-deps k-diffusion
    python benchmarks/solvers.py --data PATH/TO/DATA --out runs/solvers
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import fitted, own, peers_diffusers, peers_k_diffusion, report, stochastic, targets
from side_by_side.peers import Peer
from side_by_side.problem import SCHEDULES, pose
from side_by_side.sweep import Store, best

NUMBERS = [5, 8, 10, 15, 20, 35, 50, 100, 250]


def chosen_targets(options: argparse.Namespace, console: Console) -> list[targets.Target]:
    found = [targets.ring()]
    if not options.quick:
        found += [targets.digits_mixture(options.cache), targets.digits_themselves()]
        folder = None if options.data is None else options.data / "cifar10"
        if folder is not None and folder.is_dir():
            found.append(targets.cifar10(folder, options.cache))
        else:
            console.print("CIFAR-10 mixture: left out, there is no folder cifar10 in --data (or $SFUMATO_DATA).")
    if options.targets:
        found = [target for target in found if any(word in target.name for word in options.targets)]
    return found


def available_peers(console: Console) -> list[Peer]:
    found: list[Peer] = []
    for library in (peers_diffusers, peers_k_diffusion):
        try:
            found += library.peers()
        except ImportError as error:
            console.print(f"{library.__name__.split('peers_')[-1]}: left out, {error}")
    return found


def compare(options: argparse.Namespace, console: Console) -> tuple[list[report.Cell], dict[str, Any]]:
    peers = available_peers(console) if options.peers else []
    store = Store(options.cache / "peers.json")
    plans = fitted.Solvers(options.cache / "fitted.json", options.noises)
    cells: list[report.Cell] = []
    references: dict[str, Any] = {}
    for target in chosen_targets(options, console):
        for schedule in options.schedules:
            began = time.perf_counter()
            problem = pose(target, schedule, options.seed, options.samples, options.cache)
            references[f"{target.name}, {schedule}"] = problem.uncertainty
            ranked = best(peers, problem, options.nfe, store, few=options.few, finalists=options.finalists)
            for nfe in sorted(options.nfe):
                results = {name: own.measure(name, problem, nfe) for name in own.CONFIGURATIONS}
                top = min(results, key=lambda name: results[name].rms or 0.0)
                name, leaders = own.default(nfe), ranked[nfe]
                medians = [result.median for _, result in leaders if result.median is not None]
                cells.append(
                    report.Cell(
                        target.name,
                        schedule,
                        nfe,
                        (name, results[name]),
                        (top, results[top]),
                        (leaders[0][0].name, leaders[0][1]) if leaders else None,
                        min(medians, default=None),
                        plans.measure(problem, nfe) if options.fitted and nfe in fitted.NUMBERS else None,
                    )
                )
            console.print(f"{target.name}, {schedule}: {time.perf_counter() - began:.0f} s", highlight=False)
    failures = {key: value["failure"] for key, value in store.found.items() if value["failure"] is not None}
    return cells, {"references": references, "configurations": len(peers), "failures": failures}


def compare_stochastic(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    draws = stochastic.own_draws()
    if options.peers:
        draws |= stochastic.peer_draws()
    rows: list[dict[str, Any]] = []
    numbers = [nfe for nfe in options.nfe if nfe in (10, 20, 50)] or options.nfe[:1]
    # the mixtures in their own dimensions: there exact samples are had, and the data are no points
    for target in (t for t in chosen_targets(options, console) if t.name in ("ring", "digits mixture")):
        floor = stochastic.floor(target, options.draws)
        table = Table(title=f"{target.name}: sliced Wasserstein distance of {options.draws} samples, in units of that")
        title = f"between exact ones, {floor.mean:.3g} +- {floor.spread:.2g}"
        table.add_column(title)
        for schedule in options.schedules:
            for nfe in numbers:
                table.add_column(f"{schedule} {nfe}", justify="right")
        for name, draw in draws.items():
            found = []
            for schedule in options.schedules:
                for nfe in numbers:
                    distance = stochastic.measure(draw, target, schedule, nfe, options.draws)
                    if distance is None:
                        found.append("")
                        continue
                    found.append(f"{distance / floor.mean:.2f}")
                    row = {"target": target.name, "schedule": schedule, "nfe": nfe, "name": name}
                    rows.append({**row, "distance": distance, "floor": floor.mean, "floor_spread": floor.spread})
            table.add_row(name, *found)
        console.print(table)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("SFUMATO_DATA")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, help="a folder with cifar10 in it")
    parser.add_argument("--cache", type=Path, default=Path("runs/solvers/cache"), help="fits, exact flows, peers")
    parser.add_argument("--out", type=Path, default=Path("runs/solvers"), help="solvers.json and the figure")
    parser.add_argument("--targets", nargs="*", help="those whose name contains one of these")
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--nfe", type=int, nargs="+", default=NUMBERS)
    parser.add_argument("--samples", type=int, default=256, help="noises that are followed")
    parser.add_argument("--few", type=int, default=48, help="of them, those on which every peer is tried")
    parser.add_argument("--finalists", type=int, default=5, help="peers per cell that are measured on all")
    parser.add_argument("--draws", type=int, default=2000, help="samples of steps that add noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noises", type=int, default=768, help="from which grids of 5 and 10 evaluations are fitted")
    parser.add_argument("--no-fitted", dest="fitted", action="store_false")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--no-stochastic", dest="stochastic", action="store_false")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the ring alone, 5 and 10 evaluations, few samples")
    options = parser.parse_args()
    if options.quick:
        options.nfe, options.samples, options.few, options.draws, options.noises = [5, 10], 32, 16, 256, 128
    return options


def main() -> None:
    options = parse()
    console = Console(width=max(160, Console().width))
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cells, facts = compare(options, console)
    report.print_cells(cells, console)
    summary = report.summarize(cells)
    for name, values in summary.items():
        if values["cells"]:
            console.print(
                f"{name}: {100 * values['no_worse']:.0f} % of {values['cells']} cells no worse than the best peer, "
                f"{100 * values['within_half']:.0f} % within half; worst ratio {values['worst']:.2f}",
                highlight=False,
            )
    spread = compare_stochastic(options, console) if options.stochastic else []
    kept = {key: getattr(options, key) for key in ("samples", "few", "finalists", "draws", "noises", "seed", "quick")}
    written = {
        "options": kept,
        **facts,
        "summary": summary,
        "cells": [cell.to_dict() for cell in cells],
        "stochastic": spread,
    }
    (options.out / "solvers.json").write_text(json.dumps(written, indent=2) + "\n")
    report.draw(cells, options.out)


if __name__ == "__main__":
    main()
