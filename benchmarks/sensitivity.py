"""Time of `moe-eval sensitivity` beside brute force: every layer quantised alone, each in a whole pass.

    python benchmarks/sensitivity.py [--model_path PATH] [--dataset moe_sample] [--num_chunks 24] [--input_len 512]
                                     [--precision nvfp4] [--dtype bfloat16] [--device cpu]

Prints the ratio of times to three brute forces, which all give the same ranking:

- a run for each layer: reference and quantised arm are loaded, calibrated and scored, as two arms of `moe-eval ppl` are
- an arm for each layer: the reference is scored once, and every layer's arm is loaded, calibrated and scored
- a pass for each layer: one model, loaded and calibrated once, is scored in whole passes

Times are of the processor where the model is on one, for a busy machine makes seconds of the clock say little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import scoring_windows
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.evaluators import quality, sensitivity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(SHIPPED))
    parser.add_argument("--dataset", default="moe_sample", choices=scoring_windows.DATASETS)
    parser.add_argument("--num_chunks", type=int, default=24)
    parser.add_argument("--input_len", type=int, default=512)
    parser.add_argument("--precision", default="nvfp4", choices=("fp8", "fp8_block", "nvfp4"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model_path)
    cut = scoring_windows.cut(
        scoring_windows.read_documents(args.dataset),
        lambda text: list(tokenizer.encode(text, verbose=False)),
        tokenizer.eos_token_id,
        args.input_len,
        args.num_chunks,
    )
    plain = EngineSettings(args.model_path, dtype=args.dtype, device=args.device)
    emulated = EngineSettings(
        args.model_path, dtype=args.dtype, device=args.device, precision=args.precision, options={"emulate": True}
    )
    clock = time.process_time if args.device == "cpu" else time.perf_counter

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        begun = clock()
        return work(), clock() - begun

    def load() -> Any:
        return registry.load("transformers", plain, tokenizer)

    load().close()  # imports, and files in the cache of the system
    arm, preparing = timed(lambda: load().by_layer(emulated))
    figures, measuring = timed(lambda: sensitivity.measure(arm, cut, args.dataset, max_kld=1e-9))

    def alone(engine: Any, of_layer: Any, layer: int, reference: quality.Scores) -> quality.Scores:
        engine.model = of_layer._model
        with torch.inference_mode(), of_layer._of(layer).quantised():
            return quality.measure(engine, cut, reference=reference)

    runs = arms = passes = 0.0
    klds = {}
    for index, layer in enumerate(arm.layers):
        (engine, loading), (of_layer, arm_loading) = timed(load), timed(lambda: load().by_layer(emulated))
        reference, of_reference = timed(partial(quality.measure, engine, cut))

        scores, scoring = timed(partial(alone, engine, of_layer, layer.layer, reference))
        klds[layer.layer] = quality.compare(reference, scores).mean
        runs += loading + of_reference + arm_loading + scoring
        arms += arm_loading + scoring + (loading + of_reference if index == 0 else 0)
        passes += scoring + (arm_loading + of_reference if index == 0 else 0)

    ranking = sorted(klds, key=lambda layer: -klds[layer])
    is_same = [layer.layer for layer in figures.layers] == ranking
    worst = max(abs(layer.divergence.mean / klds[layer.layer] - 1) for layer in figures.layers)
    total = preparing + measuring
    print(
        f"{args.model_path}: {len(arm.layers)} layers, {args.precision}, {arm.facts.dtype} on {arm.facts.device_name}, "
        f"torch {torch.__version__}. {args.dataset}: {len(cut.windows)} windows, "
        f"{figures.reference.tokens:,} tokens. Ranking as by brute force: {is_same}. KLDs differ by at most "
        f"{worst:.1e}."
    )
    print("| what | seconds | sensitivity / brute force |")
    print("|---|---|---|")
    print(f"| sensitivity, ranking alone | {total:.1f} | |")
    for name, seconds in (("a run", runs), ("an arm", arms), ("a pass", passes)):
        print(f"| {name} for each layer | {seconds:.1f} | {total / seconds:.2f} |")


if __name__ == "__main__":
    main()
