"""The engine loop: in-flight batching over one CPU model, one forward per sequence and iteration."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .knobs import ILLEGAL_ACCESS, KV_SHORT, OUT_OF_MEMORY, knobs, log, number
from .request import Request
from .sequence import Sequence
from .versions import VERSIONS, experts_class

LOGGER = logging.getLogger("tensorrt_llm")
Send = Callable[[str, Any], None]


def load(setup: dict[str, Any]) -> Any:
    """The checkpoint's model, its experts named as the version names them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if "oom_load" in knobs():
        raise RuntimeError(OUT_OF_MEMORY)
    if "load_error" in knobs():
        raise ValueError("Unsupported quantisation: no kernel of this GPU computes it")
    if "hang_load" in knobs():
        threading.Event().wait()
    config = AutoConfig.from_pretrained(setup["model"], **setup["model_kwargs"])
    if setup["load_format"] == "dummy":
        dtype = (config.dtype or torch.float32) if setup["dtype"] == "auto" else getattr(torch, setup["dtype"])
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(setup["model"], config=config, dtype=setup["dtype"])
    version = VERSIONS[setup["version"]]
    name, wrapped = experts_class(version, setup["moe_backend"])
    for layer in getattr(model.model, "layers", ()):
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None:
            backend = type(name, (), {})()
            backend.tactic = setup["moe_tactic"]
            if version.reports_degraded and setup["moe_backend"] == "DEEPGEMM":
                backend.report = SimpleNamespace(degraded_from="DEEPGEMM: serves FP8 block scales only")
            # the class changes and nothing else, so that whatever Transformers does with its experts still works
            label = ("ConfigurableMoE", {"backend": property(lambda _, it=backend: it)}) if wrapped else (name, {})
            experts.__class__ = type(label[0], (type(experts),), label[1])
    return model.eval()


class Wrapper(torch.nn.Module):
    """A model whose language model lies inside, as of models for images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model

    def forward(self, **inputs: Any) -> Any:
        return self.language_model(**inputs)


class Window:
    """The iterations of TLLM_PROFILE_START_STOP, with the file of TRTLLM_DOUBLE_LOG in place of a profiler."""

    def __init__(self, how: str) -> None:
        text = os.environ.get("TLLM_PROFILE_START_STOP", "")
        self.how, self.open = how, False
        first, _, last = text.partition("-")
        self.range = (int(first), int(last or first)) if text else None

    def at(self, iteration: int) -> None:
        """Before an iteration."""
        if self.range is None:
            return
        first, last = self.range
        if self.how == "exclusive":
            if iteration == last:
                assert self.open, "the profiler has not been started"
                self.close(iteration)
            if iteration == first:
                self.start(iteration)
            return
        if iteration == first:
            self.start(iteration)
        if iteration == last + 1 and self.open:
            self.close(iteration)

    def start(self, iteration: int) -> None:
        self.open = True
        log("cudaProfilerStart", iteration=iteration)

    def close(self, iteration: int) -> None:
        self.open = False
        log("cudaProfilerStop", iteration=iteration)


class Profile:
    """start_profile's recording: one event per iteration, in the form of torch.profiler's traces."""

    def __init__(self, order: dict[str, Any], rank: int) -> None:
        folder = order["output_dir"] or os.environ.get("TLLM_TORCH_PROFILER_DIR") or tempfile.gettempdir()
        self.path = Path(folder) / f"trace-rank{rank}.json"
        self.activities = order["activities"]
        self.skip = order["start_step"] or 0
        self.left = order["num_steps"]
        self.events: list[dict[str, Any]] = []

    def add(self, name: str, start: float, end: float) -> bool:
        """Record an iteration; whether that was the last one."""
        if self.skip:
            self.skip -= 1
            return False
        common = {"ph": "X", "pid": os.getpid(), "tid": 1, "ts": start * 1e6, "dur": (end - start) * 1e6}
        if "CPU" in self.activities:
            self.events.append({**common, "cat": "user_annotation", "name": name})
        if "GPU" in self.activities:
            self.events.append({**common, "cat": "kernel", "name": "double_forward_kernel", "tid": 7})
        if self.left:
            self.left -= 1
            return self.left == 0
        return False

    def write(self) -> None:
        """One file, unless only cudaProfilerStart was asked for."""
        if set(self.activities) & {"CPU", "GPU"}:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": self.events}))


class KVCacheManager:
    """The blocks of the cache: as many whole ones as max_tokens fill, of one window."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.tokens_per_block = setup["tokens_per_block"]
        self.blocks_in_primary_pool = setup["cache_tokens"] // self.tokens_per_block

    def get_kv_cache_stats(self) -> SimpleNamespace:
        blocks = self.blocks_in_primary_pool
        return SimpleNamespace(
            max_num_blocks=blocks,
            tokens_per_block=self.tokens_per_block,
            num_free_blocks_per_window_size={4096: blocks},
        )


class Engine:
    """What rank 0 runs."""

    def __init__(self, setup: dict[str, Any], send: Send) -> None:
        self.setup = setup
        self.send = send
        version = VERSIONS[setup["version"]]
        self.model = load(setup)
        shown = Wrapper(self.model) if version.layout == "wrapped" else self.model
        if "no_labels" in knobs():
            shown = SimpleNamespace(model=SimpleNamespace(layers=7))
        self.model_engine = SimpleNamespace(model=shown)
        if "kv_short" in knobs():
            raise RuntimeError(KV_SHORT[version.manager])
        self.kv_cache_manager = type(version.manager, (KVCacheManager,), {})(setup)
        self.window = Window(version.window)
        self.worker_thread: threading.Thread | None = None
        self.orders: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.waiting: list[Request] = []
        self.active: list[Sequence] = []
        self.blocks: set[int] = set()
        self.aborted: set[int] = set()
        self.profile: Profile | None = None
        self.started = 0
        self.iteration = 0

    def loop(self) -> None:
        """Serve until told to stop."""
        while True:
            idle = not self.waiting and not self.active
            try:
                while True:
                    kind, what = self.orders.get(block=idle)
                    idle = False
                    if kind == "shutdown":
                        self._cancel({sequence.request.id for sequence in self.active} | {r.id for r in self.waiting})
                        self.send("stopped", None)
                        return
                    self._obey(kind, what)
            except queue.Empty:
                pass
            self._cancel(self.aborted)
            if self.waiting or self.active:
                self._iterate()

    def _obey(self, kind: str, what: Any) -> None:
        if kind == "request":
            self.waiting.append(what)
        elif kind == "abort":
            self.aborted.add(what)
        elif kind == "start_profile":
            self.profile = Profile(what, rank=0)
            self.send("ack", 0)
        elif kind == "stop_profile":
            self._end_profile()
            self.send("ack", 0)

    def _end_profile(self) -> None:
        if self.profile is not None:
            self.profile.write()
            self.profile = None

    def _cancel(self, ids: set[int]) -> None:
        for request in [request for request in self.waiting if request.id in ids]:
            self.waiting.remove(request)
            self._cancelled(Sequence(request, self.model, "", 0))
        for sequence in [sequence for sequence in self.active if sequence.request.id in ids]:
            self.active.remove(sequence)
            self._cancelled(sequence)
        self.aborted.clear()

    def _cancelled(self, sequence: Sequence) -> None:
        sequence.finish_reason = "cancelled"
        self.send("response", sequence.answer(self.iteration))

    def _iterate(self) -> None:
        self.window.at(self.iteration)
        begin = time.monotonic()
        generating = len(self.active)
        tokens = self._admit(begin)
        context = len(self.active) - generating
        used = sum(sequence.blocks(self.setup["tokens_per_block"]) for sequence in self.active)
        for sequence in list(self.active):
            self._advance(sequence)
        end = time.monotonic()
        name = f"[Executor] _forward_step {self.iteration}: {context} ctx reqs, {generating} gen reqs"
        if self.profile is not None and self.profile.add(name, begin, end):
            self._end_profile()
        if self.setup["iter_stats"]:
            inflight = {"numContextRequests": context, "numCtxTokens": tokens, "numGenRequests": generating}
            blocks = self.kv_cache_manager.blocks_in_primary_pool
            cache = {"maxNumBlocks": blocks, "freeNumBlocks": blocks - used, "usedNumBlocks": used}
            statistics = {
                "iter": self.iteration,
                "iterLatencyMS": (end - begin) * 1e3,
                "gpuMemUsage": 0,
                "cpuMemUsage": 0,
                "numQueuedRequests": len(self.waiting),
                "inflightBatchingStats": inflight,
                "kvCacheStats": {"tokensPerBlock": self.setup["tokens_per_block"], **cache},
            }
            self.send("stats", statistics)
        self.iteration += 1

    def _admit(self, now: float) -> int:
        """Take requests from the queue within the budgets of one iteration; their prompt tokens."""
        tokens = len(self.active)
        first = tokens
        while self.waiting and len(self.active) < self.setup["max_batch_size"]:
            request = self.waiting[0]
            if tokens > first and tokens + len(request.tokens) > self.setup["max_num_tokens"]:
                break
            tokens += len(request.tokens)
            del self.waiting[0]
            self.started += 1
            if self.started == number("die_after"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.started == number("end_loop_at"):
                raise SystemExit
            for knob, words in (("oom_at", OUT_OF_MEMORY), ("fail_at", ILLEGAL_ACCESS)):
                if self.started == number(knob):
                    self.send("failed", (request.id, words))
                    break
            else:
                how = VERSIONS[self.setup["version"]].prompt_logprobs
                sequence = Sequence(request, self.model, how, self._reused(request))
                sequence.number = self.started
                sequence.scheduled, sequence.first_iter = now, self.iteration
                self.active.append(sequence)
        return tokens - first

    def _advance(self, sequence: Sequence) -> None:
        request = sequence.request
        try:
            bare = request.sampling["prompt_logprobs"] is not None and not request.sampling["return_context_logits"]
            if bare and "bare_fails" in knobs():
                raise AssertionError("no context logits to compute prompt_logprobs from")
            sequence.step()
        except Exception as error:
            self.active.remove(sequence)
            self.send("failed", (request.id, f"{type(error).__name__}: {error}"))
            return
        if sequence.finish_reason is not None:
            self.active.remove(sequence)
            self.blocks.update(self._chain([*request.tokens, *sequence.read[:-1]], request.cache_salt))
        if sequence.finish_reason is not None and self._loses(sequence):
            return
        if sequence.finish_reason is not None or request.streaming:
            self.send("response", sequence.answer(self.iteration))

    def _loses(self, sequence: Sequence) -> bool:
        """Whether nobody gets this response."""
        if sequence.number == number("lose_at"):
            print(
                f"[TRT-LLM] [E] Exception in await_response: torch.OutOfMemoryError: {OUT_OF_MEMORY}", file=sys.stderr
            )
            self.send("lost", OUT_OF_MEMORY)
            return True
        return sequence.number in (number("drop_at"), number("unhealthy_at"))

    def _chain(self, tokens: list[int], salt: str | None) -> list[int]:
        """Keys of the full blocks, each naming all tokens before it."""
        size = self.setup["tokens_per_block"]
        keys, key = [], hash(salt)
        for start in range(0, len(tokens) - size + 1, size):
            key = hash((key, tuple(tokens[start : start + size])))
            keys.append(key)
        return keys

    def _reused(self, request: Request) -> int:
        """Tokens of the prompt whose cache is taken from earlier requests; the last token is always computed."""
        blocks = 0
        if self.setup["block_reuse"]:
            for key in self._chain(request.tokens[:-1], request.cache_salt):
                if key not in self.blocks:
                    break
                blocks += 1
        reused = blocks * int(self.setup["tokens_per_block"])
        wanted = request.sampling["return_context_logits"] or request.sampling["prompt_logprobs"] is not None
        if reused and wanted:
            LOGGER.warning("KV cache reuse: not all context logits of request %d could be produced", request.id)
        return reused
