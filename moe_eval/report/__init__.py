"""The report of a run: one HTML page that needs nothing beside it, and the same verdicts and numbers as Markdown."""
