"""Weights of mixtures go with their sources; where they do not, that is said before any source is read."""

from collections.abc import Mapping

from search_r3.errors import UsageError

MIXTURE = "search_r3.data.mixture.load_mixture"


def check_mixtures(node: object, key: str = "") -> None:
    """Refuses a mixture, in which another may be a source, whose weights do not name exactly its sources.

    Args:
        node: of a configuration: plain, with references resolved.
        key: of the node.

    Raises:
        UsageError: With the key to leave out or to give.
    """
    if not isinstance(node, Mapping):
        return
    if node.get("_target_") == MIXTURE:
        _check_weights(node, f"{key}." if key else "")
    for child, value in node.items():
        check_mixtures(value, f"{key}.{child}" if key else str(child))


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
