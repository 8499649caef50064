"""SamplingParams of one version: a dataclass with slots, no pydantic."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from .versions import Version

_NONE = (
    "end_id pad_id bad bad_token_ids stop stop_token_ids embedding_bias logits_processor best_of top_k top_p top_p_min "
    "top_p_reset_ids top_p_decay seed temperature min_tokens beam_search_diversity_rate repetition_penalty "
    "presence_penalty frequency_penalty length_penalty early_stopping no_repeat_ngram_size min_p logprobs "
    "prompt_logprobs additional_model_outputs guided_decoding lookahead_config truncate_prompt_tokens"
)
_FALSE = (
    "include_stop_str_in_output apply_batched_logits_processor use_beam_search return_context_logits "
    "return_generation_logits return_encoder_output return_perf_metrics ignore_eos"
)
_TRUE = "exclude_input_from_output detokenize add_special_tokens skip_special_tokens spaces_between_special_tokens"
_NEWEST: dict[str, Any] = {
    "logprobs_mode": "RAW",
    "logprobs_simple_format": False,
    "prompt_logprobs_simple_format": False,
    "return_routed_experts": False,
    "prompt_ignore_length": None,
}


class SamplingRules:
    """Checks of SamplingParams."""

    __slots__ = ()

    def __post_init__(self) -> None:
        this: Any = self
        this.logprobs = this.logprobs and int(this.logprobs)
        this.prompt_logprobs = this.prompt_logprobs and int(this.prompt_logprobs)
        if this.best_of is not None and this.best_of < this.n:
            raise ValueError(f"best_of {this.best_of} is less than n {this.n}")
        many = (this.best_of or this.n) > 1 and not this.use_beam_search
        if many and self._greedy_decoding and os.environ.get("TLLM_ALLOW_N_GREEDY_DECODING") != "1":
            raise ValueError("greedy decoding returns one sequence: best_of and n above 1 need sampling or beam search")

    @property
    def _greedy_decoding(self) -> bool:
        this: Any = self
        unset = this.temperature is None and this.top_p is None and this.top_k is None
        return bool(unset or this.top_k == 1 or this.top_p == 0 or this.temperature == 0)


def build(version: Version) -> type[Any]:
    """The SamplingParams class of a version."""
    defaults: dict[str, Any] = {"max_tokens": 32, "n": 1}
    defaults |= dict.fromkeys(_NONE.split()) | dict.fromkeys(_FALSE.split(), False) | dict.fromkeys(_TRUE.split(), True)
    if version.column == 2:
        defaults |= _NEWEST
    return dataclasses.make_dataclass(
        "SamplingParams",
        [(name, Any, dataclasses.field(default=default)) for name, default in defaults.items()],
        bases=(SamplingRules,),
        namespace={"__module__": "tensorrt_llm.sampling_params"},
        slots=True,
        kw_only=True,
    )


def non_default(params: Any) -> dict[str, Any]:
    """What was asked for beyond the defaults."""
    pairs = ((field, getattr(params, field.name)) for field in dataclasses.fields(params))
    return {field.name: value for field, value in pairs if value != field.default}


def stop_words(params: Any, tokenizer: Any) -> list[tuple[Any, list[int]]]:
    """(reason, token ids) of everything that stops this request; stop strings are matched as token ids."""
    if params.ignore_eos:
        return []
    words: list[tuple[Any, list[int]]] = [(token, [token]) for token in params.stop_token_ids or []]
    strings = [params.stop] if isinstance(params.stop, str) else params.stop or []
    if strings and tokenizer is None:
        raise ValueError("stop strings need a tokenizer")
    return words + [(text, list(tokenizer.encode(text, add_special_tokens=False))) for text in strings]
