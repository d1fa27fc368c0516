"""Weights of mixtures go with their sources; where they do not, that is said before any source is read."""

from collections.abc import Mapping

from search_r3.cli.trust import calls
from search_r3.errors import UsageError

MIXTURE = "search_r3.data.mixture.load_mixture"


def check_mixtures(config: Mapping) -> None:
    """Refuses a mixture, in which another may be a source, whose weights do not name exactly its sources.

    `load_mixture` refuses it too, but has no keys to tell and gets sources that have been read.

    Args:
        config: plain, with references resolved.

    Raises:
        UsageError: With the key to leave out or to give.
    """
    for key, target, mixture in calls(config):
        if target == MIXTURE:
            _check_weights(mixture, key.removesuffix("_target_"))


def _check_weights(mixture: Mapping, prefix: str) -> None:
    sources, weights = mixture.get("sources"), mixture.get("weights")
    if not isinstance(sources, Mapping) or not isinstance(weights, Mapping) or not weights:
        return  # without weights the numbers of examples are taken
    present = [name for name, source in sources.items() if source is not None]
    for name in weights:
        if name not in present:
            taken = f"{prefix}sources.{name} is taken away" if name in sources else "there is no such source"
            raise UsageError(f"{prefix}weights.{name}: {taken}; give ~{prefix}weights.{name} too")
    for name in present:
        if name not in weights:
            raise UsageError(f"{prefix}weights.{name} is missing: give +{prefix}weights.{name}=<number>")
