"""The page about benchmarks/h100_serving.py's records.

    python benchmarks/h100_serving_page.py OUT docs/results/h100-serving.md

What the figures mean is kept as it stands in the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_eval.comparison import pairs
from moe_eval.records import by_arm, run_files
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.samples import Metric
from moe_eval.records.serving import PointServing
from moe_eval.records.shape_latency import ShapeLatency
from moe_eval.report import drawing, serving_chart, serving_table
from moe_eval.report.markdown import columns
from moe_eval.report.readable import category as category_words
from moe_eval.report.readable import shape_words
from moe_eval.report.text import NONE, Table, figure_cells
from moe_eval.traces.steps import OUTSIDE

HEAD = """# Serving on one GPU: from which load on FP8 pays

Qwen3-30B-A3B's shape, random weights, `vllm serve`, 512 tokens in and 128 out.
`benchmarks/h100_serving.py` made the figures, and [serving](../guides/serving.md) says what they are."""
MEANING = "## What it means"
BESIDE = """The latency evaluator runs a batch in lock step: all prompts are read, then all sequences decode together.
A server mixes: while some users' prompts are read, the others wait for their next token.
Its TPOT has these waits in it, and its HTTP and tokens one by one. So it is above lock step's, more so with many users.
TTFT is of a request at a server, and of the last sequence of the batch in lock step.
`lockstep` runs the engine as a server does: its core in a process of its own, and CUDA graphs of up to 512 tokens."""

SAID = "by the server's metrics "
LEAST_SHARE = 0.02  # of a step, for a row


def write_page(out: Path, file: Path) -> None:
    served, timed, traced = (read(out / part) for part in ("serving", "latency", "trace"))
    parts = [HEAD]
    if served is None:
        parts.append("Not run yet.")
    else:
        arms, comparison = served
        picture = draw(comparison, file.with_suffix(".svg"))
        parts += [machine(arms), *(f"**{pair.sentence}**" for pair in comparison.pairs)]
        parts += [f"![Frontiers]({picture})"] if picture else []
        if MEANING in (before := file.read_text() if file.is_file() else ""):
            parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
        parts += ["## Every load", *map(markdown, serving_table.tables(comparison))]
        parts += ["## Why", *why(*traced)] if traced else []
        parts += ["## What the server said of itself", "In the first load.", state(arms)]
        parts += ["## Beside lock step", BESIDE]
        parts += [agreement(arms, timed[0]), beside(arms, timed[0])] if timed else ["Not run yet."]
    file.write_text("\n\n".join(parts) + "\n")


def read(folder: Path) -> tuple[Sequence[ArmRecords], ComparisonRecord] | None:
    if not (folder / "run.json").is_file():
        return None
    arms = by_arm.read(folder)
    return arms, pairs.compare(arms, runs=run_files.read_run(folder))


def machine(arms: Sequence[ArmRecords]) -> str:
    record = next(arm.serving for arm in arms if arm.serving)
    computer, versions = record.origin.machine, record.origin.versions
    loads = max(len([*filter(None, point.loads)]) for point in record.points)
    generators = {load.generator for point in record.points for load in point.loads if load}
    driver = computer.driver if computer else None
    return (
        f"{record.gpu_name}, driver {driver}, vLLM {versions.get('vllm')}, torch {versions.get('torch')}, "
        f"{', '.join(sorted(generators))}, {loads} load{'s' * (loads != 1)} of every arm."
    )


def draw(comparison: ComparisonRecord, file: Path) -> str | None:
    chart = serving_chart.frontiers(comparison)
    if chart is None:
        return None
    from matplotlib.figure import Figure

    with drawing.style():
        figure = Figure(figsize=(drawing.WIDTH, chart.height))
        chart.draw(figure)
        figure.savefig(file, metadata={"Date": None})
    return file.name


def markdown(table: Table) -> str:
    rows = [row for row in table.rows if not row[-1].startswith(SAID)]  # a table of its own has them
    return f"{table.caption}\n\n{columns(table.heads, rows)}"


def why(arms: Sequence[ArmRecords], comparison: ComparisonRecord) -> list[str]:
    """What kernels take of a step of the servers that were traced, and how many requests the steps had."""
    texts = [pair.because for pair in comparison.pairs if pair.because]
    traces = {(arm.name, shape): record for arm in arms for shape, record in arm.kernels.items()}
    notes = [f"{arm}: {note}" for (arm, _), record in traces.items() for note in record.notes if "equests in" in note]
    rows = [
        [arm, shape_words(shape), name, category_words(part), f"{time.ms:.3f}", f"{100 * time.share:.0f} %"]
        for (arm, shape), record in traces.items()
        for name, phase in record.phases.items()
        for part, time in sorted(phase.categories.items(), key=lambda entry: -entry[1].ms)
        if name != OUTSIDE and time.share >= LEAST_SHARE
    ]
    return [*texts, *notes, columns(["arm", "load", "step", "kernels", "ms", "share"], rows)]


def state(arms: Sequence[ArmRecords]) -> str:
    rows = []
    for arm in arms:
        for point in arm.serving.points if arm.serving else ():
            for load in [*filter(None, point.loads)][:1]:
                known = load.state
                values = (known.running, known.running_most, known.waiting_most, known.preemptions)
                share = "-" if known.kv_cache_share is None else f"{100 * known.kv_cache_share:.1f} %"
                cells = ["-" if value is None else f"{value:.1f}" for value in values]
                rows.append([arm.name, point.name, *cells, share])
    heads = ["arm", "load", "running, mean", "running, most", "waiting, most", "preemptions", "KV cache in use, most"]
    return columns(heads, rows)


def beside(served: Sequence[ArmRecords], timed: Sequence[ArmRecords]) -> str:
    """TPOT, TTFT and throughput of both evaluators, at as many users as sequences."""
    rows = []
    for arm, point, shape in both(served, timed):
        of_server, of_batch = point.metrics, shape.metrics
        figures = (
            (of_server.tpot_p50_ms, of_batch.tpot_ms),
            (of_server.ttft_p50_ms, of_batch.ttft_ms),
            (of_server.output_tok_s, of_batch.output_tok_s),
        )
        cells = [text for sides in figures for text in (*map(interval, sides), ratio(*sides))]
        rows.append([arm, str(point.point.concurrency), *cells])
    names = ("TPOT ms", "TTFT ms", "tok/s")
    heads = [head for name in names for head in (f"{name}, served", f"{name}, lock step", "ratio")]
    return columns(["arm", "users", *heads], rows)


def agreement(served: Sequence[ArmRecords], timed: Sequence[ArmRecords]) -> str:
    """Whether the generator's time per token of one user is that of the latency evaluator at batch 1."""
    sentences = []
    for arm, point, shape in both(served, timed):
        sides = point.metrics.tpot_p50_ms, shape.metrics.tpot_ms
        if point.point.concurrency != 1 or None in sides:
            continue
        ends = [(side.low, side.high) for side in sides if side and side.low is not None and side.high is not None]
        agrees = len(ends) == 2 and max(low for low, _ in ends) <= min(high for _, high in ends)
        how = "agrees within the intervals" if agrees else "differs"
        sentences.append(
            f"One user's TPOT {how}: {arm} {interval(sides[0])} ms served, {interval(sides[1])} ms by the latency "
            f"evaluator at batch 1, a ratio of {ratio(*sides)}."
        )
    return "\n".join(sentences) or "One user was not measured by both."


def both(served: Sequence[ArmRecords], timed: Sequence[ArmRecords]) -> Iterator[tuple[str, PointServing, ShapeLatency]]:
    """The load points of arms that have a batch of as many sequences."""
    shapes = {(arm.name, shape.batch_size): shape for arm in timed if arm.latency for shape in arm.latency.shapes}
    for arm in served:
        for point in arm.serving.points if arm.serving else ():
            if shape := shapes.get((arm.name, point.point.concurrency or 0)):
                yield arm.name, point, shape


def interval(metric: Metric | None) -> str:
    value, ends = figure_cells(metric)
    return value if ends == NONE else f"{value} ({ends})"


def ratio(first: Metric | None, second: Metric | None) -> str:
    return "-" if first is None or second is None else f"{first.median / second.median:.3f}"


if __name__ == "__main__":
    write_page(Path(sys.argv[1]), Path(sys.argv[2]))
