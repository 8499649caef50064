"""Scoring on a GPU in bfloat16: our Transformers engine beside the harness's own `hf` model, on the same weights.

    python benchmarks/scoring_gpu.py [--layers 8] [--width 2048] [--windows 64] [--questions 48] [--repeats 3]
    python benchmarks/scoring_gpu.py --vllm

The models are Qwen3-MoE of random weights with Qwen3's vocabulary of 151,936: one with the layers of Qwen3-30B-A3B, and
one with small layers, where launches and the head show. They are made on the GPU, and all arms hold the same weights.
Two jobs: whole texts (`loglikelihood_rolling`), and questions of four choices with long contexts (`loglikelihood`).
Arms take turns. Times are medians, memory is the peak above the weights. The head alone is timed on random states, and
its log-probabilities are held against float64. `--vllm` times the scores of the vLLM engine, with and without
moe_eval's kernel, beside its own prefill of the same prompts. Both get token ids.
"""

from __future__ import annotations

import argparse
import copy
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, GenerationRequest
from moe_eval.engines.head import Head, body
from moe_eval.engines.transformers import load
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.transformers.fewer_passes import shorten
from moe_eval.engines.vllm import prompt_scores
from moe_eval.evaluators.engine_model import EngineLM

ASSETS = Path(__file__).resolve().parent.parent / "moe_eval" / "assets"
SHIPPED = ASSETS / "tiny-qwen3-moe"
WINDOW, BATCH, VOCABULARY = 1024, 16, 151_936
HEADS = {"ours": Head}  # kinds of our head, by the arm's name


def main(heads: Mapping[str, Callable[..., Head]] = HEADS, arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048, help="of hidden states. Experts have 3/8 of it")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--windows", type=int, default=64, help=f"texts of {WINDOW} tokens")
    parser.add_argument("--questions", type=int, default=48, help="of four choices")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", action="store_true")
    args = parser.parse_args(arguments)
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    jobs = {
        "whole texts": ("loglikelihood_rolling", texts(tokenizer, args.windows)),
        "four choices": ("loglikelihood", questions(tokenizer, args.questions)),
    }
    if args.vllm:
        config = configuration(args.layers, args.width, args.experts)
        beside_prefill(config, tokenizer, jobs["whole texts"][1], args.repeats)
        return
    rows = []
    for shape in dict.fromkeys([(args.layers, args.width, args.experts), (4, 256, 16)]):
        rows += scores(heads, jobs, tokenizer, configuration(*shape), args)
    rows += [row for width in (256, 2048, 4096) for row in alone(heads, width, args)]
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    print(f"\n{name}, torch {torch.__version__}, Transformers {transformers.__version__}, bfloat16\n")
    print("| work | arm | time, ms | range | of hf's speed | memory, MiB | difference |\n|---|---|---|---|---|---|---|")
    print("\n".join(rows), flush=True)


def configuration(layers: int, width: int, experts: int) -> Any:
    return transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(4, width // 64),
        num_key_value_heads=4,
        head_dim=128,
        moe_intermediate_size=width * 3 // 8,
        intermediate_size=width * 3,
        num_experts=experts,
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


def scores(
    heads: Mapping[str, Callable[..., Head]],
    jobs: Mapping[str, tuple[str, list[Instance]]],
    tokenizer: Any,
    config: Any,
    args: argparse.Namespace,
) -> list[str]:
    """Rows of the table: the jobs on one model."""
    torch.manual_seed(1)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    arms = {name: ours(model, kind(model, config), tokenizer, config, args.device) for name, kind in heads.items()}
    arms["hf"] = harness(model, tokenizer)
    rows = []
    for job, (method, requests) in jobs.items():
        title = f"{job}, {config.num_hidden_layers} layers of {config.hidden_size}"
        rows += scored({arm: getattr(lm, method) for arm, lm in arms.items()}, requests, title, args.repeats)
    del arms, model
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def scored(methods: dict[str, Callable[..., Any]], requests: list[Instance], title: str, repeats: int) -> list[str]:
    answers: dict[str, list[Any]] = {}

    def run(arm: str) -> None:
        answers[arm] = methods[arm](requests, disable_tqdm=True)

    seconds, peaks = in_turns({arm: partial(run, arm) for arm in methods}, repeats)
    differences = {arm: agreement(answers[arm], answers["hf"]) for arm in methods if arm != "hf"}
    return [line(title, arm, seconds, peaks, differences.get(arm, "")) for arm in methods]


def ours(model: Any, head: Head, tokenizer: Any, config: Any, device: str) -> EngineLM:
    settings = EngineSettings(checkpoint="random-weights")
    facts = load._facts(settings, config, model, head, dtype="bfloat16", device=torch.device(device), window=WINDOW)
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    print(f"ours: {', '.join(shorten(body(model))) or 'nothing'} in fewer passes")
    return EngineLM(TransformersEngine(facts, model, tokenizer, head, BATCH, None), tokenizer)


def harness(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=WINDOW, batch_size=BATCH)


def agreement(answers: list[Any], expected: list[Any]) -> str:
    pairs = [
        (answer[0] if isinstance(answer, tuple) else answer, other[0] if isinstance(other, tuple) else other)
        for answer, other in zip(answers, expected, strict=True)
    ]
    total = abs(sum(answer for answer, _ in pairs) / sum(other for _, other in pairs) - 1)
    worst = max(abs(answer / other - 1) for answer, other in pairs)
    return f"from hf {total:.1e} in all, {worst:.1e} at most, relative"


@torch.inference_mode()
def alone(heads: Mapping[str, Callable[..., Head]], width: int, args: argparse.Namespace) -> list[str]:
    """Rows of the table: the head alone on random states. 512 of them are held against float64."""
    torch.manual_seed(2)
    count = BATCH * WINDOW if args.device == "cuda" else 64
    hidden = torch.randn(count, width, device=args.device).bfloat16()
    layer = torch.nn.Linear(width, VOCABULARY, bias=False, device="meta")
    weight = (torch.randn(VOCABULARY, width, device=args.device) * width**-0.5).bfloat16()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    targets = torch.randint(VOCABULARY, (count,), device=args.device)
    model = type("OnlyHead", (), {"get_output_embeddings": lambda self: layer})()
    kinds = {name: kind(model, None) for name, kind in heads.items()}

    def theirs(rows: Tensor) -> Tensor:
        logits = torch.log_softmax(rows @ weight.T, -1)
        logits.argmax(-1)
        return logits.gather(-1, targets[: len(rows), None])[:, 0]

    works: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda rows, head=head: head.score(rows, targets[: len(rows)]).logprobs for name, head in kinds.items()
    }
    works |= {"hf": theirs, "the matrix product alone": lambda rows: rows @ weight.T}
    seconds, peaks = in_turns({name: lambda work=work: work(hidden) for name, work in works.items()}, 5)
    few, weight64 = hidden[:512], weight.double()
    expected = torch.cat(
        [
            torch.log_softmax(part @ weight64.T, -1).gather(-1, ids[:, None])[:, 0]
            for part, ids in zip(few.double().split(64), targets[:512].split(64), strict=True)
        ]
    )
    del weight64
    differences = {
        name: f"from float64 {(works[name](few).double() - expected).abs().max().item():.1e} at most"
        for name in [*kinds, "hf"]
    }
    title = f"head of {width}, {count:,} tokens"
    return [line(title, arm, seconds, peaks, differences.get(arm, "")) for arm in works]


def in_turns(
    works: Mapping[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every work, and its MiB above those before it. The first turn warms up."""
    seconds: dict[str, list[float]] = {arm: [] for arm in works}
    peaks: dict[str, float] = dict.fromkeys(works, 0.0)
    for turn in range(repeats + 1):
        for arm in list(works) if turn % 2 else reversed(works):
            before = _memory(reset=True)
            started = time.perf_counter()
            works[arm]()
            peak = _memory()
            if turn:
                seconds[arm].append(time.perf_counter() - started)
                peaks[arm] = max(peaks[arm], peak - before)
    return seconds, peaks


def line(title: str, arm: str, seconds: dict[str, list[float]], peaks: dict[str, float], difference: str) -> str:
    middle = statistics.median(seconds[arm])
    spread = f"{1e3 * min(seconds[arm]):.1f} to {1e3 * max(seconds[arm]):.1f}"
    speed = f"{statistics.median(seconds['hf']) / middle:.2f}x"
    return f"| {title} | {arm} | {1e3 * middle:.1f} | {spread} | {speed} | {peaks[arm]:,.0f} | {difference} |"


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
        # what vLLM chooses for the experts compiles for minutes first
        options = {"weights": "random", "moe_backend": "triton", "cuda_graph_batch_sizes": "1"}
        settings = EngineSettings(checkpoint=folder, max_length=WINDOW + 1, options=options)
        engine = registry.load("vllm", settings, tokenizer)
        texts_of_ids = [tuple(tokenizer.encode(request.args[0], verbose=False)) for request in requests]
        windows = [Window(ids[:1], ids[1:]) for ids in texts_of_ids]
        prompts = [window.inputs for window in windows]
        runner = engine.session.llm.llm_engine.model_executor.driver_worker.worker.model_runner
        hastened = vars(runner).get(prompt_scores.FUNCTION)
        if hastened is None:
            print("vLLM: this runner scores without our help")
        answers: dict[str, list[float]] = {}

        def scores(arm: str, function: object) -> None:
            vars(runner).pop(prompt_scores.FUNCTION, None)
            if function is not None:
                setattr(runner, prompt_scores.FUNCTION, function)
            answers[arm] = [float(result.logprobs.sum()) for result in engine.score(windows)]

        works: dict[str, Callable[[], object]] = {
            "scores": partial(scores, "scores", hastened),
            "scores by vLLM's sampler": partial(scores, "sampler", None),
            "prefill": lambda: engine.generate(prompts, GenerationRequest(1, ignore_eos=True)),
        }
        seconds, _ = in_turns(works, 2 * repeats)
        prefill = statistics.median(seconds["prefill"])
        print(f"vLLM on {torch.cuda.get_device_name()}, {config.num_hidden_layers} layers, {engine.facts.scores_from}")
        for name, times in seconds.items():
            middle, spread = statistics.median(times), f"{min(times):.3f} to {max(times):.3f}"
            speed = f"{sum(map(len, prompts)) / middle:,.0f} tok/s, {prefill / middle:.3f} of prefill"
            print(f"vLLM: {name:24} {middle:.3f} s ({spread}), {speed}")
        print(f"vLLM: scores, {agreement(answers['scores'], answers['sampler'])}".replace("hf", "vLLM's sampler"))
        engine.close()


if __name__ == "__main__":
    main()
