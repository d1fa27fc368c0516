"""Which rows are held out: a hash of an id or a text decides, whatever other rows there are."""

import hashlib


def position(key: str) -> float:
    """Where a key lies between 0 and 1, by its SHA-256; of many keys a share `s` lies below `s`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
