"""Time of `moe-eval sensitivity` beside brute force: every layer quantised alone, each in a whole pass.

    python benchmarks/sensitivity.py [--model_path PATH] [--dataset moe_sample] [--num_chunks 24] [--input_len 512]
                                     [--precision nvfp4] [--dtype bfloat16] [--device cpu] [--rounds 3]

Prints the ratio of times to three brute forces, which all give the same ranking:

- a run for each layer: reference and quantised arm are loaded, calibrated and scored, as two arms of `moe-eval ppl` are
- an arm for each layer: the reference is scored once, and every layer's arm is loaded, calibrated and scored
- a pass for each layer: one model, loaded and calibrated once, is scored in whole passes

Times are of the processor where the model is on one, for a busy machine makes seconds of the clock say little.
Ours and the brute forces take turns, and medians over rounds are printed. The pass for a suggestion stands apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from moe_eval.checkpoint.shipped import SHIPPED
from moe_eval.data import scoring_windows
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, ExpertsOfLayer
from moe_eval.evaluators import quality, sensitivity
from moe_eval.records.sensitivity import SensitivityFigures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(SHIPPED))
    parser.add_argument("--dataset", default="moe_sample", choices=scoring_windows.DATASETS)
    parser.add_argument("--num_chunks", type=int, default=24)
    parser.add_argument("--input_len", type=int, default=512)
    parser.add_argument("--precision", default="nvfp4", choices=("fp8", "fp8_block", "nvfp4"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
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

    def alone(engine: Any, of_layer: Any, layer: int, reference: quality.Scores) -> quality.Scores:
        engine.model = of_layer._model
        with torch.inference_mode(), of_layer._of(layer).quantised():
            return quality.measure(engine, cut, reference=reference)

    def brute_force(layers: Sequence[ExpertsOfLayer]) -> tuple[dict[int, float], list[float]]:
        """KLDs by layer, and seconds of the three."""
        runs = arms = passes = 0.0
        klds = {}
        for index, layer in enumerate(layers):
            (engine, loading), (of_layer, arm_loading) = timed(load), timed(lambda: load().by_layer(emulated))
            reference, of_reference = timed(partial(quality.measure, engine, cut))
            kld, scoring = timed(
                lambda: quality.compare(reference, alone(engine, of_layer, layer.layer, reference)).mean  # noqa: B023
            )
            klds[layer.layer] = kld
            runs += loading + of_reference + arm_loading + scoring
            arms += arm_loading + scoring + (loading + of_reference if index == 0 else 0)
            passes += scoring + (arm_loading + of_reference if index == 0 else 0)
        return klds, [runs, arms, passes]

    def ours() -> tuple[Any, SensitivityFigures, list[float]]:
        """The arm, its figures, and seconds of the ranking and of one pass for a suggestion."""
        arm, preparing = timed(lambda: load().by_layer(emulated))
        # nothing keeps this bound, so no pass is made for the suggestion
        figures, measuring = timed(lambda: sensitivity.measure(arm, cut, args.dataset, max_kld=1e-12))
        ids = [np.zeros((len(window.continuation), quality.TOP_K), np.int64) for window in cut.windows]
        _, suggesting = timed(lambda: arm.joint(cut.windows, [layer.layer for layer in arm.layers[:2]], ids))
        return arm, figures, [preparing + measuring, suggesting]

    def klds_of(figures: SensitivityFigures) -> dict[int, float]:
        return {layer.layer: layer.divergence.mean for layer in figures.layers}

    ours(), brute_force(load().by_layer(emulated).layers[:1])  # imports, and files in the cache of the system
    seconds = []
    for _ in range(args.rounds):
        arm, figures, of_ours = ours()
        klds, of_brute_force = brute_force(arm.layers)
        seconds.append([*of_ours, *of_brute_force])
    ranked = klds_of(figures)
    is_same = list(ranked) == sorted(klds, key=lambda layer: -klds[layer])
    worst = max(abs(ranked[layer] / kld - 1) for layer, kld in klds.items())
    print(
        f"{args.model_path}: {len(arm.layers)} layers, {args.precision}, {arm.facts.dtype} on {arm.facts.device_name}, "
        f"torch {torch.__version__}. {args.dataset}: {len(cut.windows)} windows, "
        f"{figures.reference.tokens:,} tokens. Ranking as by brute force: {is_same}. KLDs differ by at most "
        f"{worst:.1e}. Medians of {args.rounds} rounds."
    )
    total, suggesting, *brute = np.median(seconds, axis=0)
    print("| what | seconds | sensitivity / brute force | with the pass for a suggestion |")
    print("|---|---|---|---|")
    print(f"| sensitivity: the ranking | {total:.1f} | | |")
    print(f"| one pass for a suggestion | {suggesting:.1f} | | |")
    for name, time_ in zip(("a run", "an arm", "a pass"), brute, strict=True):
        print(f"| {name} for each layer | {time_:.1f} | {total / time_:.2f} | {(total + suggesting) / time_:.2f} |")


if __name__ == "__main__":
    main()
