"""Requests through the model, a step at a time."""

from __future__ import annotations

import importlib
import os
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..logprobs import FlatLogprobs, Logprob
from ..model_executor.model_loader import get_model_loader
from ..sampling_params import RequestOutputKind, SamplingParams
from .knobs import OUT_OF_MEMORY, knob
from .outputs import CompletionOutput, RequestOutput, RequestStateStats


class EngineDeadError(Exception):
    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


@dataclass
class Request:
    id: str
    prompt: list[int]
    params: SamplingParams
    stats: RequestStateStats
    logprobs: LogprobsProcessor
    new: list[int] = field(default_factory=list)
    text: str = ""
    experts: list[Any] = field(default_factory=list)


def _worker(parallel: Any, model: Any) -> Any:
    """A worker with the methods of the extension, which is imported before a model is loaded."""
    path = getattr(parallel, "worker_extension_cls", "")
    module, _, name = path.rpartition(".")
    extension = getattr(importlib.import_module(module), name) if path else object
    runner = SimpleNamespace(cudagraph_manager=None)
    return type("Worker", (extension,), {"get_model": lambda self: model(), "model_runner": runner})()


class LLMEngine:
    """add_request, step and abort_request; in another process the model is out of reach."""

    def __init__(self, config: Any, tokenizer: Any, log_stats: bool, spawned: bool) -> None:
        if knob("no_gpu"):
            raise RuntimeError("Failed to infer device type, please set the environment variable")
        if knob("oom_load"):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        self.vllm_config, self.tokenizer, self.log_stats = config, tokenizer, log_stats
        self.model_config = config.model_config
        self.logger_manager: Any = SimpleNamespace() if log_stats else None
        self.worker = _worker(config.parallel_config, lambda: self._model)
        self._model = get_model_loader(config.load_config).load_model(config, config.model_config)
        self._model.ready()
        if not spawned:
            self.model_executor = SimpleNamespace(driver_worker=SimpleNamespace(model=self._model))
        self.engine_core = SimpleNamespace(shutdown=self._shutdown)
        # processes that stand for ranks: the model stays here
        count = int(knob("ranks", "0")) if spawned else 0
        self.ranks = [subprocess.Popen(["sleep", "600"]) for _ in range(count)]
        self.output_processor = SimpleNamespace(request_states={})
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._started = 0

    def _shutdown(self) -> None:
        self._model = None
        for rank in self.ranks:
            rank.kill()
            rank.wait()
        if hasattr(self, "model_executor"):
            self.model_executor = SimpleNamespace(driver_worker=None)

    def apply_model(self, func: Any) -> list[Any]:
        if not hasattr(self, "model_executor") and os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION") != "1":
            raise TypeError("Object of type <class 'function'> is not serializable")
        return [func(self._model)]

    def has_unfinished_requests(self) -> bool:
        return bool(self._waiting or self._running)

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams, **_: Any) -> str:
        if not isinstance(request_id, str):
            raise TypeError(f"request_id must be a string, got {type(request_id)}")
        tokens, config = list(prompt["prompt_token_ids"]), self.model_config
        params.verify(config.max_logprobs, config.hf_config["vocab_size"])
        if len(tokens) >= config.max_model_len:
            raise ValueError(
                f"The decoder prompt (length {len(tokens)}) plus the number of requested output tokens (at least 1) is "
                f"longer than the maximum model length of {config.max_model_len}."
            )
        if not tokens or max(tokens) >= config.hf_config["vocab_size"]:
            raise ValueError(f"Token id {max(tokens, default=0)} is out of vocabulary")
        params = params.clone()
        eos = config.hf_config.get("eos_token_id")
        if not params.ignore_eos and self.tokenizer is not None and eos is not None:
            assert params.stop_token_ids is not None
            params.stop_token_ids = sorted({*params.stop_token_ids, eos})
        stats = RequestStateStats(arrival_time=time.time(), queued_ts=time.monotonic())
        request = Request(request_id, tokens, params, stats, LogprobsProcessor(params))
        self._waiting.append(request)
        inner = f"{request_id}-0123abcd"
        if not knob("no_states"):
            state = SimpleNamespace(external_req_id=request_id, logprobs_processor=request.logprobs)
            self.output_processor.request_states[inner] = state
        return inner

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        self._waiting = deque(each for each in self._waiting if each.id not in request_ids)
        self._running = [each for each in self._running if each.id not in request_ids]

    def step(self) -> list[RequestOutput]:
        limits, cache = self.vllm_config.scheduler_config, self.vllm_config.cache_config
        used = sum(self._blocks(each) for each in self._running)
        budget = limits.max_num_batched_tokens
        while self._waiting and len(self._running) < limits.max_num_seqs and budget > 0:
            used += self._blocks(self._waiting[0])
            if used >= cache.num_gpu_blocks and self._running:
                break
            request = self._waiting.popleft()
            request.stats.scheduled_ts = time.monotonic()
            budget -= len(request.prompt)
            self._started += 1
            if self._started == int(knob("fail_at", "0")):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if self._started == int(knob("dead_at", "0")):
                raise EngineDeadError
            if self._started == int(knob("hang_at", "0")):
                threading.Event().wait()
            self._running.append(request)
        outputs = []
        for request in list(self._running):
            reason, why = self._advance(request)
            if reason:
                self._running.remove(request)
            if reason or request.params.output_kind is not RequestOutputKind.FINAL_ONLY:
                outputs.append(self._output(request, reason, why))
        return outputs

    def _blocks(self, request: Request) -> int:
        return -(-(len(request.prompt) + len(request.new) + 1) // self.vllm_config.cache_config.block_size)

    def _advance(self, request: Request) -> tuple[str | None, Any]:
        """One more token; why the request ends, if it does."""
        params, first = request.params, not request.new
        logits, experts = self._model.run(request.prompt + request.new)
        if first and params.prompt_logprobs is not None:
            request.logprobs._update_prompt_logprobs(_prompt_logprobs(logits, request.prompt, params))
        if self.model_config.enable_return_routed_experts:
            rows = experts if first else experts[-1:]
            rows = torch.zeros_like(rows) if knob("silent_experts") else rows
            request.experts.append(rows.numpy().astype(np.uint8))
        token = _sample(logits[-1], params)
        request.new.append(token)
        now = time.monotonic()
        request.stats.first_token_ts = request.stats.first_token_ts or now
        request.stats.last_token_ts = now
        if token in (params.stop_token_ids or ()):
            return "stop", token
        if params.detokenize and self.tokenizer is not None:
            request.text = self.tokenizer.decode(request.new, skip_special_tokens=params.skip_special_tokens)
            for text in params.stop:
                if text in request.text:
                    return "stop", text
        length = len(request.prompt) + len(request.new)
        assert params.max_tokens is not None
        most = params.max_tokens - (1 if knob("short_output") and params.max_tokens > 1 else 0)
        if len(request.new) >= most or length >= self.model_config.max_model_len:
            return "length", None
        return None, None

    def _output(self, request: Request, reason: str | None, why: Any) -> RequestOutput:
        experts = np.concatenate(request.experts) if reason and request.experts else None
        if experts is not None and knob("drop"):
            experts = experts[:-1]
        completion = CompletionOutput(
            0, request.text, list(request.new), None, None, experts, reason, why if isinstance(why, str) else None
        )
        stats = request.stats if self.log_stats else None
        return RequestOutput(
            *(
                request.id,
                None,
                request.prompt,
                request.logprobs.prompt_logprobs,
                [completion],
                reason is not None,
                stats,
            )
        )


def _sample(logits: Tensor, params: SamplingParams) -> int:
    if params.temperature < 1e-5:
        return int(logits.argmax())
    scaled = logits / params.temperature
    if params.top_k > 0:
        scaled[scaled < scaled.topk(params.top_k).values[-1]] = -torch.inf
    return int(torch.multinomial(torch.softmax(scaled, -1), 1))


class LogprobsTensors(NamedTuple):
    """(tokens, k + 1) int32, (tokens, k + 1) float32 and (tokens,): the token itself first."""

    logprob_token_ids: Tensor
    logprobs: Tensor
    selected_token_ranks: Tensor
    cu_num_generated_tokens: list[int] | None = None


class LogprobsProcessor:
    """Makes objects of the tensors that the core sends: nothing for the first token, then an entry for each."""

    def __init__(self, params: SamplingParams) -> None:
        self.prompt_logprobs: Any = None
        self._flat = params.flat_logprobs
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = FlatLogprobs() if self._flat else [None]
            if self._flat:
                self.prompt_logprobs.add([], [], [])

    def _update_prompt_logprobs(self, prompt_logprobs_tensors: LogprobsTensors) -> None:
        ids, values, ranks, _ = prompt_logprobs_tensors
        following = list(range(1, ids.shape[1]))
        for token_ids, logprobs, rank in zip(ids.tolist(), values.tolist(), ranks.tolist(), strict=True):
            if self._flat:
                self.prompt_logprobs.add(token_ids, logprobs, [rank, *following])
            else:
                pairs = zip(token_ids, logprobs, [rank, *following], strict=True)
                self.prompt_logprobs.append({token: Logprob(value, place) for token, value, place in pairs})


def _prompt_logprobs(logits: Tensor, prompt: list[int], params: SamplingParams) -> LogprobsTensors:
    assert params.prompt_logprobs is not None
    rows = torch.log_softmax(logits[:-1].float(), -1)
    targets = torch.tensor(prompt[1:], dtype=torch.int64)[:, None]
    if shift := int(knob("shift", "0")):
        targets = targets.roll(shift, 0)
    own = rows.gather(1, targets)
    top = rows.topk(params.prompt_logprobs, dim=-1)
    ids = torch.cat([targets, top.indices], 1).to(torch.int32)
    return LogprobsTensors(ids, torch.cat([own, top.values], 1), (rows >= own).sum(-1))
