"""The profile of the scores that a model gives to rows: here, and in the Python workers of Spark.

A worker needs Python 3.11, NumPy, PyArrow, pydantic and the library of the model's flavour (and pandas, which Spark
asks for), and nothing else of what this package needs: it gets this module and what it imports from ``spark_profiles``
as an archive.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from airflow_provider_sml.ml.bundle import Bundle, Scorer
from airflow_provider_sml.ml.monitoring.drift import SCORE
from airflow_provider_sml.ml.monitoring.profile import Profile, of_batches
from airflow_provider_sml.ml.training import data

#: Name under which the segment is read beside the score.
_SEGMENT = "segment of the row"


def score_profile(scorer: Scorer, tables: Iterable[pa.Table], segment: str | None) -> Profile:
    """The profile of the scores of rows; one batch of them is held at a time.

    :param scorer: of the model.
    :param tables: the rows, with the columns that the model asks for.
    :param segment: a column of them by whose values they are profiled apart as well.
    """

    def scores() -> Iterator[pa.Table]:
        for table in tables:
            found = {SCORE: scorer.score(data.vectors(table, scorer.columns))}
            if segment:
                found[_SEGMENT] = table.column(segment)
            yield pa.table(found)

    return of_batches(scores(), {SCORE: "number"}, segment=_SEGMENT if segment else None)


def profile_part(bundle: str, segment: str | None, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What a Python worker of Spark gives for its part of the rows: one row ``profile``, the part's profile as JSON.

    :param bundle: folder of the model's bundle on the worker's machine.
    :param segment: as in ``score_profile``.
    :param batches: the rows.
    """
    scorer = _scorer(bundle)
    rows = (pa.table(batch) for batch in batches if batch.num_rows)
    made = json.dumps(score_profile(scorer, rows, segment).dump())
    yield pa.record_batch({"profile": pa.array([made], pa.string())})


@lru_cache(1)
def _scorer(bundle: str) -> Scorer:
    return Scorer(Bundle.read(Path(bundle)), threads=1)  # Spark runs a task on each core
