"""Whether a failure is a hub's that cannot be reached."""

from __future__ import annotations


def unreachable(error: BaseException) -> bool:
    """Whether the error, or one it came from, is one that `datasets` and the hub client raise without a network."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (DatasetNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kinds):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def sentence(name: str) -> str:
    """What to say of a checkpoint that is not here and cannot be fetched."""
    return (
        f"{name} is not on this machine, and the hub cannot be reached or has no such repository; "
        "go online, check the name, or give the folder of a checkpoint."
    )
