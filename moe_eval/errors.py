"""Errors whose message names the problem and the fix."""


class UsageError(Exception):
    """The user can mend it. Commands print the message and exit with code 2."""


class EngineError(Exception):
    """An engine broke down while it worked. Commands print the message and exit with code 1."""


class WorkerDied(EngineError):
    """A worker process of an engine is gone, and its library waits for it. Commands end the process at once."""


class TrackingError(Exception):
    """A run could not be logged to MLflow. Its records are on disk and can be logged later."""
