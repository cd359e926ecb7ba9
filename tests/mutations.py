"""Seeded damage to bytes, shared by the tests of every format."""

import os
import random

__all__ = ["MUTATIONS", "mutate"]

MUTATIONS = 50_000 if os.environ.get("PUNA_COUNTS") == "nightly" else 2_000


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, insert or repeat a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] ^= rng.randrange(1, 256)
            case 1:
                del changed[at : at + rng.choice((1, 1, 5))]
            case 2:
                changed[at:at] = rng.choice((b"0", b"9", b"-", b'"', b",", b"{", b"}", b"\xff", b"\0", b"e9"))
            case 3:
                changed[at:at] = changed[at : at + rng.randrange(1, 20)]
    return bytes(changed)
