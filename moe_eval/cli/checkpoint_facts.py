"""`moe-eval doctor --checkpoint PATH`: what a checkpoint carries, without any engine."""

from __future__ import annotations

from moe_eval.checkpoint import contents, geometry
from moe_eval.checkpoint.carried import Carried, read_carried
from moe_eval.cli.output import Conclusion
from moe_eval.outside.words import one_line


def run(checkpoint: str) -> Conclusion:
    """Print what a checkpoint carries.

    Raises:
        UsageError: there is no such checkpoint, or its files are damaged or contradict each other.
    """
    folder = contents.settings_folder(checkpoint)
    carried = read_carried(folder)
    config = contents.read_config(folder)
    sizes = geometry.read(config)
    described = _sizes(sizes) if sizes else [_NO_SIZES.format(contents.text_config(config).get("model_type"))]
    print("\n".join(map(one_line, [f"# {checkpoint}", "", *_precisions(carried), *described])))
    line = f"{checkpoint} carries experts in {carried.precision or f'a form without a name here ({carried.method})'}."
    return Conclusion({"checkpoint": checkpoint, "carried": carried, "geometry": sizes}, [line])


_NO_SIZES = "- sizes: not known for the model type {!r}, so floors are absent"


def _precisions(carried: Carried) -> list[str]:
    lines = [
        f"- routed experts: {carried.precision or 'no precision that has a name here'}",
        f"- method: {carried.method}",
        f"- shared experts: {carried.shared or 'none, or no precision that has a name here'}",
        f"- attention: {carried.attention or 'no precision that has a name here'}",
        f"- key-value cache: {carried.kv_cache or 'not quantised'}",
        f"- type of the rest: {carried.dtype or 'not stated'}",
    ]
    if carried.layers:
        lines.append(f"- modules: {', '.join(f'{count} in {name}' for name, count in carried.layers)}")
    if carried.excluded:
        lines.append(f"- not quantised: {', '.join(carried.excluded[:8])}{_more(len(carried.excluded) - 8)}")
    return lines


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _sizes(sizes: geometry.Geometry) -> list[str]:
    return [
        f"- sizes: {sizes.params.total / 1e9:.1f} billion parameters, {sizes.params.experts / 1e9:.1f} billion of them "
        f"in experts, {sizes.active_params / 1e9:.1f} billion for a token",
        f"- layers: {sizes.layers}, of which {sizes.moe_layers} have {sizes.experts} experts, {sizes.top_k} for a "
        "token",
    ]
