"""`trtllm_moe`: lm-evaluation-harness's model interface over an Engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from moe_eval.checkpoint import tokenizer
from moe_eval.checkpoint.shipped import SHIPPED_NOTE
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.evaluators.engine_model import EngineLM
from moe_eval.harness import cache, kernels, latency, plugin, settings
from moe_eval.harness.untyped import Answer

Config = Mapping[str, object]

log = logging.getLogger("lm_eval.moe_eval")  # shown like the harness's own messages


class MoeLM(EngineLM):
    """A checkpoint on an engine, for any task of the harness.

    Its arguments are those of `settings.ModelSettings` and of the engine, by name.
    """

    def __init__(self, **arguments: Any) -> None:
        self.settings = settings.read(arguments)
        plugin.warn_if_detached(log)
        if self.settings.shipped:
            log.warning(SHIPPED_NOTE)
        engine_settings = self.settings.of_engine
        if registry.named(self.settings.engine).cpu:
            engine_settings = replace(engine_settings, device=_present(engine_settings.device))
        loaded_tokenizer = tokenizer.load(
            self.settings.tokenizer,
            engine_settings.revision,
            engine_settings.trust_remote_code,
            self.settings.add_bos_token,
        )
        engine = registry.load(self.settings.engine, engine_settings, loaded_tokenizer)
        names = ("max_gen_toks", "add_bos_token", "prefix_token_id", "enable_thinking", "think_end_token")
        try:
            super().__init__(engine, loaded_tokenizer, **{name: getattr(self.settings, name) for name in names})
        except UsageError:
            engine.close()
            raise
        self.batch_size = self.settings.of_engine.batch_size or "auto"

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Config | None = None) -> MoeLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Config, additional_config: Config | None = None) -> MoeLM:
        """As in the harness, but a model argument wins over the command's default of the same name."""
        defaults = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**{**defaults, **arg_dict})

    def set_cache_hook(self, cache_hook: Any) -> None:
        super().set_cache_hook(cache.of_this_arm(cache_hook, cache.identity(self.settings, self.facts)))

    def get_model_info(self) -> dict[str, object]:
        """Our labels beside those of the harness in its results."""
        return {
            "model_dtype": self.facts.dtype,
            "model_revision": self.settings.of_engine.revision,
            "moe_eval": {
                "engine": asdict(self.facts),
                "prefix_token_id": self.prefix_token_id,
                "add_bos_token": self.settings.add_bos_token,
                "tokenizer": self.settings.tokenizer,
                "batch_size": self.batch_size,
                "notes": [SHIPPED_NOTE] if self.settings.shipped else [],
                "scored": {task: dict(counts) for task, counts in self.scored.items()},
            },
        }

    def moe_latency(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Records of the shapes of the task moe_latency."""
        self.check_requests()
        with tqdm(total=len(requests), desc="Timing", unit="shape", disable=disable_tqdm or None) as bar:
            return list(latency.answers(self.engine, self.tokenizer, requests, bar.update))

    def moe_kernels(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Records of the shapes of the task moe_kernels."""
        self.check_requests()
        with tqdm(total=len(requests), desc="Tracing", unit="shape", disable=disable_tqdm or None) as bar:
            return list(kernels.answers(self.engine, self.tokenizer, requests, bar.update, self.settings.profiler))


def _present(device: str | None) -> str | None:
    """The device, or the CPU in place of a missing CUDA device, since cuda:0 is the command's default."""
    if device and str(device).startswith("cuda") and not torch.cuda.is_available():
        level = logging.INFO if device == "cuda:0" else logging.WARNING  # the default, which nobody asked for
        log.log(level, "There is no CUDA device for device=%s. The model runs on the CPU.", device)
        return "cpu"
    return device
