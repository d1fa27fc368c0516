"""What the wheel holds beside the package: its configurations, and the small base that it ships."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = {"conf": "search_r3/conf", "experiments/nano_base/model": "search_r3/experiments/nano_base/model"}


class ShippedFiles(BuildHookInterface):
    """Adds them to a wheel; an editable install reads them where they lie."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling; `version` is "standard" or "editable"."""
        if version != "editable":
            build_data["force_include"] |= SHIPPED
