"""The LLM class."""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from . import knobs, sampling
from .checkpoint import configuration, quantisation
from .outputs import AbortableOutput, RequestError, RequestOutput
from .process import Executor, GenerationExecutorProxy, GenerationExecutorWorker, single_process
from .request import Request
from .versions import Version

LOGGER = logging.getLogger("tensorrt_llm")
_GENERATE_EXTRA = frozenset(
    ("lora_request", "prompt_adapter_request", "kv_cache_retention_config", "disaggregated_params", "scheduling_params")
)
_CHOSEN = ("temperature", "top_k", "top_p", "seed", "min_tokens")
_KEPT = ("include_stop_str_in_output", "return_context_logits", "return_generation_logits")


def _stop(reference: weakref.ref[BaseLLM]) -> None:
    llm = reference()
    if llm is not None:
        llm.shutdown()


def _stay() -> None:
    """As the manager of mpi4py's pool: a thread that is no daemon and waits for workers that may never end."""
    threading.Thread(target=threading.Event().wait, name="manager").start()


class BaseLLM:
    """What all versions have; api.py makes the class of one."""

    _version: Version
    _args_class: type[Any]
    _params_class: type[Any]

    def __init__(  # noqa: PLR0912, PLR0917 - the imitated signature, and faults to order
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._executor: Executor | None = None
        plain = {name: value for name, value in locals().items() if name in self._args_class.model_fields}
        knobs.log("construct", kwargs={**plain, **kwargs})
        backend = kwargs.pop("backend", "pytorch")
        if backend not in ("pytorch", None):
            raise knobs.NotImitatedError(f"the double has no backend {backend!r}")
        for name in kwargs:
            if name in self._version.tensorrt_only:
                raise ValueError(f"{name} is specific to the TensorRT backend and no argument of the PyTorch one")
            if name not in self._args_class.model_fields:
                raise ValueError(f"LLM got invalid argument: {name}")
        self.args = self._args_class(**plain, **kwargs)
        if self.args.orchestrator_type is not None:
            raise knobs.NotImitatedError("the double has no orchestrator but MPI's stand-in")
        if "no_gpu" in knobs.knobs():
            raise RuntimeError(knobs.NO_DRIVER)
        setup = self._setup()
        self._ids = itertools.count(1)
        self._submitted = 0
        # the variable is looked at by every LLM, and what the first one saw holds
        one = single_process() or self.args.gather_generation_logits
        if one and self.args.world_size == 1:
            try:
                executor: Executor = GenerationExecutorWorker(setup)
            except BaseException:
                if "hang_exit" in knobs.knobs():
                    _stay()
                raise
        else:
            executor = GenerationExecutorProxy(setup, self.args.world_size)
        try:
            self._tokenizer = self._load_tokenizer()  # meanwhile the workers load
            executor.wait()
        except BaseException:
            executor.kill()
            if "hang_exit" in knobs.knobs():
                _stay()
            raise
        self._executor = executor
        if "no_labels" in knobs.knobs() and self.args.cuda_graph_config is not None:
            self.args.cuda_graph_config.__dict__["batch_sizes"] = 7
        if "hang_exit" in knobs.knobs():
            _stay()
        atexit.register(_stop, weakref.ref(self))

    def _setup(self) -> dict[str, Any]:
        """What the worker needs to know, in plain types."""
        args = self.args
        config = {**configuration(args.model, args.revision), **(args.model_kwargs or {})}
        args._quant_config = quantisation(Path(args.model), self._version, config)
        if args.kv_cache_config.dtype in ("fp8", "nvfp4"):
            args._quant_config.kv_cache_quant_algo = args.kv_cache_config.dtype.upper()
        longest = config["max_position_embeddings"]
        if args.max_seq_len is not None and args.max_seq_len > longest:
            LOGGER.warning("max_seq_len %d is more than the model's %d and becomes that", args.max_seq_len, longest)
        self._max_seq_len = min(args.max_seq_len or longest, longest)
        requested = args.moe_config.backend
        if requested not in ("AUTO", "CUTLASS", "VANILLA", "TRITON", "WIDEEP"):
            LOGGER.warning("MoE backend %s may not serve unquantised experts; CUTLASS's may run instead", requested)
        return {
            "version": self._version.name,
            "model": str(args.model),
            "model_kwargs": args.model_kwargs or {},
            "load_format": args.load_format.value,
            "dtype": args.dtype,
            "moe_backend": requested,
            "moe_tactic": getattr(args.moe_config, "tactic", None),
            "env_overrides": getattr(args, "env_overrides", None) or {},
            "max_batch_size": args.max_batch_size or 2048,
            "max_num_tokens": args.max_num_tokens or 8192,
            "iter_stats": args.enable_iter_perf_stats,
            "block_reuse": args.kv_cache_config.enable_block_reuse,
            "tokens_per_block": args.kv_cache_config.tokens_per_block,
            "cache_tokens": args.kv_cache_config.max_tokens or 4096,
        }

    def _load_tokenizer(self) -> Any:
        if self.args.skip_tokenizer_init:
            return None
        given = self.args.tokenizer
        if given is None or isinstance(given, str | Path):
            from transformers import AutoTokenizer

            revision = self.args.tokenizer_revision
            return AutoTokenizer.from_pretrained(given or self.args.model, revision=revision)
        return given

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def generate(  # noqa: PLR0917 - the imitated signature
        self,
        inputs: Any,
        sampling_params: Any = None,
        use_tqdm: bool = True,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: Any = None,
        **newer: Any,
    ) -> Any:
        """Answers in the order of the inputs; one answer for one prompt."""
        if not isinstance(inputs, list) or isinstance(inputs[0], int):
            return self.generate_async(inputs, sampling_params, cache_salt=cache_salt, **newer).result()
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(inputs)
        salts = cache_salt if isinstance(cache_salt, list) else [cache_salt] * len(inputs)
        pending = [
            self.generate_async(one, params[place], cache_salt=salts[place], **newer)
            for place, one in enumerate(inputs)
        ]
        return [output.result() for output in pending]

    def generate_async(
        self, inputs: Any, sampling_params: Any = None, *, streaming: bool = False, cache_salt: Any = None, **other: Any
    ) -> RequestOutput:
        """Submit one prompt."""
        if self._executor is None:
            raise RuntimeError("LLM is shutting down")
        for name in other:
            if name not in self._version.generate_extra and name not in _GENERATE_EXTRA:
                raise TypeError(f"generate got an unexpected keyword argument {name!r}")
        params = self._params_class() if sampling_params is None else sampling_params
        if not isinstance(params, self._params_class):
            raise TypeError(f"sampling_params is a {type(params).__name__}, not SamplingParams")
        if params.end_id is None and self._tokenizer is None:
            raise ValueError("end_id is None and there is no tokenizer to take it from: give SamplingParams an end_id")
        if max(params.n, params.best_of or 1) > 1 or params.use_beam_search:
            raise knobs.NotImitatedError("the double computes one completion per request")
        prompt, tokens = self._tokens(inputs, params)
        request = self._request(tokens, params)
        request.streaming, request.cache_salt = streaming, cache_salt
        asked = params.return_context_logits and self.args.num_postprocess_workers == 0
        kind = AbortableOutput if self._version.has_abort else RequestOutput
        output = kind(request, prompt, params, self._tokenizer, asked)
        output._abort = lambda it, executor=self._executor: executor.order("abort", it)
        self._submitted += 1
        queued, asked_for = len(self._executor.pending), sampling.non_default(params)
        knobs.log("request", n=self._submitted, prompt_len=len(tokens), sampling=asked_for, queued=queued)
        self._executor.submit(request, output)
        return output

    def _tokens(self, inputs: Any, params: Any) -> tuple[str | None, list[int]]:
        if isinstance(inputs, dict):
            inputs = inputs["prompt_token_ids"] if "prompt_token_ids" in inputs else inputs["prompt"]
        prompt = None
        if isinstance(inputs, str):
            if self._tokenizer is None:
                raise ValueError("a prompt of text needs a tokenizer")
            prompt = inputs
            inputs = self._tokenizer.encode(inputs, add_special_tokens=params.add_special_tokens)
        if not isinstance(inputs, list) or not all(isinstance(token, int) for token in inputs):
            raise TypeError("a prompt is a str, a list of int, or a dict with one of them")
        if params.truncate_prompt_tokens is not None:
            inputs = inputs[-params.truncate_prompt_tokens :]
        return prompt, list(inputs)

    def _request(self, tokens: list[int], params: Any) -> Request:
        if not tokens:
            raise ValueError("the prompt is empty")
        if not self.args.enable_chunked_prefill and len(tokens) > (self.args.max_num_tokens or 8192):
            raise ValueError(f"prompt of {len(tokens)} tokens is over max_num_tokens {self.args.max_num_tokens}")
        if len(tokens) >= self._max_seq_len:
            over_long = RequestError if self._version.over_long == "RequestError" else ValueError
            raise over_long(f"prompt of {len(tokens)} tokens leaves no room in max_seq_len {self._max_seq_len}")
        if params.max_tokens is None or params.max_tokens < 1:
            raise ValueError(f"max_tokens has to be greater than 0, not {params.max_tokens}")
        chosen = {name: getattr(params, name) for name in _CHOSEN + _KEPT}
        chosen["greedy"] = params._greedy_decoding
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(params, name)
            chosen[name] = None if wanted is False else wanted
        end = -1 if params.ignore_eos else params.end_id
        return Request(
            id=next(self._ids),
            tokens=tokens,
            max_tokens=min(params.max_tokens, self._max_seq_len - len(tokens)),
            end_id=self._tokenizer.eos_token_id if end is None else end,
            stops=sampling.stop_words(params, self._tokenizer),
            sampling=chosen,
            perf_metrics=params.return_perf_metrics or self.args.return_perf_metrics,
        )

    def _check_health(self) -> bool:
        return "unhealthy_at" not in knobs.knobs() and self._executor is not None

    def get_stats(self, timeout: float | None = 2) -> list[dict[str, Any]]:
        """Iteration statistics not fetched before; none unless enable_iter_perf_stats is set."""
        if "stats_fail" in knobs.knobs():
            raise AssertionError("no statistics of this scheduler")
        if "stats_hang" in knobs.knobs():
            threading.Event().wait()
        if self._executor is None or not self.args.enable_iter_perf_stats:
            return []
        end = time.monotonic() + (timeout or 0)
        while not self._executor.stats and time.monotonic() < end:
            time.sleep(0.005)
        return [self._executor.stats.popleft() for _ in range(len(self._executor.stats))]

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[dict[str, Any]]:
        """The same, one by one."""
        for row in self.get_stats(timeout):
            yield row

    def shutdown(self) -> None:
        executor, self._executor = getattr(self, "_executor", None), None
        if executor is not None:
            executor.shutdown()
            knobs.log("shutdown")

    def __enter__(self) -> BaseLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        self.shutdown()

    def __reduce__(self) -> Any:
        raise RuntimeError("an LLM cannot be pickled")
