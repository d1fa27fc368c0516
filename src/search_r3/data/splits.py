"""Which rows are held out: a hash of an id or a text decides, whatever other rows there are."""

import hashlib

from search_r3.data.texts import encoded_parts


def position(key: str) -> float:
    """Where a key lies between 0 and 1, by its SHA-256; of many keys a share `s` lies below `s`."""
    digest = hashlib.sha256()
    for part in encoded_parts(key):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big") / 2**64
