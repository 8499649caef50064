"""Lines of the harness's samples as results of documents. Its samples in memory have the same content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from moe_eval.frozen import frozen
from moe_eval.records.task_results import DocumentResult, Score


@frozen
class Sample:
    """What is read of a line of samples beside its scores. Earlier versions of lm-eval wrote no hashes."""

    doc_id: int
    doc: object = None
    target: object = None
    arguments: object = None
    resps: tuple[object, ...] = ()
    filtered_resps: tuple[object, ...] = ()
    filter: str = "none"
    doc_hash: str | None = None
    prompt_hash: str | None = None
    target_hash: str | None = None


def results(lines: Iterable[Mapping[str, object]], metrics: Sequence[str]) -> tuple[DocumentResult, ...]:
    """One result for every document. The harness writes a line for every filter of it.

    Args:
        metrics: keys METRIC,FILTER of the task.

    Raises:
        msgspec.ValidationError: a line is no sample.
    """
    documents: dict[int, DocumentResult] = {}
    for line in lines:
        sample = msgspec.convert(line, Sample)
        scores = {
            key: _score(line[metric])
            for key in metrics
            for metric, _, filtered in [key.partition(",")]
            if filtered == sample.filter and metric in line
        }
        before = documents.get(sample.doc_id)
        if before is not None:
            scores = {**before.scores, **scores}
        documents[sample.doc_id] = replace(before, scores=scores) if before else _result(sample, scores)
    return tuple(documents.values())


def generation(line: Mapping[str, object]) -> str:
    """The generation arguments of a sample as JSON, without the seed. Empty where nothing was generated."""
    request = next(iter(_requests(line.get("arguments"))), ())
    arguments = request[1] if len(request) > 1 else None
    if not isinstance(arguments, Mapping):
        return ""
    return json.dumps({key: value for key, value in arguments.items() if key != "seed"}, sort_keys=True)


def number(value: object) -> float | None:
    """A finite number, else None."""
    is_number = isinstance(value, (bool, int, float)) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, (bool, int, float)) else None


def _score(value: object) -> Score:
    """A number, or the pair of a log-likelihood and the words or bytes that it is of."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        weight = number(value[1])
        return Score(number(value[0]) if weight else None, weight or 1.0)
    return Score(number(value))


def _result(sample: Sample, scores: Mapping[str, Score]) -> DocumentResult:
    requests = _requests(sample.arguments)
    prompt = _text(requests[0][0]) if requests and requests[0] else ""
    likelihoods = [_likelihood(response) for response in sample.filtered_resps]
    result = DocumentResult(
        sample.doc_id,
        sample.doc_hash or _digest(json.dumps(sample.doc, indent=2, ensure_ascii=False)),
        sample.prompt_hash or _digest(prompt),
        sample.target_hash or _digest(str(sample.target)),
        "",
        scores,
        prompt_text=prompt,
        target_text=_text(sample.target),
    )
    known = [value for value in likelihoods if value is not None]
    if not known or len(known) < len(likelihoods):
        answer, response = _first(sample.filtered_resps), _first(sample.resps)
        return replace(result, answer=answer, response="" if response == answer else response)
    if len(known) == 1 or len(requests) != len(known):
        best = max(range(len(known)), key=known.__getitem__)
        return replace(result, answer=str(best if len(known) > 1 else known[0]), margin=_margin(known, 0))
    return _of_choices(result, sample, known, requests)


def _of_choices(
    result: DocumentResult, sample: Sample, likelihoods: Sequence[float], requests: Sequence[Sequence[object]]
) -> DocumentResult:
    """A result with the likeliest choice, the right one and the margin between them."""
    choices = [_text(request[-1]).strip() for request in requests]
    half = len(choices) // 2
    if half > 1 and choices[:half] == choices[half:]:  # acc_mutual_info asks for every choice without the prompt too
        choices, likelihoods = choices[:half], likelihoods[:half]
    if len(set(choices)) == 1:  # it is prompts that differ, as in winogrande
        choices = [_text(request[0]).strip() for request in requests]
    best = max(range(len(choices)), key=likelihoods.__getitem__)
    score = next((score.value for key, score in result.scores.items() if key.startswith("acc,")), None)
    right = _right(sample.target, choices, best, is_right=None if score is None else score == 1)
    target = result.target_text if right is None else choices[right]
    return replace(result, answer=choices[best], target_text=target, margin=_margin(likelihoods, right))


def _requests(arguments: object) -> list[list[object]]:
    """The arguments of every request of a document: in files of the harness under names, in others in lists."""
    requests = arguments.values() if isinstance(arguments, Mapping) else arguments
    if not isinstance(requests, Iterable) or isinstance(requests, str):
        return []
    return [
        list(request.values() if isinstance(request, Mapping) else request)
        for request in requests
        if isinstance(request, (Mapping, list, tuple))
    ]


def _right(target: object, choices: Sequence[str], best: int, *, is_right: bool | None) -> int | None:
    """The number of the right choice, which a task gives by number or by text, and which `is_right` has to agree with.

    Args:
        best: the likeliest choice. `is_right`: whether it is the right one. None where that is not known.
    """
    text = _text(target).strip()
    numbers = [int(text)] if text.isdecimal() and int(text) < len(choices) else []
    numbers += [choices.index(text)] if text in choices else []
    if is_right is None:
        return next(iter(numbers), None)
    numbers += [best] if is_right else [1 - best] if len(choices) == 2 else []
    return next((number for number in numbers if (number == best) is is_right), None)


def _margin(likelihoods: Sequence[float], right: int | None) -> float | None:
    if right is None:
        return None
    margin = likelihoods[right] - max((*likelihoods[:right], *likelihoods[right + 1 :]), default=0.0)
    return number(margin)


def _first(responses: object) -> str:
    """The text of the first response."""
    while isinstance(responses, (list, tuple)):
        responses = responses[0] if responses else ""
    return _text(responses)


def _text(value: object) -> str:
    """Text that can be written: half a surrogate pair cannot."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")


def _likelihood(response: object) -> float | None:
    """Of a pair of log-likelihood and whether it is greedy. The harness writes both as text."""
    if not isinstance(response, (list, tuple)) or len(response) != 2:
        return None
    try:
        return float(response[0])
    except (TypeError, ValueError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
