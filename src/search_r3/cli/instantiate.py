"""Calls what a configuration names."""

import contextlib
import functools
import re
from fnmatch import fnmatch

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.compose import mapped_text
from search_r3.cli.overrides import literal
from search_r3.cli.trust import calls
from search_r3.errors import UsageError
from search_r3.records import clipped

_NOT_FOUND = re.compile(r"Error locating target '([^']*)'.*?(?:full_key: (\S+))?$", re.DOTALL)
"""What Hydra says where a target cannot be imported: its name, and its key below the node, if any."""
WHITELIST = ("search_r3.*", "pytorch_lightning.*", "torch.*")


def instantiate(node: DictConfig, **arguments: object) -> object:
    """Calls the `_target_` of a node with plain Python containers.

    Hydra builds what stands in the node; `arguments` are handed to the call itself, because Hydra would
    turn a dataclass among them into a dict. Whatever Hydra itself allows, what a node from a folder may name
    has been checked by then, see `search_r3.cli.trust`.

    Args:
        node: with a `_target_`, or a mapping or list of such nodes. Text arrives as it reads, `${` included.
        arguments: further arguments of the target.

    Raises:
        UsageError: If a target cannot be found or its module cannot be imported.
        Exception: What the target raised, without Hydra's wrapping.
    """
    is_call = OmegaConf.is_dict(node) and "_target_" in node
    is_partial = is_call and node.get("_partial_", False)
    with contextlib.ExitStack() as stack:
        # Hydra puts resolved values back into a container and reads them again, which undoes two escapes.
        plain = mapped_text(
            OmegaConf.to_container(node, resolve=True), lambda text, _: literal(literal(text))
        )
        if hasattr(hydra.utils, "target_whitelist"):  # Hydra 1.4 builds nothing else
            named = [str(target) for _, target, _ in calls(plain)]
            own = [target for target in named if not any(fnmatch(target, each) for each in WHITELIST)]
            for pattern in dict.fromkeys([*WHITELIST, *own]):
                stack.enter_context(hydra.utils.target_whitelist(pattern))
        try:
            options = {"_partial_": True} if is_call else {}
            built = hydra.utils.instantiate(OmegaConf.create(plain), _convert_="all", **options)
        except HydraException as error:
            if (missing := _NOT_FOUND.match(str(error))) is not None:
                raise UsageError(_why_not_found(missing[1], missing[2], error)) from error
            if error.__cause__ is not None and not isinstance(error.__cause__, (HydraException, ImportError)):
                raise error.__cause__ from None
            raise
    if not is_call:
        return built
    return functools.partial(built, **arguments) if is_partial else built(**arguments)


def _why_not_found(target: str, key: str | None, error: HydraException) -> str:
    """Which target cannot be had and why, in a line: what its import raised, or where the name is missing."""
    cause = error.__cause__
    while isinstance(cause, ImportError) and cause.__cause__ is not None:  # Hydra wraps what was raised
        cause = cause.__cause__
    reason = f"{type(cause).__name__}: {clipped(cause)}" if cause is not None else clipped(error)
    return (
        f"{f'{key}.' if key else ''}_target_: {target} cannot be imported ({reason}); is it spelt as in its "
        "file, and is its folder on PYTHONPATH?"
    )
