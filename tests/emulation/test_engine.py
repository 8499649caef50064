"""Emulated precisions on the Transformers engine, with the model that the package carries."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_eval.data.window import Window
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings, GenerationRequest, WindowScores
from moe_eval.engines.transformers.engine import TransformersEngine
from moe_eval.errors import UsageError
from moe_eval.evaluators import divergence
from moe_eval.stats import Divergence
from tests.conftest import SHIPPED

Start = Callable[..., TransformersEngine]
SIZE, WINDOWS = 512, 16  # of the calibration
DEFAULTS = {("scope", "experts"), ("activations", "static")}


@pytest.fixture(scope="module")
def start(tokenizer: Any) -> Start:
    """Load the shipped model; engines of the same settings are one, since emulation ends with loading."""

    @cache
    def loaded(precision: str | None, batch_size: int | None, options: tuple[tuple[str, Any], ...]) -> Any:
        asked = {"emulate": "true", **dict(options)} if precision else dict(options)
        settings = EngineSettings(
            str(SHIPPED), dtype="float32", precision=precision, batch_size=batch_size, options=asked
        )
        return registry.load("transformers", settings, tokenizer)

    return lambda precision=None, batch_size=None, **options: loaded(
        precision, batch_size, tuple(sorted(options.items() - DEFAULTS))
    )


@pytest.fixture(scope="module")
def windows(sample: Sequence[int]) -> Sequence[Window]:
    """The end of the articles, behind what calibrates, in windows of different lengths."""
    sizes = (128, 96, 256, 64, 200, 128)
    starts = [len(sample) - sum(sizes[at:]) for at in range(len(sizes))]
    return [
        Window(tuple(sample[at : at + 8]), tuple(sample[at + 8 : at + size]))
        for at, size in zip(starts, sizes, strict=True)
    ]


def diverging(reference: Sequence[WindowScores], other: Sequence[WindowScores]) -> Divergence:
    parts = [
        np.concatenate([getattr(each, name) for each in scores])
        for scores in (reference, other)
        for name in ("top_ids", "top_logprobs")
    ]
    return divergence.between(*parts, documents=[len(parts[0])])


@pytest.mark.parametrize(
    ("precision", "options", "labels"),
    [
        ("nvfp4", {}, ("experts", 160, "static", "16 windows of 512 tokens of moe_sample")),
        ("fp8", {"calibration_windows": 2}, ("experts", 160, "static", "2 windows of 512 tokens of moe_sample")),
        ("fp8", {"scope": "all"}, ("all", 180, "static", "16 windows of 512 tokens of moe_sample")),
        ("nvfp4", {"activations": "dynamic"}, ("experts", 160, "dynamic", "none")),
        ("fp8_block", {}, ("experts", 160, "dynamic", "none")),
    ],
)
def test_the_facts_say_what_is_emulated_and_how(
    start: Start, precision: str, options: dict[str, Any], labels: tuple[Any, ...]
) -> None:
    facts = start(precision, **options).facts
    assert (facts.precision, facts.emulated, facts.dtype) == (precision, True, "float32")
    names = ("emulated_scope", "emulated_matrices", "activations", "calibration")
    assert dict(facts.arguments) == dict(zip(names, labels, strict=True))
    assert not start().facts.emulated


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        ("nvfp4", {}, "runs bf16, fp16, fp32, not nvfp4. Add emulate=true"),
        ("fp8", {"emulate": "false"}, "fp32, not fp8. Add emulate=true"),
        ("nvfp4", {"emulate": "maybe"}, "emulate=maybe is neither on nor off"),
        ("nvfp4", {"emulate": "true", "scope": "some"}, "no scope 'some'. Choose experts or all"),
        ("nvfp4", {"emulate": "true", "activations": "half"}, "no activations 'half'. Choose static or dynamic"),
        ("fp8_block", {"emulate": "true", "activations": "static"}, "Omit activations=static"),
        ("nvfp4", {"emulate": "true", "calibration_windows": "0"}, "calibration_windows=0 is not a whole number"),
        ("nvfp4", {"emulate": "true", "calibration_windows": "-1"}, "calibration_windows=-1 is not a whole number"),
        ("nvfp4", {"emulate": "true", "calibration_windows": 1.5}, "calibration_windows=1.5 is not a whole number"),
        ("nvfp4", {"emulate": "true", "calibration_windows": 999}, r"Give calibration_windows=\d+\."),
        ("fp8_block", {"emulate": "true", "moe_backend": "eager"}, "moe_backend=grouped_mm"),
        (None, {"emulate": "true"}, "emulate=true needs a precision. Give precision=fp8 or fp8_block or nvfp4"),
        ("bf16", {"emulate": "true"}, "emulation"),
        ("bf16", {"scope": "all"}, "scope is a setting of emulation"),
        (None, {"calibration_windows": 4}, "calibration_windows is a setting of emulation"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_a_sentence(
    tokenizer: Any, precision: str | None, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        registry.load("transformers", EngineSettings(str(SHIPPED), precision=precision, options=options), tokenizer)
    text = str(refused.value)
    assert re.search(words, text), text
    assert text.endswith(".")
    assert "\n" not in text


def test_the_speed_of_an_emulation_is_refused(start: Start, tmp_path: Path) -> None:
    engine = start("nvfp4")
    with pytest.raises(UsageError, match="speed"), engine.trace(tmp_path / "trace.json"):
        pass
    with pytest.raises(UsageError, match="speed"):
        engine.generate([[5, 6, 7]], GenerationRequest(max_new_tokens=2, timed=True))
    (completion,) = engine.generate([[5, 6, 7]], GenerationRequest(max_new_tokens=2, ignore_eos=True))
    assert len(completion.token_ids) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "how"), [("nvfp4", "static"), ("nvfp4", "dynamic"), ("fp8", "static")])
def test_scores_do_not_depend_on_the_batch_size(
    start: Start, windows: Sequence[Window], precision: str, how: str
) -> None:
    """Sums in another order move a few values across a rounding boundary, far less than the precision itself does."""
    plain = np.concatenate([each.logprobs for each in start().score(windows)])
    alone, together = (
        np.concatenate([each.logprobs for each in start(precision, size, activations=how).score(windows)])
        for size in (1, None)
    )
    assert np.abs(alone - together).mean() < 0.1 * np.abs(alone - plain).mean()
    repeated = np.concatenate([each.logprobs for each in start(precision, None, activations=how).score(windows)])
    np.testing.assert_array_equal(repeated, together)


@pytest.mark.parametrize("scope", ["experts", "all"])
def test_divergence_rises_from_bf16_over_fp8_to_nvfp4(
    start: Start, windows: Sequence[Window], tokenizer: Any, scope: str
) -> None:
    exact = start().score(windows, top_k=32)
    half = registry.load("transformers", EngineSettings(str(SHIPPED), dtype="bfloat16"), tokenizer)
    found = [diverging(exact, half.score(windows, top_k=32))]
    found += [diverging(exact, start(name, scope=scope).score(windows, top_k=32)) for name in ("fp8", "nvfp4")]
    assert found[0].mean > 0
    for lower, higher in pairwise(found):
        assert lower.mean < 0.7 * higher.mean
        assert lower.median < higher.median
    assert found[-1].mean < 0.2, "so far from the reference nothing is left of the model"


def log_probabilities(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = torch.log_softmax(model(input_ids=torch.tensor([list(ids)])).logits[0].double(), -1)
    return found


def weight_pairs(plain: Any, ours: Any, theirs: Any) -> Iterator[tuple[str, Tensor, Tensor, Any]]:
    """Every matrix that both quantise: as it was, as ours rounded it, and Model-Optimizer's quantiser for it."""
    for name, after in ours.named_modules():
        before, module = plain.get_submodule(name), theirs.get_submodule(name)
        for part in ("gate_up_proj", "down_proj"):
            for number, quantizer in enumerate(getattr(module, f"{part}_weight_quantizers", ())):
                yield f"{name}.{part}", getattr(before, part)[number], getattr(after, part)[number], quantizer
        if getattr(getattr(module, "weight_quantizer", None), "is_enabled", False):
            yield name, before.weight, after.weight, module.weight_quantizer


@torch.no_grad()
def test_whole_model_fp8_is_that_of_modelopt(start: Start, sample: Sequence[int]) -> None:
    """FP8_DEFAULT_CFG and scope=all quantise the same matrices with the same amax: attention and fused experts.

    Model-Optimizer runs fused experts as a loop, with a weight scale for each expert's gate and up together and
    activation scales for each layer, as ours do. Two things differ. Its simulation multiplies by 448 / amax, where
    ours and its own export (FP8QTensor, what engines read) divide by amax / 448: the last bit of the scale decides
    ties, which are common among weights of eight bits and differ nowhere else. And its loop sums in another order.
    With the ties of the weights decided alike, the distributions are close.
    """
    mtq = pytest.importorskip("modelopt.torch.quantization", reason="needs nvidia-modelopt")
    from modelopt.torch.quantization.qtensor import FP8QTensor

    plain, ours = start().model, start("fp8", scope="all")
    theirs = copy.deepcopy(plain)
    mtq.quantize(
        theirs,
        mtq.FP8_DEFAULT_CFG,
        lambda model: [log_probabilities(model, sample[at * SIZE : (at + 1) * SIZE]) for at in range(WINDOWS)],
    )
    inputs = {
        re.sub(r"[._]input_quantizer$", "", name)
        for name, quantizer in theirs.named_modules()
        if name.endswith("input_quantizer") and quantizer.is_enabled
    }
    layers = range(plain.config.num_hidden_layers)
    attention = {f"model.layers.{n}.self_attn.{part}_proj" for n in layers for part in "qkvo"}
    experts = {f"model.layers.{n}.mlp.experts.{part}_proj" for n in layers for part in ("gate_up", "down")}
    assert inputs == attention | experts

    pairs = list(weight_pairs(plain, ours.model, theirs))
    assert {name for name, *_ in pairs} == inputs
    assert len(pairs) == ours.facts.arguments["emulated_matrices"]
    sizes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (sizes[1:] + sizes[:-1]) / 2
    for name, before, after, quantizer in pairs:
        packed, scale = FP8QTensor.quantize(before.clone())
        assert torch.equal(after, packed.dequantize(scale=scale, dtype=torch.float32)), name
        wanted = quantizer(before)
        scaled = (before / scale)[(wanted - after).abs() > 1e-5 * after.abs()].abs()
        nearest = ties[torch.bucketize(scaled * (1 - 1e-5), ties).clamp(max=len(ties) - 1)]
        torch.testing.assert_close(scaled, nearest, rtol=1e-5, atol=0)

    ids = sample[-SIZE:]
    exact, found, as_it_is = (log_probabilities(model, ids) for model in (plain, ours.model, theirs))
    for _, before, after, quantizer in weight_pairs(theirs, ours.model, theirs):
        quantizer.disable()
        before.copy_(after)
    wanted = log_probabilities(theirs, ids)
    precision = (wanted - exact).abs().mean().item()
    assert precision > 1e-3
    assert (found - wanted).abs().mean().item() < precision / 2
    assert (found - as_it_is).abs().mean().item() < precision
