"""Where the configurations and the models that come with the package lie: in a checkout, or in the wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the package is read from a checkout, where conf/ and experiments/ stand beside src/."""
ROOT = PACKAGE.parents[1] if IS_CHECKOUT else PACKAGE
CONF = ROOT / "conf"


def shipped(path: str) -> str:
    """Where something that is shipped lies: as it is written for who stands in the project, else absolute."""
    return path if Path.cwd() == ROOT else str(ROOT / path)
