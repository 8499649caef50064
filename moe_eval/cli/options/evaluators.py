"""Options for what is measured, and the evaluators that other options need."""

from __future__ import annotations

from moe_eval.cli.options.option import option
from moe_eval.frozen import frozen
from moe_eval.records.run import EvaluatorName

# what an option needs: one of these evaluators
SCORED, TIMED, SERVED = ("evaluators", "quality"), ("evaluators", "latency"), ("evaluators", "serving")
RUN, TRACED = ("evaluators", "latency", "kernels"), ("evaluators", "kernels")
MADE, LOADED = (*RUN, "serving"), (*TIMED, "serving")
_SYNONYMS = {
    "perplexity": "quality",
    "ppl": "quality",
    "perf": "latency",
    "speed": "latency",
    "trace": "kernels",
    "serve": "serving",
}


@frozen(kw_only=True)
class EvaluatorOptions:
    """Which evaluators run."""

    evaluators: tuple[EvaluatorName, ...] = option(
        ("quality", "latency", "kernels"),
        "what to measure, beside --tasks",
        "evaluators",
        metavar="NAME,...",
        synonyms=_SYNONYMS,
    )
