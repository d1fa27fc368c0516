"""Which rows are held out: a hash of an id or a text decides, whatever other rows there are."""

import hashlib
import logging

from search_r3.data.texts import encoded_parts


def position(key: str) -> float:
    """Where a key lies between 0 and 1, by its SHA-256; of many keys a share `s` lies below `s`."""
    digest = hashlib.sha256()
    for part in encoded_parts(key):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big") / 2**64


def check_share(validation_share: float) -> None:
    """Refuses a share that leaves nothing to train on.

    Raises:
        ValueError: If it is not in [0, 1).
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")


def tell_no_validation(log: logging.Logger, name: str, share: float, of: str) -> None:
    """Says that no row is held out for validation; a warning where a share was asked for.

    Args:
        log: of the reader.
        name: of the data set.
        share: that was asked for.
        of: what it is a share of, as "4 rows".
    """
    log.log(
        logging.WARNING if share else logging.INFO,
        "%s: no validation rows (%g of %s); nothing is evaluated while training",
        name, share, of,
    )  # fmt: skip
