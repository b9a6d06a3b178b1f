"""``python -m airflow_provider_sml.ml.registry``: the history of a model's aliases, and lineage, for people.

``history`` prints every move, ``verify`` checks the chain and exits with 1 when something is wrong, ``at`` says what an
alias pointed to at a time, ``mend`` writes the lines of moves that nobody has written down. ``lineage`` walks from a
version to what it was made of, or with ``--table`` from data to the versions that saw them. ``--mlflow`` is a server's
address or the folder of the embedded store; a server's credentials are taken from MLFLOW_TRACKING_USERNAME,
MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError, SmlError
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.ml.registry.promotion import shown, told


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    given = _parser().parse_args(arguments)
    names = ("username", "password", "token")
    credentials = {name: os.environ.get(f"MLFLOW_TRACKING_{name.upper()}", "") for name in names}
    try:
        return int(given.run(Registry(given.mlflow, credentials), given))
    except SmlError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.ml.registry", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--mlflow", required=True, help="address of the server, or folder of the embedded store")
    commands = parser.add_subparsers(dest="command", required=True)
    history = commands.add_parser("history", parents=[common], help="print every move of the aliases")
    history.add_argument("name", metavar="MODEL")
    history.add_argument("--alias", default="", help="only of this alias")
    history.add_argument("--json", action="store_true", help="one line of JSON for each move")
    history.set_defaults(run=_history)
    verify = commands.add_parser("verify", parents=[common], help="check the chain")
    verify.add_argument("name", metavar="MODEL")
    verify.add_argument("--head", default="", help="hash of a line that was noted before: it must still be there")
    verify.set_defaults(run=_verify)
    at = commands.add_parser("at", parents=[common], help="what an alias pointed to at a time")
    at.add_argument("name", metavar="MODEL")
    at.add_argument("time", help="ISO 8601; UTC when it names no zone")
    at.add_argument("--alias", default=CHAMPION)
    at.set_defaults(run=_at)
    mend = commands.add_parser("mend", parents=[common], help="write the missing lines")
    mend.add_argument("name", metavar="MODEL")
    mend.set_defaults(run=_mend)
    lineage = commands.add_parser("lineage", parents=[common], help="what made a version, or what saw data, as JSON")
    lineage.add_argument("name", metavar="MODEL", nargs="?", default="")
    lineage.add_argument("--version", default=CHAMPION, help="number or alias; the champion when absent")
    lineage.add_argument("--table", default="", help="of the lake: every version that saw it")
    lineage.add_argument("--snapshot", default="", help="only this snapshot of the table")
    lineage.add_argument("--day", type=dt.date.fromisoformat, help="only this day of the table")
    lineage.add_argument("--lake", default="", help="folder of the lake: tells whether the data are still the same")
    lineage.add_argument("--html", metavar="FILE", type=Path, help="write a page there as well")
    lineage.set_defaults(run=_lineage)
    return parser


def _history(registry: Registry, given: argparse.Namespace) -> int:
    for line in registry.history(given.name).lines:
        if given.alias in ("", line.alias):
            print(json.dumps(shown(line)) if given.json else told(line))
    return 0


def _verify(registry: Registry, given: argparse.Namespace) -> int:
    history, wrong = registry.history(given.name), registry.verify(given.name, given.head)
    for problem in wrong:
        print(problem)
    heads = ", ".join(history.heads) or "none"
    print(f"{given.name}: {len(history.lines)} moves, {len(wrong) or 'no'} problems; last line: {heads}")
    return 1 if wrong else 0


def _at(registry: Registry, given: argparse.Namespace) -> int:
    try:
        time = dt.datetime.fromisoformat(given.time)
    except ValueError as error:
        raise ConfigurationError("this is no time", expected="2026-01-31T12:00:00+00:00", found=given.time) from error
    time = time if time.tzinfo else time.replace(tzinfo=dt.UTC)
    line = registry.history(given.name).at(given.alias, time)
    if line is None or not line.after:
        print(f"{given.name} had no {given.alias} at {time.isoformat()}")
        return 1
    print(f"version {line.after}, since {line.at}, moved by {line.by}")
    return 0


def _lineage(registry: Registry, given: argparse.Namespace) -> int:
    from airflow_provider_sml.ml.lake import Lake
    from airflow_provider_sml.ml.registry import report

    lake = Lake(given.lake) if given.lake else None
    if given.table:
        found = report.of_data(registry, given.table, given.snapshot, given.day, lake, given.name)
    else:
        wanted = {"version": given.version} if given.version.isdigit() else {"alias": given.version}
        version = registry.version(given.name, **wanted)
        if version is None:
            raise ConfigurationError(f"there is no {given.name} {given.version}", expected="a version", found="none")
        found = report.of_version(registry, version, lake)
    print(json.dumps(found, indent=1))
    if given.html:
        given.html.write_text(report.page(found))
    return 0


def _mend(registry: Registry, given: argparse.Namespace) -> int:
    lines = registry.mend(given.name)
    for line in lines:
        print(told(line))
    print(f"{given.name}: {len(lines) or 'no'} lines were missing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
