"""Tasks of lm-evaluation-harness before an arm is loaded: their names, documents and prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.hub import unreachable
from moe_eval.data import task_files
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen
from moe_eval.outside import files

_FIX = "Give the path of a task's YAML file, or a task's name."
_SEED = 1234  # of sampled answers, the harness's own
FEWSHOT_SEED = 1234  # the harness's own: the same examples in every run and repeat
# what measures an engine's speed, which is an evaluator of its own here
_OF_SPEED = {"moe_latency": "latency", "moe_kernels": "kernels"}
_PACKAGE = Path(__file__).resolve().parent.parent
RenderChat = Callable[..., Any]


@frozen
class TaskOptions:
    """Which tasks arms are evaluated on, and how: the harness's options by their own names.

    Attributes:
        tasks: names of tasks and groups, and YAML files.
        limit: documents of each task, below 1 a share. None for all.
        num_fewshot: None for what each task says.
        gen_kwargs: replace those of tasks by name.
        repeats: how often tasks with sampled answers are evaluated.
    """

    tasks: tuple[str, ...]
    limit: float | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1


@frozen
class Suite:
    """What one entry of --tasks asks of an arm.

    Attributes:
        spec: the entry.
        name: for files and messages.
        tasks: the documents of every task by its name.
        requests: kinds of requests, as the harness calls them.
        generation: different generation arguments of its requests.
        is_sampled: whether answers are drawn at random.
        longest: the longest texts that a model reads, with the tokens that it may add. None for its own default.
    """

    spec: str
    name: str
    tasks: Mapping[str, int]
    requests: frozenset[str]
    generation: tuple[Mapping[str, Any], ...]
    is_sampled: bool
    longest: tuple[tuple[str, int | None], ...]


def tasks_folder() -> Path:
    """The folder of our task files: in the installed package, or beside it in a source tree."""
    shipped = _PACKAGE / "tasks"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "tasks"


def build(options: TaskOptions, render_chat: RenderChat | None) -> list[Suite]:
    """Build every document and prompt, as arms will read them.

    Args:
        render_chat: the chat template. None without --apply_chat_template.

    Raises:
        UsageError: a task does not exist, needs what is not here, or makes no prompts of its documents.
    """
    if options.limit is not None and options.limit <= 0:
        raise UsageError(f"--limit {options.limit:g} leaves no document. Give a count, or a share between 0 and 1.")
    suites = [_suite(spec, options, render_chat) for spec in options.tasks]
    names = [name for suite in suites for name in suite.tasks]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"--tasks asks for {doubled} twice. Leave out the task, or the group that holds it.")
    if options.repeats > 1 and not any(suite.is_sampled for suite in suites):
        raise UsageError(
            f"--repeats {options.repeats} is for sampled answers, and no task here samples. Add --gen_kwargs "
            "do_sample=true,temperature=0.7, or leave it out."
        )
    return suites


def loaded(spec: str, options: TaskOptions, repeat: int = 0) -> Mapping[str, Any]:
    """A task or group with these options, as the harness's `evaluate` takes it.

    Answers that are sampled have a seed, which is another one in every repeat.

    Raises:
        UsageError: it does not exist, or needs what is not here.
    """
    tasks = _read(spec)
    for task in tasks["tasks"].values():
        if options.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
        drawn = task.get_config("generation_kwargs") or {}
        if task.get_config("output_type") == "generate_until" and samples(drawn):
            seed = int(drawn.get("seed") or _SEED) + repeat
            task.set_config(key="generation_kwargs", value={"seed": seed}, update=True)
        if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


@cache
def _manager(*, has_all: bool, beside: Path | None = None) -> Any:
    """What finds tasks: ours, those of a folder, and those of the harness as well, whose index takes ten seconds."""
    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise UsageError("--tasks needs lm-eval 0.4.12 or later. Run pip install -U lm-eval.")
    folders = [tasks_folder(), *([beside] if beside else [])]
    return TaskManager(include_path=list(map(str, folders)), include_defaults=has_all)


def _read(spec: str) -> Mapping[str, Any]:
    if spec in _OF_SPEED:
        raise UsageError(
            f"The task {spec} is an evaluator here. Leave it out, and give --evaluators {_OF_SPEED[spec]}."
        )
    is_file = Path(spec).suffix in (".yaml", ".yml")
    if is_file and not files.is_there(Path(spec)):
        raise UsageError(f"There is no file {spec}. {_FIX}")
    source, beside = spec, {}
    if is_file and (group := task_files.check(Path(spec), _FIX)):
        # the harness finds a group by its name alone, among files of a folder, where its tasks may be too
        source, beside = group, {"beside": Path(spec).absolute().parent}
        for file in sorted(beside["beside"].glob("**/*.yaml")):
            task_files.check(file, _FIX)
    if not is_file and spec not in _manager(has_all=False).all_tasks:
        names = _manager(has_all=True).all_tasks
        if spec not in names:
            raise UsageError(f"There is no task {spec}. {mended(spec, names, 'Run lm_eval ls tasks for their names.')}")
    # of one of the harness's own, or a file that names some. Names in a group become tasks without data
    unknown = (KeyError, ValueError, *([TypeError] if beside else []))
    try:
        try:
            return dict(_manager(has_all=False, **beside).load([source]))
        except unknown:
            return dict(_manager(has_all=True, **beside).load([source]))
    # the harness, Jinja, YAML and the readers of data raise whatever they like
    except Exception as error:
        raise _unusable(spec, error) from error


def _unusable(spec: str, error: Exception) -> UsageError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if unreachable(error):
        return UsageError(
            f"The data set of {spec} cannot be fetched ({reason}). Go online once, or use a task whose data are here."
        )
    return UsageError(f"The task {spec} cannot be built ({reason}). Mend its YAML file, its data or these options.")


def _suite(spec: str, options: TaskOptions, render_chat: RenderChat | None) -> Suite:
    from lm_eval.evaluator_utils import get_sample_size

    tasks = loaded(spec, options)["tasks"]
    instances = []
    for name, task in tasks.items():
        if "/" in name:
            raise UsageError(f"The task {name} cannot name a file. Give it a name without a slash.")
        for flag, what_it_does in (
            ("UNSAFE_CODE", "runs code of the model"),
            ("MULTIMODAL", "shows pictures or sound"),
        ):
            if getattr(task, flag, False):
                raise UsageError(f"The task {name} {what_it_does}, which is not supported here. Leave it out.")
        try:
            task.build_all_requests(
                limit=get_sample_size(task, options.limit),
                apply_chat_template=options.apply_chat_template,
                chat_template=render_chat,
                fewshot_as_multiturn=True,
            )
        except UsageError:
            raise
        except Exception as error:
            raise _unusable(spec, error) from error
        instances.append(task.instances)
    return _described(spec, dict(zip(tasks, instances, strict=True)))


def _described(spec: str, instances: Mapping[str, Sequence[Any]]) -> Suite:
    name = Path(spec).stem if Path(spec).is_file() else spec
    requests = [request for of_task in instances.values() for request in of_task]
    generation = {
        repr(request.args[1]): request.args[1] for request in requests if request.request_type == "generate_until"
    }
    return Suite(
        spec,
        re.sub(r"[^\w.-]", "-", name),
        {task: len({request.doc_id for request in of_task}) for task, of_task in instances.items()},
        frozenset(request.request_type for request in requests),
        tuple(generation.values()),
        any(map(samples, generation.values())),
        tuple(_longest(requests)),
    )


def samples(arguments: Mapping[str, Any]) -> bool:
    """Whether generation arguments draw answers at random: do_sample decides, else a temperature above 0."""
    if arguments.get("do_sample") is not None:
        return bool(arguments["do_sample"])
    return float(arguments.get("temperature") or 0) > 0


_COUNT = 64  # texts whose tokens are counted: those with the most characters


def _longest(requests: Sequence[Any]) -> Iterator[tuple[str, int | None]]:
    def text(request: Any) -> str:
        parts = request.args if request.request_type == "loglikelihood" else request.args[:1]
        return "".join(map(str, parts))

    for request in sorted(requests, key=lambda request: len(text(request)), reverse=True)[:_COUNT]:
        is_generated = request.request_type == "generate_until"
        lengths = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        added = next((request.args[1][key] for key in lengths if request.args[1].get(key)), None) if is_generated else 1
        yield text(request), added
