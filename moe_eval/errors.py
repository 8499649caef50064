"""Errors that are the user's to mend: one sentence that names the problem and the fix."""


class UsageError(Exception):
    """What was asked for cannot be done; commands print the sentence and exit with code 2."""


class TrackingError(Exception):
    """A run could not be logged to MLflow; what was measured is on disk and can be logged later."""
