"""Files of other tools become records that say what the files say. The files are written by hand, as documented."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_eval.cli import main
from moe_eval.comparison import pairs
from moe_eval.errors import UsageError
from moe_eval.imports import files
from moe_eval.imports.record import Statement, record
from moe_eval.records import by_arm, disk
from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.latency import LatencyRecord
from moe_eval.records.ratios import Ratio
from moe_eval.records.tool import NOT_STATED
from moe_eval.records.verdicts import Rules, Verdict
from tests.doubles import recorded_arms as made

SIZES = Statement(batch_size=8, input_len=512, output_len=256)


def percentiles(value: float) -> dict[str, float]:
    return dict.fromkeys(("p50", "p90", "p95", "p99", "minimum", "maximum", "average"), value)


def batch(base: float, **changes: Any) -> dict[str, Any]:
    """`vllm bench latency --output-json`."""
    latencies = [base * (1 + at / 1000) for at in range(10)]
    shares = {str(share): statistics.quantiles(latencies, n=100)[share - 1] for share in (10, 25, 50, 75, 90, 99)}
    return {
        "model_id": "Q",
        "avg_latency": statistics.fmean(latencies),
        "latencies": latencies,
        "percentiles": shares,
    } | changes


def offline(seconds: float, **changes: Any) -> dict[str, Any]:
    """`vllm bench throughput --output-json`."""
    tokens = 64 * (512 + 256)
    rates = {"requests_per_second": 64 / seconds, "tokens_per_second": tokens / seconds}
    return {"elapsed_time": seconds, "num_requests": 64, "total_num_tokens": tokens, **rates} | changes


def serving(ttft: float = 90.0, **changes: Any) -> dict[str, Any]:
    """`vllm bench serve --save-result`."""
    return {
        "date": "20261127-080000", "endpoint_type": "vllm", "backend": "vllm", "label": None,
        "model_id": "Q", "tokenizer_id": "Q",
        "num_prompts": 16, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 8, "duration": 10.0,
        "completed": 16, "failed": 0, "total_input_tokens": 16 * 512, "total_output_tokens": 16 * 256,
        "request_throughput": 1.6, "request_goodput": None, "output_throughput": 409.6,
        "mean_ttft_ms": 99.0, "median_ttft_ms": ttft, "median_tpot_ms": 9.5, "median_itl_ms": 9.4,
        "median_e2el_ms": 2500.0,
    } | changes  # fmt: skip


def trtllm(latency: float = 800.0, batch_size: int = 1, **changes: Any) -> dict[str, Any]:
    """`trtllm-bench --report_json`."""
    return {
        "engine": {"model": "Q", "model_path": "/data/Q", "engine_dir": "None", "version": "1.2.0",
                   "dtype": "bfloat16", "kv_cache_dtype": None, "quantization": "NVFP4"},
        "machine": {"name": made.GPU, "memory.total": 79.1, "clocks.mem": 2.6},
        "world_info": {"tp_size": 1, "pp_size": 1, "ep_size": 1, "world_size": 1, "max_batch_size": batch_size,
                       "max_num_tokens": 8192, "scheduling_policy": "Guaranteed No Evict", "issue_rate": 1.0},
        "request_info": {"num_requests": 10, "avg_num_concurrent_requests": 0.99 * batch_size,
                         "avg_input_length": 512.0, "avg_output_length": 257.0},
        "performance": {"total_latency_ms": 8000.0, "system_output_throughput_tok_s": 320.0,
                        "request_latency_percentiles_ms": percentiles(latency)},
        "streaming_metrics": {"ttft_percentiles": percentiles(20.0), "tpot_percentiles": percentiles(2.9)},
        "dataset": {"isl_stats": {}},
    } | changes  # fmt: skip


def aiperf(ttft: float = 80.0, phases: Any = None, **changes: Any) -> dict[str, Any]:
    """AIPerf's profile_export_aiperf.json."""
    times = {"request_latency": 2500.0, "time_to_first_token": ttft, "inter_token_latency": 9.4}
    profiling = {"name": "profiling", "kind": "profiling", "type": "concurrency", "requests": 16, "concurrency": 8}
    return {
        "schema_version": "1.4", "aiperf_version": "0.13.0", "was_cancelled": False,
        **{name: {"unit": "ms", "avg": 1.1 * ms, "p50": ms, "count": 16} for name, ms in times.items()},
        "request_count": {"unit": "requests", "avg": 16.0},
        "input_sequence_length": {"unit": "tokens", "avg": 512.0, "p50": 512.0},
        "output_sequence_length": {"unit": "tokens", "avg": 256.0, "p50": 256.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 400.0},
        "telemetry_data": {"endpoints": {"localhost:9400": {"gpus": {"gpu_0": {"gpu_name": made.GPU}}}}},
        "input_config": {"models": {"items": [{"name": "Q"}]}, "endpoint": {"streaming": True},
                         "phases": phases or [{"name": "warmup", "kind": "warmup"}, profiling]},
    } | changes  # fmt: skip


def imported(folder: Path, *contents: dict[str, Any], arm: str = "fp8", said: Statement = Statement()) -> LatencyRecord:  # noqa: B008
    results = {}
    for at, content in enumerate(contents):
        file = folder / f"{arm}{at}.json"
        file.write_text(json.dumps(content))
        results[file] = files.read(file)
    return record(arm, results, said)


def compared(first: LatencyRecord, second: LatencyRecord, rules: Rules | None = None) -> Any:
    arms = [ArmRecords(latency.arm, latency.precision_planned, latency) for latency in (first, second)]
    return pairs.compare(arms, rules=rules).pairs[0]


def test_iterations_of_one_batch(tmp_path: Path) -> None:
    latency = imported(tmp_path, batch(1.0), said=SIZES)
    (shape,) = latency.shapes
    seconds = batch(1.0)["latencies"]
    e2e, rate = shape.metrics.e2e_ms, shape.metrics.output_tok_s
    assert e2e is not None
    assert rate is not None
    assert e2e.median == pytest.approx(1000 * statistics.median(seconds))
    assert rate.median == pytest.approx(8 * 256 / statistics.median(seconds))
    assert (shape.name, shape.num_iterations, e2e.loads) == ("b8_i512_o256", 10, 1)
    assert (shape.metrics.ttft_ms, shape.metrics.tpot_ms, latency.gpu_name) == (None, None, None)
    assert (latency.engine, latency.precision, latency.tool and latency.tool.model) == ("vllm", NOT_STATED, "Q")


def test_files_of_an_engine_are_loads_and_give_a_verdict(tmp_path: Path) -> None:
    bases = (1.0, 1.01, 0.99)
    first = imported(tmp_path, *map(batch, bases), arm="bf16", said=SIZES)
    second = imported(tmp_path, *(batch(0.8 * base) for base in bases), said=SIZES)
    pair = compared(first, second)
    ratio = pair.shapes[0].speed.e2e_ms
    assert isinstance(ratio, Ratio)
    assert ratio.value == pytest.approx(1.25)
    assert ratio.loads == 3
    # Welch's interval, 5 % wider for two runs: both sides scatter alike, so there are 4 degrees of freedom
    logs = [math.log(base) for base in bases]
    half = 2.7764451 * math.sqrt(2 * statistics.variance(logs) / 3)
    assert ratio.low == pytest.approx(1.25 * math.exp(-half) / 1.05, rel=1e-6)
    assert pair.verdict is Verdict.PAYS
    assert pair.schedule is not None
    assert (pair.schedule.mode, pair.schedule.one_run) == (None, False)


def test_one_file_of_each_is_a_quick_look(tmp_path: Path) -> None:
    first, second = (imported(tmp_path, trtllm(ms), arm=arm) for arm, ms in (("a", 800.0), ("b", 640.0)))
    pair = compared(first, second)
    assert pair.verdict is Verdict.QUICK_LOOK
    assert pair.shapes[0].speed.e2e_ms.value == pytest.approx(1.25)
    assert (pair.shapes[0].speed.e2e_ms.low, first.shapes[0].metrics.e2e_ms.low) == (None, None)  # type: ignore[union-attr]


def test_labels_of_trtllm_bench(tmp_path: Path) -> None:
    latency = imported(tmp_path, trtllm())
    assert (latency.engine, latency.precision, latency.quant_algo) == ("trtllm", "nvfp4", "NVFP4")
    assert (latency.gpu_name, latency.origin.versions) == (made.GPU, {"tensorrt-llm": "1.2.0"})
    assert [shape.name for shape in latency.shapes] == ["b1_i512_o257"]
    metrics = latency.shapes[0].metrics
    assert [metric.median for metric in (metrics.ttft_ms, metrics.tpot_ms, metrics.e2e_ms) if metric] == [
        20.0,
        2.9,
        800.0,
    ]
    assert imported(tmp_path, trtllm(engine=trtllm()["engine"] | {"quantization": None})).precision == "bf16"
    with pytest.raises(UsageError, match="--batch_size"):  # the mean concurrency is not the one that was asked for
        imported(tmp_path, trtllm(batch_size=8))
    served = imported(tmp_path, trtllm(batch_size=8), said=Statement(batch_size=8))
    assert served.tool is not None
    assert served.tool.load == "serving"


def test_trtllm_bench_beside_a_run_of_our_own(tmp_path: Path) -> None:
    own = made.latency("bf16", {1: [[1000.0, 1000.0]] * 3}, version="1.2.0")
    assert own.labels.engine is not None
    engine = replace(own.labels.engine, name="trtllm")
    own = replace(own, engine="trtllm", labels=replace(own.labels, engine=engine))
    pair = compared(own, imported(tmp_path, *(trtllm(ms) for ms in (800.0, 801.0, 799.0))))
    assert pair.differs == ()
    assert pair.shapes[0].speed.e2e_ms.value == pytest.approx(1.25, rel=1e-3)
    assert pair.shapes[0].speed.tpot_ms.value == pytest.approx(750 / 256 / 2.9, rel=1e-6)
    other = compared(own, imported(tmp_path, trtllm(engine=trtllm()["engine"] | {"version": "1.1.0"})))
    assert other.verdict is Verdict.NOT_COMPARABLE
    assert "another version of the engine (1.2.0 and 1.1.0)" in other.sentence


def test_two_clients_at_one_concurrency(tmp_path: Path) -> None:
    first, second = imported(tmp_path, serving(), arm="a"), imported(tmp_path, aiperf(), arm="b")
    assert (first.engine, second.gpu_name, second.origin.versions) == (None, made.GPU, {"aiperf": "0.13.0"})
    pair = compared(first, second, Rules(decide_on="ttft"))
    assert pair.verdict is Verdict.QUICK_LOOK
    assert pair.shapes[0].speed.ttft_ms.value == pytest.approx(90 / 80)
    assert pair.shapes[0].speed.tpot_ms.value == pytest.approx(9.5 / 9.4)
    assert {row.label for row in pair.labels} >= {"tool.name", "tool.version"}


def test_a_client_and_a_batch_cannot_be_compared(tmp_path: Path) -> None:
    own = made.latency("bf16", {8: [[1000.0]] * 3})
    for latency in (
        imported(tmp_path, serving()),
        imported(tmp_path, offline(10.0), said=Statement(input_len=512, output_len=256)),
    ):
        pair = compared(own, latency)
        assert pair.verdict is Verdict.NOT_COMPARABLE
        assert "another kind of load" in pair.sentence


def test_other_shapes_cannot_be_compared(tmp_path: Path) -> None:
    for changes in ({"max_concurrency": 4}, {"total_output_tokens": 16 * 200}, {"total_input_tokens": 16 * 100}):
        pair = compared(imported(tmp_path, serving(), arm="a"), imported(tmp_path, serving(**changes), arm="b"))
        assert pair.verdict is Verdict.NOT_COMPARABLE
        assert "at other shapes (b8_i512_o256 and " in pair.sentence


def test_a_sweep_of_concurrencies_is_one_arm(tmp_path: Path) -> None:
    latency = imported(tmp_path, serving(), serving(max_concurrency=4), serving(max_concurrency=None))
    assert [shape.batch_size for shape in latency.shapes] == [4, 8, 16]
    assert latency.tool is not None
    assert latency.tool.requests == 48


def test_lengths_that_differ_are_told(tmp_path: Path) -> None:
    latency = imported(tmp_path, serving(total_output_tokens=4000, median_e2el_ms=None))
    assert latency.shapes[0].name == "b8_i512_o250"
    assert not latency.shapes[0].notes[1:2] or "end-to-end" in " ".join(latency.shapes[0].notes)
    assert latency.shapes[0].metrics.e2e_ms is None
    varying = imported(tmp_path, serving(total_output_tokens=4001))
    assert "lengths differ between requests" in " ".join(varying.shapes[0].notes)


@pytest.mark.parametrize(
    ("contents", "said", "sentence"),
    [
        ([batch(1.0)], Statement(), "Give --batch_size and --input_len and --output_len"),
        ([offline(9.0)], Statement(input_len=512, output_len=255), "49152 tokens in all"),
        ([serving()], Statement(batch_size=4), "is of batch_size 8, not 4. Leave --batch_size out"),
        ([trtllm()], Statement(precision="fp8"), "is of precision nvfp4, not fp8"),
        ([serving(), serving(91.0)], Statement(), "does not state whether the server"),
        ([serving(), serving()], Statement(), "hold the same measurement"),
        ([serving(), aiperf()], Statement(), "Import them as two arms"),
        ([serving(request_rate=4.0, max_concurrency=None)], Statement(), "Measure with --max-concurrency"),
        ([serving(completed=15, failed=1)], Statement(), "has 15 of 16 requests alone"),
        ([aiperf(was_cancelled=True)], Statement(), "did not end well"),
        ([aiperf(phases=[{"name": "profiling", "kind": "profiling", "type": "poisson", "rate": 3.0}])], Statement(),
         "Measure with --concurrency"),
        ([aiperf(request_latency={"unit": "sec", "avg": 2.5, "p50": 2.5})], Statement(), "has request_latency in sec"),
        ([batch(1.0, latencies=[1.0, -1.0])], SIZES, r"not as vllm bench latency writes it .*latencies"),
        ([batch(1.0, latencies=[])], SIZES, r"not as vllm bench latency writes it"),
        ([serving(median_ttft_ms="fast")], Statement(), r"not as vllm bench serve writes it .*median_ttft_ms"),
        ([serving(median_ttft_ms=None, median_tpot_ms=None, median_e2el_ms=None)], Statement(), "states no times"),
        ([{"a": 1}], Statement(), "of no tool that can be imported"),
    ],
)  # fmt: skip
def test_refusals(contents: list[Any], said: Statement, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        imported(tmp_path, *contents, said=said)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = []
    for at, base in enumerate((1.0, 1.01, 0.99)):
        (tmp_path / f"{at}.json").write_text(json.dumps(batch(base)))
        words.append(str(tmp_path / f"{at}.json"))
    sizes = ["--batch_size", "8", "--input_len", "512", "--output_len", "256", "--output_dir", str(tmp_path / "out")]
    assert main(["import", *words, *sizes]) == 2
    assert "Give --arm NAME." in capsys.readouterr().err
    assert main(["import", *words, "--arm", "bf16", "--precision", "bf17", *sizes]) == 2
    assert "Did you mean bf16?" in capsys.readouterr().err
    assert main(["import", *words, words[0], "--arm", "bf16", *sizes]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["import", *words, "--arm", "bf16", "--precision", "bf16", *sizes]) == 0
    assert "imported from vllm bench latency" in capsys.readouterr().out
    (arm,) = by_arm.read(tmp_path / "out")
    assert (arm.name, arm.precision, arm.latency and arm.latency.shapes[0].name) == ("bf16", "bf16", "b8_i512_o256")
    assert main(["import", *words, "--arm", "bf16", *sizes]) == 2
    assert "exists already" in capsys.readouterr().err
    disk.write_record(tmp_path / "out" / "perf_fp8_imported.json", imported(tmp_path, batch(0.8), said=SIZES))
    gate = ["--gate", "speed>=1.1", "--output_dir", str(tmp_path / "report")]
    assert main(["compare", str(tmp_path / "out"), *gate]) == 2
    assert "quick look" in capsys.readouterr().out
