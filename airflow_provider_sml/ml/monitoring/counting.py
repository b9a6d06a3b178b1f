"""Fills the sketch of a column quickly: a few passes over pieces that fit a processor's cache, counts in a plain array.

It gives what ``Numbers.of`` gives of all values together. Whole numbers of a small range, as most columns of few values
hold, are counted each by itself. Of others a piece is looked at as bits: rounded to eleven significant bits, a number's
upper 22 bits are its bucket, and one ``bincount`` counts them. Zeros, which lie far from every other bucket, share the
first place of the array; negative numbers have a row of their own. What does not fit (magnitudes near the ends of what
has buckets, ranges of more than ``WIDEST`` buckets) is left to ``Numbers.of``.
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

#: Values looked at at once: four arrays of them stay in the cache.
PIECE = 32_768
#: Buckets of a row at most: 256 powers of two.
WIDEST = 256 * 1024
#: Whole numbers that are counted each by itself lie in a range of so many.
NARROW = 16_384
#: A whole number below it is exact, and so are differences of such.
LARGEST_WHOLE = 2.0**52
#: Buckets made below the smallest one seen, so that the array seldom grows downwards.
_SLACK = 1024
#: Pieces that did not fit, held before they are merged.
_HELD = 16
_NEAR_ZERO = int(keys_of(np.array([SMALLEST]))[0]) + 1


class _Wholes:
    """Counts of whole numbers within a small range."""

    def __init__(self) -> None:
        self._first = 0  # the number of the first place
        self._counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray, low: float, high: float, room: np.ndarray) -> bool:
        """Count a piece; False where it does not fit, and nothing was counted.

        :param values: float64 of shape (n,).
        :param low: the smallest of them.
        :param high: the largest.
        :param room: two arrays of at least n, to work in.
        """
        if values[0] != np.trunc(values[0]) or high - low >= NARROW or max(-low, high) > LARGEST_WHOLE:
            return False
        size = len(self._counts)
        first = min(self._first, int(low)) if size else int(low)
        last = max(self._first + size - 1, int(high)) if size else int(high)
        if last - first >= NARROW:
            return False
        whole, keys = room[0, : len(values)], room[1, : len(values)].view(np.int64)
        np.trunc(values, out=whole)
        if not np.equal(whole, values).all():
            return False
        np.copyto(keys, whole, casting="unsafe")
        np.subtract(keys, first, out=keys)
        found = np.bincount(keys, minlength=last - first + 1)
        found[self._first - first : self._first - first + size] += self._counts
        self._first, self._counts = first, found
        return True

    def numbers(self) -> Numbers:
        """The sketch of what was counted."""
        at = np.flatnonzero(self._counts)
        return Numbers.of_counted((at + self._first).astype(float), self._counts[at])


class _Buckets:
    """Counts of numbers by their sign, a row each, and magnitude; the first place is zero's."""

    def __init__(self) -> None:
        self._base = 0  # the bucket of the first place; 0: no number but zero was seen
        self._counts = np.zeros((2, 1), np.int64)

    def add(self, values: np.ndarray, low: float, high: float, room: np.ndarray) -> bool:
        """Count a piece; False where it does not fit, and nothing was counted.

        :param values: float64 of shape (n,).
        :param low: the smallest of them.
        :param high: the largest.
        :param room: three arrays of at least n, to work in.
        """
        sizes, least, most = values, low, high
        if low < 0:
            sizes = np.abs(values, out=room[2, : len(values)])
            least, most = float(sizes.min()), max(-low, high)
        zeros = 0
        if least == 0:
            zeros = int(np.count_nonzero(sizes == 0))
            if zeros == len(values):
                self._counts[0, 0] += zeros
                return True
            # Where the smallest number but zero lies is looked up only if it may lie below the first place.
            least = most if self._base else float(sizes[sizes > 0].min())
        if not self._reach(least, most):
            return False
        found = self._bins(values, sizes, low, zeros, room)
        if int(found[:, 0].sum()) != zeros:  # something between zero and the first bucket
            if not self._reach(float(sizes[sizes > 0].min()), most):
                return False
            found = self._bins(values, sizes, low, zeros, room)
        self._counts[: len(found)] += found
        return True

    def _bins(self, values: np.ndarray, sizes: np.ndarray, low: float, zeros: int, room: np.ndarray) -> np.ndarray:
        """The counts of a piece, a row for each sign that may be there."""
        product, rounded = room[0, : len(values)], room[1, : len(values)]
        np.multiply(sizes, SPLITTER, out=product)
        np.subtract(product, sizes, out=rounded)
        np.subtract(product, rounded, out=rounded)
        keys = rounded.view(np.int64)
        np.right_shift(keys, TAKEN, out=keys)
        np.subtract(keys, self._base, out=keys)
        if zeros:
            np.maximum(keys, 0, out=keys)
        places = self._counts.shape[1]
        if low >= 0:
            return np.bincount(keys, minlength=places)[np.newaxis]
        lower = product.view(np.int64)
        np.multiply(values < 0, places, out=lower)
        np.add(keys, lower, out=keys)
        return np.bincount(keys, minlength=2 * places).reshape(2, places)

    def _reach(self, low: float, high: float) -> bool:
        """Make place for the buckets from one number to another; False where they are too many or too near to zero."""
        first, last = (int(key) for key in keys_of(np.array([low, high])))
        if first <= _NEAR_ZERO:
            return False
        places = self._counts.shape[1]
        if self._base == 0:
            base, size = max(first - _SLACK, _NEAR_ZERO) - 1, 1
        elif first > self._base:
            base, size = self._base, places
        else:
            base, size = max(first - _SLACK, _NEAR_ZERO) - 1, places
        moved = self._base - base if self._base else 0
        size = max(size + moved, last - base + 1)
        if size > WIDEST:
            return False
        if moved or size > places:
            counts = np.zeros((2, size), np.int64)
            counts[:, 0] = self._counts[:, 0]
            counts[:, 1 + moved : moved + places] = self._counts[:, 1:]
            self._counts = counts
        self._base = base
        return True

    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The buckets, ascending, and their counts."""
        zeros = int(self._counts[:, 0].sum())
        up, down = (np.flatnonzero(row[1:]) + 1 for row in self._counts)
        keys = np.concatenate([-(down + self._base)[::-1], [0] if zeros else [], up + self._base])
        counts = np.concatenate([self._counts[1, down][::-1], [zeros] if zeros else [], self._counts[0, up]])
        return keys.astype(np.int64), counts.astype(np.int64)


class NumberCounter:
    """Takes the values of a column piece by piece.

    :param room: three arrays of ``PIECE`` float64 each, shape (3, PIECE), that several columns may share.
    """

    def __init__(self, room: np.ndarray | None = None) -> None:
        self._room = new_room() if room is None else room
        self._wholes, self._may_be_whole = _Wholes(), True
        self._buckets = _Buckets()
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
            if self._may_be_whole:
                self._may_be_whole = self._wholes.add(piece, low, high, self._room)
                if self._may_be_whole:
                    continue
            if low < -LARGEST or high > LARGEST or not self._buckets.add(piece, low, high, self._room):
                self._odd.append(Numbers.of(piece))
                if len(self._odd) > _HELD:
                    self._odd = [merge_all(self._odd)]
                continue
            self._moments(piece)
            self._low, self._high = float(np.fmin(self._low, low)), float(np.fmax(self._high, high))
        return gaps

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
        plain = Numbers(*self._buckets.keys(), self._mean, self._m2, self._low, self._high)
        parts = [part for part in (self._wholes.numbers(), plain) if part.size]
        return merge_all([*parts, *self._odd]) if len(parts) + len(self._odd) != 1 else [*parts, *self._odd][0]


def new_room() -> np.ndarray:
    """What a ``NumberCounter`` works in."""
    return np.empty((3, PIECE))
