"""Results that lm-eval logged with `--log_samples`, of any model: results_DATE.json and samples_TASK_DATE.jsonl.

What `lm_eval --model trtllm_moe` records (record.json, results.json, samples_TASK.jsonl) has the same content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.records import disk
from moe_eval.records import harness as harness_records
from moe_eval.records.task_results import (
    ArmTaskResults,
    DocumentResult,
    Score,
    TaskGroup,
    TaskMetric,
    TaskResults,
    Weights,
)

_MAKER = "lm_eval --output_path --log_samples"
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "gen_kwargs")  # other few-shot seeds change prompts
_OF_MACHINE = ("batch_size", "batch_sizes", "device", "use_cache", "moe_eval")
_LONGEST_ANSWER = 2000


@dataclass(frozen=True)
class _Results:
    """What is read of a file of results, see lm_eval.result_schema."""

    results: Mapping[str, Mapping[str, object]]
    group_subtasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    n_shot: Mapping[str, int] = field(default_factory=dict)
    n_samples: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    higher_is_better: Mapping[str, Mapping[str, bool | None] | None] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    date: float | None = None
    model_source: str | None = None
    model_name: str | None = None


@dataclass(frozen=True)
class _Sample:
    """What is read of a line of samples beside its scores. Earlier versions of lm-eval wrote no hashes."""

    doc_id: int
    doc: object = None
    target: object = None
    arguments: object = None
    filtered_resps: tuple[object, ...] = ()
    filter: str = "none"
    doc_hash: str | None = None
    prompt_hash: str | None = None
    target_hash: str | None = None


def holds(folder: Path) -> bool:
    """Whether the harness's results lie in a folder."""
    return folder.is_dir() and bool(_files(folder))


def is_of_plugin(folder: Path) -> bool:
    """Whether a folder is a run's of `lm_eval --model trtllm_moe`, which has more labels than the harness's files."""
    return (folder / harness_records.RECORD_FILE).is_file() and (folder / harness_records.RESULTS_FILE).is_file()


def _files(folder: Path) -> list[Path]:
    """Files of results, the newest first: their names end with the date."""
    if is_of_plugin(folder):
        return [folder / harness_records.RESULTS_FILE]
    return sorted((file for file in folder.glob("*.json") if _suffix(file) is not None), reverse=True)


def _suffix(file: Path) -> str | None:
    """The end of the names of the samples that belong to results: a date, or nothing."""
    _, mark, date = file.stem.rpartition("_")
    if file.name == harness_records.RESULTS_FILE:
        return ""
    return f"_{date}" if mark and date[:4].isdigit() and "T" in date else None


def started(folder: Path) -> float | None:
    """When the newest results of a folder began. None where they do not say."""
    return _read(_files(folder)[0]).date


def read(folder: Path) -> ArmTaskResults:
    """Read the results of one model.

    Of a task that was evaluated several times the newest results count. Those that differ in seeds alone are repeats.

    Raises:
        UsageError: a file is damaged, or there are no samples.
    """
    files = _files(folder)
    newest = _read(files[0])
    tasks: dict[str, TaskResults] = {}
    origins: dict[str, list[_Results]] = {}
    groups: dict[str, TaskGroup] = {}
    for file in files:
        results = newest if file is files[0] else _read(file)
        for task in _tasks(file, results):
            before = origins.setdefault(task.task, [])
            if not before:
                tasks[task.task] = task
            elif _is_repeat(results, before):
                tasks[task.task] = _repeated(tasks[task.task], task, len(before))
            else:
                continue
            before.append(results)
        groups = {**{group.group: group for group in _groups(results)}, **groups}
    if not tasks:
        raise UsageError(f"{folder} holds no samples of the harness. Run lm_eval again with --log_samples.")
    precision = _precision(folder, newest)
    model, checkpoint = newest.config.get("model"), newest.model_name or folder.name
    return ArmTaskResults(
        newest.model_source or (model if isinstance(model, str) else "not known"),
        _checkpoint(newest) or checkpoint,
        precision,
        newest.date,
        tuple(tasks.values()),
        tuple(group for group in groups.values() if set(group.tasks) <= set(tasks)),
    )


def _read(file: Path) -> _Results:
    content = disk.read_object(file, _MAKER)
    fields = {key.replace("-", "_"): value for key, value in content.items() if value is not None}
    return disk.convert(fields, _Results, file, _MAKER)


def _checkpoint(results: _Results) -> str | None:
    checkpoint = _arguments(results).get("pretrained") or _arguments(results).get("model")
    return str(checkpoint) if checkpoint else None


def _arguments(results: _Results) -> Mapping[str, object]:
    """The model's arguments, which the harness writes as it was given them."""
    arguments = results.config.get("model_args")
    if isinstance(arguments, str):
        return dict(part.partition("=")[::2] for part in arguments.split(",") if "=" in part)
    return arguments if isinstance(arguments, Mapping) else {}


def _precision(folder: Path, results: _Results) -> str | None:
    if is_of_plugin(folder):
        engine = harness_records.read(folder).labels.get("engine")
        if isinstance(engine, Mapping) and engine.get("precision"):
            return str(engine["precision"])
    precision = _arguments(results).get("precision")
    return str(precision) if precision else None


def _is_repeat(results: _Results, before: Sequence[_Results]) -> bool:
    """Whether results differ from those before in seeds alone."""

    def parts(entry: _Results) -> tuple[dict[str, object], dict[str, object]]:
        seeds = {name: entry.config.get(name) for name in _SEEDS}
        return seeds, {name: value for name, value in entry.config.items() if name not in (*_SEEDS, *_OF_MACHINE)}

    seeds, rest = parts(results)
    return all(seeds != parts(entry)[0] and rest == parts(entry)[1] for entry in before)


def _repeated(task: TaskResults, again: TaskResults, repeat: int) -> TaskResults:
    rows = (replace(row, repeat=repeat) for row in again.documents)
    return replace(task, documents=(*task.documents, *rows))


def _tasks(file: Path, results: _Results) -> Iterator[TaskResults]:
    """The tasks whose samples lie beside the results."""
    for name, figures in results.results.items():
        samples = file.with_name(f"samples_{name}{_suffix(file)}.jsonl")
        metrics = _metrics(name, figures, results)
        if not samples.is_file() or not metrics:
            continue
        documents = _documents(samples, list(metrics))
        count = results.n_samples.get(name, {}).get("effective", len(documents))
        if count != len(documents):
            raise UsageError(f"{samples} holds {len(documents)} of {count} documents. Run lm_eval again.")
        yield TaskResults(name, str(results.versions.get(name)), results.n_shot.get(name), metrics, documents)


def _metrics(name: str, figures: Mapping[str, object], results: _Results) -> dict[str, TaskMetric]:
    """The metrics of a task or a group, whose keys are METRIC,FILTER."""
    directions = results.higher_is_better.get(name) or {}
    return {
        key: TaskMetric(_number(value), directions.get(key.partition(",")[0]))
        for key, value in figures.items()
        if "," in key and not key.partition(",")[0].endswith("_stderr")
    }


def _number(value: object) -> float | None:
    is_number = isinstance(value, (bool, int, float)) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, (bool, int, float)) else None


def _documents(file: Path, metrics: Sequence[str]) -> tuple[DocumentResult, ...]:
    """One result for every document. The harness writes a line for every filter of it."""
    documents: dict[int, DocumentResult] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}). Run {_MAKER} again.") from None
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line, parse_constant=lambda _: None)
            sample = msgspec.convert(content, _Sample)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise UsageError(f"{file} is damaged in line {number} ({error}). Run {_MAKER} again.") from None
        scores = {
            key: _score(content[metric])
            for key in metrics
            for metric, _, filtered in [key.partition(",")]
            if filtered == sample.filter and metric in content
        }
        before = documents.get(sample.doc_id)
        if before is not None:
            scores = {**before.scores, **scores}
        documents[sample.doc_id] = replace(before, scores=scores) if before else _result(sample, scores)
    return tuple(documents.values())


def _score(value: object) -> Score:
    """A number, or the pair of a log-likelihood and the words or bytes that it is of."""
    if isinstance(value, list) and len(value) == 2:
        weight = _number(value[1])
        return Score(_number(value[0]) if weight else None, weight or 1.0)
    return Score(_number(value))


def _result(sample: _Sample, scores: Mapping[str, Score]) -> DocumentResult:
    document = sample.doc_hash or _digest(json.dumps(sample.doc, indent=2, ensure_ascii=False))
    return DocumentResult(
        sample.doc_id,
        document,
        sample.prompt_hash or _digest(_prompt(sample.arguments)),
        sample.target_hash or _digest(str(sample.target)),
        _answer(sample.filtered_resps)[:_LONGEST_ANSWER],
        scores,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _prompt(arguments: object) -> str:
    """The first argument of the first request: in files of the harness under names, in ours in lists."""
    for _ in range(2):
        if isinstance(arguments, Mapping):
            arguments = next(iter(arguments.values()), "")
        elif isinstance(arguments, list):
            arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _answer(responses: Sequence[object]) -> str:
    """The number of the most likely choice, or the text of the first response."""
    likelihoods = [_likelihood(response) for response in responses]
    if len(likelihoods) > 1 and all(value is not None for value in likelihoods):
        return str(max(range(len(likelihoods)), key=lambda at: likelihoods[at] or -math.inf))
    first = responses[0] if responses else ""
    while isinstance(first, list) and first:
        first = first[0]
    return str(first)


def _likelihood(response: object) -> float | None:
    """Of a pair of log-likelihood and whether it is greedy. The harness writes both as text."""
    if not isinstance(response, list) or len(response) != 2:
        return None
    try:
        return float(response[0])
    except (TypeError, ValueError):
        return None


def _groups(results: _Results) -> Iterator[TaskGroup]:
    """The groups that have a score."""
    for name, children in results.group_subtasks.items():
        metrics = _metrics(name, results.results.get(name, {}), results)
        tasks = tuple(dict.fromkeys(_leaves(children, results.group_subtasks)))
        if metrics and tasks:
            yield TaskGroup(name, tasks, metrics, _weights(tasks, metrics, results))


def _leaves(names: Sequence[str], subtasks: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for name in names:
        if subtasks.get(name):
            yield from _leaves(subtasks[name], {key: value for key, value in subtasks.items() if key != name})
        else:
            yield name


def _weights(tasks: Sequence[str], metrics: Mapping[str, TaskMetric], results: _Results) -> Weights | None:
    """Which weights give the harness's own number: it does not write them down."""
    fitting: list[Weights] = ["documents", "tasks"]
    for key, metric in metrics.items():
        members = [task for task in tasks if key in results.results.get(task, {})]
        scores = [_number(results.results[task][key]) or 0.0 for task in members]
        lengths = [float(results.n_samples.get(task, {}).get("effective", 0)) for task in members]
        sizes = {"documents": lengths, "tasks": [1.0] * len(scores)}
        fitting = [name for name in fitting if _is_mean(metric.score, scores, sizes[name])]
    return next(iter(fitting), None)


def _is_mean(total: float | None, scores: Sequence[float], weights: Sequence[float]) -> bool:
    weight = math.fsum(weights)
    mean = math.fsum(map(math.prod, zip(scores, weights, strict=True))) / weight if weight else math.nan
    return total is not None and math.isclose(mean, total, rel_tol=1e-6, abs_tol=1e-9)
