"""What a checkpoint is, read from its files before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from moe_eval.errors import UsageError

_WHOLE = 64 << 20  # bytes up to which a file's whole content goes into the fingerprint
_ENDS = 1 << 20  # bytes from either end of a larger one
_COUNTED = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")  # weights, settings and tokenizers


def local_folder(name: str) -> Path | None:
    """The checkpoint's folder, or None for the name of a repository on a hub.

    Raises:
        UsageError: the name is a path and there is no checkpoint at it.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # no such user
        path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{name} holds no config.json; give the folder of a checkpoint in Hugging Face form.")
        return path
    if path.exists():
        raise UsageError(f"{name} is a file; give the folder of a checkpoint, the one that holds config.json.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"There is no folder {name}; give a checkpoint's folder or its name on the hub.")
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands.

    Raises:
        UsageError: it is not a JSON object.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{file} is not JSON ({error}); copy the checkpoint again.") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} does not hold a JSON object; copy the checkpoint again.")
    return config


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
            raise UsageError(f"{file} is corrupt or cut short ({error}); copy the checkpoint again.") from error


def quantisation(config: dict[str, Any], folder: Path) -> str | None:
    """The name of the quantisation method a checkpoint declares, None where it declares none."""
    declared = config.get("quantization_config")
    if isinstance(declared, dict):
        return str(declared.get("quant_method") or declared.get("quant_algo") or "unnamed")
    if (folder / "hf_quant_config.json").is_file():
        return "hf_quant_config.json"
    return None


def fingerprint(folder: Path) -> str:
    """A digest that differs for checkpoints that differ: of its weights, settings and tokenizer files.

    Files above 64 MiB count with their size, their modification time and 1 MiB from either end, so that a
    checkpoint of 60 GB is told in milliseconds; smaller ones with their whole content.

    Returns:
        16 hexadecimal digits of SHA-256.
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
