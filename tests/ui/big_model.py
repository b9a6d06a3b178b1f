"""A model that has been in production for long: hundreds of versions in a real registry, a year of nights on disk."""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("hour", "minute", "distance", "plane_age", "seats", "wind", "humidity", "visibility", "rain", "pressure",
           "carrier", "origin", "score")  # fmt: skip
FIRST = dt.date(2013, 1, 1)
DRAWN = random.Random(7)


def write(path: Path, content: Any) -> Path:
    """Write text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def nights(
    reports: Path, count: int, name: str = "flights", first: dt.date = FIRST, names: Sequence[str] = COLUMNS
) -> list[dt.date]:
    """Nights with drift, performance and decision, as the monitor writes them.

    :param reports: the reports folder of the project.
    :param count: how many.
    :param name: of the model.
    :param first: the first night.
    :param names: of the columns.
    """
    folder, days = reports / name, [first + dt.timedelta(days=number) for number in range(count)]
    worth = {day: _measured(day) for day in days}
    for number, day in enumerate(days):
        stormy = math.sin(number / 9) > 0.93
        columns = [
            {"name": column, "method": "Wasserstein distance (normed)", "threshold": 0.1,
             "value": round(DRAWN.uniform(0.0, 0.09) + (0.15 if stormy and place % 3 == 0 else 0.0), 4),
             "drifted": stormy and place % 3 == 0}
            for place, column in enumerate(names)
        ]  # fmt: skip
        drifted = [column["name"] for column in columns if column["drifted"]]
        verdict, version = "drift" if stormy else "quiet", "1"
        past = [worth[one] for one in days[max(0, number - 28) : max(0, number - 1)]]
        write(folder / f"nights/{day}.json", {
            "model": name, "version": version, "day": str(day), "verdict": verdict, "rows": 900 + number,
            "share": len(drifted) / len(names), "drifted": drifted, "columns": columns, "performance": past,
        })  # fmt: skip
        young = [_measured(one) | {"interval": "chance"} for one in days[max(0, number - 1) : number + 1]]
        write(folder / f"performance/{day}.json", {
            "model": name, "version": version, "day": str(day), "realised": past, "estimated": young, "findings": [],
            "backtest": {"days": 0}, "skew": None, "importance": dict.fromkeys(names, 1 / len(names)),
        })  # fmt: skip
        action = "retrain" if stormy else "none"
        write(folder / f"decisions/{day}.json", {
            "policy": {"nights": [1, 1]}, "override": None,
            "decision": {"action": action, "severity": "warning" if stormy else "quiet", "because": "so it is"},
        })  # fmt: skip
        for kind in ("nights", "performance", "decisions"):
            write(folder / f"{kind}/{day}.html", f"<h1>{kind} of {day}</h1>")
    return days


def _measured(day: dt.date) -> dict[str, Any]:
    auc = 0.70 + 0.03 * math.sin(day.toordinal() / 20)
    return {
        "day": str(day), "rows": 900, "rate": 0.2, "auc": auc, "auc_low": auc - 0.03, "auc_high": auc + 0.03,
        "log_loss": 0.45, "ece": 0.02, "coverage": 1.0, "version": "1",
    }  # fmt: skip


def evidence(reports: Path, versions: int, name: str = "flights") -> None:
    """Verdicts, costs and a sampling curve.

    :param reports: the reports folder of the project.
    :param versions: how many versions were judged.
    :param name: of the model.
    """
    folder = reports / name
    for version in range(1, versions + 1):
        checks = [
            {"name": check, "passed": True, "value": "0.7101 [0.70, 0.72]", "limit": "at least 0.65", "todo": None}
            for check in ("auc", "ece", "baseline", "slices.origin", "parity", "size", "latency")
        ]
        verdict = {"name": name, "version": str(version), "model_id": f"m{version}", "passed": True, "checks": checks}
        write(folder / f"gate/{version}/gate.json", verdict | {"time": "2013-04-01T05:00:00+00:00"})
        write(folder / f"gate/{version}/gate.html", f"<h1>Gate of {version}</h1>")
        write(folder / f"evaluation/m{version}/evaluation.html", f"<h1>Evaluation of m{version}</h1>")
        totals = {"usd": 1.25, "saved_usd": 2.5, "unknown": 0, "usd_per_hour": 0.0}
        ran = {"dag_id": f"{name}_train", "run_id": f"manual__{version}"}
        write(folder / f"costs/run-{version}/costs.json", ran | {"totals": totals, "tasks": []})
        write(folder / f"costs/run-{version}/costs.html", "<h1>Costs</h1>")
    points = [
        {"rate": rate, "rows": 100_000 * rate, "auc": 0.70 + 0.02 * rate, "low": 0.69 + 0.02 * rate,
         "high": 0.71 + 0.02 * rate, "loss": 0.004 * (1 - rate), "loss_low": 0.0, "loss_high": 0.01, "seconds": 3.0}
        for rate in (0.05, 0.1, 0.2, 0.4)
    ]  # fmt: skip
    plan = {"rate": 0.2, "found": True, "tolerance": 0.005, "population": 100_000, "points": points, "exponent": 0.5,
            "seconds": 9.0, "full_seconds": 60.0, "total_seconds": 21.0}  # fmt: skip
    write(folder / "sample/2013-12-31/plan.json", plan)
    write(folder / "sample/2013-12-31/plan.html", "<h1>Sampling curve</h1>")


def registry(folder: Path, versions: int, name: str = "flights") -> None:
    """A registry with versions as ``RegisterModelOperator`` tags them; all but the first are copied inside SQLite.

    :param folder: of the embedded store.
    :param versions: how many.
    :param name: registered model.
    """
    from airflow_provider_sml.ml.registry import CHAMPION, Registry

    made = Registry(str(folder))
    with made._client() as client:
        client.create_registered_model(name)
        client.create_model_version(name, str(folder / "artifacts"), tags=_tags("1"))
    with sqlite3.connect(folder / "mlflow.db") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(model_versions)")]
        number = columns.index("version")
        [first] = database.execute("SELECT * FROM model_versions").fetchall()
        tagged = [row[1] for row in database.execute("PRAGMA table_info(model_version_tags)")]
        tags = database.execute("SELECT * FROM model_version_tags").fetchall()
        for version in range(2, versions + 1):
            row = [*first[:number], version, *first[number + 1 :]]
            database.execute(f"INSERT INTO model_versions VALUES ({', '.join('?' * len(columns))})", row)
            own = _tags(str(version))
            for tag in tags:
                values = dict(zip(tagged, tag, strict=True)) | {"version": version}
                values["value"] = own[values["key"]]
                marks = ", ".join("?" * len(tagged))
                database.execute(f"INSERT INTO model_version_tags VALUES ({marks})", list(values.values()))
    newest = made.version(name, version=str(versions))
    assert newest is not None
    made.set_alias(newest, CHAMPION, f"{name}_deploy/deploy/manual__9 of ann", {"gate": "passed", "parity_rows": "200"})
    told = {"address": "vertex://endpoint", "mode": "replace", "percent": 100.0, "spot": True,
            "machine": "n1-standard-4", "since": "2013-12-01T05:00:00+00:00",
            "run": f"{name}_deploy/deploy/manual__9"}  # fmt: skip
    made.set_tags(newest, {f"endpoint.vertex.{name}": json.dumps(told)})
    if versions > 1:
        older = made.version(name, version=str(versions - 1))
        assert older is not None
        beside = told | {"mode": "ab", "percent": 20.0, "spot": False, "since": "2013-12-02T05:00:00+00:00"}
        made.set_tags(older, {f"endpoint.vertex.{name}": json.dumps(beside)})
    made.set_tags(newest, {"approval": "approved", "approval_by": "ann", "approval_comment": "good figures"})


def _tags(version: str) -> dict[str, str]:
    tags = {
        "model_id": f"m{version}", "table": "flights", "snapshot_id": str(4000 + int(version) // 10),
        "days_train": "2013-01-01/2013-04-30", "days_validate": "2013-05-01/2013-05-28", "sample_rate": "0.25",
        "days_test": "2013-05-29/2013-06-25", "auc": "0.7101", "auc_low": "0.7012", "auc_high": "0.7198",
        "ece": "0.0123", "gate": "passed", "seconds": "61.5", "cost_usd": "1.2500", "cost_unknown": "0",
        "dag_id": "flights_train", "run_id": f"manual__{version}",
    }  # fmt: skip
    return {f"sml.{key}": value for key, value in tags.items()}
