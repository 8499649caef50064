"""Whether a failure means that a hub cannot be reached."""

from __future__ import annotations


def unreachable(error: BaseException) -> bool:
    """Whether the error or one of its causes is what `datasets` and the hub client raise without a network."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (DatasetNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kinds):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def sentence(name: str) -> str:
    """The message about a checkpoint that is not here and cannot be fetched."""
    return (
        f"{name} is not on this machine, and the hub cannot be reached or has no such repository. "
        "Go online, check the name, or give the folder of a checkpoint."
    )
