"""A reservoir: exactly k rows of a stream whose length nobody knows, in one pass and the memory of k rows.

Each row gets a random number from a seeded generator; the k smallest stay (equivalent to Vitter 1985, "Random Sampling
with a Reservoir": every set of k rows is as likely as any other). The same stream in the same order and the same seed
give the same rows, however it is cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa


def reservoir(batches: Iterable[pa.RecordBatch], size: int, seed: int = 7) -> pa.Table | None:
    """Draw rows of a stream.

    :param batches: the stream.
    :param size: rows to keep; all, when there are fewer.
    :param seed: of the random numbers.
    :returns: the rows in the order of the stream; None when there was no batch.
    """
    generator = np.random.default_rng(seed)
    kept: pa.Table | None = None
    marks = np.empty(0)
    for batch in batches:
        fresh = generator.random(batch.num_rows)
        if kept is not None and len(marks) == size:
            # Most rows of a long stream are beaten at once; only the others are looked at.
            chosen = np.flatnonzero(fresh < marks.max())
            rows = pa.Table.from_batches([batch]).take(chosen)
            fresh = fresh[chosen]
        else:
            rows = pa.Table.from_batches([batch])
        kept = rows if kept is None else pa.concat_tables([kept, rows])
        marks = np.concatenate([marks, fresh])
        if len(marks) > size:
            stay = np.sort(np.argpartition(marks, size - 1)[:size])
            kept, marks = kept.take(stay).combine_chunks(), marks[stay]
    return kept
