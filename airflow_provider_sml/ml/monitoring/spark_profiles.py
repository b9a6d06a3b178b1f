"""Profiles of days made by Spark: the plan that the application executes, and what it left taken into the store.

Features, by segment too, are counted by Python workers file by file (``file_profile``), and scores computed by the
model's own scorer there (``score_profile``); the workers get this package as an archive. Where they lack the libraries,
or a file is too large to be held, one SQL statement a day counts the features, which needs nothing on the cluster but
Spark and costs three to four times as much; the scores are left out, the report says why, and whoever asks for the
profile next makes it.

A plan names the days by the content of their files, so that what is taken is of the very rows that were read, by
whichever try of a task, and for whichever model was in production when it was made. Taking it twice changes nothing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import airflow_provider_sml
from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.expressions import SQL_TYPES, identifier
from airflow_provider_sml.ml.lake import Lake, LakeFile
from airflow_provider_sml.ml.monitoring import file_profile, profile_sql
from airflow_provider_sml.ml.monitoring.night_profiles import NightProfiles, Unread, column_types
from airflow_provider_sml.ml.monitoring.profile import Profile, merge
from airflow_provider_sml.ml.monitoring.profile_sql import Column
from airflow_provider_sml.ml.monitoring.profile_store import ProfileStore, content

log = logging.getLogger(__name__)


def write_plan(lake: Lake, table: str, profiles: NightProfiles, unread: Unread, output: Path) -> list[LakeFile]:
    """Write the plan for the days that lack a profile, with all that the application needs beside Spark.

    :param lake: where the table is.
    :param table: its name.
    :param profiles: of the model in production.
    :param unread: what lacks a profile, at least one day; of ``profiles``.
    :param output: a folder that does not exist yet.
    :returns: the files that will be read.
    """
    features, scores = unread
    columns = profiles.columns("spark")
    segment = profiles.segment and identifier(profiles.segment, "spark")
    days = features.keys() | scores.keys()
    files = [file for file in lake.files(table, None, min(days), max(days)) if file.day in days]
    by_day = {day: [file.path for file in files if file.day == day] for day in sorted({file.day for file in files})}
    package = _package()
    plan: dict[str, Any] = {
        "do": "profiles",
        "output": str(output),
        "table": table,
        "columns": {name: SQL_TYPES["spark"].get(kind, "STRING") for name, kind in column_types(lake, table).items()},
        "profiled": [[column.name, column.kind] for column in columns],
        "segment": profiles.segment,
        "score_columns": profiles.score_columns,
        "asked": file_profile.asked_of(profiles.features, profiles.types, profiles.segment) if columns else None,
        "definitions": {"features": profiles.of_features, "scores": profiles.of_score},
        "package": str(output / f"package-{hashlib.sha256(package).hexdigest()[:12]}.zip"),
        "bundle": str(output / f"model-{profiles.bundle.digest[:12]}"),
        "days": [
            {
                "day": day.isoformat(),
                "files": paths,
                "view": f"rows_of_{day:%Y%m%d}",
                "features": profile_sql.statement(f"rows_of_{day:%Y%m%d}", columns, "spark", segment=segment)
                if day in features and columns
                else None,
                "score": day in scores,
                "content": content(paths),
                "largest": max(file.bytes for file in files if file.day == day),
            }
            for day, paths in by_day.items()
        ],
    }
    storage.write(storage.place(plan["package"]), package)
    if scores:
        profiles.bundle.write(storage.place(plan["bundle"]))
    storage.write(output / "plan.json", json.dumps(plan))
    return files


def take(lake: Lake, output: Path) -> tuple[list[dt.date], list[dt.date], str]:
    """Keep the profiles that the application left, and remove its folder.

    A day that was published again meanwhile is left out: its profile would be of rows that nobody reads any more.

    :param lake: where they are kept.
    :param output: the folder of the plan.
    :returns: the days whose features and whose score have been kept, and why scores were left out, if they were.
    """
    plan = json.loads((output / "plan.json").read_text())
    report = json.loads((output / "report.json").read_text())
    reason = report["no_scores"]
    for why in sorted(set(report["by_sql"].values())):
        days = sorted(day for day, told in report["by_sql"].items() if told == why)
        log.info("%d days from %s were counted by SQL, not by Python workers (%s)", len(days), days[0], why)
    columns = [Column(name, kind) for name, kind in plan["profiled"]]
    stores = {part: ProfileStore(lake, plan["table"], of) for part, of in plan["definitions"].items()}
    contents = stores["features"].contents([dt.date.fromisoformat(one["day"]) for one in plan["days"]])
    kept: dict[str, list[dt.date]] = {"features": [], "scores": []}

    def keep(part: str, day: dt.date, profile: Profile) -> None:
        stores[part].put(day, contents[day], profile)
        kept[part].append(day)

    for one in plan["days"]:
        day = dt.date.fromisoformat(one["day"])
        if contents.get(day) != one["content"]:
            log.warning("%s was published again while it was profiled; its profile is left out", day)
            continue
        if one["features"]:
            if one["day"] in report["by_sql"]:
                keep("features", day, profile_sql.read(_rows(output / "features" / one["day"]), columns))
            else:
                keep("features", day, _merged(output / "features" / one["day"]))
        if one["score"] and not reason:
            keep("scores", day, _merged(output / "scores" / one["day"]))
    storage.remove_folder(output)
    return kept["features"], kept["scores"], reason


def _merged(folder: Path) -> Profile:
    """The profile of all rows, of which workers left parts."""
    parts = sorted(row[0] for row in _rows(folder))  # the same sums each time
    return merge([Profile.load(json.loads(part)) for part in parts])


def _rows(folder: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of the Parquet files in a folder."""
    for entry in storage.entries(folder):
        if entry.path.endswith(".parquet"):
            table = storage.read_table(entry.path)
            yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def _package() -> bytes:
    """What of this package the workers need, as an archive that Python imports from; the same files, the same bytes."""
    root = Path(airflow_provider_sml.__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted([*root.glob("*.py"), *(root / "ml").rglob("*.py")]):
            packed.writestr(zipfile.ZipInfo(str(Path(root.name) / path.relative_to(root))), path.read_bytes())
    return archive.getvalue()
