"""What a checkpoint is, read from its files before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import hub
from moe_eval.errors import UsageError
from moe_eval.outside import documents, files

_WHOLE = 64 << 20  # bytes up to which a file's whole content goes into the fingerprint
_ENDS = 1 << 20  # bytes from either end of a larger one
_COUNTED = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")  # weights, settings and tokenizers

SECTIONS = ("text_config", "language_config", "llm_config")  # of the language model in larger models
AGAIN = "Copy the checkpoint again."  # what mends a damaged file
Json = dict[str, Any]  # a JSON file as it stands: every architecture and tool has its own keys


def local_folder(name: str) -> Path | None:
    """The checkpoint's folder, or None for the name of a repository on a hub.

    Raises:
        UsageError: the name is a path without a checkpoint.
    """
    path = files.at_home(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise UsageError(f"{name} holds no config.json. Give the folder of a checkpoint in Hugging Face form.")
    if path.exists():
        raise UsageError(f"{name} is a file. Give the folder of the checkpoint, which holds config.json.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"There is no folder {name}. Give a checkpoint's folder or its name on the hub.")
    return None


def read_config(folder: Path) -> Json:
    """config.json as it stands. Errors as of read_object."""
    return read_object(folder / "config.json")


def read_object(file: Path) -> Json:
    """The JSON object in a file.

    Raises:
        UsageError: the file does not hold one.
    """
    return documents.read_object(file, AGAIN)


def text_config(config: Mapping[str, object]) -> Json:
    """The settings of the language model: those of its own section go before the rest of config.json."""
    sections = (config.get(name) for name in SECTIONS)
    section = next((section for section in sections if isinstance(section, Mapping)), {})
    return {**config, **section}


def settings_folder(name: str, revision: str | None = None) -> Path:
    """The folder with a checkpoint's JSON files: its own, or the cache into which a hub's are fetched.

    Raises:
        UsageError: there is no such checkpoint, or the hub cannot be reached.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
    except Exception as error:  # the client raises its own errors, those of its HTTP library and ValueError
        if hub.unreachable(error):
            raise UsageError(hub.sentence(name)) from error
        reason = " ".join(str(error).split())[:300]
        message = f"{name} cannot be fetched ({reason}). Check its name, or give a checkpoint's folder."
        raise UsageError(message) from error


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def check_weights(folder: Path) -> None:
    """Read the header of every safetensors file, which also checks the file's length.

    Raises:
        UsageError: names the first file that is corrupt or cut short.
    """
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} is corrupt or cut short ({error}). Copy the checkpoint again.") from error


def require_weights(folder: Path) -> None:
    """Refuse a checkpoint of which no weights are there, or not all that its index names.

    Raises:
        UsageError: names what is not there.
    """
    index = folder / "model.safetensors.index.json"
    weight_map = read_object(index).get("weight_map") if index.is_file() else None
    files = weight_map.values() if isinstance(weight_map, dict) else ()
    missing = sorted(name for name in set(map(str, files)) if not (folder / name).is_file())
    if missing:
        raise UsageError(
            f"{folder} lacks {len(missing)} of the files that its index names ({missing[0]}). Copy it again."
        )
    if not any(file.suffix in _WEIGHT_SUFFIXES for file in folder.iterdir()):
        raise UsageError(f"{folder} holds no weights. Copy the checkpoint again, or give weights=random on vLLM.")


def stated_dtype(config: Mapping[str, object]) -> str | None:
    """Torch's name of the type of unquantised weights, as config.json states it. None where it states none."""
    for section in (config, text_config(config)):  # here the whole model's statement goes before its section's
        dtype = section.get("dtype") or section.get("torch_dtype")
        if dtype:
            return str(dtype).removeprefix("torch.")
    return None


def weight_bytes(folder: Path) -> int | None:
    """Bytes of a checkpoint's weights, from its index or else of its files. None without either."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        metadata = read_object(index).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(total, (int, float)) and total > 0:
            return int(total)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


def fingerprint(folder: Path) -> str:
    """A digest of a checkpoint's weights, settings and tokenizer files, which differs if they differ.

    These are 16 hexadecimal digits of SHA-256. A file above 64 MiB counts with its size, its modification time and
    1 MiB from either end. So 60 GB take milliseconds. A smaller file counts with its whole content.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _COUNTED):
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0".encode())
        with file.open("rb") as data:
            if stat.st_size <= _WHOLE:
                digest.update(data.read())
            else:
                digest.update(data.read(_ENDS))
                data.seek(-_ENDS, 2)
                digest.update(data.read())
                digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
