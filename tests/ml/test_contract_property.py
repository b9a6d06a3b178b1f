"""One contract, three judges: Spark, the audit and the scoring server agree on every row that can be made."""

import datetime as dt
import json
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_provider_sml.ml.bundle import Bundle
from airflow_provider_sml.ml.etl import application
from airflow_provider_sml.ml.etl.plan import compile_plan
from airflow_provider_sml.ml.lake.audit import Staged
from airflow_provider_sml.ml.serving.requests import RequestChecker, RequestError
from tests import shops

DAY = shops.FIRST
COLUMNS = {
    "order": {"type": "int", "required": True},
    "ordered": {"type": "timestamp", "required": True},
    "city": {
        "type": "string", "required": True, "values": ["bern", "oslo", "o'slo", "rome{}"],
        "repair": {"trim": True, "case": "lower", "map": {"berne": "bern", "o\\slo": "o'slo"}},
    },
    "level": {"type": "int", "range": [-5, 10], "values": [-5, -1, 0, 3, 10, 11], "repair": {"clip": True}},
    "weight": {"type": "double", "required": True, "range": [-0.5, None], "repair": {"default": -0.25}},
    "gift": {"type": "boolean", "required": True, "repair": {"default": False}},
    "size": {"type": "double", "range": [None, 1e6]},
    "word": {"type": "string", "values": ["a", "b\\c", "d'e", "\u00e4"]},
    "minutes_late": {"type": "double", "known": "after"},
}  # fmt: skip
FEATURES = {
    "city": "city", "level": "level", "weight": "weight", "gift": "gift", "size": "size", "word": "word"
}  # fmt: skip
DATASET = shops.make_spec(
    Path("/nowhere"),
    source={"format": "json", "path": "{landing}/{date}.json", "null_values": []},
    contract={"key": ["order"], "event_time": "ordered", "columns": COLUMNS},
    features=FEATURES,
).dataset

# Values near the rules' edges, and some that are far off. What a request may hold and a line of JSON may hold alike.
cities = st.none() | st.sampled_from(
    ["bern", " Bern", "BERNE ", "o\\slo", "o'slo", "OSLO", "rome{}", "Rome", "", " ", "\u00d6slo", "bern\t"]
)
levels = st.none() | st.integers(-12, 14) | st.sampled_from([2**62, -(2**62), 3.0, 3.5])
numbers = st.none() | st.floats(-2, 2, width=32) | st.sampled_from([-0.5, -0.25, 0, 1e6, 1000000.5, 1e300, -1e300])
rows = st.fixed_dictionaries(
    {
        "city": cities,
        "level": levels,
        "weight": numbers,
        "gift": st.sampled_from([None, True, False]),
        "size": numbers,
        "word": st.none() | st.sampled_from(["a", "A", "b\\c", "b\\\\c", "d'e", "d''e", "\u00e4", "a\u0308"]),
    }
)

GOOD = {"city": " Berne", "level": 99, "weight": None, "gift": None, "size": -3.5, "word": "d'e"}


def served(row):
    """Whether the scoring server takes a row, and the values that it scores."""
    checker = RequestChecker(Bundle("orders", "none", DATASET, 1, {}, b""))
    try:
        checked = checker.check([row])
    except RequestError as error:
        return {f"{p['field']}" for p in error.problems}, None
    return set(), {name: vector.tolist()[0] for name, vector in checked.rows.items()}


def audited(rows):
    """The rules that DuckDB, asked as the audit asks it, finds broken in each row."""
    types = {"int": pa.int64(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_()}
    schema = pa.schema([(name, types[COLUMNS[name]["type"]]) for name in FEATURES])
    table = pa.Table.from_pylist([{name: row[name] for name in FEATURES} for row in rows], schema=schema)
    rules = [rule for name in FEATURES for rule in DATASET.rules_of(name)]
    asked = ", ".join(f"NOT ({rule.predicate.sql('duckdb')})" for rule in rules)
    found = duckdb.from_arrow(table).query("t", f"SELECT {asked} FROM t").fetchall()
    return [{rule.name for rule, broken in zip(rules, line, strict=True) if broken} for line in found]


def sparked(spark, folder, batch):
    """The stored values of good rows and the reasons of bad ones, by the row's number."""
    landing = folder / os.urandom(4).hex()
    landing.mkdir()
    lines = [
        json.dumps({"order": n, "ordered": f"{DAY}T00:00:00Z", "minutes_late": 1.5, **row})
        for n, row in enumerate(batch)
    ]
    (landing / f"{DAY}.json").write_text("\n".join(lines))
    output = landing / "staged"
    output.mkdir()
    application.run(spark, compile_plan(DATASET, {"landing": str(landing)}, DAY, DAY, str(output)))
    staged = Staged.read(output)
    good = [row for path in staged.data for row in pq.read_table(path, partitioning=None).to_pylist()]
    bad = [row for path in staged.quarantine for row in pq.read_table(path, partitioning=None).to_pylist()]
    reasons = {int(json.loads(row["raw_row"])["order"]): row["reasons"].split("; ") for row in bad}
    return {row["order"]: row for row in good}, reasons


@settings(
    max_examples=5, deadline=dt.timedelta(minutes=5), suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate], derandomize=True,
)  # fmt: skip
@given(batch=st.lists(rows, min_size=150, max_size=150))
def test_the_judges_agree(spark, tmp_path_factory, batch):
    batch = [*batch, GOOD, GOOD | {"city": "Wien"}]
    good, reasons = sparked(spark, tmp_path_factory.mktemp("property"), batch)
    assert len(good) + len(reasons) == len(batch) and good and reasons
    assert audited([good[n] for n in sorted(good)]) == [set()] * len(good)
    for number, row in enumerate(batch):
        problems, values = served(row)
        assert bool(problems) == (number in reasons), (row, problems, reasons.get(number))
        if number in good:
            stored = {name: good[number][name] for name in FEATURES}
            assert {name: float(v) if isinstance(v, int) else v for name, v in values.items()} == {
                name: float(v) if isinstance(v, int) else v for name, v in stored.items()
            }
        else:
            assert {reason.split(":")[0] for reason in reasons[number]} == problems
