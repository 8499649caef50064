"""Builds the Transformers engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from moe_eval.checkpoint import contents, hub, precision
from moe_eval.checkpoint.carried import read_carried
from moe_eval.engines import weights
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.head import Head, body
from moe_eval.engines.options import number
from moe_eval.engines.transformers import emulation as transformers_emulation
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.engines.transformers.fewer_passes import shorten
from moe_eval.engines.transformers.threads import Threads
from moe_eval.engines.transformers.widened import widen
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.records.labels import EngineFacts

RUNS = tuple(precision.DTYPE_OF)
# Padded tokens in a batch if the user bounds neither rows nor tokens: enough to fill the cores or the GPU. A batch that
# does not fit into the GPU's memory is split.
_CPU_TOKENS = 4096
_GPU_TOKENS = 32768


def load(settings: EngineSettings, tokenizer: Any) -> TransformersEngine:
    """Load a checkpoint from a folder or a hub.

    Args:
        settings: options are attn_implementation, moe_backend (the experts implementation of Transformers: eager,
            batched_mm, grouped_mm, or auto), max_tokens_per_batch (padded tokens) and those of
            transformers_emulation.
        tokenizer: of Transformers, for stop texts and for calibration.
    """
    threads = Threads()  # cores are counted from here on
    max_tokens = number(settings.options, "max_tokens_per_batch")
    emulation = transformers_emulation.requested(settings)
    if emulation is not None:
        settings = replace(settings, precision=None)  # the rest of the model is in the dtype
    elif settings.precision is not None:
        precision.check(settings.precision, "transformers", RUNS)
    config = _config(settings)
    dtype = _dtype(settings, config)
    name = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    hardware.check_device(name)
    device = torch.device(name)
    window = _window(settings.max_length, config)
    model = _model(settings, config, dtype, device)
    head = Head(model, config)
    _probe(model, head)
    widen(body(model))
    changed = shorten(body(model)) if device.type == "cuda" else []
    labels = transformers_emulation.start(model, emulation, tokenizer, window) if emulation else {}
    if changed:
        labels["fewer_passes"] = ", ".join(changed)
    facts = _facts(settings, config, model, head, dtype=dtype, device=device, window=window)
    facts = replace(facts, arguments=labels)
    if emulation is not None:
        facts = replace(facts, precision=emulation.precision, emulated=True)
    if max_tokens is None and settings.batch_size is None:
        max_tokens = _GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS
    return TransformersEngine(facts, model, tokenizer, head, settings.batch_size, max_tokens, threads)


def check(settings: EngineSettings, _gpus: Sequence[hardware.Gpu], *, reads_weights: bool = True) -> None:
    """Refuse what `load` would refuse, before the weights are read."""
    number(settings.options, "max_tokens_per_batch")
    folder = contents.local_folder(settings.checkpoint)
    if folder is not None and reads_weights:
        contents.check_weights(folder)
        contents.require_weights(folder)
    emulation = transformers_emulation.requested(settings)
    if emulation is None and settings.precision is not None:
        precision.check(settings.precision, "transformers", RUNS)


def _facts(
    settings: EngineSettings, config: Any, model: Any, head: Head, *, dtype: str, device: torch.device, window: int
) -> EngineFacts:
    """The labels of a model that is not emulated."""
    cuda = device.type == "cuda"
    folder = contents.local_folder(settings.checkpoint)
    commit = f"{settings.checkpoint}@{getattr(config, '_commit_hash', None)}"
    return EngineFacts(
        name="transformers",
        version=transformers.__version__,
        checkpoint=settings.checkpoint,
        fingerprint=contents.fingerprint(folder) if folder else commit,
        architecture=type(model).__name__,
        vocabulary=head.weight.shape[0],
        precision=precision.OF_DTYPE[dtype],
        emulated=False,
        dtype=dtype,
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if cuda else "cpu",
        max_length=window,
        worker="in_process",
        attention_backend=getattr(model.config, "_attn_implementation", None),
        moe_backend_requested=str(settings.options.get("moe_backend", "auto")),
        moe_backend_observed=getattr(model.config, "_experts_implementation", None),
        kv_cache_dtype=dtype,
        cuda_graph_batch_sizes=(),
        scores_from="hidden states through the output head in float32, checked against the model's own logits",
        scores_ids=True,
        quant_algo="none",
        gpus=1 if cuda else 0,
        weight_bytes=weights.by_part(model),
    )


def _config(settings: EngineSettings) -> Any:
    folder = contents.local_folder(settings.checkpoint)
    method = "none"
    if folder is not None:
        method = read_carried(folder).method
        contents.check_weights(folder)
    config = _from_hub(transformers.AutoConfig, settings)
    if folder is None and getattr(config, "quantization_config", None):
        method = "quantization_config"
    if method != "none":
        raise UsageError(
            f"{settings.checkpoint} is quantised ({method}), and the transformers engine runs {', '.join(RUNS)} only. "
            "Give the unquantised checkpoint."
        )
    text = config.get_text_config()
    if text.dtype is None:
        text.dtype = config.dtype
    return text


def _from_hub(kind: Any, settings: EngineSettings, **arguments: Any) -> Any:
    """`from_pretrained` with failures as messages for the user."""
    try:
        return kind.from_pretrained(
            str(contents.local_folder(settings.checkpoint) or settings.checkpoint),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            **arguments,
        )
    except torch.OutOfMemoryError:
        raise UsageError(
            f"The weights of {settings.checkpoint} do not fit into the GPU's memory. Use a larger GPU or device=cpu."
        ) from None
    # Transformers' readers raise errors of many classes: KeyError, ImportError, AssertionError, its own
    except Exception as error:
        if hub.unreachable(error):
            raise UsageError(hub.sentence(settings.checkpoint)) from error
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"Transformers cannot load {settings.checkpoint}: {reason}") from error


def _dtype(settings: EngineSettings, config: Any) -> str:
    stored = str(config.dtype or torch.float32).removeprefix("torch.")
    dtype = stored if settings.dtype == "auto" else settings.dtype
    if settings.dtype == "auto" and settings.precision:
        dtype = precision.DTYPE_OF[settings.precision]
    if dtype not in precision.OF_DTYPE:
        raise UsageError(f"dtype={dtype} is not supported. Choose auto, {', '.join(precision.OF_DTYPE)}.")
    if settings.precision and precision.OF_DTYPE[dtype] != settings.precision:
        raise UsageError(f"precision={settings.precision} and dtype={dtype} contradict each other. Give only one.")
    return dtype


def _window(requested: int | None, config: Any) -> int:
    stated = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    positions = next(filter(None, stated), None)
    if requested is None:
        return int(positions or 2048)  # lm-evaluation-harness's own default if a model states no window
    if requested < 1 or (positions is not None and requested > positions):
        raise UsageError(f"max_length={requested} is outside this model's window. Give 1 to {positions} tokens.")
    return requested


def _model(settings: EngineSettings, config: Any, dtype: str, device: torch.device) -> Any:
    arguments: dict[str, object] = {
        "dtype": getattr(torch, dtype),
        "device_map": {"": device},
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    if attention := settings.options.get("attn_implementation"):
        arguments["attn_implementation"] = attention
    backend = str(settings.options.get("moe_backend", "auto"))
    if backend != "auto":
        arguments["experts_implementation"] = backend
    model, info = _from_hub(transformers.AutoModelForCausalLM, settings, **arguments)
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing or info["mismatched_keys"]:
        tensors = missing or sorted(str(row[0]) for row in info["mismatched_keys"])
        raise UsageError(
            f"{settings.checkpoint} lacks {len(tensors)} of the model's weights, or has them in another shape "
            f"({tensors[0]} is the first). Copy the checkpoint again."
        )
    return model.eval()


@torch.inference_mode()
def _probe(model: Any, head: Head) -> None:
    """Compare the head with the model's own logits on one short sequence.

    A family that changes its logits behind the head in an unknown way is refused here instead of scored wrongly.
    """
    vocabulary = head.weight.shape[0]
    tokens = torch.arange(1, 9, device=model.device)[None] * 13 % vocabulary
    expected: Tensor = model(input_ids=tokens, use_cache=False).logits[0].float()
    hidden = body(model)(input_ids=tokens, use_cache=False).last_hidden_state[0]
    computed = head.logits(hidden, 0, vocabulary)
    kind = next(model.parameters()).dtype
    allowed = (16 if kind == torch.float32 else 2) * torch.finfo(kind).eps * expected.norm().item()
    if expected.shape != computed.shape or not (expected - computed).norm().item() <= allowed:
        raise UsageError(
            f"{type(model).__name__} changes its logits behind the output head in a way that this engine does not "
            "know. Use lm_eval --model hf for this checkpoint."
        )
