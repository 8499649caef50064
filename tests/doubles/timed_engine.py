"""An engine whose calls last what a test says, on its own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from moe_eval.engines.base import Completion, GenerationRequest, RequestTimes
from moe_eval.records.labels import EngineFacts
from tests.doubles.arm_process import FACTS as PLAIN

FACTS = replace(PLAIN, vocabulary=9, max_batch=4)
Times = tuple[float, float] | None


@dataclass
class MadeUp:
    """An engine whose calls last what `seconds` says of their number and length, on its own `clock`."""

    seconds: Callable[[int, int], float] = lambda call, tokens: 0.1 * tokens
    facts: EngineFacts = FACTS
    clock: float = 100.0
    calls: list[GenerationRequest] = field(default_factory=list)
    wrong: int = 0
    times: Sequence[Times] = (None, None, None)
    during: Callable[[], object] = lambda: None

    def perf_counter(self) -> float:
        return self.clock

    def generate(self, prompts: Sequence[Sequence[int]], request: GenerationRequest) -> list[Completion]:
        self.clock += self.seconds(len(self.calls), request.max_new_tokens)
        self.calls.append(request)
        self.during()
        tokens = (7,) * (request.max_new_tokens + self.wrong)
        return [
            Completion(tokens, "length", times and RequestTimes(0.0, *times)) for times in self.times[: len(prompts)]
        ]
