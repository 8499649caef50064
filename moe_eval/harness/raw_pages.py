"""The harness's task on raw WikiText files."""

from __future__ import annotations

from lm_eval.api.task import ConfigurableTask

from moe_eval.harness.untyped import Dictionary


class RawPages(ConfigurableTask):  # type: ignore[misc]  # lm-eval has no types
    """A task whose documents come from a function, which takes no settings.

    The harness's own class warns that such a function could take some.
    """

    def __init__(self, config: Dictionary) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, *_: object, **__: object) -> None:
        """Make the documents."""
        self.dataset = self.config.custom_dataset()
