"""One model's life on real flights, from landed files to nightly drift reports: ``make demo``.

Runs the four DAGs of include/pipelines/flights.yaml for real, one task after the other in this process, through
Airflow's own ``dag.test()``. Everything that it says at the end is read back from where it was stored: the lake, the
registry, the reports, the endpoint. Running it again is safe: it replaces days by the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "include" / "data"
FIRST, LAST = date(2013, 1, 1), date(2013, 8, 31)
#: Nights after the training days: thunderstorms, two calm ones, the ice of December.
NIGHTS = [date(2013, 9, 2), date(2013, 9, 4), date(2013, 10, 16), date(2013, 12, 9), date(2013, 12, 10)]


def main() -> int:
    """Run the demonstration; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the stages' seconds and the figures to this file")
    given = parser.parse_args()
    prepare_environment()
    screen = Screen(DATA / "demo.log")
    try:
        figures = run(screen)
    except StageError as error:
        screen.say(f"\nThe stage {error} did not succeed. Its log: {screen.log}")
        return 1
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    screen.say(summary(figures))
    return 0


def prepare_environment() -> None:
    """Settings that Airflow and the libraries read at import: an own home, loopback only, no telemetry."""
    home = DATA / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
    )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


class StageError(Exception):
    """A stage did not succeed."""


class Screen:
    """Keeps the terminal for progress; what Airflow and the libraries print goes to a log file.

    :param log: the log file.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._terminal: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        self.stages: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """Print a line on the terminal."""
        print(text, file=self._terminal, flush=True)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        print(f"{name:<9} {text} ...", end="", file=self._terminal, flush=True)
        started = time.monotonic()
        with self._quiet():
            yield
        seconds = time.monotonic() - started
        self.stages.append({"name": f"{name} {text}".strip(), "seconds": round(seconds, 2)})
        print(f" {seconds:.0f} s", file=self._terminal, flush=True)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        with self.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(kept[0], 1)
                os.dup2(kept[1], 2)
                os.close(kept[0])
                os.close(kept[1])


def run(screen: Screen) -> dict[str, Any]:
    """The stages, one after the other; gives the figures."""
    from include.demo.landing import lay_down

    started = time.monotonic()
    screen.say("flights: one model's life on 336,776 real flights of 2013\n")
    with screen.stage("land", "a year of daily files"):
        lay_down(DATA / "landing")
    with screen.stage("airflow", "database and DAGs"):
        dags = load_dags()
    days = {"first_day": FIRST.isoformat(), "last_day": LAST.isoformat()}
    with screen.stage("ingest", f"{(LAST - FIRST).days + 1} days in one Spark job"):
        test(dags["flights_ingest"], days, LAST)
    with screen.stage("train", "sample, train, evaluate, register, gate"):
        test(dags["flights_train"], {"as_of": LAST.isoformat()}, LAST)
    with screen.stage("deploy", "start, compare, go live"):
        test(dags["flights_deploy"], {}, LAST)
    for night in NIGHTS:
        with screen.stage("night", f"{night}: ingest, score, report"):
            # dag.test() keeps a run's params for the next run of the same process, so both are given.
            days = {"first_day": night.isoformat(), "last_day": night.isoformat()}
            test(dags["flights_ingest"], days, night)
            test(dags["flights_monitor"], {"day": night.isoformat()}, night)
    return collect() | {"stages": screen.stages, "seconds": round(time.monotonic() - started, 1)}


def load_dags() -> dict[str, Any]:
    """Initialise the database once and load the DAG file."""
    from airflow.utils.db import initdb

    initdb()
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags" / "flights.py"))
    if bag.import_errors:
        raise StageError(f"airflow: {bag.import_errors}")
    return dict(bag.dags)


def test(dag: Any, conf: dict[str, Any], day: date) -> None:
    """Run a DAG to its end, as of the end of a day."""
    due = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    run = dag.test(logical_date=due, run_conf=conf)
    if run.state != "success":
        failed = [ti.task_id for ti in run.get_task_instances() if ti.state in ("failed", "upstream_failed")]
        raise StageError(f"{dag.dag_id} ({', '.join(failed)})")


def collect() -> dict[str, Any]:
    """Read everything back from where it was stored."""
    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.registry import CHAMPION, Registry
    from airflow_provider_sml.ml.serving.local import LocalEndpoint
    from airflow_provider_sml.ml.serving.stored import stored_rows
    from airflow_provider_sml.pipelines import load_spec

    spec = load_spec(ROOT / "include" / "pipelines" / "flights.yaml")
    reports = ROOT / spec.places.reports / spec.name
    lake = Lake(str(ROOT / spec.places.lake))
    registry = Registry(str(ROOT / spec.places.mlflow))
    version = registry.version(spec.name, alias=CHAMPION)
    assert version is not None
    tags = registry.tags(version)
    evaluation = json.loads((reports / "evaluation" / version.model_id / "evaluation.json").read_text())
    gate = json.loads((reports / "gate" / version.version / "gate.json").read_text())
    manifest = json.loads((Path(tags["sample_uri"]) / "manifest.json").read_text())
    endpoint = LocalEndpoint(ROOT / spec.places.endpoints, spec.name, spec.deploy.port)
    bundle = registry.bundle(version)
    instance = stored_rows(bundle, Path(tags["sample_uri"]), 1)[0][0]
    request = json.dumps({"instances": [instance]})
    return {
        "rows": sum(lake.days("flights").values()),
        "days": len(lake.days("flights")),
        "quarantined": quarantine(lake),
        "snapshot": str(lake.snapshot_id("flights")),
        "snapshots": len(lake.snapshots("flights")),
        "sample": manifest["rows"] | {"rate": manifest["rate"], "population": manifest["population"]["train"]},
        "rounds": bundle.rounds,
        "evaluation": evaluation,
        "gate": gate,
        "version": version.version,
        "url": endpoint.url,
        "request": request,
        "answer": ask(endpoint.url, request),
        "nights": [json.loads((reports / "nights" / f"{night}.json").read_text()) for night in NIGHTS],
        "worth": [json.loads((reports / "performance" / f"{night}.json").read_text()) for night in NIGHTS],
        "decisions": [
            json.loads((reports / "decisions" / f"{night}.json").read_text())["decision"] for night in NIGHTS
        ],
        "reports": os.path.relpath(reports, ROOT),
        "mlflow": registry.uri.replace(f"{ROOT}/", ""),
    }


def quarantine(lake: Any) -> dict[str, int]:
    """Quarantined rows by reason."""
    import duckdb

    files = [file.path for file in lake.files("flights_quarantine")] if lake.exists("flights_quarantine") else []
    if not files:
        return {}
    query = "SELECT reasons, count(*) FROM read_parquet(?, hive_partitioning=false) GROUP BY 1 ORDER BY 2 DESC"
    return dict(duckdb.execute(query, [files]).fetchall())


def ask(url: str, request: str) -> str:
    """Send the request as a client would."""
    asked = urllib.request.Request(url, request.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return str(answer.read().decode())


def summary(figures: dict[str, Any]) -> str:
    """One screen that a newcomer understands."""
    evaluation, gate, sample = figures["evaluation"], figures["gate"], figures["sample"]
    auc, baseline = evaluation["auc"], evaluation["baseline"]
    bad = figures["quarantined"]
    passed = sum(check["passed"] for check in gate["checks"])
    minutes, seconds = divmod(round(figures["seconds"]), 60)
    why = ", ".join(f"{count:,} {reason}" for reason, count in bad.items()) or "none"
    lines = [
        "",
        f"flights: one model's life on real flights{'':<34}{minutes} min {seconds} s",
        "",
        f"ingest    {figures['days']} days, {figures['rows'] + sum(bad.values()):,} rows in; "
        f"quarantined {sum(bad.values()):,} ({why})",
        f"          {figures['rows']:,} rows published, snapshot {figures['snapshot']}, one of {figures['snapshots']}",
        f"sample    {sample['rate']:.0%} by tailnum: {sample['train']:,} of {sample['population']:,} training rows",
        f"train     {figures['rounds']} rounds",
        f"          AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] on {evaluation['rows']:,} later rows; "
        f"rates by {' and '.join(baseline['by'])} {baseline['auc']:.3f}; ECE {evaluation['ece']['value']:.3f}",
        f"gate      {passed} of {len(gate['checks'])} checks passed",
        f"          {figures['reports']}/gate/{figures['version']}/gate.html",
        f"deploy    version {figures['version']} is the champion     {figures['url']}",
        "",
    ]
    for night, worth, decision in zip(figures["nights"], figures["worth"], figures["decisions"], strict=True):
        far = ", ".join(night["drifted"][:3]) or "nothing drifted"
        score = next(column["value"] for column in night["columns"] if column["name"] == "score")
        lines.append(f"night     {night['day']}  {night['verdict']:<5}  {far} (score moved {score:.2f} sd)")
        auc = [f"AUC estimated {day['auc']:.2f}" for day in worth["estimated"] if day["day"] == night["day"]]
        auc += [
            f"realised on {day['day']} {day['auc']:.2f}" for day in worth["realised"][-1:] if day["auc"] is not None
        ]
        lines.append(f"          {'; '.join(auc)}")
        why = ", ".join(f"{cause['feature']} {cause['weight']:.0%}" for cause in decision["causes"][:3])
        lines.append(f"          {decision['action']}: {decision['because']}{f' ({why})' if why else ''}")
    lines += [
        "",
        f"Ask:   curl -s -H 'content-type: application/json' {figures['url']} \\",
        f"         -d '{figures['request']}'",
        f"       {figures['answer']}",
        f"Look:  {figures['reports']}/nights/*.html, MLflow in {figures['mlflow']}",
        "       make up    starts Airflow with these DAGs and this data",
        "       make stop  ends the endpoint",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
