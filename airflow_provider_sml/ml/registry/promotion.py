"""Moving an alias, so that its history misses no move: the one place that sets aliases in MLflow.

A move is written on the version first (``sml.alias.<alias>``: what is about to be done), then the alias is set, then
the line is added to the history, then the version gets the line's hash. Whoever moves an alias next, or runs the
command ``mend``, finds an alias that does not point to where its last line says, and writes the missing line: from
what stands on the version when the mover was killed in between, or as a move by somebody unknown when the alias was
moved by other means. The alias is MLflow's, so of two movers at once the last one wins; the history has both.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from airflow_provider_sml.errors import CommitError
from airflow_provider_sml.ml.registry.history import KEY, History, Line

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Prefix of the tag of a version that tells of its last move: the move as JSON while it is under way, then the hash.
STATE = "sml.alias."
#: Rounds of mending; more would be needed only while others move the same alias without end.
_ROUNDS = 5
UNKNOWN = "unknown: not moved by this provider"


def person() -> str:
    """Who runs this process, as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def read(client: MlflowClient, name: str) -> tuple[History, dict[str, str]]:
    """The history of a model, and the version of each alias, both of one moment."""
    model = client.get_registered_model(name)
    return History(model.tags), {alias: str(version) for alias, version in model.aliases.items()}


def move(
    client: MlflowClient, name: str, version: str, alias: str, by: str = "", evidence: Mapping[str, str] | None = None
) -> Line | None:
    """Point an alias at a version and write it down; what an earlier mover left undone is written first.

    :param client: of the registry.
    :param name: registered model.
    :param version: the version.
    :param alias: the alias.
    :param by: who or what moves it; the user of this process when empty.
    :param evidence: what the move rests on.
    :returns: the line; None when the alias points there already.
    """
    by = by or person()
    aliases = mend(client, name, by)[1]
    if aliases.get(alias) == version:
        return None
    planned = Line(
        uuid.uuid4().hex, _now(), alias, aliases.get(alias, ""), version, by, dict(evidence or {})
    ).shortened()  # fmt: skip
    client.set_model_version_tag(name, version, f"{STATE}{alias}", planned.text)
    client.set_registered_model_alias(name, alias, version)
    written = _append(client, name, planned)
    mend(client, name, by)  # of two movers at once, the history ends where the alias does
    return written


def mend(client: MlflowClient, name: str, by: str = "") -> tuple[list[Line], dict[str, str]]:
    """Write the lines that are missing; nothing is done where none is.

    :param client: of the registry.
    :param name: registered model.
    :param by: who mends; the user of this process when empty.
    :returns: the lines, and the version of each alias.
    :raises CommitError: when others move the alias faster than it can be written down.
    """
    written: list[Line] = []
    for _ in range(_ROUNDS):
        history, aliases = read(client, name)
        astray = history.astray(aliases)
        if not astray:
            return written, aliases
        for alias, (said, found) in astray.items():
            written.append(_append(client, name, _missing(client, history, name, alias, said, found, by or person())))
    raise CommitError(f"the aliases of {name} are being moved all the time", todo="run it again")


def move_to(client: MlflowClient, name: str, version: str, alias: str) -> str:
    """Id of the move by which an alias came to a version; empty when nothing tells of it.

    :param client: of the registry.
    :param name: registered model.
    :param version: that the alias points to.
    :param alias: the alias.
    """
    state = client.get_model_version(name, version).tags.get(f"{STATE}{alias}", "")
    if state.startswith("{"):  # under way
        try:
            return Line.load(state).move
        except ValueError:
            return ""
    last = read(client, name)[0].last(alias)
    return last.move if last is not None and (last.hash, last.after) == (state, version) else ""


def anchors(client: MlflowClient, name: str) -> Iterator[tuple[str, str]]:
    """Of each version that an alias was moved to: what it is in words, and the hash of the line that says so."""
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        for version in page:
            for key, value in version.tags.items():
                if key.startswith(STATE) and not value.startswith("{"):
                    yield f"{key.removeprefix(STATE)} to version {version.version}", value
        token = page.token
        if not token:
            return


def _missing(client: MlflowClient, history: History, name: str, alias: str, said: str, found: str, by: str) -> Line:
    """The line of a move that nobody has written down."""
    recorded = f"{_now()} by {by}"
    state = client.get_model_version(name, found).tags.get(f"{STATE}{alias}", "") if found else ""
    if state.startswith("{"):
        try:
            planned = Line.load(state)
        except ValueError:
            planned = None
        if planned and (planned.alias, planned.after) == (alias, found) and not _has(history, planned.move):
            return replace(planned, before=said, recorded=recorded)
    of_alias = [line for line in history.lines if line.alias == alias]
    if len(of_alias) > 1 and of_alias[-2].hash == state and of_alias[-1].before != found:
        # Two moved at once, neither seeing the other, and the alias is the one's whose line is not the last.
        once, last = of_alias[-2:]
        again = f"again-{once.move}-{last.move}"
        return Line(again, _now(), alias, said, found, once.by, once.evidence, recorded)
    return Line(uuid.uuid4().hex, _now(), alias, said, found, UNKNOWN, {}, recorded)


def _has(history: History, wanted: str) -> bool:
    return any(line.move == wanted for line in history.lines)


def _append(client: MlflowClient, name: str, line: Line) -> Line:
    """Add a line, unless somebody has written that move down meanwhile; gives the one that is there."""
    history, _ = read(client, name)
    there = next((each for each in history.lines if each.move == line.move), None)
    if there is None:
        there = replace(line, parents=history.heads)
        client.set_registered_model_tag(name, f"{KEY}{there.hash}", there.text)
    if there.after:
        client.set_model_version_tag(name, there.after, f"{STATE}{there.alias}", there.hash)
    return there


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


def shown(line: Line) -> dict[str, object]:
    """A line for people and programs: as it is stored, with its hash."""
    return {"hash": line.hash, **asdict(line)}


def told(line: Line) -> str:
    """A line in one line of text."""
    evidence = json.dumps(line.evidence, sort_keys=True) if line.evidence else ""
    late = f" (written {line.recorded})" if line.recorded else ""
    way = f"{line.before or 'none'} -> {line.after or 'none'}"
    return f"{line.at[:19]}Z  {line.alias:<12} {way:<12} {line.by}{late}  {evidence}  {line.hash[:12]}".rstrip()
