"""What emulated precisions cost in quality, and what emulating them costs in time, in one run.

    python benchmarks/precisions.py [--dataset moe_sample] [--num_chunks 0] [--input_len 512] [--dtype float32]
                                    [--device cpu] [--repeats 1] [--random LAYERS]

Scores the same windows with the unquantised model (twice, with another batch size: the noise floor), with a BF16 copy
of it, and with FP8, FP8 in blocks and NVFP4 in the experts alone and in all linear layers; prints a Markdown table.
Times are of the scoring pass alone, the median of --repeats passes, on a CPU in processor time; the last column is the
ratio to the unquantised passes of the same dtype, which run before all others and after them (the median of both).
With --random the model is a Qwen3-MoE of Qwen3-30B-A3B's width with random weights, normal(0, 0.02), and that many
layers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval import stats
from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import scoring_windows
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.evaluators import quality
from moe_eval.machine import hardware

WIDTH = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "max_position_embeddings": 4096,
}
ARMS = [(name, scope) for scope in ("experts", "all") for name in ("fp8", "fp8_block", "nvfp4")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="moe_sample", choices=scoring_windows.DATASETS)
    parser.add_argument("--num_chunks", type=int, default=0, help="0 for all")
    parser.add_argument("--input_len", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--random", type=int, metavar="LAYERS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, random_model(Path(folder), args.random) if args.random else SHIPPED)


def random_model(folder: Path, layers: int) -> Path:
    """A checkpoint of the real width and the shipped tokenizer."""
    import shutil

    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(SHIPPED)
    config.update({**WIDTH, "num_hidden_layers": layers, "layer_types": ["full_attention"] * layers})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in SHIPPED.glob("token*.json"):
        shutil.copy(file, folder)
    return folder


def run(args: argparse.Namespace, model: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    cut = scoring_windows.cut(
        scoring_windows.read_documents(args.dataset),
        lambda text: list(tokenizer.encode(text, verbose=False)),
        tokenizer.eos_token_id,
        args.input_len,
        args.num_chunks,
    )

    def scored(
        dtype: str, reference: quality.Scores | None = None, **settings: Any
    ) -> tuple[quality.Scores, float, Any]:
        engine_settings = EngineSettings(str(model), dtype=dtype, device=args.device, **settings)
        engine = registry.load("transformers", engine_settings, tokenizer)
        clock = time.process_time if args.device == "cpu" else time.perf_counter
        times = []
        for _ in range(args.repeats):
            start = clock()
            scores = quality.measure(engine, cut, reference=reference)
            times.append(clock() - start)
        engine.close()
        return scores, statistics.median(times), engine.facts

    reference, before, facts = scored(args.dtype)
    again, _, _ = scored(args.dtype, reference, batch_size=1)
    arms = []
    if args.dtype != "bfloat16":
        arms.append(("bf16", *scored("bfloat16", reference)[:2]))
    for name, scope in ARMS:
        options = {"emulate": True, "scope": scope}
        arms.append((f"{name}, {scope}", *scored(args.dtype, reference, precision=name, options=options)[:2]))
    plain = statistics.median([before, scored(args.dtype, reference)[1]])

    model_name = "shipped model" if model == SHIPPED else f"random weights, {args.random} layers"
    print(
        f"{model_name} on {facts.device_name}, {args.dtype}, torch {hardware.versions()['torch']}, Transformers "
        f"{facts.version}. {args.dataset}: {len(cut.windows)} windows of at most {args.input_len} tokens, "
        f"{len(reference.logprobs):,} tokens, {len(set(cut.documents))} documents, k {quality.TOP_K}. One pass "
        f"unquantised takes {plain:.1f} s."
    )
    print("| arm | word ppl | ln(ppl ratio), 95 % interval | KLD mean | median | p99 | same top-1 | time |")
    print("|---|---|---|---|---|---|---|---|")
    show("unquantised", cut, reference, reference, 1.0)
    show("again, batch size 1", cut, reference, again, None)
    for name, scores, seconds in arms:
        show(name, cut, reference, scores, seconds / plain)


def show(
    name: str,
    windows: scoring_windows.WindowSet,
    reference: quality.Scores,
    scores: quality.Scores,
    time_ratio: float | None,
) -> None:
    figures = quality.figures(scores, windows, "")
    word_ppl = figures.word_ppl if figures.word_ppl is not None else np.nan
    ratio = stats.ln_ratio(reference.by_document(), scores.by_document())
    divergence = quality.compare(reference, scores)
    cells = (
        name,
        f"{word_ppl:.3f}",
        f"{ratio.value:+.5f}, {ratio.low:+.5f} to {ratio.high:+.5f}",
        *(f"{value:.2e}" for value in (divergence.mean, divergence.median, divergence.p99)),
        f"{100 * divergence.same_top1:.2f} %",
        "" if time_ratio is None else f"{time_ratio:.2f}x",
    )
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
