"""Wraps `simple_evaluate`, so that every run of our model is checked before and recorded after."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from moe_eval.checkpoint.hub import unreachable
from moe_eval.engines import sampling
from moe_eval.errors import UsageError
from moe_eval.exits import terminable
from moe_eval.harness import KERNELS, LATENCY, MODEL, context, settings
from moe_eval.harness.run_record import RunRecorder
from moe_eval.harness.untyped import Arguments
from moe_eval.tracking import store

# A shape that cannot be timed has to show before hours of scoring, and nothing is timed after a profiler has run.
_PLACES = {LATENCY: 0, KERNELS: 2}
# variables with the number of processes and a process's rank, of torchrun, of accelerate and of several MPI launchers
_SIZES, _MPI_SIZES = ("WORLD_SIZE",), ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def recorded(simple_evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the harness's simple_evaluate. Runs of other models go through untouched."""
    signature = inspect.signature(simple_evaluate)

    @functools.wraps(simple_evaluate)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        model = _settings_of(call.arguments)
        if model is None:
            return _elsewhere(lambda: simple_evaluate(*args, **kwargs), call.arguments["tasks"])
        _refuse_processes(model)
        if not _is_first_process():
            return simple_evaluate(*args, **kwargs)
        _prepare(call.arguments, model)
        log_samples = call.arguments["log_samples"]
        call.arguments["log_samples"] = True
        recorder = RunRecorder.open(model, call.arguments)
        try:
            with terminable(), _store_of(model), context.running(recorder.folder) as current:
                results = _reached(lambda: simple_evaluate(*call.args, **call.kwargs))
        except BaseException as error:
            recorder.close_failed(error, current.finished)
            raise
        if results is None:  # another process has the results
            return None
        samples = results["samples"]
        if not log_samples:
            del results["samples"]
        recorder.close(results, samples)
        return results

    return run


def _store_of(model: settings.ModelSettings) -> AbstractContextManager[None]:
    """Opens MLflow's store beside the run, unless that is kept out of MLflow."""
    return store.opened_meanwhile() if model.track else nullcontext()


def _elsewhere(evaluate: Callable[[], Any], tasks: Container[object] | None) -> Any:
    """Evaluate a model that is not ours, which our evaluators cannot measure.

    A task of ours that is given by name is refused before the model is loaded. In a group, a file or a Task it shows
    when the model gets its request.
    """
    refusal = "{} measures moe_eval's engines. Run it with --model trtllm_moe, or leave it out."
    for name in (LATENCY, KERNELS):
        if name in (tasks or ()):
            raise UsageError(refusal.format(name))
    try:
        return evaluate()
    except AttributeError as error:
        if error.name not in (LATENCY, KERNELS):
            raise
        raise UsageError(refusal.format(error.name)) from None


def _reached(evaluate: Callable[[], Any]) -> Any:
    """Evaluate, and turn a failure to reach a data set's hub into a UsageError that names the tasks without one."""
    try:
        return evaluate()
    except UsageError:
        raise
    except Exception as error:
        if not unreachable(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The task's data set cannot be fetched ({type(error).__name__}: {reason}). Go online once, or use a task "
            "that needs no hub: wikitext_local (the standard wikitext documents from the raw file of the variable "
            "MOE_EVAL_WIKITEXT) or moe_sample (ships with moe_eval)."
        ) from error


def _prepare(arguments: Arguments, model: settings.ModelSettings) -> None:
    """Check a call for our model, and order its tasks.

    Raises:
        UsageError: a limit that leaves no document, a generation argument that the engine does not take, or a key of
            the metadata that is nearly one of ours.
    """
    sampling.read(_parsed(arguments["gen_kwargs"]), model.engine)
    limit = arguments["limit"]
    if limit is not None and limit <= 0:
        raise UsageError(f"--limit {limit} leaves no document. Give a count, or a share between 0 and 1.")
    if isinstance(arguments["tasks"], list):
        arguments["tasks"] = sorted(
            arguments["tasks"], key=lambda task: _PLACES.get(task, 1) if isinstance(task, str) else 1
        )
        _check_metadata(arguments)


def _check_metadata(arguments: Arguments) -> None:
    """Refuse a key that is nearly one of our tasks', since it would silently leave the default in force."""
    if not any(name in arguments["tasks"] for name in _PLACES):
        return
    from moe_eval.harness.kernels import MoeKernels
    from moe_eval.harness.latency import MoeLatency

    keys = {key for task in (MoeLatency, MoeKernels) if task.kind in arguments["tasks"] for key in task.defaults}
    model_args = _model_args(arguments)  # the harness adds them to the metadata
    for key in arguments["metadata"] or {}:
        close = difflib.get_close_matches(key, keys, 1, 0.8)
        if close and key not in keys and key not in model_args:
            raise UsageError(f"No task of moe_eval knows {key} in the metadata. Give {close[0]}.")


def _refuse_processes(model: settings.ModelSettings) -> None:
    """Refuse several processes that would each evaluate all documents.

    Those of an engine that runs one model on all of them go on: vLLM's external launcher, and TensorRT-LLM under MPI.

    Raises:
        UsageError: with what to do instead.
    """
    if str(model.of_engine.options.get("distributed_executor_backend")) == "external_launcher":
        return
    for name in (*_SIZES, *(() if model.engine == "trtllm" else _MPI_SIZES)):
        count = os.environ.get(name, "1")
        if count not in ("", "0", "1"):
            raise UsageError(
                f"Each of {count} processes ({name}) would evaluate all documents. Start lm_eval by itself, without "
                "accelerate or another launcher, and give tensor_parallel_size to an engine that uses several GPUs."
            )


def _is_first_process() -> bool:
    """Whether this process is the first of its launcher's. All of them evaluate, and one of them writes."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def _settings_of(arguments: Arguments) -> settings.ModelSettings | None:
    """The checked settings of a call for our model. None for any other model."""
    model = arguments["model"]
    if model == MODEL:
        defaults = {name: arguments[name] for name in ("batch_size", "max_batch_size", "device")}
        return settings.read({**defaults, **_model_args(arguments)})
    model_settings = getattr(model, "settings", None)
    return model_settings if isinstance(model_settings, settings.ModelSettings) else None


def _model_args(arguments: Arguments) -> Mapping[str, object]:
    return _parsed(arguments["model_args"])


def _parsed(arguments: str | Mapping[str, object] | None) -> Mapping[str, object]:
    from lm_eval.utils import simple_parse_args_string

    parsed: Mapping[str, object] = (
        simple_parse_args_string(arguments) if isinstance(arguments, str) else arguments or {}
    )
    return parsed
