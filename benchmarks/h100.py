"""BF16 against FP8 on one GPU through vLLM: speed, the evaluator's own cost, and scoring.

    python benchmarks/h100.py shape FOLDER              Qwen3-30B-A3B's config.json, with the shipped tokenizer
    moe-eval perf --engine vllm --model_path FOLDER --fp8_model_path FOLDER --precisions bf16,fp8 --aa
        --batch_size 1,8,32,64 --num_iterations 12 --dataset wikitext_local --output_dir OUT
        --model_args weights=random,moe_backend=triton
    moe-eval run ...                                    the same without --aa, into OUT/run
    moe-eval perf --precisions bf16 --aa ...            of a FOLDER with --layers 12, into OUT/aa12: arms take turns
    python benchmarks/h100.py inside FOLDER OUT         evaluator against bare loop; scoring against prefill and lm-eval
    python benchmarks/h100.py traces FOLDER OUT fp8     a trace of one prefill and eight decode steps a batch size
    python benchmarks/h100_page.py OUT docs/results/h100.md

`inside` loads the BF16 arm once. The bare loop calls the same LLM's `generate` with nothing around it; calls of the
evaluator and of the loop take turns (A B B A). Scoring times the engine's `score`, lm-evaluation-harness's own vllm
model on the same LLM, and the engine's prefill of the same prompts (one new token each), again in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_eval import stats
from moe_eval.checkpoint import tokenizer as tokens
from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import prompts
from moe_eval.data.window import Window
from moe_eval.data.workload import Shape
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, GenerationRequest
from moe_eval.evaluators import latency
from moe_eval.machine.nvml import Nvml

# https://huggingface.co/Qwen/Qwen3-30B-A3B, config.json
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
COST_SHAPES = (Shape(1, 512, 64), Shape(8, 512, 64), Shape(32, 512, 64))
COST_BLOCKS = 6
TRACED_SHAPES = (Shape(1, 512, 9), Shape(8, 512, 9), Shape(32, 512, 9))
TRACED_TURNS = 5
SCORED, SCORED_LEN, SCORE_BLOCKS = 64, 512, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shape = commands.add_parser("shape")
    shape.add_argument("folder", type=Path)
    shape.add_argument("--layers", type=int, default=48)
    shape.set_defaults(run=lambda args: write_shape(args.folder, args.layers))
    within = commands.add_parser("inside")
    within.add_argument("folder", type=Path)
    within.add_argument("out", type=Path)
    within.set_defaults(run=lambda args: inside(args.folder, args.out))
    traced = commands.add_parser("traces")
    traced.add_argument("folder", type=Path)
    traced.add_argument("out", type=Path)
    traced.add_argument("precision", choices=("bf16", "fp8"))
    traced.set_defaults(run=lambda args: traces(args.folder, args.out, args.precision))
    args = parser.parse_args()
    args.run(args)


def write_shape(folder: Path, layers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**QWEN3_30B_A3B, "num_hidden_layers": layers, "max_window_layers": layers}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for file in SHIPPED.glob("token*"):
        shutil.copy(file, folder)


def turns(
    one: Callable[[], float], two: Callable[[], float], blocks: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of both, in blocks of A B B A."""
    first, second = [], []
    for _ in range(blocks):
        a, b, c, d = one(), two(), two(), one()
        first.append([a, d])
        second.append([b, c])
    return first, second


def against(name: str, one: Callable[[], float], two: Callable[[], float], blocks: int) -> dict[str, Any]:
    one(), two()
    first, second = turns(one, two, blocks)
    medians = [[statistics.median(block) for block in side] for side in (first, second)]
    logs = stats.mean_interval([math.log(a / b) for a, b in zip(*medians, strict=True)])
    value, low, high = (math.exp(log) for log in (logs.value, logs.low, logs.high))
    found = {"name": name, "first_s": first, "second_s": second, "ratio": [value, low, high]}
    print(f"{name}: {value:.4f} ({low:.4f} to {high:.4f})", flush=True)
    return found


def inside(folder: Path, out: Path) -> None:
    settings = EngineSettings(
        checkpoint=str(folder),
        precision="bf16",
        max_length=1024,
        batch_size=SCORED,
        options={"weights": "random", "moe_backend": "triton"},
    )
    tokenizer = tokens.load(str(folder), settings.revision, settings.trust_remote_code)
    engine: Any = registry.load("vllm", settings, tokenizer)
    found = {"facts": vars(engine.facts), "cost": cost(engine, tokenizer), **scoring(engine, tokenizer)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "inside.json").write_text(json.dumps(found, indent=1, default=str))
    engine.close()


def cost(engine: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """The time the evaluator reports for a call against the time of a bare call of the same LLM."""
    import vllm

    work = prompts.make_workload("wikitext_local", 0, COST_SHAPES, tokenizer, engine.facts.vocabulary)
    found = []
    for shape in COST_SHAPES:
        rows = work.prompts(shape)
        clock = latency.Clock(engine, Nvml.open(()))
        params = vllm.SamplingParams(temperature=0, max_tokens=shape.output_len, ignore_eos=True, detokenize=False)
        sent = [{"prompt_token_ids": list(row)} for row in rows]

        def bare(sent: Any = sent, params: Any = params) -> float:
            start = time.perf_counter()
            engine.session.llm.generate(sent, params, use_tqdm=False)
            return time.perf_counter() - start

        def ours(rows: Any = rows, shape: Shape = shape, clock: Any = clock) -> float:
            return float(clock.sample(rows, shape.output_len).last["cuda_events"])

        for _ in range(4):
            bare()
        found.append(against(f"evaluator / bare loop, {shape.name}", ours, bare, COST_BLOCKS))
    return found


def scoring(engine: Any, tokenizer: Any) -> dict[str, Any]:
    """Tokens a second of scoring, of prefill alone, and of lm-evaluation-harness's own vllm model on the same LLM."""
    work = prompts.make_workload(
        "wikitext_local", 0, (Shape(SCORED, SCORED_LEN, 1),), tokenizer, engine.facts.vocabulary
    )
    windows = [Window(row[:1], row[1:]) for row in work.pool]
    once = GenerationRequest(max_new_tokens=1, ignore_eos=True, timed=True)
    theirs = harness_model(engine, tokenizer)
    requests = [(("", str(at)), list(row[:1]), list(row[1:])) for at, row in enumerate(work.pool)]

    def timed(what: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            what()
            return time.perf_counter() - start

        return run

    ours = timed(lambda: engine.score(windows))
    prefill = timed(lambda: engine.generate(work.pool, once))
    lm_eval = timed(lambda: theirs._loglikelihood_tokens(requests, disable_tqdm=True))
    own = [float(each.logprobs.sum()) for each in engine.score(windows)]
    other = [value for value, _ in theirs._loglikelihood_tokens(requests, disable_tqdm=True)]
    return {
        "tokens": SCORED * SCORED_LEN,
        "score_vs_prefill": against("prefill / scoring", prefill, ours, SCORE_BLOCKS),
        "score_vs_lm_eval": against("lm-eval's vllm / scoring", lm_eval, ours, SCORE_BLOCKS),
        "largest_difference_nats": max(abs(a - b) for a, b in zip(own, other, strict=True)),
    }


def traces(folder: Path, out: Path, precision: str) -> None:
    """One trace a shape, and the seconds of the same call without the profiler."""
    settings = EngineSettings(
        checkpoint=str(folder),
        precision=precision,
        max_length=1024,
        batch_size=max(shape.batch_size for shape in TRACED_SHAPES),
        options={"weights": "random", "moe_backend": "triton", "cuda_graph_batch_sizes": "1:8:32"},
    )
    tokenizer = tokens.load(str(folder), settings.revision, settings.trust_remote_code)
    engine: Any = registry.load("vllm", settings, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    work = prompts.make_workload("wikitext_local", 0, TRACED_SHAPES, tokenizer, engine.facts.vocabulary)
    for shape in TRACED_SHAPES:
        rows, clock = work.prompts(shape), latency.Clock(engine, Nvml.open(()))
        for _ in range(latency.LEAST_WARM_UPS):
            clock.sample(rows, shape.output_len)
        samples = [clock.sample(rows, shape.output_len) for _ in range(TRACED_TURNS)]
        file = out / f"{precision}_{shape.name}.json"
        start = time.perf_counter()
        with engine.trace(file):
            profiled = clock.time(rows, shape.output_len)[0]
        print(f"{file.name}: traced in {time.perf_counter() - start:.1f} s", flush=True)
        found = {"facts": vars(engine.facts), "profiled": profiled, "samples": [asdict(each) for each in samples]}
        (out / f"{precision}_{shape.name}_times.json").write_text(json.dumps(found, indent=1, default=str))
    engine.close()


def harness_model(engine: Any, tokenizer: Any) -> Any:
    """lm-evaluation-harness's vllm model around the LLM that is loaded already."""
    from lm_eval.models import vllm_causallms

    vllm_causallms.LLM = lambda **_: engine.session.llm
    return vllm_causallms.VLLM(
        pretrained=engine.facts.checkpoint,
        tokenizer=str(tokenizer.name_or_path),
        max_model_len=engine.facts.max_length,
        batch_size="auto",
        enable_thinking=False,
    )


if __name__ == "__main__":
    main()
