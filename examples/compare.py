"""Compare two precisions from Python, then read the records again.

    python examples/compare.py                             the shipped model on this machine's CPU, about 2 minutes
    python examples/compare.py MODEL MODEL-FP8             two checkpoints on vLLM

Everything is also on disk in moe_eval_run/ and in MLflow, as after `moe-eval run`.
"""

import sys
from pathlib import Path

import moe_eval

FOLDER = Path("moe_eval_run")


def main() -> None:
    if len(sys.argv) == 3:
        bf16, fp8 = sys.argv[1:]
        moe_eval.run(
            engine="vllm",
            model_path=bf16,
            fp8_model_path=fp8,
            precisions=["bf16", "fp8"],
            batch_size=[1, 8, 32],
            output_dir=FOLDER,
        )
    else:
        moe_eval.run(
            precisions=["bf16", "fp32"],
            dataset="moe_sample",
            input_len=32,
            output_len=8,
            num_chunks=24,
            batch_size=[1, 4],
            num_iterations=5,
            output_dir=FOLDER,
        )

    results = moe_eval.read(FOLDER)
    for pair in results.comparison.pairs:
        print(f"{pair.other} against {pair.reference}: {pair.verdict.value}. {pair.sentence}")
    print(results.to_dataframe())


if __name__ == "__main__":
    main()
