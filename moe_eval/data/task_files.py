"""The files of a task of lm-evaluation-harness, before the harness opens them: it would wait for a pipe for ever."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from moe_eval.outside import files

_FUNCTION = re.compile(r"!function\s+['\"]?([\w./-]+)\.\w+")


def check(file: Path, fix: str) -> str | None:
    """Look at a task's YAML file, those that it includes, its Python files and its data.

    What is not there or makes no sense is the harness's to tell.

    Args:
        fix: the sentence that follows a problem.

    Returns:
        The name of a group. None for a task.

    Raises:
        UsageError: one of them is no regular file, or cannot be read.
    """
    pending, checked, contents = [file], set[Path](), []
    while pending:
        path = pending.pop()
        text = files.read_text(path, fix)
        if path.resolve() in checked:
            continue
        checked.add(path.resolve())
        for module in _FUNCTION.findall(text):
            _look_at(path.parent / f"{module.replace('.', '/')}.py", fix)
        contents.append(_content(text))
        for key, value in _settings(contents[-1]):
            if key == "include":
                included = [path.parent / files.at_home(name) for name in _texts(value)]
                pending += [name for name in included if files.is_there(name)]
            elif key == "data_files":
                for name in _texts(value):
                    _look_at(Path(name), fix)
    top = contents[0]
    is_group = isinstance(top, Mapping) and "group" in top and isinstance(top.get("task"), list)
    return str(top["group"]) if isinstance(top, Mapping) and is_group else None


def _look_at(path: Path, fix: str) -> None:
    if path.exists() and not path.is_dir():
        with files.opened(path, fix):
            pass


def _content(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Leaves functions of a task alone."""

    Loader.add_multi_constructor("!", lambda *_: None)
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _settings(content: object) -> Iterator[tuple[object, object]]:
    """All keys with their values, of a content and of what it holds."""
    if isinstance(content, Mapping):
        yield from content.items()
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    for part in parts:
        yield from _settings(part)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(part)
