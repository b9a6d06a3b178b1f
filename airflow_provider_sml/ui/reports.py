"""The reports of one model as they lie on disk: nights, gate verdicts, evaluations, searches, costs, sampling plans.

Numbers come from the small JSON files, through the index (``ui.index``), which reads each of them once; the HTML pages
are only found here, never read. A file that is damaged is shown as such and hides no other. Nothing outside the model's
folder is ever found: names must have their known form, and no link is followed below the reports folder.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from airflow_provider_sml.ui.forms import Costs, Damaged, Day, Decision, Gate, Night, Plan, Worth
from airflow_provider_sml.ui.index import DAY, WORD, Index, index_of


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


KINDS = {
    "nights": Kind("Night of", "monitor", DAY, "nights/{key}.html"),
    "performance": Kind("Performance, night of", "monitor", DAY, "performance/{key}.html"),
    "decisions": Kind("Decision, night of", "monitor", DAY, "decisions/{key}.html"),
    "gate": Kind("Gate of version", "train", WORD, "gate/{key}/gate.html"),
    "search": Kind("Search", "train", WORD, "search/{key}/search.html"),
    "costs": Kind("Costs of run", "train", WORD, "costs/{key}/costs.html"),
    "lineage": Kind("Lineage of version", "train", WORD, "lineage/{key}/lineage.html"),
    "evaluation": Kind("Evaluation of model", "train", WORD, "evaluation/{key}/evaluation.html"),
    "sample": Kind("Sampling curve of", "train", DAY, "sample/{key}/plan.html"),
}


class Reports:
    """The reports of one model; what is read is what lay there when it was first asked for.

    :param root: the reports folder of the project; None when it cannot be read from here.
    :param name: of the model.
    """

    def __init__(self, root: Path | None, name: str) -> None:
        self._root = root
        self._name = name

    @cached_property
    def _index(self) -> Index | None:
        return None if self._root is None else index_of(self._root / self._name)

    def nights(self, limit: int | None = None) -> list[Night | Damaged]:
        """The nights, newest first.

        :param limit: how many at most.
        """
        return self._index.newest("nights", Night, limit) if self._index else []

    def worth(self) -> dict[str, Worth | Damaged]:
        """What each night's report of performance said, by its day."""
        return self._index.every("performance", Worth) if self._index else {}

    def decisions(self) -> dict[str, Decision | Damaged]:
        """What was decided of each night, by its day."""
        return self._index.every("decisions", Decision) if self._index else {}

    def days(self) -> tuple[dict[dt.date, Day], dict[dt.date, Day]]:
        """Realised and estimated performance of each day, as the latest night told it."""
        return (self._index.realised(), self._index.estimated()) if self._index else ({}, {})

    def gates(self, limit: int | None = None) -> list[Gate | Damaged]:
        """The gate's verdicts, newest version first.

        :param limit: how many at most.
        """
        return self._index.newest("gate", Gate, limit) if self._index else []

    def judged(self) -> list[str]:
        """The versions with a verdict, newest first; none is opened."""
        return self._index.keys("gate") if self._index else []

    def gates_of(self, versions: Iterable[str]) -> dict[str, Gate | Damaged]:
        """The verdicts of some versions.

        :param versions: their numbers.
        """
        return self._index.some("gate", Gate, versions) if self._index else {}

    def costs(self, limit: int | None = None) -> list[tuple[str, Costs | Damaged]]:
        """What runs cost, the latest report first, with the key of its page."""
        return self._index.latest("costs", Costs, limit) if self._index else []

    def plan(self) -> tuple[str, Plan | Damaged] | None:
        """The newest sampling curve, with the key of its page."""
        found = self._index.latest("sample", Plan, 1) if self._index else []
        return found[0] if found else None

    def page(self, kind: str, key: str) -> Path | None:
        """The HTML page of a report; None when there is none, or the key has not the form that it must have."""
        known = KINDS.get(kind)
        if known is None or not known.key.fullmatch(key):
            return None
        return self._file(known.file.format(key=key))

    def has(self, kind: str, key: str) -> bool:
        """Whether there is such a page; of nights it is known from the listing that the index has made."""
        if self._index is not None and kind in ("nights", "performance", "decisions"):
            return self._index.has_page(kind, key)
        return self.page(kind, key) is not None

    def _file(self, name: str) -> Path | None:
        """A regular file of the model; the reports folder itself may be a link, nothing below it."""
        if self._root is None:
            return None
        try:
            wanted = self._root.resolve(strict=True) / self._name / name
            return wanted if wanted.resolve(strict=True) == wanted and wanted.is_file() else None
        except (OSError, ValueError, RuntimeError):
            return None
