"""What the evaluators have written into a folder, joined by arm: the records of speed, perplexity and kernels."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_eval.checkpoint.precision import PRECISIONS
from moe_eval.errors import UsageError

REPEAT_SUFFIX = AGAIN = "-again"  # the end of the name of an arm that is another one, measured a second time
_FILE = re.compile(r"(perf|ppl|kernels)_(.+?)_(sm\d+|cpu)(?:_(b\d+_i\d+_o\d+))?\.json")
_MADE_BY = {"perf": "moe-eval perf", "ppl": "moe-eval ppl", "kernels": "the kernels evaluator"}
_SCHEMA = 1
_LARGEST = 1e15  # no time, count or perplexity is larger


@dataclass(frozen=True)
class ArmResults:
    """Everything that is recorded of one arm.

    Attributes:
        name: unique in a run; `precision` is what was asked for.
        perf: evaluators.speed_record.record, None where speed was not measured.
        ppl: what `moe-eval ppl` writes of an arm, None where perplexity was not measured.
        kernels: evaluators.kernels.measure by the name of its shape; "" where the record names none.
        folder: where its arrays and traces are, None where they are not at hand.
    """

    name: str
    precision: str
    perf: Mapping[str, Any] | None = None
    ppl: Mapping[str, Any] | None = None
    kernels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def arrays(self) -> Path | None:
        """The file of perplexity.Scores, as `moe-eval ppl` or `moe-eval run` name it; None where there is not one."""
        if self.folder is None:
            return None
        name = re.compile(rf"ppl_{re.escape(self.name)}_(sm\d+|cpu)\.npz")
        found = [each for each in self.folder.glob(f"ppl_{glob.escape(self.name)}_*.npz") if name.fullmatch(each.name)]
        of_run = self.folder / "arms" / self.name / "perplexity.npz"
        found += [of_run] if of_run.is_file() else []
        return found[0] if len(found) == 1 else None


def read(folder: Path) -> list[ArmResults]:
    """Read the output folder of `moe-eval run`, `moe-eval perf` or `moe-eval ppl`.

    The reference comes first: the arm that finished and that the others were compared with, else the first by the order
    of precision.PRECISIONS; that order is the others' as well.

    Raises:
        UsageError: there is no record, one cannot be read or is none, or one arm was recorded on two machines.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}; give the --output_dir of moe-eval perf or moe-eval ppl.")
    found: dict[tuple[str, str, str], tuple[Path, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        match = _FILE.fullmatch(file.name)
        if match is None or (match[4] and match[1] != "kernels"):
            continue
        content = _record(file, match[1], match[2])
        if content is None:
            continue
        shape = (content.get("shape") or match[4] or "") if match[1] == "kernels" else ""
        first = found.setdefault((match[2], match[1], shape), (file, content))[0]
        if first is not file:
            raise UsageError(f"{first} and {file.name} are of the same arm; keep one of them in the folder.")
    if not found:
        raise UsageError(
            f"{folder} holds no record (perf_*.json, ppl_*.json, kernels_*.json); give the --output_dir of moe-eval "
            "perf or moe-eval ppl."
        )
    arms = [_arm(name, found, folder) for name in dict.fromkeys(key[0] for key in found)]
    return in_order(arms)


def in_order(arms: Sequence[ArmResults]) -> list[ArmResults]:
    """The reference first, then the others by the order of precision.PRECISIONS; an arm measured again after itself."""
    ordered = sorted(arms, key=lambda arm: (_rank(arm.precision), arm.name))
    for kind in ("perf", "ppl"):
        told = [arm for arm in ordered if _is_reference(getattr(arm, kind))]
        if told:
            return [told[0], *(arm for arm in ordered if arm is not told[0])]
    return ordered


def _is_reference(record: Mapping[str, Any] | None) -> bool:
    if record is None or record["status"] != "finished" or "reference" not in record:
        return False
    # perplexity compares the reference with itself as well, which shows that nothing moves
    return record["reference"] in (None, record.get("arm", record["precision"]))


def _rank(precision: str) -> int:
    """Where a precision stands; weight-only kernels stand with the precision that they unpack."""
    base = precision.partition("-")[0]
    return PRECISIONS.index(base) if base in PRECISIONS else len(PRECISIONS)


def _arm(name: str, found: Mapping[tuple[str, str, str], tuple[Path, dict[str, Any]]], folder: Path) -> ArmResults:
    own = {key[1:]: content for key, (_, content) in found.items() if key[0] == name}
    perf, ppl = own.get(("perf", "")), own.get(("ppl", ""))
    kernels = {shape: content for (kind, shape), content in own.items() if kind == "kernels"}
    labels = [each.get("precision") for each in kernels.values() if each.get("precision")]
    asked = [*([perf["precision_planned"]] if perf else []), *([ppl["precision"]] if ppl else []), *labels]
    return ArmResults(name, asked[0] if asked else name.removesuffix(AGAIN), perf, ppl, kernels, folder)


def _record(file: Path, kind: str, name: str) -> dict[str, Any] | None:
    """A record; None for that of a trace that could not be made."""
    try:
        # a broken model scores NaN, which is no JSON: what depends on it is missing
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}); make it readable.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged ({error}); run {_MADE_BY[kind]} again.") from None
    if kind != "kernels" and isinstance(content, dict) and content.get("schema", _SCHEMA) != _SCHEMA:
        raise UsageError(f"{file} has schema {content['schema']}; this moe_eval reads schema {_SCHEMA}.")
    if kind == "kernels" and isinstance(content, dict) and content.get("status", "finished") != "finished":
        return None
    wrong = _misfit(content, _FORMS[kind])
    if wrong is None and kind == "kernels":
        wrong = _misfit(content.get("shape"), _MAYBE_TEXT, "its shape")
    if wrong is None and kind == "perf" and content["status"] != "skipped":
        wrong = _misfit(content, _MEASURED)
    if wrong is None and kind == "ppl" and content["status"] == "finished":
        wrong = _misfit(content, _SCORED) or ("reference" in content and _misfit(content, _COMPARED)) or None
    if wrong:
        raise UsageError(f"{file} is not a record of {_MADE_BY[kind]} ({wrong}); take it out of the folder.")
    if kind == "perf" and content["arm"] != name:
        raise UsageError(f"{file} is the record of {content['arm']}; give the file its name back.")
    found: dict[str, Any] = content
    return found


@dataclass(frozen=True)
class _Each:
    """A dictionary of any keys whose values have one form; some of the keys have to be there."""

    form: Any
    needs: tuple[str, ...] = ()


# What the comparison reads, as types: a tuple for one of several, a dictionary for keys that have to be there, a list
# for entries of one form.
_TEXT, _NUMBER, _OBJECT = (str,), (int, float), (dict,)
_NONE = (type(None),)
_MAYBE_TEXT, _MAYBE, _MAYBE_OBJECT = (*_TEXT, *_NONE), (*_NUMBER, *_NONE), (*_OBJECT, *_NONE)
_LABELLED = {"status": _TEXT, "error": _MAYBE_TEXT, "precision": _TEXT}
_SAMPLE = {
    **dict.fromkeys(("started", "ended"), _NUMBER),
    **dict.fromkeys(("first", "last"), _Each(_NUMBER, ("host",))),
    **dict.fromkeys(("request_first", "energy_j"), _MAYBE),
}
_METRIC = {"median": _NUMBER, "low": _MAYBE, "high": _MAYBE}
_CEILING = {"expert_gemm_share": _NUMBER, "if_free": _MAYBE, "if_twice_as_fast": _NUMBER}
_FUNCTION = {"name": _TEXT, "category": _TEXT, "fused_with": [_TEXT], "ms": _NUMBER, "launches": _NUMBER}
_PHASE = {
    "steps": (int,),
    "set_aside": _OBJECT,
    "moe_layers": (int, *_NONE),
    "categories": _Each({"ms": _NUMBER, "share": _NUMBER, "launches": _NUMBER, "launches_per_layer": _MAYBE}),
    "total_ms": _NUMBER,
    **dict.fromkeys(("busy_ms", "overlap_ms", "span_ms", "idle_ms", "wall_ms", "gap_ms"), _MAYBE),
    "ceiling": _CEILING,
    "wall_ceiling": (_CEILING, None),
    "classified": _NUMBER,
    "functions": [_FUNCTION],
}
_FORMS: dict[str, Any] = {
    "perf": {**_LABELLED, "arm": _TEXT, "precision_planned": _TEXT},
    "ppl": _LABELLED,
    "kernels": {"phases": _Each(_PHASE), "precision_seen": _MAYBE_TEXT, "contradiction": _MAYBE_TEXT},
}
_ROW = {
    **dict.fromkeys(("batch_size", "input_len", "output_len"), (int,)),
    "name": _TEXT,
    "metrics": _Each((_METRIC, None), ("e2e_ms", "ttft_ms", "tpot_ms", "j_per_tok")),
    "blocks": [[_SAMPLE]],
    "notes": [_TEXT],
    "gpu": [{"gpus": [{"sm_mhz_median": _MAYBE}], "slow_samples": [(bool, *_NONE)]}],
}
_MEASURED = {
    "workload": {"digest": _TEXT},
    "schedule": {"mode": _TEXT, "blocks": (int,), "per_block": (int,)},
    "shapes": [_ROW],
    "labels": _OBJECT,
    "routing": (str, dict),
}
_SCORED = {
    **dict.fromkeys(("perplexity", "word_ppl", "bits_per_byte"), _MAYBE),
    "dataset": _TEXT,
    "dataset_digest": _TEXT,
    "input_len": (int,),
    "num_chunks": (int,),
    "labels": _OBJECT,
}
_COMPARED = {
    "reference": _MAYBE_TEXT,
    "ln_ppl_ratio": (_Each(_MAYBE, ("value", "error", "low", "high")), None),
    "divergence": _Each(_MAYBE, ("mean", "p99", "same_top1")),
    **dict.fromkeys(("flag", "no_interval"), _MAYBE_TEXT),
    "noise_floor": _MAYBE_OBJECT,
}


def _misfit(value: Any, form: Any, at: str = "it") -> str | None:
    """Where a value first departs from a form, in a few words; None where it does not."""
    if isinstance(form, tuple) and not isinstance(form[0], type):  # a form, or null
        return None if value is None else _misfit(value, form[0], at)
    kinds = form if isinstance(form, tuple) else list if isinstance(form, list) else dict
    # true and false are whole numbers to Python
    if not isinstance(value, kinds) or (isinstance(value, bool) and isinstance(form, tuple) and bool not in form):
        return f"{at} is {'null' if value is None else f'a {type(value).__name__}'}"
    if isinstance(value, (int, float)) and abs(value) > _LARGEST:
        return f"{at} is {value:.3g}"
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(form, list):
        parts = [(f"{at}[{index}]", each, form[0]) for index, each in enumerate(value)]
    elif isinstance(form, (dict, _Each)):
        missing = next((key for key in (form.needs if isinstance(form, _Each) else form) if key not in value), None)
        if missing is not None:
            return f"{at} has no {missing}"
        forms = dict.fromkeys(value, form.form) if isinstance(form, _Each) else form
        parts = [(f"{at}.{key}", value[key], each) for key, each in forms.items()]
    return next((wrong for where, each, inner in parts if (wrong := _misfit(each, inner, where))), None)
