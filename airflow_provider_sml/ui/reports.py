"""The reports of one model as they lie on disk: nights, gate verdicts, evaluations, searches.

Numbers come from the small JSON files; the HTML pages are only found here, never read. A file that is damaged is shown
as such and hides no other. Nothing outside the model's folder is ever found: names must have their known form, and no
link is followed below the reports folder. It writes nothing.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

NIGHTS = 60
GATES = 30
LARGEST_JSON = 4_000_000


@dataclass(frozen=True)
class Kind:
    """A kind of report.

    :param title: what a reader calls it.
    :param stage: the stage of the model that writes it, whose DAG one must be allowed to read.
    :param key: the form of its key: a day, a version, the id of a model or a search.
    :param file: where its page lies under the model's folder.
    """

    title: str
    stage: str
    key: re.Pattern[str]
    file: str


_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
KINDS = {
    "nights": Kind("Night of", "monitor", _DAY, "nights/{key}.html"),
    "performance": Kind("Performance, night of", "monitor", _DAY, "performance/{key}.html"),
    "decisions": Kind("Decision, night of", "monitor", _DAY, "decisions/{key}.html"),
    "gate": Kind("Gate of version", "train", _WORD, "gate/{key}/gate.html"),
    "search": Kind("Search", "train", _WORD, "search/{key}/search.html"),
    "costs": Kind("Costs of run", "train", _WORD, "costs/{key}/costs.html"),
    "lineage": Kind("Lineage of version", "train", _WORD, "lineage/{key}/lineage.html"),
    "evaluation": Kind("Evaluation of model", "train", _WORD, "evaluation/{key}/evaluation.html"),
}


class Column(BaseModel):
    """One column of a night, compared with its reference."""

    name: str
    method: str = ""
    value: float | None = None
    threshold: float | None = None
    drifted: bool = False


class Performance(BaseModel):
    """How well a day was predicted, once its labels had arrived."""

    day: dt.date
    rows: int = 0
    auc: float | None = None
    log_loss: float | None = None
    ece: float | None = None


class Night(BaseModel):
    """One night's monitoring."""

    day: dt.date
    version: str | int | None = None
    verdict: str
    share: float | None = None
    drifted: list[str] = []
    columns: list[Column] = []
    rows: int | None = None
    performance: list[Performance] = []


class Check(BaseModel):
    """One check of the gate."""

    name: str
    passed: bool
    value: str | float | None = None
    limit: str | float | None = None
    todo: str | None = None


class Gate(BaseModel):
    """What the gate said of a version."""

    version: str | int
    model_id: str | None = None
    passed: bool
    checks: list[Check] = []
    time: str | None = None


@dataclass(frozen=True)
class Damaged:
    """A report whose numbers cannot be read.

    :param key: its day or version.
    :param error: why.
    """

    key: str
    error: str


Report = TypeVar("Report", bound=BaseModel)


class Reports:
    """The reports of one model.

    :param root: the reports folder of the project; None when it cannot be read from here.
    :param name: of the model.
    """

    def __init__(self, root: Path | None, name: str) -> None:
        self._root = root
        self._name = name

    def nights(self, limit: int = NIGHTS) -> list[Night | Damaged]:
        """The last nights, newest first."""
        days = self._keys("nights", _DAY, ".json")
        return [self._load(Night, day, f"nights/{day}.json") for day in sorted(days, reverse=True)[:limit]]

    def gates(self, limit: int = GATES) -> list[Gate | Damaged]:
        """The last gate verdicts, newest version first."""
        versions = sorted(self._keys("gate", _WORD, ""), key=_counted, reverse=True)[:limit]
        return [self._load(Gate, version, f"gate/{version}/gate.json") for version in versions]

    def page(self, kind: str, key: str) -> Path | None:
        """The HTML page of a report; None when there is none, or the key has not the form that it must have."""
        known = KINDS.get(kind)
        if known is None or not known.key.fullmatch(key):
            return None
        return self._file(known.file.format(key=key))

    def _keys(self, folder: str, form: re.Pattern[str], suffix: str) -> list[str]:
        if self._root is None:
            return []
        try:
            names = [path.name for path in (self._root / self._name / folder).iterdir()]
        except OSError:
            return []
        return [key for name in names if name.endswith(suffix) and form.fullmatch(key := name.removesuffix(suffix))]

    def _load(self, form: type[Report], key: str, file: str) -> Report | Damaged:
        path = self._file(file)
        if path is None:
            return Damaged(key, "there is no such file")
        try:
            if path.stat().st_size > LARGEST_JSON:
                return Damaged(key, f"the file is larger than {LARGEST_JSON:,} bytes")
            return form.model_validate_json(path.read_bytes())
        except OSError as error:
            return Damaged(key, error.strerror or "it cannot be read")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return Damaged(key, ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]])))

    def _file(self, name: str) -> Path | None:
        """A regular file of the model; the reports folder itself may be a link, nothing below it."""
        if self._root is None:
            return None
        try:
            wanted = self._root.resolve(strict=True) / self._name / name
            return wanted if wanted.resolve(strict=True) == wanted and wanted.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None


def realised(nights: list[Night | Damaged]) -> dict[dt.date, Performance]:
    """The performance of each day, as the latest night measured it.

    :param nights: newest first.
    """
    found: dict[dt.date, Performance] = {}
    for night in reversed(nights):
        if isinstance(night, Night):
            found.update({item.day: item for item in night.performance})
    return found


def _counted(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else -1, version)
