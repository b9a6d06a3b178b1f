"""Fills the sketch of a column quickly: a few passes over pieces that fit a processor's cache, counts in a plain array.

It gives what ``Numbers.of`` gives of all values together. A piece is looked at as bits: rounded to eleven significant
bits, a number's upper 22 bits are its bucket, and one ``bincount`` counts them. Zeros, which lie far from every other
bucket, share the first place of the array; negative numbers have an array of their own. What does not fit (magnitudes
near the ends of what has buckets, ranges of more than ``WIDEST`` buckets) is left to ``Numbers.of``.
"""

from __future__ import annotations

import numpy as np

from airflow_provider_sml.ml.monitoring.sketch import (
    LARGEST,
    SMALLEST,
    SPLITTER,
    TAKEN,
    Numbers,
    keys_of,
    merge_all,
)

#: Values looked at at once: three arrays of them stay in the cache.
PIECE = 32_768
#: Buckets of an array at most: 256 powers of two.
WIDEST = 256 * 1024
#: Buckets made below the smallest one seen, so that the array seldom grows downwards.
_SLACK = 1024
#: Pieces that did not fit, held before they are merged.
_HELD = 16
_NEAR_ZERO = int(keys_of(np.array([SMALLEST]))[0]) + 1


class _Side:
    """Counts of the numbers of one sign, by their magnitude; the first place is zero's."""

    def __init__(self) -> None:
        self.base = 0  # the bucket of the first place; 0: no number but zero was seen
        self.counts = np.zeros(1, np.int64)

    def find(self, values: np.ndarray, low: float, high: float, room: np.ndarray) -> np.ndarray | None:
        """The counts of a piece; None where it does not fit.

        :param values: none negative, float64 of shape (n,).
        :param low: the smallest of them.
        :param high: the largest.
        :param room: two arrays of at least n, to work in.
        """
        zeros = 0
        if low <= 0:
            zeros = len(values) - int(np.count_nonzero(values))
            if zeros == len(values):
                return np.array([zeros])
        # Where the smallest number but zero lies is looked up only if it may lie below the first place.
        least = low if low > 0 else high if self.base else float(values[values > 0].min())
        if not self._reach(least, high):
            return None
        found = self._bins(values, low, room)
        if found[0] != zeros:  # something between zero and the first bucket
            if not self._reach(float(values[values > 0].min()), high):
                return None
            found = self._bins(values, low, room)
        return found

    def _bins(self, values: np.ndarray, low: float, room: np.ndarray) -> np.ndarray:
        product, rounded = room[0, : len(values)], room[1, : len(values)]
        np.multiply(values, SPLITTER, out=product)
        np.subtract(product, values, out=rounded)
        np.subtract(product, rounded, out=rounded)
        keys = rounded.view(np.int64)
        np.right_shift(keys, TAKEN, out=keys)
        np.subtract(keys, self.base, out=keys)
        if low <= 0:
            np.maximum(keys, 0, out=keys)
        return np.bincount(keys, minlength=1)

    def _reach(self, low: float, high: float) -> bool:
        """Make place for the buckets from one number to another; False where they are too many or too near to zero."""
        first, last = (int(key) for key in keys_of(np.array([low, high])))
        if first <= _NEAR_ZERO:
            return False
        if self.base == 0:
            base, size = max(first - _SLACK, _NEAR_ZERO) - 1, 1
        elif first > self.base:
            base, size = self.base, len(self.counts)
        else:
            base, size = max(first - _SLACK, _NEAR_ZERO) - 1, len(self.counts)
        moved = self.base - base if self.base else 0
        size = max(size + moved, last - base + 1)
        if size > WIDEST:
            return False
        if moved or size > len(self.counts):
            counts = np.zeros(size, np.int64)
            counts[0] = self.counts[0]
            counts[1 + moved : moved + len(self.counts)] = self.counts[1:]
            self.counts = counts
        self.base = base
        return True

    def add(self, found: np.ndarray) -> None:
        self.counts[: len(found)] += found

    def buckets(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes' buckets but zero's, ascending, and their counts."""
        at = np.flatnonzero(self.counts[1:]) + 1
        return at + self.base, self.counts[at]


class NumberCounter:
    """Takes the values of a column piece by piece.

    :param room: two arrays of ``PIECE`` float64 each, shape (2, PIECE), that several columns may share.
    """

    def __init__(self, room: np.ndarray | None = None) -> None:
        self._room = np.empty((2, PIECE)) if room is None else room
        self._sides = _Side(), _Side()
        self._odd: list[Numbers] = []
        self._size, self._mean, self._m2 = 0, 0.0, 0.0
        self._low, self._high = np.nan, np.nan

    def add(self, values: np.ndarray) -> int:
        """Count values; gives how many of them are NaN, which are left out.

        :param values: float64 of shape (n,).
        """
        gaps = 0
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE]
            low, high = float(piece.min()), float(piece.max())
            if low != low:
                kept = piece[~np.isnan(piece)]
                gaps += len(piece) - len(kept)
                if not len(kept):
                    continue
                piece, low, high = kept, float(kept.min()), float(kept.max())
            low, high = low + 0.0, high + 0.0  # of a negative zero
            if low < -LARGEST or high > LARGEST or not self._count(piece, low, high):
                self._odd.append(Numbers.of(piece))
                if len(self._odd) > _HELD:
                    self._odd = [merge_all(self._odd)]
                continue
            self._moments(piece)
            self._low, self._high = float(np.fmin(self._low, low)), float(np.fmax(self._high, high))
        return gaps

    def _count(self, piece: np.ndarray, low: float, high: float) -> bool:
        upper, lower = self._sides
        if low >= 0:
            found = upper.find(piece, low, high, self._room)
            if found is None:
                return False
            upper.add(found)
            return True
        negative = -piece[piece < 0]
        others = piece[piece >= 0] if high >= 0 else piece[:0]
        below = lower.find(negative, -high if high < 0 else float(negative.min()), -low, self._room)
        above = upper.find(others, float(others.min()), high, self._room) if len(others) else np.zeros(1, np.int64)
        if below is None or above is None:
            return False
        lower.add(below)
        upper.add(above)
        return True

    def _moments(self, piece: np.ndarray) -> None:
        """Mean and squared deviations, joined as in ``Numbers.merge``."""
        size, mean = len(piece), float(piece.sum()) / len(piece)
        apart = self._room[0, :size]
        np.subtract(piece, mean, out=apart)
        total, gap = self._size + size, mean - self._mean
        # Not by BLAS, whose threads cost more here than they help.
        self._m2 += float(np.einsum("i,i->", apart, apart)) + gap * gap * self._size * size / total
        self._mean += gap * size / total
        self._size = total

    def numbers(self) -> Numbers:
        """The sketch of all that was taken."""
        (up, up_counts), (down, down_counts) = (side.buckets() for side in self._sides)
        zeros = int(sum(side.counts[0] for side in self._sides))
        keys = np.concatenate([-down[::-1], [0] if zeros else [], up]).astype(np.int64)
        counts = np.concatenate([down_counts[::-1], [zeros] if zeros else [], up_counts]).astype(np.int64)
        plain = Numbers(keys, counts, self._mean, self._m2, self._low, self._high)
        return merge_all([plain, *self._odd]) if self._odd else plain
