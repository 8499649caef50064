"""`moe-eval perf` as a command, once on the double of TensorRT-LLM and once on that of vLLM."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest
import transformers

from moe_eval.data.documents import moe_sample
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from tests.conftest import SHIPPED
from tests.contract.commands import Commands, Ended
from tests.contract.conftest import DOUBLES

READ, MADE, ITERATIONS = 8, 3, 2
LAYERS, EXPERTS, TOP_K = 5, 16, 4  # of the shipped model
TRTLLM = ("--engine", "trtllm", "--precisions", "bf16")
VLLM = (
    *("--engine", "vllm", "--precisions", "bf16,fp8", "--fp8_model_path", str(SHIPPED)),
    *("--batch_size", "1,2", "--moe_backend", "triton"),
)
Run = tuple[Ended, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Both commands, run side by side, and their records by file name."""
    common = (
        *("perf", "--model_path", str(SHIPPED), "--dataset", "moe_sample", "--output_dir", "records"),
        *("--input_len", str(READ), "--output_len", str(MADE), "--num_iterations", str(ITERATIONS)),
        *("--loads", "1"),
    )
    started = {}
    for name, options, double in (("trtllm", TRTLLM, "v1_4_0rc1"), ("vllm", VLLM, "vllm_0_22")):
        folder = tmp_path_factory.mktemp(name)
        place = {"folder": folder, "double": DOUBLES / double, "program": "moe-eval"}
        started[name] = commands.start(*common, *options, **place), folder
    records_by_engine = {}
    for name, (running, folder) in started.items():
        ended = running.wait(600)
        assert ended.code == 0, ended.err[-3000:]
        assert not ended.left
        records_by_engine[name] = (
            ended,
            {file.name: json.loads(file.read_text()) for file in sorted((folder / "records").glob("*_*.json"))},
        )
    return records_by_engine


def check_figures(record: dict[str, Any]) -> None:
    """Every figure follows from the iterations that the record holds, the first token and the steps by `engine`."""
    for row in record["shapes"]:
        samples = [sample for load in row["loads"] for sample in load]
        assert len(samples) == row["num_iterations"] == ITERATIONS
        figures = row["figures"]
        assert set(figures["sources"]) == {"host", "engine"}
        for source, medians in figures["sources"].items():
            for name, moment in (("ttft_ms", "first"), ("e2e_ms", "last")):
                seconds = [sample[moment][source] for sample in samples]
                assert medians[name] == pytest.approx(1000 * statistics.median(seconds))
        whole = [sample["last"]["host"] for sample in samples]
        first = [sample["first"]["engine"] for sample in samples]
        steps = [(sample["last"]["engine"] - sample["first"]["engine"]) / (MADE - 1) for sample in samples]
        expected = {
            "ttft_ms": ("engine", [1000 * seconds for seconds in first]),
            "tpot_ms": ("engine", [1000 * seconds for seconds in steps]),
            "e2e_ms": ("host", [1000 * seconds for seconds in whole]),
            "output_tok_s": ("host", [row["batch_size"] * MADE / seconds for seconds in whole]),
            "prefill_tok_s": ("engine", [row["batch_size"] * READ / seconds for seconds in first]),
        }
        for name, (source, values) in expected.items():
            assert figures["metrics"][name]["source"] == source
            assert figures["metrics"][name]["samples"] == pytest.approx(values)
            assert figures["metrics"][name]["median"] == pytest.approx(statistics.median(values))
        assert min(row["warmup_iterations"]) >= 5


def test_tensorrt_llm_leaves_a_record_with_its_labels(runs: dict[str, Run]) -> None:
    ended, records = runs["trtllm"]
    record = records["perf_bf16_cpu.json"]
    names = {"perf_bf16_cpu.json", "perf_comparison.json", "perf_run.json", "perf_rates.json"}
    assert set(records) == names | {f"workload_{record['workload']['digest']}.json"}
    assert (record["status"], record["error"]) == ("finished", None)
    assert records["perf_comparison.json"]["reference"] == "bf16"
    check_figures(record)
    engine = record["labels"]["engine"]
    assert (engine["name"], engine["version"], engine["worker"]) == ("trtllm", "1.4.0rc1", "in_process")
    assert (record["quant_algo"], record["weights"], engine["max_batch"]) == ("none", "checkpoint", 1)
    assert record["moe_backend"] == "TrtllmCutlassFusedMoeImpl"
    assert record["routing"] is None
    assert record["no_routing"] == "not measured: TensorRT-LLM does not tell which experts tokens go through"
    assert record["shapes"][0]["experts_per_layer_step"] is None
    assert "| bf16 | 1 " in ended.out


def test_tensorrt_llm_was_loaded_once_and_asked_for_no_more_than_it_says(runs: dict[str, Run]) -> None:
    ended, records = runs["trtllm"]
    (construct,) = [event for event in ended.events if event["event"] == "construct"]
    assert construct["kwargs"]["max_batch_size"] == 1
    (warm_ups,) = records["perf_bf16_cpu.json"]["shapes"][0]["warmup_iterations"]
    prompts = [event["prompt_len"] for event in ended.events if event["event"] == "request"]
    # a warm-up is one call, an iteration one for the first token and one for all; the rest is the self-test
    assert prompts[-(warm_ups + 2 * ITERATIONS) :] == [READ] * (warm_ups + 2 * ITERATIONS)


def test_vllm_leaves_a_record_for_each_precision(runs: dict[str, Run]) -> None:
    ended, records = runs["vllm"]
    assert {"perf_bf16_cpu.json", "perf_fp8_cpu.json", "perf_comparison.json"} <= set(records)
    for precision in ("bf16", "fp8"):
        record = records[f"perf_{precision}_cpu.json"]
        assert (record["status"], record["error"], record["precision"]) == ("finished", None, precision)
        assert [row["name"] for row in record["shapes"]] == [f"b{size}_i{READ}_o{MADE}" for size in (1, 2)]
        check_figures(record)
        engine = record["labels"]["engine"]
        assert (engine["name"], engine["worker"], engine["precision"]) == ("vllm", "in_process", precision)
        assert (record["weights"], engine["max_batch"], engine["gpus"]) == ("checkpoint", 2, 0)
        assert f"| {precision} " in ended.out
    bf16, fp8 = (records[f"perf_{precision}_cpu.json"] for precision in ("bf16", "fp8"))
    assert (bf16["quant_algo"], records["perf_comparison.json"]["reference"]) == ("none", "bf16")
    assert "FP8" in fp8["quant_algo"]
    assert "while loading" in fp8["quant_algo"], "the folder holds BF16"
    loaded = [record["labels"]["engine"]["weight_bytes"] for record in (bf16, fp8)]
    assert loaded[1]["experts"] < 0.6 * loaded[0]["experts"]
    assert bf16["workload"] == fp8["workload"]


@pytest.fixture(scope="module")
def of_transformers() -> tuple[list[list[int]], list[Any]]:
    """The first two slices of the sample's text, and the experts that Transformers itself goes through with them."""
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    page = moe_sample()["test"]["page"][0]
    tokens = tokenizer.encode(wikitext_detokenizer({"page": page}), add_special_tokens=False)
    prompts = [tokens[:READ], tokens[READ : 2 * READ]]
    engine = registry.load("transformers", EngineSettings(str(SHIPPED), precision="bf16"), tokenizer)
    return prompts, engine.routing(prompts, MADE)


def test_vllm_s_routing_is_counted_apart_from_the_timing(
    runs: dict[str, Run], of_transformers: tuple[list[list[int]], list[Any]]
) -> None:
    files = runs["vllm"][1]
    records = [files["perf_bf16_cpu.json"], files["perf_fp8_cpu.json"]]
    (workload,) = [content for name, content in files.items() if name.startswith("workload_")]
    prompts, routed = of_transformers
    assert workload["pool"] == prompts
    for record in records:
        assert "enable_return_routed_experts" not in record["labels"]["engine"]["arguments"], "the timed arm tells none"
        assert sorted(record["routing"]) == ["1", "2"]
        for row in record["shapes"]:
            batch = row["batch_size"]
            counted = record["routing"][str(batch)]
            load = np.array(counted["load"])
            assert load.shape == (LAYERS, EXPERTS)
            assert load.sum(axis=1).tolist() == [batch * (READ + MADE - 1) * TOP_K] * LAYERS
            assert (counted["experts"], counted["top_k"], counted["steps"]) == (EXPERTS, TOP_K, MADE - 1)
            assert row["experts_per_layer_step"] == counted["distinct"]
            assert TOP_K <= counted["distinct"] <= batch * TOP_K
            chosen = np.concatenate(routed[:batch])
            expected = np.stack([np.bincount(chosen[:, at].ravel(), minlength=EXPERTS) for at in range(LAYERS)])
            # bfloat16 in another order, and FP8, move a token whose scores are close
            assert np.abs(load - expected).sum() < 0.1 * 2 * expected.sum()
    (pair,) = files["perf_comparison.json"]["pairs"]
    fairness = [shape["fairness"] for shape in pair["shapes"]]
    assert [fair["is_fair"] is None for fair in fairness] == [False, False]
    assert all(fair["is_fair"] is (fair["reason"] is None) for fair in fairness)
