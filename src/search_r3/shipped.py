"""Where the configurations and the models that come with the package lie: in a checkout, or in the wheel."""

import re
import shlex
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the package is read from a checkout, where conf/ and experiments/ stand beside src/."""
ROOT = PACKAGE.parents[1] if IS_CHECKOUT else PACKAGE
CONF = ROOT / "conf"
_LAUNCHED = re.compile(r"(python\s+-m\s+)src\.")  # a help may break the line within


def as_called(text: str, *arguments: object) -> str:
    """A text for users, its commands as they are called here: an installed package has no `src`.

    Arguments behind a command are quoted for a shell.
    """
    called = text if IS_CHECKOUT else _LAUNCHED.sub(r"\1search_r3.", text)
    return " ".join([called, *(shlex.quote(str(argument)) for argument in arguments)])


def shipped(path: str) -> str:
    """Where something that is shipped lies: as it is written for who stands in the project, else absolute."""
    return path if Path.cwd() == ROOT else str(ROOT / path)
