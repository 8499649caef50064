"""LLM, the class for use without a server."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import transformers

from ..sampling_params import RequestOutputKind, SamplingParams
from .args import EngineArgs
from .core import LLMEngine
from .outputs import RequestOutput

_ELSEWHERE = "initialization failed. See root cause above. Failed core proc(s): {}"


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        enable_return_routed_experts: bool = False,
        profiler_config: Any = None,
        kv_cache_memory_bytes: int | None = None,
        compilation_config: Any = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        if "disable_log_stats" not in kwargs:
            kwargs["disable_log_stats"] = True
        if int(kwargs.get("data_parallel_size", 1)) > 1:
            raise ValueError("LLM(data_parallel_size) is not supported for single-process usage and may hang.")
        args: Any = EngineArgs(**given, **kwargs)
        spawned = int(os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1")) == 1
        try:
            config = args.create_engine_config()
        except ValueError as error:
            if not spawned or "Free memory" not in str(error):
                raise
            logged = f"ERROR 11-27 13:58:34 [core.py:870] ValueError: {error}", f"Exception: WorkerProc {_ELSEWHERE}"
            os.write(2, "".join(f"(EngineCore pid=7) {line}\n" for line in logged).encode())
            raise RuntimeError(f"Engine core {_ELSEWHERE}") from None
        reader = None
        if not args.skip_tokenizer_init:
            reader = transformers.AutoTokenizer.from_pretrained(args.tokenizer or args.model)
        self.llm_engine = LLMEngine(config, reader, not args.disable_log_stats, spawned)
        self.model_config = config.model_config
        self.request_counter = itertools.count()

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        params = sampling_params or SamplingParams()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        for prompt in [prompts] if isinstance(prompts, dict) else prompts:
            if "prompt_token_ids" not in prompt:
                raise TypeError("Prompt dictionary must contain text, tokens, or embeddings")
            self.llm_engine.add_request(str(next(self.request_counter)), prompt, params)
        outputs: list[RequestOutput] = []
        while self.llm_engine.has_unfinished_requests():
            outputs += [output for output in self.llm_engine.step() if output.finished]
        return sorted(outputs, key=lambda output: int(output.request_id))

    def apply_model(self, func: Any) -> list[Any]:
        return self.llm_engine.apply_model(func)

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: Any = (), kwargs: Any = None
    ) -> list[Any]:
        """Calls a worker's method by name; functions need a pickle that is off by default."""
        if not isinstance(method, str):
            raise TypeError(f"Object of type {type(method)} is not serializable")
        answer = getattr(self.llm_engine.worker, method)(*args, **(kwargs or {}))
        ranks = self.llm_engine.ranks
        if not isinstance(answer, str):
            return [answer] * max(1, len(ranks))
        return [json.dumps(json.loads(answer) | {"pid": rank.pid}) for rank in ranks] if ranks else [answer]

    def start_profile(self, profile_prefix: str | None = None) -> None:
        if self.llm_engine.vllm_config.profiler_config.profiler is None:
            raise RuntimeError("Profiling is not enabled. Please set --profiler-config to enable profiling.")
        self.captures = [*getattr(self, "captures", []), "start"]

    def stop_profile(self) -> None:
        import gzip

        if self.llm_engine.vllm_config.profiler_config.profiler == "cuda":  # every worker calls cudaProfilerStop
            self.captures.append("stop")
            return
        folder = Path(self.llm_engine.vllm_config.profiler_config.torch_profiler_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rank0.pt.trace.json.gz").write_bytes(gzip.compress(b'{"traceEvents": []}'))
