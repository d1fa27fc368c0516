"""What the wheel holds beside the package: its configurations, and the small models that it ships."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODELS = ("experiments/nano_base/model", "experiments/nano_demo/model")
SHIPPED = {"conf": "search_r3/conf", **{path: f"search_r3/{path}" for path in MODELS}}


class ShippedFiles(BuildHookInterface):
    """Adds them to a wheel; an editable install reads them where they lie."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling; `version` is "standard" or "editable"."""
        if version != "editable":
            build_data["force_include"] |= SHIPPED
