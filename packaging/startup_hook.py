"""Puts moe_eval.pth beside the package, in wheels and in editable installs, so that it goes when the package goes."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel":
            key = "force_include_editable" if version == "editable" else "force_include"
            build_data[key]["packaging/moe_eval.pth"] = "moe_eval.pth"
