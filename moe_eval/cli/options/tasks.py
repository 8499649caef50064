"""Options for tasks of lm-eval."""

from __future__ import annotations

from moe_eval.cli.options.compare import DropOptions
from moe_eval.cli.options.option import option
from moe_eval.frozen import frozen

_TASKS = "tasks of lm-eval"


@frozen(kw_only=True)
class TaskOptions(DropOptions):
    """Which tasks of lm-eval arms are evaluated on. Names are lm-eval's own."""

    tasks: tuple[str, ...] = option(
        (), "tasks, groups and YAML files that every arm is evaluated on", _TASKS, metavar="NAME,...", is_path=True
    )
    limit: float | None = option(None, "documents of each task. Below 1 it is a share", _TASKS, metavar="N")
    num_fewshot: int | None = option(
        None, "examples in every prompt. Without it what each task says", _TASKS, minimum=0, metavar="N"
    )
    apply_chat_template: bool = option(False, "put prompts into the model's chat template", _TASKS)
    gen_kwargs: str = option(
        "", "generation arguments in place of the tasks' own", _TASKS, metavar="KEY=VALUE,...", is_verbatim=True
    )
    repeats: int = option(
        1, "evaluate tasks with sampled answers so often, each time with other seeds", _TASKS, minimum=1
    )
