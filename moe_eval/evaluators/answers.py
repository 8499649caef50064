"""What a model answered to requests of the harness, on disk as it comes, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import msgspec
from lm_eval.api.model import LM

from moe_eval.frozen import frozen

Answer = str | float | tuple[float, bool]


@frozen
class AnsweredRequest:
    """One line of the file.

    Attributes:
        task, document: the harness's `doc_id`, of which this is request `index`.
        kind: generate_until, loglikelihood or loglikelihood_rolling.
        prompt: SHA-256 of the kind and of all arguments of the request.
        answer: the text, the log-likelihood in nats, or that of a continuation and whether it is the greedy one.
    """

    task: str
    document: int
    index: int
    kind: str
    prompt: str
    answer: Answer


class AnsweredModel(LM):  # type: ignore[misc]  # lm-eval has no types
    """A model of the harness that reads answers from a file, and adds to it what it has to ask for.

    Attributes:
        before: how many requests the file answered.
    """

    def __init__(self, model: Any, file: Path) -> None:
        super().__init__()
        self._model, self._file = model, file
        self._stored: dict[str, deque[Answer]] = defaultdict(deque)
        for answered in _read(file):
            self._stored[answered.prompt].append(answered.answer)
        self._waiting: dict[str, deque[Any]] = defaultdict(deque)
        self._output: TextIO | None = None
        self.before = 0
        model.set_cache_hook(self)

    @property
    def tokenizer_name(self) -> str:
        return str(self._model.tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        return self._model.apply_chat_template(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        return self._answers("generate_until", requests)

    def add_partial(self, kind: str, arguments: Iterable[Any] | None, answer: Answer) -> None:
        """Hear of an answer as the model gives it, in place of the harness's own cache.

        Args:
            arguments: of the request. None for a window, which is only a part of one.
        """
        if arguments is None:
            return
        key = _key(kind, arguments)
        if self._waiting[key]:
            self._write(key, self._waiting[key].popleft(), kind, answer)

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        missing = []
        for place, request in enumerate(requests):
            key = _key(kind, request.args)
            if self._stored[key]:
                answers[place] = self._stored[key].popleft()
                self.before += 1
            else:
                missing.append(place)
                self._waiting[key].append(request)
        if not missing:
            return answers
        with self._file.open("a", encoding="utf-8") as self._output:
            model_answers = getattr(self._model, kind)([requests[place] for place in missing])
            for place, answer in zip(missing, model_answers, strict=True):
                answers[place] = answer
                self.add_partial(kind, requests[place].args, answer)  # one that was not heard of
        return answers

    def _write(self, key: str, request: Any, kind: str, answer: Answer) -> None:
        assert self._output is not None
        line = AnsweredRequest(str(request.task_name), int(request.doc_id), int(request.idx), kind, key, answer)
        self._output.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")
        self._output.flush()


def _key(kind: str, arguments: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *arguments], default=str).encode()).hexdigest()


def _read(file: Path) -> list[AnsweredRequest]:
    """The answers of a file. A line that a kill tore is left out, and the file is ready to be added to."""
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        file.write_bytes(whole)
    answers = []
    for line in whole.splitlines():
        try:
            answers.append(msgspec.convert(json.loads(line), AnsweredRequest))
        except (ValueError, RecursionError, msgspec.ValidationError):
            continue
    return answers
