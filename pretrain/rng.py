"""Random numbers as a function of coordinates: counters are the whole state, nothing needs saving."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, purpose: str, *coords: int | str) -> np.random.Generator:
    """A generator that depends on nothing but its arguments.

    stream(0, "mask", step, sample) is the same on every rank, worker and machine, and independent of
    stream(0, "crop", step, sample).
    """
    text = "\x1f".join([str(seed), purpose, *(str(coord) for coord in coords)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
