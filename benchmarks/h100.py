"""BF16 against FP8 on one GPU through vLLM: speed, the evaluator's own cost, scoring, and the page about them.

    python benchmarks/h100.py shape FOLDER              Qwen3-30B-A3B's config.json, with the shipped tokenizer
    moe-eval perf --engine vllm --model_path FOLDER --fp8_model_path FOLDER --precisions bf16,fp8 --aa
        --batch_size 1,8,32,64 --num_iterations 12 --dataset wikitext_local --output_dir OUT
        --model_args weights=random,moe_backend=triton
    python benchmarks/h100.py inside FOLDER OUT         evaluator against bare loop; scoring against prefill and lm-eval
    python benchmarks/h100.py page OUT docs/results/h100.md

`inside` loads the BF16 arm once. The bare loop calls the same LLM's `generate` with nothing around it; calls of the
evaluator and of the loop take turns (A B B A). Scoring times the engine's `score`, lm-evaluation-harness's own vllm
model on the same LLM, and the engine's prefill of the same prompts (one new token each), again in turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moe_eval import engines, stats
from moe_eval.engines.base import EngineSettings, GenerationRequest, Window
from moe_eval.evaluators import latency, prompts, speed_table
from moe_eval.evaluators.table import columns
from moe_eval.harness import tokens
from moe_eval.harness.settings import SHIPPED
from moe_eval.nvml import Nvml
from moe_eval.workload import Shape

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
MEANING = "## What it means"
_HOW = """Qwen3-30B-A3B's shape with random weights (normal 0.02, norms 1, another seed for every tensor), prompts of
WikiText-2 cut with the shipped model's tokenizer, so that tokens repeat as they do in text. vLLM has no tuned
configuration of its Triton experts for this shape on an H100 and says so; another backend or a tuned one would be
faster. Made by `benchmarks/h100.py`, which says how."""
COST_SHAPES = (Shape(1, 512, 64), Shape(8, 512, 64), Shape(32, 512, 64))
COST_BLOCKS = 6
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
    page = commands.add_parser("page")
    page.add_argument("out", type=Path)
    page.add_argument("file", type=Path)
    page.set_defaults(run=lambda args: write_page(args.out, args.file))
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
    ratio = stats.block_ratio(first, second)
    found = {"name": name, "first_s": first, "second_s": second, "ratio": [ratio.value, ratio.low, ratio.high]}
    print(f"{name}: {ratio.value:.4f} ({ratio.low:.4f} to {ratio.high:.4f})", flush=True)
    return found


def inside(folder: Path, out: Path) -> None:
    settings = EngineSettings(
        checkpoint=str(folder),
        precision="bf16",
        max_length=1024,
        batch_size=SCORED,
        options={"weights": "random", "moe_backend": "triton"},
    )
    tokenizer = tokens.load(str(folder), settings)
    engine: Any = engines.load("vllm", settings, tokenizer)
    found = {"facts": vars(engine.facts), "cost": cost(engine, tokenizer), **scoring(engine, tokenizer)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "inside.json").write_text(json.dumps(found, indent=1, default=str))
    engine.close()


def cost(engine: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """The time the evaluator reports for a call against the time of a bare call of the same LLM."""
    import vllm

    work = prompts.workload("wikitext_local", 0, COST_SHAPES, tokenizer, engine.facts.vocabulary)
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
    work = prompts.workload("wikitext_local", 0, (Shape(SCORED, SCORED_LEN, 1),), tokenizer, engine.facts.vocabulary)
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


def write_page(out: Path, file: Path) -> None:
    """The page from the records in `out`; the section on what they mean is kept as it stands in `file`."""
    found = [json.loads(each.read_text()) for each in sorted(out.glob("perf_*_sm*.json"))]
    finished = sorted(
        (each for each in found if each["status"] == "finished"), key=lambda each: each["reference"] is not None
    )
    parts = ["# One H100: BF16 against FP8 through vLLM", _HOW]
    parts += ["## Speed", speed_page(finished) if finished else "Not run yet."]
    if MEANING in (before := file.read_text() if file.is_file() else ""):
        parts.append(MEANING + before.split(MEANING)[1].split("\n## ")[0].rstrip())
    inside_file = out / "inside.json"
    parts += ["## The evaluator and scoring", inside_page(json.loads(inside_file.read_text()))
              if inside_file.is_file() else "Not run yet."]  # fmt: skip
    file.write_text("\n\n".join(parts) + "\n")


def speed_page(found: Sequence[dict[str, Any]]) -> str:
    floors, clocks = [], []
    for record in found:
        for row in record["shapes"]:
            name = (record["arm"], str(row["batch_size"]))
            for phase, floor in row["floors"].items() if isinstance(row["floors"], dict) else ():
                floors.append(
                    (*name, phase.replace("_", " "), f"{floor['bytes'] / 1e9:.1f}", floor["bound"],
                     f"{floor['predicted_ms']:.2f}", f"{floor['measured_ms']:.2f}",
                     f"{100 * floor['fraction_of_floor']:.0f} %")
                )  # fmt: skip
            seen = [gpu for block in row["gpu"] for gpu in block["gpus"]]
            clocks.append(
                (*name, f"{statistics.median(gpu['sm_mhz_median'] for gpu in seen):.0f}",
                 f"{min(gpu['sm_mhz_min'] for gpu in seen):.0f}",
                 f"{statistics.fmean(gpu['power_w_mean'] for gpu in seen):.0f}",
                 f"{max(gpu['temperature_c_max'] for gpu in seen):.0f}",
                 ", ".join(sorted({reason for gpu in seen for reason in gpu["reasons"]})) or "none")
            )  # fmt: skip
    first, rates = found[0], found[0]["rates"]
    matrix = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates["matrix_flops_per_s"].items())
    return "\n\n".join(
        [
            f"{first['gpu_name']}, driver {first['machine']['driver']}, vLLM {first['versions']['vllm']}, "
            f"torch {first['versions']['torch']}; "
            + "; ".join(f"{each['arm']}: {each['quant_algo']}, {each['moe_backend']}" for each in found),
            speed_table.render(found),
            "### Floors",
            f"Measured rates: copy {rates['copy_bytes_per_s'] / 1e12:.2f} TB/s, {matrix}.",
            columns(("arm", "batch", "phase", "GB", "bound", "floor ms", "measured ms", "reached"), floors),
            "### Clocks",
            columns(
                ("arm", "batch", "SM MHz median", "lowest", "W mean", "deg C most", "reasons to slow down"), clocks
            ),
        ]
    )


def inside_page(found: dict[str, Any]) -> str:
    rows = [(each["name"], "{:.4f}".format(each["ratio"][0]), "{:.4f} to {:.4f}".format(*each["ratio"][1:]),
             str(len(each["first_s"]))) for each in (*found["cost"], found["score_vs_prefill"],
                                                     found["score_vs_lm_eval"])]  # fmt: skip

    def rate(seconds: list[list[float]]) -> str:
        return f"{found['tokens'] / statistics.median(one for block in seconds for one in block):,.0f} tokens/s"

    facts, scored = found["facts"], found["score_vs_prefill"]
    return "\n\n".join(
        [
            f"{facts['device_name']}, vLLM {facts['version']}, {facts['precision']}, {facts['moe_backend_observed']}, "
            f"worker {facts['worker']}:\none process, one load, turns of A B B A; ratios of seconds with a 95 % interval by "
            "block.",
            columns(("ratio", "value", "95 % interval", "blocks"), rows),
            f"Prefill {rate(scored['first_s'])}, scoring {rate(scored['second_s'])},\n"
            f"lm-evaluation-harness's vllm {rate(found['score_vs_lm_eval']['first_s'])}. The two scorings differ by at\n"
            f"most {found['largest_difference_nats']:.3g} nats in a window of {SCORED_LEN} tokens.",
        ]
    )


if __name__ == "__main__":
    main()
