"""Which data set each position of the stream is drawn from, by weight: exact at any point, and no state.

A share of the positions goes to the first data set, spread as evenly as they can be; what is left is
divided among the others in the same way. So after n samples each data set has given its weight times n,
give or take one or two, and its own stream is used without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


class Mixture:
    """Positions of the stream as (data set, position in that data set's own stream)."""

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]
        # The heaviest first: what is rounded there is the least of what remains.
        self._sources = sorted(range(len(exact)), key=lambda source: (-exact[source], source))
        rest = [sum(exact[s] for s in self._sources[k:]) for k in range(len(exact))]
        self._shares = [Fraction(exact[s]) / rest[k] for k, s in enumerate(self._sources)]

    def at(self, position: int) -> tuple[int, int]:
        """The data set at a position, and how many of its samples come before."""
        for source, share in zip(self._sources, self._shares, strict=True):
            before = _given(position, share)
            if _given(position + 1, share) > before:
                return source, before
            position -= before
        raise AssertionError("the last share is the whole of what is left")

    def counts(self, position: int) -> list[int]:
        """How many samples each data set has given before a position."""
        found = [0] * len(self._sources)
        for source, share in zip(self._sources, self._shares, strict=True):
            found[source] = _given(position, share)
            position -= found[source]
        return found


def _given(position: int, share: Fraction) -> int:
    """position × share, rounded; halves up."""
    return (2 * position * share.numerator + share.denominator) // (2 * share.denominator)
