"""Scoring on a GPU in bfloat16: our Transformers engine beside the harness's own `hf` model, on the same weights.

    python benchmarks/scoring_gpu.py [--layers 8] [--width 2048] [--windows 64] [--questions 48] [--repeats 3]
    python benchmarks/scoring_gpu.py --vllm

The model is a Qwen3-MoE of random weights with the layers of Qwen3-30B-A3B and its vocabulary of 151,936. It is made on
the GPU, and both arms hold that one model. Two jobs: whole texts (`loglikelihood_rolling`), and questions of four
choices with long contexts (`loglikelihood`). Arms take turns. Times are medians with their range, memory is the peak
above the weights. `--vllm` times the scores of the vLLM engine beside its own prefill of the same prompts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance

from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, GenerationRequest
from moe_eval.engines.head import Head, body
from moe_eval.engines.transformers import load
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.evaluators.engine_model import EngineLM

ASSETS = Path(__file__).resolve().parent.parent / "moe_eval" / "assets"
SHIPPED = ASSETS / "tiny-qwen3-moe"
WINDOW, BATCH = 1024, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048, help="of hidden states. Experts have 3/8 of it")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--windows", type=int, default=64, help=f"texts of {WINDOW} tokens")
    parser.add_argument("--questions", type=int, default=48, help="of four choices")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", action="store_true")
    args = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    jobs = {
        "whole texts": ("loglikelihood_rolling", texts(tokenizer, args.windows)),
        "four choices": ("loglikelihood", questions(tokenizer, args.questions)),
    }
    config = configuration(args)
    print(f"torch {torch.__version__}, Transformers {transformers.__version__}, {args.layers} layers of {args.width}")
    if args.vllm:
        beside_prefill(config, tokenizer, jobs["whole texts"][1], args.repeats)
        return
    torch.manual_seed(1)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    arms = {"ours": ours(model, tokenizer, config, args.device), "hf": harness(model, tokenizer)}
    for title, (method, requests) in jobs.items():
        report(title, {arm: getattr(lm, method) for arm, lm in arms.items()}, requests, args.repeats)
    parts(model, arms["ours"], [request.args[0] for request in jobs["whole texts"][1][:BATCH]])


def configuration(args: argparse.Namespace) -> Any:
    return transformers.Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=max(4, args.width // 64),
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=args.width * 3 // 8,
        intermediate_size=args.width * 3,
        num_experts=args.experts,
        num_experts_per_tok=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


def texts(tokenizer: Any, count: int, window: int = WINDOW) -> list[Instance]:
    """Texts that are a little shorter than a window."""
    tokens = tokenizer.encode((ASSETS / "moe_sample.raw").read_text(encoding="utf-8"), verbose=False)
    size = window - 8  # decoding and encoding again may split a word at the edges
    places = [index * size % (len(tokens) - size) for index in range(count)]
    read = [tokenizer.decode(tokens[place : place + size]) for place in places]
    return [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(read)]


def questions(tokenizer: Any, count: int) -> list[Instance]:
    """Contexts of 600 to 1,000 tokens with four continuations of 4 to 16."""
    tokens = tokenizer.encode((ASSETS / "moe_sample.raw").read_text(encoding="utf-8"), verbose=False)
    drawn = random.Random(1)

    def passage(low: int, high: int) -> str:
        size = drawn.randint(low, high)
        place = drawn.randrange(len(tokens) - size)
        return str(tokenizer.decode(tokens[place : place + size])).strip()

    requests = []
    for index in range(count):
        context = passage(600, 1000)
        requests += [Instance("loglikelihood", {}, (context, " " + passage(4, 16)), index) for _ in range(4)]
    return requests


def ours(model: Any, tokenizer: Any, config: Any, device: str) -> EngineLM:
    head = Head(model, config)
    settings = EngineSettings(checkpoint="random-weights")
    facts = load._facts(settings, config, model, head, dtype="bfloat16", device=torch.device(device), window=WINDOW)
    return EngineLM(TransformersEngine(facts, model, tokenizer, head, BATCH, None), tokenizer)


def harness(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW, batch_size=BATCH)


def report(title: str, arms: dict[str, Callable[..., Any]], requests: list[Instance], repeats: int) -> None:
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peaks: dict[str, float] = dict.fromkeys(arms, 0.0)
    answers: dict[str, list[Any]] = {}
    for arm, score in arms.items():
        answers[arm] = score(requests, disable_tqdm=True)  # warms up
    for turn in range(repeats):
        for arm in list(arms) if turn % 2 else reversed(arms):
            before = _memory(reset=True)
            started = time.perf_counter()
            arms[arm](requests, disable_tqdm=True)
            seconds[arm].append(time.perf_counter() - started)
            peaks[arm] = max(peaks[arm], _memory() - before)
    for arm, times in seconds.items():
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(
            f"{title}: {arm:4} {statistics.median(times):7.3f} s ({spread}), {peaks[arm]:7,.0f} MiB above the weights"
        )
    ratio = statistics.median(seconds["hf"]) / statistics.median(seconds["ours"])
    scores = {arm: [answer[0] if isinstance(answer, tuple) else answer for answer in answers[arm]] for arm in arms}
    worst = max(abs(a - b) / abs(b) for a, b in zip(scores["ours"], scores["hf"], strict=True))
    total = abs(sum(scores["ours"]) / sum(scores["hf"]) - 1)
    greedy = sum(a[1:] != b[1:] for a, b in zip(answers["ours"], answers["hf"], strict=True) if isinstance(a, tuple))
    print(
        f"{title}: hf/ours time {ratio:.2f}x, log-likelihoods differ by {total:.1e} in all, {worst:.1e} at most, ",
        end="",
    )
    print(f"{greedy} of {len(requests)} differ in being greedy", flush=True)


@torch.inference_mode()
def parts(model: Any, lm: EngineLM, read: list[str]) -> None:
    """What a batch costs: its tokens, its layers, and its head in our way and in the harness's."""
    rows = [lm.tok_encode(text)[: WINDOW - 24] for text in read]
    tokens = torch.tensor([row for row in rows if len(row) == WINDOW - 24], device=model.device)
    hidden = body(model)(input_ids=tokens, use_cache=False).last_hidden_state
    targets = tokens.flatten()

    def theirs() -> None:
        logits = torch.log_softmax(model.lm_head(hidden), -1)
        logits.argmax(-1), logits.gather(-1, tokens[..., None])

    works: dict[str, Callable[[], object]] = {
        "tokens": lambda: [lm.tok_encode(text) for text in read],
        "layers": lambda: body(model)(input_ids=tokens, use_cache=False),
        "our head": lambda: lm.engine.head.score(hidden.flatten(0, 1), targets),  # type: ignore[attr-defined]
        "hf's head": theirs,
    }
    for name, work in works.items():
        times = []
        for _ in range(6):
            started = time.perf_counter()
            work()
            _memory()
            times.append(time.perf_counter() - started)
        print(f"a batch of {tokens.numel():,} tokens: {name:9} {1e3 * statistics.median(times[1:]):8.2f} ms")


def _memory(*, reset: bool = False) -> float:
    """MiB that the allocator held at most since the last reset, after all work is done."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


def beside_prefill(config: Any, tokenizer: Any, requests: list[Instance], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config.architectures, config.dtype = ["Qwen3MoeForCausalLM"], torch.bfloat16
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = EngineSettings(checkpoint=folder, max_length=WINDOW + 1, options={"weights": "random"})
        engine = registry.load("vllm", settings, tokenizer)
        lm = EngineLM(engine, tokenizer)
        prompts = [lm.tok_encode(request.args[0]) for request in requests]
        works: dict[str, Callable[[], object]] = {
            "scores": lambda: lm.loglikelihood_rolling(requests, disable_tqdm=True),
            "prefill": lambda: engine.generate(prompts, GenerationRequest(1, ignore_eos=True)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(2 * repeats + 1):
            for name in list(works) if turn % 2 else reversed(works):
                started = time.perf_counter()
                works[name]()
                seconds[name] += [time.perf_counter() - started] if turn else []
        for name, times in seconds.items():
            middle, spread = statistics.median(times), f"{min(times):.3f} to {max(times):.3f}"
            print(f"vLLM: {name:7} {middle:.3f} s ({spread}), {sum(map(len, prompts)) / middle:,.0f} tok/s")
        ratio = statistics.median(seconds["prefill"]) / statistics.median(seconds["scores"])
        print(f"vLLM: scoring has {ratio:.2f} of the speed of prefill")
        engine.close()


if __name__ == "__main__":
    main()
