"""What the GPUs of a run can do at most: measured once in its folder, for every group that a timed arm uses."""

from __future__ import annotations

import msgspec

from moe_eval.machine.rates import Rates
from moe_eval.records import disk
from moe_eval.runner import fit
from moe_eval.runner.arm_process import ArmFailed, ArmProcess
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.placement import Indices
from moe_eval.runner.plan import Plan


def known(folder: RunFolder) -> list[Rates]:
    """The rates of groups of GPUs, as far as a run has measured them."""
    try:
        return msgspec.json.decode(folder.rates_file.read_bytes(), type=dict[str, list[Rates]])["groups"]
    except (OSError, ValueError, KeyError):  # a damaged file is measured again
        return []


def measured(plan: Plan, folder: RunFolder, patience: float, *, is_on_gpus: bool) -> list[Rates] | str:
    """The rates of the GPUs of every timed arm, or why what is missing of them was not measured.

    Args:
        patience: seconds that the measuring process may take for an answer.
        is_on_gpus: whether the run has GPUs. Else its processor is measured.
    """
    groups: dict[Indices, set[int]] = {}
    for arm in plan.arms:
        if arm.name in plan.timed and not arm.is_endpoint:
            for gpus in plan.placement.of_arm(arm.name):
                groups.setdefault(gpus, set()).update({fit.layer_gpus(arm.settings.options)} - {1} if gpus else ())
    before = {rates.gpus: rates for rates in known(folder)}
    missing = {
        gpus: sorted(counts)
        for gpus, counts in groups.items()
        if gpus not in before or not counts <= {*before[gpus].link_bytes_per_s}
    }
    if not missing:
        return [*before.values()]
    device = plan.arms[0].settings.device or ("cuda" if is_on_gpus else "cpu")
    with ArmProcess(None, patience=patience) as process:
        try:
            wanted = [(gpus, counts) for gpus, counts in missing.items() if gpus]
            answer = process.ask("rates", list[Rates], device=device, groups=wanted)
        except ArmFailed as error:
            return f"the machine's rates were not measured ({error})"
    rates = [*{**before, **{group.gpus: group for group in answer}}.values()]
    disk.write_record(folder.rates_file, {"groups": rates})
    return rates
