"""From which load on does FP8 pay? Qwen3-30B-A3B's shape, random weights, on one GPU through `vllm serve`.

    python benchmarks/h100_serving.py OUT                       every part, one after another
    python benchmarks/h100_serving.py OUT serving               one part
    python benchmarks/h100_serving_page.py OUT docs/results/h100-serving.md

Parts:
    serving   BF16 against FP8 by concurrency, 512 tokens in and 128 out, driven by AIPerf: three loads of each arm, the
              fewest with a verdict, and three minutes a load once its server is ready
    lockstep  the latency evaluator at the same batch sizes, to put beside it: two minutes a load. `--batch_size 1` for
              one user alone
    trace     the kernels of each server under 32 users, in one load of each beside those that it times

The shape has a made-up tokenizer in which every id is a word: a client counts no token without text, and most ids of
the shipped tokenizer have none. A part that was stopped goes on after its last point, and the page shows what there is.
Further options, such as `--loads 4`, go to `moe-eval run`, which goes on only with those that it began with.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from failing_ranks import COMMAND
from h100 import QWEN3_30B_A3B, write_shape
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

USERS = "1,2,4,8,16,32,64,128"
LENGTHS = ("--input_len", "512", "--output_len", "128")
LIMITS = ("--ttft_ms", "1000", "--tpot_ms", "20")
ARMS = "weights=random,moe_backend=triton"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    args, further = parser.parse_known_args()
    shape = args.out / "shape"
    if not shape.is_dir():
        write_shape(shape, 48)
        write_tokenizer(shape)
    for part in args.parts or PARTS:
        PARTS[part](args.out, further)


def write_tokenizer(folder: Path) -> None:
    """A word for every id of the vocabulary."""
    for file in folder.glob("token*"):
        file.unlink()
    words = {f"t{number}": number for number in range(QWEN3_30B_A3B["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    ends = {f"{name}_token": f"t{QWEN3_30B_A3B[f'{name}_token_id']}" for name in ("bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)


def serving(out: Path, further: Sequence[str]) -> None:
    load = ("--concurrency", USERS, "--num_requests", "20", *LIMITS)
    run(out, "serving", "serving", ARMS, "--loads", "3", *load, *further)


def lockstep(out: Path, further: Sequence[str]) -> None:
    """As a server runs them: the engine's core in a process of its own."""
    batches = ("--batch_size", USERS, "--num_iterations", "6")
    run(out, "latency", "latency", f"{ARMS},worker=spawned", "--loads", "3", *batches, *further)


def trace(out: Path, further: Sequence[str]) -> None:
    load = ("--concurrency", "32", "--num_requests", "20", *LIMITS)
    run(out, "trace", "serving,kernels", ARMS, "--loads", "1", *load, *further)


def run(out: Path, name: str, evaluators: str, settings: str, *options: str) -> None:
    """`moe-eval run` into a folder of this name."""
    folder, shape = out / name, str(out / "shape")
    arms = ("--engine", "vllm", "--model_path", shape, "--fp8_model_path", shape, "--precisions", "bf16,fp8")
    arms += ("--model_args", settings, *LENGTHS)
    resume = ["--resume"] * (folder / "run.json").is_file()
    command = [*COMMAND, "run", *arms, "--evaluators", evaluators, "--dataset", "random", *options]
    subprocess.run([*command, "--output_dir", str(folder), *resume], check=False)


PARTS: Mapping[str, Callable[[Path, Sequence[str]], None]] = {"serving": serving, "lockstep": lockstep, "trace": trace}


if __name__ == "__main__":
    main()
