"""An engine whose calls take the time that a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moe_eval.engines.base import Completion, GenerationRequest, RequestTimes
from moe_eval.records.labels import EngineFacts

Times = tuple[float, float] | None
FACTS = EngineFacts(
    name="made up",
    version="1",
    checkpoint="x",
    fingerprint="0",
    architecture="X",
    vocabulary=9,
    precision="bf16",
    emulated=False,
    dtype="bfloat16",
    device="cpu",
    device_name="cpu",
    max_length=64,
    worker="in_process",
    attention_backend=None,
    moe_backend_requested=None,
    moe_backend_observed=None,
    kv_cache_dtype=None,
    cuda_graph_batch_sizes=None,
    scores_from="nothing",
    max_batch=4,
)


@dataclass
class TimedEngine:
    """Its calls take `seconds` of their number and length, on its own clock `now`."""

    seconds: Callable[[int, int], float] = lambda call, tokens: 0.1 * tokens
    facts: EngineFacts = FACTS
    now: float = 100.0
    calls: list[GenerationRequest] = field(default_factory=list)
    wrong: int = 0
    times: Sequence[Times] = (None, None, None)
    during: Callable[[], object] = lambda: None

    def perf_counter(self) -> float:
        return self.now

    def generate(self, prompts: Sequence[Sequence[int]], request: GenerationRequest) -> list[Completion]:
        self.now += self.seconds(len(self.calls), request.max_new_tokens)
        self.calls.append(request)
        self.during()
        token_ids = (7,) * (request.max_new_tokens + self.wrong)
        return [
            Completion(token_ids, "length", times and RequestTimes(0.0, *times)) for times in self.times[: len(prompts)]
        ]
