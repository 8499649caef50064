"""Results that lm-eval logged with `--log_samples`, of any model: results_DATE.json and samples_TASK_DATE.jsonl.

What `lm_eval --model trtllm_moe` records (record.json, results.json, samples_TASK.jsonl) has the same content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from moe_eval.errors import UsageError
from moe_eval.imports import harness_documents
from moe_eval.imports.harness_groups import Results, groups
from moe_eval.outside import documents, files
from moe_eval.records import disk
from moe_eval.records import harness as harness_records
from moe_eval.records.task_results import ArmTaskResults, TaskGroup, TaskResults

_MAKER = "lm_eval --output_path --log_samples"
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "gen_kwargs")  # other few-shot seeds change prompts
_OF_MACHINE = ("batch_size", "batch_sizes", "device", "use_cache", "moe_eval")


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
    Tasks are in the order in which they were evaluated.

    Raises:
        UsageError: a file is damaged, or there are no samples.
    """
    files = _files(folder)
    if not files:
        raise UsageError(f"{folder} holds no results of the harness. Give a folder of lm_eval --output_path.")
    newest = _read(files[0])
    tasks: dict[str, TaskResults] = {}
    origins: dict[str, list[Results]] = {}
    scored: dict[str, TaskGroup] = {}
    places: dict[str, tuple[int, int]] = {}
    for age, file in enumerate(files):
        results = newest if file is files[0] else _read(file)
        for place, task in enumerate(_tasks(file, results)):
            places.setdefault(task.task, (-age, place))
            before = origins.setdefault(task.task, [])
            if not before:
                tasks[task.task] = task
            elif _is_repeat(results, before):
                tasks[task.task] = _repeated(tasks[task.task], task, len(before))
            else:
                continue
            before.append(results)
        scored = {**{group.group: group for group in groups(results)}, **scored}
    if not tasks:
        raise UsageError(f"{folder} holds no samples of the harness. Run lm_eval again with --log_samples.")
    precision = _precision(folder, newest)
    model, checkpoint = newest.config.get("model"), newest.model_name or folder.name
    return ArmTaskResults(
        newest.model_source or (model if isinstance(model, str) else "not known"),
        _checkpoint(newest) or checkpoint,
        precision,
        newest.date,
        tuple(sorted(tasks.values(), key=lambda task: places[task.task])),
        tuple(group for group in scored.values() if set(group.tasks) <= set(tasks)),
    )


def _read(file: Path) -> Results:
    content = disk.read_object(file, _MAKER)
    fields = {key.replace("-", "_"): value for key, value in content.items() if value is not None}
    return disk.convert(fields, Results, file, _MAKER)


def _checkpoint(results: Results) -> str | None:
    checkpoint = _arguments(results).get("pretrained") or _arguments(results).get("model")
    return str(checkpoint) if checkpoint else None


def _arguments(results: Results) -> Mapping[str, object]:
    """The model's arguments, which the harness writes as it was given them."""
    arguments = results.config.get("model_args")
    if isinstance(arguments, str):
        return dict(part.partition("=")[::2] for part in arguments.split(",") if "=" in part)
    return arguments if isinstance(arguments, Mapping) else {}


def _precision(folder: Path, results: Results) -> str | None:
    if is_of_plugin(folder):
        engine = harness_records.read(folder).labels.get("engine")
        if isinstance(engine, Mapping) and engine.get("precision"):
            return str(engine["precision"])
    precision = _arguments(results).get("precision")
    return str(precision) if precision else None


def _is_repeat(results: Results, before: Sequence[Results]) -> bool:
    """Whether results differ from those before in seeds alone."""

    def parts(entry: Results) -> tuple[dict[str, object], dict[str, object]]:
        seeds = {name: entry.config.get(name) for name in _SEEDS}
        return seeds, {name: value for name, value in entry.config.items() if name not in (*_SEEDS, *_OF_MACHINE)}

    seeds, rest = parts(results)
    return all(seeds != parts(entry)[0] and rest == parts(entry)[1] for entry in before)


def _repeated(task: TaskResults, again: TaskResults, repeat: int) -> TaskResults:
    rows = (replace(row, repeat=repeat) for row in again.documents)
    return replace(task, documents=(*task.documents, *rows))


def _tasks(file: Path, results: Results) -> Iterator[TaskResults]:
    """The tasks whose samples lie beside the results."""
    for name in results.results:
        samples = file.parent / f"samples_{name}{_suffix(file)}.jsonl"
        metrics = results.metrics(name)
        if not files.is_there(samples) or not metrics:
            continue
        lines = list(_lines(samples))
        documents = harness_documents.results(lines, list(metrics))
        sizes = results.n_samples.get(name, {})
        count = sizes.get("effective", len(documents))
        if count != len(documents):
            raise UsageError(f"{samples} holds {len(documents)} of {count} documents. Run lm_eval again.")
        generation = harness_documents.generation(lines[0]) if lines else ""
        version, shots = str(results.versions.get(name)), results.n_shot.get(name)
        yield TaskResults(name, version, shots, metrics, documents, sizes.get("original"), generation)


def _lines(file: Path) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(files.read_text(file, f"Run {_MAKER} again.").split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = documents.parse_object(line)
            msgspec.convert(content, harness_documents.Sample)
        except (documents.Damaged, documents.Unfit, msgspec.ValidationError) as error:
            raise UsageError(f"{file} is damaged in line {number} ({error}). Run {_MAKER} again.") from None
        yield content
