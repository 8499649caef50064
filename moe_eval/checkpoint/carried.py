"""The precision that a checkpoint carries: of its routed experts, its shared experts, its cache and the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe_eval.checkpoint import declared, headers
from moe_eval.checkpoint.contents import SECTIONS, read_config, read_object, stated_dtype, text_config
from moe_eval.checkpoint.declared import Declaration, Form
from moe_eval.checkpoint.headers import Header
from moe_eval.checkpoint.precision import DTYPE_OF, OF_DTYPE
from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.outside import files

# where a quantisation stands in config.json and its sections
_KEYS = ("quantization", "quantization_config", "compression_config")  # MLX writes the first two
# beside config.json, by the order in which they go before it: ModelOpt's, AutoGPTQ's, AutoAWQ's
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


@frozen
class Carried:
    """What a checkpoint's files say about the form of its weights.

    Attributes:
        precision: of routed experts, one of precision.LABELS. None for a quantisation that has no name there, for
            experts of several forms, and where nothing states a type.
        method: the tool and its name for the quantisation, such as `modelopt FP8`. `none` if experts are not quantised.
        kv_cache: the precision that the checkpoint declares for the key-value cache, if any.
        excluded: patterns of the modules that are not quantised.
        layers: the number of modules of each algorithm, for mixed precision.
        shared: the precision of shared experts. None where there are none, or it has no name.
        attention: the precision of attention's projections. None where it has no name.
        dtype: torch's name of the type outside quantised modules. None where neither settings nor weights state it.
    """

    precision: str | None
    method: str
    kv_cache: str | None = None
    excluded: tuple[str, ...] = ()
    layers: tuple[tuple[str, int], ...] = ()
    shared: str | None = None
    attention: str | None = None
    dtype: str | None = None


def read_carried(folder: Path) -> Carried:
    """Read the precision of a checkpoint from its settings files, and from its weights where those are silent.

    ModelOpt's hf_quant_config.json goes before config.json, as in TensorRT-LLM.

    Raises:
        UsageError: a file is damaged, two of them contradict each other, or the weights contradict them.
    """
    try:
        return _read(folder, read_config(folder), headers.read(folder))
    except RecursionError:
        raise UsageError(f"The settings of {folder} are nested too deep. Copy the checkpoint again.") from None


def _read(folder: Path, config: Mapping[str, object], header: Header | None) -> Carried:
    dtype = stated_dtype(config) or (header.plain_dtype if header else None)
    statements = _statements(folder, config)
    stated = [_experts(declaration, config, header) for _, declaration in statements]
    stored = _stored(header)
    chosen = _agreed(folder, statements, stated, stored)
    declaration = statements[chosen][1] if statements else Declaration("none", "none", ())
    form = stated[chosen] if statements else None
    plain = OF_DTYPE.get(dtype) if dtype else None
    experts = str(text_config(config).get("expert_dtype") or "")
    if form is not None and experts in ("fp4", "mxfp4"):  # DeepSeek-V4 has them beside FP8
        form = Form("mxfp4", f"{form.name}, experts {experts}")
    elif form is None and stored is not None and stored not in DTYPE_OF:
        form = Form(stored if stored != "int" else None, f"{stored} by its weights, which no file declares")
    _check_stored(folder, form, plain, stored)
    held = {part: _form(declaration, names) for part, names in _others(config).items()}
    counts = Counter((declaration.algorithms or {}).values())
    return Carried(
        precision=form.precision if form else plain,
        method=form.name if form else f"{declaration.name}, experts not quantised" if declaration.rules else "none",
        kv_cache=next((statement.kv_cache for _, statement in statements if statement.kv_cache), None),
        excluded=declaration.excluded,
        layers=tuple(sorted(counts.items())),
        shared=_label(held["shared_experts"], plain) if "shared_experts" in held else None,
        attention=_label(held["attention"], plain),
        dtype=dtype,
    )


def _statements(folder: Path, config: Mapping[str, object]) -> list[tuple[str, Declaration]]:
    """Every declaration of the folder and the name of its file, those that go before others first."""
    statements = []
    for name, method in _FILES.items():
        if files.is_there(folder / name):
            content = {"quant_method": method, **read_object(folder / name)}
            statements.append((name, declared.read(content, name)))
    sections = [section for section in (config, *map(config.get, SECTIONS)) if isinstance(section, Mapping)]
    for section in sections:
        for key in _KEYS:
            statement = section.get(key)
            if isinstance(statement, Mapping) and statement:
                tool = {"quant_method": "mlx"} if key == "quantization" and "bits" in statement else {}
                statements.append(("config.json", declared.read({**tool, **statement}, "config.json")))
    return statements


def _agreed(
    folder: Path, statements: Sequence[tuple[str, Declaration]], stated: Sequence[Form | None], stored: str | None
) -> int:
    """The index of the statement that counts. Where two differ in what experts are, the weights decide."""
    precisions = [form.precision if form else None for form in stated]
    for index, precision in enumerate(precisions):
        if precision == precisions[0] or statements[0][1].algorithms:
            continue
        matching = [at for at, candidate in enumerate(precisions) if candidate and _stored_as(candidate) == stored]
        if matching:
            return matching[0]
        first, second = (f"{name} says {declaration.name}" for name, declaration in (statements[0], statements[index]))
        raise UsageError(
            f"{first} and {second}, and no weights of {folder} tell which of them is right. "
            "Give a copy with its weights, or one whose files agree."
        )
    return 0


def _stored_as(precision: str) -> str:
    """The precision in which weights are stored: weight-only forms are those that they unpack."""
    return precision.partition("-")[0]


def _stored(header: Header | None) -> str | None:
    """How routed experts are stored. None where headers do not tell, or experts are stored in several ways."""
    forms = {header.held(module) for module in header.experts} if header else set()
    return forms.pop() if len(forms) == 1 else None


def _check_stored(folder: Path, form: Form | None, plain: str | None, stored: str | None) -> None:
    """Refuse a label that the weights contradict. A type that is declared for the rest says nothing of 16 bits."""
    precision = form.precision if form else plain
    if stored is None or precision is None or _stored_as(precision) == stored:
        return
    if form is None and stored in DTYPE_OF:
        return
    name = form.name if form else precision
    raise UsageError(
        f"The settings of {folder} say {name}, and its experts are stored as {stored}. "
        "Copy settings and weights of one checkpoint again."
    )


def _experts(declaration: Declaration, config: Mapping[str, object], header: Header | None) -> Form | None:
    """The form of routed experts. None where they are not quantised."""
    if declaration.algorithms is not None:
        routed = [name for name in declaration.algorithms if headers.is_routed(f"{name}.")]
        algorithms = sorted({declaration.algorithms[name] for name in routed})
        forms = {form for name in routed if (form := declaration.form([name])) is not None}
        name = f"{declaration.name}, experts {' and '.join(algorithms) or 'not named'}"
        return Form(forms.pop().precision if len(forms) == 1 else None, name)
    modules = [[module] for module in header.experts] if header else []
    form = _form(declaration, modules or _of_layers(config, "experts.0"))
    return form and Form(form.precision, declaration.name if form in _forms_of(declaration) else form.name)


def _forms_of(declaration: Declaration) -> list[Form]:
    return [form for _, form in declaration.rules]


def _form(declaration: Declaration, modules: Iterable[Sequence[str]]) -> Form | None:
    """The form of modules, each given by the names that it may have. None where none is quantised."""
    forms = Counter(map(declaration.form, modules))
    if len(forms) <= 1:
        return next(iter(forms), None)
    parts = (
        f"{form.name if form else 'not quantised'} in {count}"
        for form, count in sorted(forms.items(), key=lambda entry: entry[0] is None)
    )
    return Form(None, f"{' and '.join(parts)} modules")


def _label(form: Form | None, plain: str | None) -> str | None:
    return form.precision if form else plain


def _others(config: Mapping[str, object]) -> dict[str, list[Sequence[str]]]:
    """The modules of shared experts, where there are some, and of attention."""
    parts = {"attention": _of_layers(config, "self_attn")}
    merged = text_config(config)
    if any(merged.get(key) for key in ("n_shared_experts", "shared_expert_intermediate_size", "num_shared_experts")):
        parts["shared_experts"] = _of_layers(config, "shared_experts", "shared_expert")
    return parts


# the two names of every projection, and how the blocks of some model types are called
_PROJECTIONS = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
_ATTENTION = (("q_proj", "q_b_proj"), ("o_proj", "wo"))
_BLOCKS = {"mixtral": "block_sparse_moe", "phimoe": "block_sparse_moe", "llama4": "feed_forward"}


def _of_layers(config: Mapping[str, object], *parts: str) -> list[Sequence[str]]:
    """The modules of a part of every layer, each by the names that it may have."""
    merged = text_config(config)
    prefixes = ["model.layers"]
    if any(isinstance(config.get(section), Mapping) for section in SECTIONS):
        prefixes += ["model.language_model.layers", "language_model.model.layers"]
    kind = str(merged.get("model_type"))
    block = next((name for start, name in _BLOCKS.items() if kind.startswith(start)), "mlp")
    block = "block_sparse_moe" if kind.startswith("minimax") else block
    layers = range(_count(merged, "first_k_dense_replace", 0), max(1, _count(merged, "num_hidden_layers", 1)))
    if parts == ("self_attn",):
        return [
            [f"{p}.{layer}.self_attn.{name}" for p in prefixes for name in pair]
            for layer in layers
            for pair in _ATTENTION
        ]
    return [
        [f"{prefix}.{layer}.{block}.{part}.{name}" for prefix in prefixes for part in parts for name in pair]
        for layer in layers
        for pair in _PROJECTIONS
    ]


def _count(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and 0 <= value < 10_000 else default
