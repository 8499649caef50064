"""Names a Transformers model's forward steps and the modules of its layers in a trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch.profiler import record_function

# a layer and its parts, where modules inside `experts` do not count
_MODULE = re.compile(r"(?:^|\.)layers\.\d+(?:\.\w+){0,2}$")


@contextmanager
def annotated(model: Any, named: Callable[[str], AbstractContextManager[Any]] = record_function) -> Iterator[None]:
    """Name everything that runs inside, by ranges of torch's profiler or of another kind."""
    hooks = []
    open_: list[Any] = []
    steps = 0

    def begin(name: str) -> None:
        open_.append(named(name))
        open_[-1].__enter__()

    def end(*_: Any) -> None:
        open_.pop().__exit__(None, None, None)

    def begin_step(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal steps
        ids = kwargs.get("input_ids", args[0] if args else None)
        size, length = (ids if ids is not None else kwargs["inputs_embeds"]).shape[:2]
        context, generation = (size, 0) if length > 1 else (0, size)
        begin(f"_forward_step {steps}: {context} ctx reqs, {generation} gen reqs")
        steps += 1

    def begin_module(name: str) -> Any:
        return lambda *_: begin(name)

    try:
        hooks.append(model.register_forward_pre_hook(begin_step, with_kwargs=True))
        hooks.append(model.register_forward_hook(end, always_call=True))
        for name, module in model.named_modules():
            if _MODULE.search(name):
                hooks.append(module.register_forward_pre_hook(begin_module(name)))
                hooks.append(module.register_forward_hook(end, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while open_:
            end()
