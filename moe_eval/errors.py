"""Errors that are the user's to mend: one sentence that names the problem and the fix."""


class UsageError(Exception):
    """What was asked for cannot be done; commands print the sentence and exit with code 2."""


class EngineError(Exception):
    """An engine broke down while it worked; commands print the sentence and exit with code 1."""


class WorkerDied(EngineError):
    """A worker process of an engine is gone, and its library waits for it: commands end the process at once."""


class TrackingError(Exception):
    """A run could not be logged to MLflow; what was measured is on disk and can be logged later."""
