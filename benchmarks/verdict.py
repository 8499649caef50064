"""The error rates of a verdict on speed, by simulation of the whole decision with the project's own functions.

    python benchmarks/verdict.py [--repetitions 1000] [--processes 2]

Times are simulated: a level of every load, drift while a run goes on, and iterations with heavy tails. Ratios of loads
with their intervals, and the verdicts on them, are moe_eval's. The tables stand in docs/method/error-rates.md.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from multiprocessing import Pool
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.comparison import speed, verdict
from moe_eval.records.comparison import PairSchedule
from moe_eval.records.run import Mode
from moe_eval.records.verdicts import Rules, Verdict

Array = npt.NDArray[Any]
RULES = Rules()
MODES: tuple[Mode, ...] = ("turns", "alternating")
SCATTERS = (0.0, 0.003, 0.01, 0.02, 0.03)
DRIFTS = ("none", "linear", "random walk", "warming")
LOADS = (2, 3, 4, 8)
SHAPES = (1, 4, 8)
TRUTHS = (1.0, 1 + RULES.min_gain, 1.05, 1.2)
ITERATIONS = 5  # of a load
NOISE = 0.003
DRIFT = 0.03  # from the begin of a run to its end, or of a load's warming
MOST_LOADS = 8  # of a run until decided
AGAIN, MORE = 10, 20  # cells that are simulated again, and with how many times as many runs


@dataclass(frozen=True)
class Cell:
    """What is simulated: one schedule, one kind of noise, one truth for every shape."""

    mode: Mode
    scatter: float
    drift: str
    is_heavy: bool
    loads: int
    shapes: int
    truth: float


def places(mode: Mode, loads: int) -> Array:
    """When every iteration runs, from 0 to 1: shape (loads, 2 arms, iterations)."""
    order = []
    for load in range(loads):
        if mode == "turns":
            for turn in range(ITERATIONS):
                first = (load + turn // 2 + turn) % 2
                order += [(load, first, turn), (load, 1 - first, turn)]
        else:
            for arm in (0, 1) if load % 2 == 0 else (1, 0):
                order += [(load, arm, turn) for turn in range(ITERATIONS)]
    moments = np.empty((loads, 2, ITERATIONS))
    for place, index in enumerate(order):
        moments[index] = place / len(order)
    return moments


def drifts(cell: Cell, moments: Array, generator: np.random.Generator, repetitions: int) -> Array:
    """ln of what drift does to every iteration: shape (repetitions, loads, 2, iterations)."""
    if cell.drift == "linear":
        return np.broadcast_to(DRIFT * moments, (repetitions, *moments.shape))
    if cell.drift == "warming":  # every load begins as cold as the last one; arms that take turns share the time
        since = moments - moments.min(axis=(1, 2) if cell.mode == "turns" else 2, keepdims=True)
        return np.broadcast_to(-DRIFT * np.exp(-since * len(moments) * 2), (repetitions, *moments.shape))
    count = moments.size
    steps = generator.normal(0, DRIFT / math.sqrt(count), (repetitions, count))
    walk = np.cumsum(steps, axis=1) if cell.drift == "random walk" else np.zeros((repetitions, count))
    return walk[:, np.rint(moments * count).astype(int)]


def log_medians(cell: Cell, generator: np.random.Generator, repetitions: int) -> Array:
    """ln of the median of every load: shape (repetitions, shapes, loads, 2 arms), the reference first."""
    moments = places(cell.mode, cell.loads)
    size = (repetitions, cell.shapes, *moments.shape)
    noise = generator.normal(0, NOISE, size)
    if cell.is_heavy:  # Student's t of two degrees of freedom, and one iteration in twenty that waits for something
        noise = NOISE * generator.standard_t(2, size) + np.where(generator.random(size) < 0.05, 0.2, 0.0)
    levels = generator.normal(0, cell.scatter, size[:-1])
    levels[..., 1] -= math.log(cell.truth)
    moved = drifts(cell, moments, generator, repetitions)[:, None]
    medians: Array = np.median(noise + moved, axis=-1) + levels
    return medians


def decide(logs: Array, mode: Mode, look: int = 1, looks: int = 1) -> list[Verdict]:
    """The verdict on every shape: `logs` of shape (shapes, loads, 2)."""
    schedule = PairSchedule(mode, logs.shape[1], ITERATIONS, one_run=True, look=look, looks=looks)
    ratios = [speed.ratio_of_loads(shape[:, 0].tolist(), shape[:, 1].tolist(), "host", schedule) for shape in logs]
    return verdict.of_family(ratios, RULES)


def until_decided(logs: Array, mode: Mode) -> tuple[list[Verdict], int]:
    """The verdicts of a run that loads again while one is open, and its loads."""
    most = logs.shape[1]
    looks = most - stats.LEAST_LOADS + 1
    for loads in range(stats.LEAST_LOADS, most + 1):
        verdicts = decide(logs[:, :loads], mode, loads - stats.LEAST_LOADS + 1, looks)
        if Verdict.OPEN not in verdicts:
            return verdicts, loads
    return verdicts, most


def simulate(work: tuple[Cell, int, int, bool]) -> tuple[Cell, Counter[str]]:
    """How often a cell came to what: `pays` and `slower` somewhere, `all pay`, and so on."""
    cell, seed, repetitions, is_sequential = work
    generator = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    for logs in log_medians(cell, generator, repetitions):
        loads = cell.loads
        if is_sequential:
            verdicts, loads = until_decided(logs, cell.mode)
        else:
            verdicts = decide(logs, cell.mode)
        outcomes["loads"] += loads
        outcomes["all pay"] += all(ruling is Verdict.PAYS for ruling in verdicts)
        for ruling in set(verdicts):
            outcomes[ruling.value] += 1
    return cell, outcomes


Outcomes = dict[Cell, Counter[str]]


def cells(loads: Sequence[int] = LOADS) -> Iterator[Cell]:
    for values in product(MODES, SCATTERS, DRIFTS, (False, True), loads, SHAPES, TRUTHS):
        yield Cell(*values)


def percent(count: float, repetitions: int) -> str:
    return f"{100 * count / repetitions:.1f}"


def wrong(cell: Cell, outcomes: Counter[str]) -> tuple[int, int]:
    """How often "pays" and "slower" were false."""
    pays = outcomes[Verdict.PAYS.value] if cell.truth <= 1 + RULES.min_gain else 0
    return pays, outcomes[Verdict.SLOWER.value] if cell.truth >= 1 else 0


def worst_table(outcomes: Outcomes, repetitions: int) -> None:
    """The largest share of false verdicts over all scatters, drifts, tails and truths."""
    print("| schedule | loads | shapes | cells | false pays, largest % | false slower, largest % | both, mean % |")
    print("|---|---|---|---|---|---|---|")
    for mode, loads, shapes in product(MODES, sorted({cell.loads for cell in outcomes}), SHAPES):
        group = {c: o for c, o in outcomes.items() if (c.mode, c.loads, c.shapes) == (mode, loads, shapes)}
        false = [wrong(cell, counted) for cell, counted in group.items()]
        nulls = [count for cell, pair in zip(group, false, strict=True) for count in pair if cell.truth <= 1.02]
        print(
            f"| {mode} | {loads} | {shapes} | {len(group)} | {percent(max(pays for pays, _ in false), repetitions)} "
            f"| {percent(max(slower for _, slower in false), repetitions)} "
            f"| {percent(sum(nulls) / len(nulls), repetitions)} |"
        )
    rates = [count / repetitions for cell, counted in outcomes.items() for count in wrong(cell, counted)]
    limit = stats.ERROR_RATE + 3 * math.sqrt(stats.ERROR_RATE * (1 - stats.ERROR_RATE) / repetitions)
    print(
        f"\n{len(rates)} shares of {repetitions} runs each. {sum(rate > limit for rate in rates)} lie above "
        f"{100 * limit:.2f} %, which is 2.5 % and three standard errors of the simulation. The largest is "
        f"{100 * max(rates):.2f} %.\n"
    )


def power_table(outcomes: Outcomes, repetitions: int, truth: float, count: Callable[[Counter[str]], int]) -> None:
    print("| loads scatter by | shapes | " + " | ".join(f"{loads} loads" for loads in LOADS[1:]) + " |")
    print("|---|---|" + "---|" * len(LOADS[1:]))
    for scatter, shapes in product(SCATTERS, SHAPES):
        shares = [
            percent(count(outcomes[Cell("turns", scatter, "none", False, loads, shapes, truth)]), repetitions)
            for loads in LOADS[1:]
        ]
        print(f"| {100 * scatter:g} % | {shapes} | {' | '.join(shares)} |")
    print()


def sequential_table(outcomes: Outcomes, repetitions: int) -> None:
    print(
        "| truth | shapes | false pays, largest % | false slower, largest % | pays somewhere, % at 1 % | loads at 1 % |"
    )
    print("|---|---|---|---|---|---|")
    for truth, shapes in product(TRUTHS, SHAPES):
        group = {c: o for c, o in outcomes.items() if (c.truth, c.shapes) == (truth, shapes)}
        false = [wrong(cell, counted) for cell, counted in group.items()]
        usual = group[Cell("turns", 0.01, "none", False, MOST_LOADS, shapes, truth)]
        print(
            f"| {truth:g} | {shapes} | {percent(max(pays for pays, _ in false), repetitions)} "
            f"| {percent(max(slower for _, slower in false), repetitions)} "
            f"| {percent(usual[Verdict.PAYS.value], repetitions)} | {usual['loads'] / repetitions:.1f} |"
        )
    print()


def again_table(largest: Outcomes, repetitions: int) -> None:
    """The cells with the largest shares, simulated again with other random numbers."""
    print("| schedule | scatter | drift | heavy tails | loads | shapes | truth | false pays, % | false slower, % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell, counted in largest.items():
        pays, slower = (percent(count, repetitions) for count in wrong(cell, counted))
        tails = "yes" if cell.is_heavy else "no"
        print(
            f"| {cell.mode} | {100 * cell.scatter:g} % | {cell.drift} | {tails} | {cell.loads} | {cell.shapes} "
            f"| {cell.truth:g} | {pays} | {slower} |"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    repetitions = arguments.repetitions
    fixed = [(cell, seed, repetitions, False) for seed, cell in enumerate(cells())]
    growing = [(cell, 10**6 + seed, repetitions, True) for seed, cell in enumerate(cells([MOST_LOADS]))]
    with Pool(arguments.processes) as pool:
        outcomes = dict(pool.imap_unordered(simulate, fixed, chunksize=8))
        sequential = dict(pool.imap_unordered(simulate, growing, chunksize=8))
        largest = sorted(outcomes, key=lambda cell: max(wrong(cell, outcomes[cell])), reverse=True)[:AGAIN]
        repeated = [(cell, 2 * 10**6 + seed, MORE * repetitions, False) for seed, cell in enumerate(largest)]
        again = dict(pool.imap_unordered(simulate, repeated))
    print("False verdicts\n")
    worst_table(outcomes, repetitions)
    print(f"The {AGAIN} cells with the largest shares, again with {MORE * repetitions} other runs each\n")
    again_table({cell: again[cell] for cell in largest}, MORE * repetitions)
    print('"Pays" somewhere at a truth of 1.05, % of runs (turns, no drift, plain noise)\n')
    power_table(outcomes, repetitions, 1.05, lambda counted: counted[Verdict.PAYS.value])
    print('"Pays" at every shape at a truth of 1.05, % of runs\n')
    power_table(outcomes, repetitions, 1.05, lambda counted: counted["all pay"])
    print(f"--until decided, at most {MOST_LOADS} loads\n")
    worst_table(sequential, repetitions)
    sequential_table(sequential, repetitions)


if __name__ == "__main__":
    main()
