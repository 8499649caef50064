"""What servers are started with and asked: checked before anything is loaded, the same for all arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_eval.checkpoint import contents
from moe_eval.data import prompts, scoring_windows, served_requests
from moe_eval.data.served_requests import Lengths, RequestSet
from moe_eval.engines.serving import ServeSettings, free_port
from moe_eval.errors import UsageError, mended
from moe_eval.evaluators import latency, load_generator
from moe_eval.runner import fit
from moe_eval.runner.arm_plan import Arm
from moe_eval.runner.request import RunRequest

_READY = 0.9  # of --timeout, in which a server has to get ready: then its own sentence comes first


def check(request: RunRequest, arms: Sequence[Arm]) -> None:
    """Refuse what cannot be driven.

    Raises:
        UsageError: there is no load generator, the port is in use, an endpoint has no tokenizer, or a request is longer
            than a model.
    """
    serving = request.serving
    if serving is None or not arms:
        return
    latency.refuse_profiler()
    load_generator.executable()
    if serving.port is not None and not all(arm.is_endpoint for arm in arms):
        free_port(serving.port)
    if serving.prefix_caching and any(arm.is_endpoint for arm in arms):
        raise UsageError("An endpoint keeps prefixes as it was started. Leave out --prefix_caching.")
    tokenizer_name(request, arms)
    longest = max(size.input_len + size.output_len for size in _lengths(request))
    for arm in arms:
        limit = None if arm.is_endpoint else fit.positions(contents.read_config(fit.folder(arm)))
        if limit is not None and longest > limit:
            raise UsageError(
                f"A request has {longest} tokens with its answer and {arm.name} has {limit} positions. Give shorter "
                "ones."
            )


def settings(request: RunRequest, requests: RequestSet) -> ServeSettings:
    """With what every server is started."""
    serving = request.serving
    assert serving is not None
    return ServeSettings(requests.longest, _READY * request.timeout_s, serving.port, serving.prefix_caching)


def tokenizer_name(request: RunRequest, arms: Sequence[Arm]) -> str:
    """The tokenizer of the prompts: a folder or a hub name.

    Raises:
        UsageError: there are endpoints alone, and none names one.
    """
    for arm in arms:
        name = arm.settings.options.get("tokenizer") if arm.is_endpoint else arm.settings.checkpoint
        if request.tokenizer or name:
            name = request.tokenizer or str(name)
            return str(Path(name).resolve()) if Path(name).is_dir() else name
    raise UsageError(
        f"Prompts need a tokenizer, and {arms[0].name} is a server. Give the arm tokenizer=FOLDER_OR_NAME."
    )


def requests(request: RunRequest, arms: Sequence[Arm]) -> RequestSet:
    """As many requests as the largest point needs, warm-up included.

    Raises:
        UsageError: the data set cannot be read, or is too short for a prompt.
    """
    from moe_eval.checkpoint import tokenizer as tokenizers

    serving = request.serving
    assert serving is not None
    first = arms[0].settings
    tokenizer = tokenizers.load(tokenizer_name(request, arms), first.revision, first.trust_remote_code)
    vocabulary = min((_vocabulary(arm) for arm in arms if not arm.is_endpoint), default=len(tokenizer))
    count = max(point.warm_up + point.requests(serving.minimum) for point in serving.points)
    lengths = _lengths(request)
    of_lengths = (
        f"lengths of {serving.lengths.name}"
        if serving.lengths
        else (f"{lengths[0].input_len} tokens in and {lengths[0].output_len} out")
    )
    if request.dataset == "random":
        stream = _random(request.seed, vocabulary, set(tokenizer.all_special_ids))
        return served_requests.of_stream(stream, lengths, count, f"random, seed {request.seed}, {of_lengths}")
    source = f"{request.dataset}, tokenizer {tokenizer.name_or_path}, {of_lengths}"
    return served_requests.of_stream(_tokens(request.dataset, tokenizer, vocabulary), lengths, count, source)


def _lengths(request: RunRequest) -> tuple[Lengths, ...]:
    serving = request.serving
    assert serving is not None
    if serving.lengths is None:
        return (Lengths(request.input_len, serving.output_len),)
    return served_requests.read_lengths(serving.lengths)


def _vocabulary(arm: Arm) -> int:
    return int(contents.text_config(contents.read_config(fit.folder(arm))).get("vocab_size") or 0)


def _tokens(dataset: str, tokenizer: Any, vocabulary: int) -> Iterator[int]:
    """The tokens of a data set's documents as one stream.

    Raises:
        UsageError: there is no such data set, or the tokenizer is another model's.
    """
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    if dataset not in prompts.SOURCES:
        fix = mended(dataset, prompts.SOURCES, f"Give one of {', '.join(prompts.SOURCES)}.")
        raise UsageError(f"There is no data set {dataset!r}. {fix}")
    for document in scoring_windows.read_documents(dataset):
        ids = tokenizer.encode(wikitext_detokenizer({"page": document}), add_special_tokens=False, verbose=False)
        if ids and max(ids) >= vocabulary:
            raise UsageError(
                f"The tokenizer gives token {max(ids)} and the model's vocabulary has {vocabulary}. Give the model's "
                "tokenizer."
            )
        yield from ids


def _random(seed: int, vocabulary: int, special: set[int]) -> Iterator[int]:
    """Independent random tokens, from the raw stream of PCG64 as in workload.from_seed."""
    allowed = np.setdiff1d(np.arange(vocabulary), np.array(sorted(special), dtype=np.int64))
    stream = np.random.PCG64(seed)
    while True:
        yield from map(int, allowed[(stream.random_raw(4096) % np.uint64(len(allowed))).astype(np.int64)])
