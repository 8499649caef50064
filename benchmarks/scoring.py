"""Scoring speed and memory: our Transformers engine beside the harness's own `hf` model, in one run.

    python benchmarks/scoring.py [--device cpu] [--dtype float32] [--batch_size 8] [--windows 16] [--repeats 3]

Two models: the shipped one, and a Qwen3-MoE of random weights with Qwen3's vocabulary of 151,936. Both arms score the
same texts through the same `loglikelihood_rolling`, and the shipped model questions of four choices with long contexts
through `loglikelihood`. Each arm has processes of its own, in the order A B B A. Its time is the median of its passes:
of the clock on a GPU, and of the processor on a CPU that others may share. Its memory is the peak of the process (or
the GPU) above what it held with the weights loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).resolve().parent.parent / "moe_eval" / "assets"
SHIPPED = ASSETS / "tiny-qwen3-moe"
SAMPLE = ASSETS / "moe_sample.raw"
VOCABULARY = 151936


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--windows", type=int, default=16, help="texts of one window each")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--questions", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=("ours", "hf"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large-vocabulary"
        make_large(large)
        jobs = [("shipped model", SHIPPED, 0), (f"vocabulary {VOCABULARY:,}", large, 0), ("four choices", SHIPPED, 8)]
        for title, model, args.questions in jobs:
            report(title, [(arm, in_process(arm, model, args)) for arm in ("ours", "hf", "hf", "ours")])


def make_large(folder: Path) -> None:
    """A random Qwen3-MoE whose output head, not its layers, is the size of the real one's in tokens of vocabulary."""
    import torch
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=128,
        num_experts=16,
        num_experts_per_tok=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)


def in_process(arm: str, model: Path, args: argparse.Namespace) -> dict[str, Any]:
    passed = ["--device", args.device, "--batch_size", args.batch_size, "--windows", args.windows]
    passed += [
        "--window",
        args.window,
        "--repeats",
        args.repeats,
        "--dtype",
        args.dtype,
        "--arm",
        arm,
        "--model",
        model,
        "--questions",
        args.questions,
    ]
    done = subprocess.run([sys.executable, __file__, *map(str, passed)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(title: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    seconds = {arm: [each for name, run in runs if name == arm for each in run["seconds"]] for arm in ("ours", "hf")}
    peak = {arm: max(run["peak_mib"] for name, run in runs if name == arm) for arm in ("ours", "hf")}
    middle = {arm: statistics.median(each) for arm, each in seconds.items()}
    first = runs[0][1]
    print(f"{title}: {first['tokens']:,} tokens on {first['device']}, {first['dtype']}")
    for arm in ("ours", "hf"):
        spread = f"{min(seconds[arm]):.2f} to {max(seconds[arm]):.2f}"
        rate = first["tokens"] / middle[arm]
        print(f"  {arm:5} {middle[arm]:8.2f} s ({spread}) {rate:9,.0f} tok/s {peak[arm]:8,.0f} MiB above the weights")
    difference = abs(runs[0][1]["nats"] / runs[1][1]["nats"] - 1)
    print(f"  hf/ours time {middle['hf'] / middle['ours']:.2f}x, memory {peak['hf'] / peak['ours']:.1f}x, ", end="")
    print(f"log-likelihoods differ by {difference:.1e} relative")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time one arm's passes over the texts."""
    import torch
    from scoring_gpu import questions, texts

    common: dict[str, Any] = {"pretrained": str(args.model), "dtype": args.dtype, "device": args.device}
    common |= {"batch_size": args.batch_size, "max_length": 1024 if args.questions else args.window}
    if args.arm == "ours":
        from moe_eval.harness.model import MoeLM

        model: Any = MoeLM(engine="transformers", **common)
    else:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(**common)
    if args.questions:
        requests = questions(model.tokenizer, args.questions)
    else:
        requests = texts(model.tokenizer, args.windows, args.window)
    score = model.loglikelihood if args.questions else model.loglikelihood_rolling
    tokens = sum(len(model.tok_encode("".join(request.args))) for request in requests)

    on_gpu = args.device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    before = _gpu_memory() if on_gpu else _resident()
    with _Peak(on_gpu) as peak:
        nats, seconds = 0.0, []
        for turn in range(args.repeats + 1):  # the first warms up
            started = clock()
            nats = sum(answer[0] if args.questions else answer for answer in score(requests, disable_tqdm=True))
            seconds += [clock() - started] if turn else []
    device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    return {
        "seconds": seconds,
        "peak_mib": (peak.bytes - before) / 2**20,
        "tokens": tokens,
        "dtype": args.dtype,
        "nats": nats,
        "device": device,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.memory_allocated())


class _Peak:
    """The most memory held inside the context: the allocator's own peak on a GPU, sampled every 5 ms on a CPU."""

    def __init__(self, on_gpu: bool) -> None:
        self.bytes = 0
        self._on_gpu = on_gpu
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, _resident())

    def __enter__(self) -> _Peak:
        if self._on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            import torch

            self.bytes = int(torch.cuda.max_memory_allocated())
        else:
            self._done.set()
            self._thread.join()


if __name__ == "__main__":
    main()
