"""What the registry says of a model: its versions with their tags, aliases, their history, and where it was deployed.

Asked in the background and kept for a quarter of a minute, so that a page costs the registry a few requests at most,
and a registry that is slow or down takes no page away: the page then shows what was known before, and says so. Where a
version is served is what its deployment wrote down; no cloud is asked. It changes nothing, and makes no store.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.ui.project import Model

if TYPE_CHECKING:
    from airflow_provider_sml.ml.registry.history import Line

#: Seconds that an answer is good for, and that a page waits for a new one.
FRESH, PATIENCE = 15.0, 5.0
#: Begin of the tags of a version by which deployments tell where it went; target and name of the endpoint follow.
DEPLOYED = "endpoint."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A registered version.

    :param number: its number.
    :param created: when it was registered, ISO 8601.
    :param tags: of ours, without their prefix.
    """

    number: str
    created: str
    tags: Mapping[str, str]

    def number_of(self, tag: str) -> float | None:
        """A tag as a number; None where it is none."""
        try:
            return float(self.tags[tag])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Deployment:
    """A version on an endpoint, as its deployment wrote it down.

    :param endpoint: its name.
    :param target: ``local``, ``sagemaker`` or ``vertex``.
    :param version: number of the version.
    :param percent: its share of the traffic.
    :param mode: ``replace``, ``ab`` or ``shadow``.
    :param spot: on spot machines.
    :param machine: what it runs on, in words.
    :param since: ISO 8601.
    :param address: where it is reached.
    :param run: the task that deployed it, as ``dag/task/run``.
    """

    endpoint: str
    target: str
    version: str
    percent: float
    mode: str = "replace"
    spot: bool = False
    machine: str = ""
    since: str = ""
    address: str = ""
    run: str = ""


@dataclass(frozen=True)
class Registered:
    """What is known of a model's versions.

    :param place: address or folder of the registry.
    :param versions: the newest first.
    :param aliases: version of each alias.
    :param history: every move of an alias, the last one first.
    :param at: when the registry was asked, seconds since 1970.
    :param note: what a reader should know, such as that it does not answer.
    """

    place: str = ""
    versions: Sequence[Version] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Line] = ()
    at: float = 0.0
    note: str = ""

    def version(self, number: str) -> Version | None:
        """A version by its number."""
        return next((version for version in self.versions if version.number == number), None)

    def deployments(self) -> list[Deployment]:
        """What is live where: of each endpoint the version that came to serve last, and what was put beside it."""
        found: dict[tuple[str, str], list[Deployment]] = {}
        for version in self.versions:
            for tag, text in version.tags.items():
                if tag.startswith(DEPLOYED) and (one := _deployment(tag, text, version.number)):
                    found.setdefault((one.endpoint, one.target), []).append(one)
        live: list[Deployment] = []
        for name in sorted(found):
            told = sorted(found[name], key=lambda one: one.since)
            last = max((place for place, one in enumerate(told) if one.mode == "replace"), default=None)
            beside = list({one.mode: one for one in told[0 if last is None else last + 1 :]}.values())
            shared = sum(one.percent for one in beside if one.mode == "ab")
            if last is not None:
                live.append(replace(told[last], percent=max(0.0, 100.0 - shared)))
            live += beside
        return live


def _deployment(tag: str, text: str, version: str) -> Deployment | None:
    try:
        told = json.loads(text)
        target, _, endpoint = tag.removeprefix(DEPLOYED).partition(".")
        return Deployment(
            endpoint, target, version, float(told.get("percent", 100)),
            str(told.get("mode", "replace")), bool(told.get("spot")), str(told.get("machine", "")),
            str(told.get("since", "")), str(told.get("address", "")), str(told.get("run", "")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


# --- asking -----------------------------------------------------------------------------------------------------------

_pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sml-registry")
_lock = threading.Lock()
_known: dict[tuple[str, str], Registered] = {}
_asked: dict[tuple[str, str], Future[Registered]] = {}


def look_up(model: Model) -> Registered:
    """What the registry says of a model; takes ``PATIENCE`` seconds at most, and never raises."""
    place = _place(model)
    key = (place, model.name)
    with _lock:
        known = _known.get(key)
        if known is not None and time.time() - known.at < FRESH:
            return known
        answer = _asked.get(key)
        if answer is None or answer.done():
            answer = _asked[key] = _pool.submit(_ask, place, model.name)
    try:
        found = answer.result(PATIENCE)
    except OutOfTime:
        found = Registered(place, at=time.time(), note="the registry has not answered yet; open this page again")
    except Exception as error:  # whatever the registry's client raises, the rest of the page is still of use
        log.warning("The registry cannot be asked about %s: %s", model.name, error)
        found = Registered(place, at=time.time(), note=f"the registry cannot be asked: {type(error).__name__}")
    else:
        with _lock:
            _known[key] = found
        return found
    if known is not None:
        when = dt.datetime.fromtimestamp(known.at, dt.UTC).isoformat(timespec="seconds")
        found = replace(known, note=f"{found.note}; this is from {when}")
    with _lock:  # the next page need not wait as long for nothing
        _known[key] = replace(found, at=time.time() - FRESH / 2)
    return found


def forget() -> None:
    """Forget what was known, for tests."""
    with _lock:
        _known.clear()


def _place(model: Model) -> str:
    folder = model.place(model.spec.places.mlflow) if "/" in model.spec.places.mlflow else None
    return model.spec.places.mlflow if folder is None else str(folder)


def _ask(place: str, name: str) -> Registered:
    from airflow_provider_sml.hooks.mlflow import MlflowHook

    hook = MlflowHook(place)
    location = hook.location()
    if "://" not in location and not (Path(location) / "mlflow.db").exists():
        return Registered(location, at=time.time())  # opening it would make a store
    from mlflow.exceptions import MlflowException

    registry = hook.get_conn()
    try:
        history, aliases = registry.moves(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return Registered(registry.uri, at=time.time())
    rows = registry.described(f"name = '{name}'")
    versions = [Version(row["version"], row["created"], row["tags"]) for row in reversed(rows)]
    return Registered(registry.uri, versions, aliases, history.lines[::-1], time.time())


def page_of(registry: str, name: str, version: str) -> str:
    """MLflow's own page of a version; empty where the registry is no server.

    :param registry: its address.
    :param name: registered model.
    :param version: number of the version.
    """
    from airflow_provider_sml.links.pages import MlflowLink

    return MlflowLink().address({"registry": registry, "name": name, "version": version})


def run_of(by: Any) -> tuple[str, str, str] | None:
    """DAG, task and run of ``dag/task/run of person``; None when it names none."""
    parts = str(by).split(" of ")[0].split("/")
    return (parts[0], parts[1], parts[2]) if len(parts) >= 3 and all(parts[:3]) else None
