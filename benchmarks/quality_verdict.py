"""How often the intervals of quality hold the truth: prints the table of docs/method/quality.md.

Run `python benchmarks/quality_verdict.py` (a few minutes on one core). Arms are made up with a known truth and go
through the project's own functions. A document has an effect of its own, and its tokens scatter around it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.evaluators import divergence
from moe_eval.stats import Estimate

Array = npt.NDArray[Any]
Generator = np.random.Generator

DOCUMENTS = (14, 24, 62)  # of the shipped sample, of a short run, of WikiText-2's test split
LENGTHS = 6.0, 0.7  # mean and standard deviation of ln(tokens): WikiText's spread, at a sixth of its length
COST, COST_SPREAD, TOKEN_SPREAD = 0.005, 0.004, 0.04  # nats: ln(ppl ratio), its sd by document, and by token
KLD = 0.02  # nats
SKEW = 1.0  # standard deviation of ln of a skewed effect: its skewness is 6


@dataclass(frozen=True)
class Effects:
    """How documents differ. `draw`: effects of mean 0 and sd 1, shape (documents,)."""

    name: str
    draw: Callable[[Generator, int], Array]


def _skewed(generator: Generator, documents: int) -> Array:
    drawn = generator.lognormal(0, SKEW, documents)
    mean, deviation = np.exp(SKEW**2 / 2), np.sqrt((np.exp(SKEW**2) - 1) * np.exp(SKEW**2))
    return np.asarray((drawn - mean) / deviation)


EFFECTS = (
    Effects("normal", lambda generator, documents: generator.normal(0, 1, documents)),
    Effects("skewed", _skewed),
)


def ln_ppl(generator: Generator, lengths: Array, effects: Array) -> Estimate:
    """The interval of ln(ppl ratio) of an arm that costs COST."""
    means = COST + COST_SPREAD * effects
    differences = np.repeat(means, lengths) + generator.normal(0, TOKEN_SPREAD, lengths.sum())
    arm = np.split(-differences, np.cumsum(lengths)[:-1])
    return stats.ln_ratio([np.zeros(length) for length in lengths], arm)


def kld(generator: Generator, lengths: Array, effects: Array) -> Estimate:
    """The interval of the mean divergence of an arm whose divergence is KLD.

    Documents differ by a quarter of it, and tokens are exponential. Two tokens share the reference's probability, and
    the arm's first has q: D = -ln(4 q (1 - q)) / 2.
    """
    means = KLD * np.maximum(1 + 0.25 * effects, 0.05)
    nats = np.repeat(means, lengths) * generator.exponential(1, lengths.sum())
    q = (1 - np.sqrt(1 - np.exp(-2 * nats))) / 2
    ids, half = np.zeros((len(nats), 1), np.int64), np.full((len(nats), 1), np.log(0.5))
    result = divergence.between(ids, half, ids, half, documents=lengths.tolist(), of_reference_ids=np.log(q)[:, None])
    assert result.kld is not None
    return result.kld


def cells(repetitions: int) -> Iterator[tuple[str, str, int, float, float, float]]:
    """Figure, effects, documents, median n_eff, coverage in %, and its standard error."""
    for name, measure, truth in (("ln(ppl ratio)", ln_ppl, COST), ("KLD", kld, KLD)):
        for effects in EFFECTS:
            for documents in DOCUMENTS:
                hits, sizes = 0, []
                for repetition in range(repetitions):
                    generator = np.random.default_rng([repetition, documents])
                    lengths = np.maximum(8, generator.lognormal(*LENGTHS, documents)).astype(int)
                    estimate = measure(generator, lengths, effects.draw(generator, documents))
                    hits += estimate.low <= truth <= estimate.high
                    sizes.append(estimate.df + 1)
                share = hits / repetitions
                error = 100 * np.sqrt(share * (1 - share) / repetitions)
                yield name, effects.name, documents, float(np.median(sizes)), 100 * share, float(error)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    print("| interval of | effects of documents | documents | n_eff | holds the truth |")
    print("|---|---|---|---|---|")
    for name, effects, documents, size, share, error in cells(repetitions):
        print(f"| {name} | {effects} | {documents} | {size:.1f} | {share:.1f} % ± {error:.1f} |", flush=True)


if __name__ == "__main__":
    main()
