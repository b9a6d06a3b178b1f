"""The verdict: every check of a version with its value, its limit and what to do, frozen, as JSON and back, as tags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml import storage

VERDICT_FILE, PAGE_FILE, APPROVAL_FILE = "gate.json", "gate.html", "approval.json"
#: MLflow takes values of up to 5,000 characters; a page of tags should stay readable.
_LONGEST_TAG = 400


@dataclass(frozen=True)
class Check:
    """One check.

    :param name: of the check.
    :param passed: whether it passed.
    :param value: what was found.
    :param limit: what was asked for.
    :param todo: what to do when it failed.
    :param group: what several checks belong to, such as the column of their slices; empty for one that stands alone.
    """

    name: str
    passed: bool
    value: str
    limit: str
    todo: str
    group: str = ""

    @property
    def line(self) -> str:
        """The check in one line."""
        said = f"{'passed' if self.passed else 'failed'}: {self.value}; asked for: {self.limit}"
        return said if self.passed else f"{said}; to do: {self.todo}"


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a version.

    :param name: registered model.
    :param version: version number.
    :param model_id: the trained model's id.
    :param champion: the version in production when it was judged; None when there was none, or it was this one.
    :param checks: all of them, in the order of the page.
    :param notes: what was not judged, and how things were measured.
    :param time: of the verdict, ISO 8601.
    """

    name: str
    version: str
    model_id: str
    champion: str | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    time: str

    @property
    def passed(self) -> bool:
        """Whether every check passed; without any there is no evidence."""
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return asdict(self) | {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Take a verdict back.

        :param value: what ``to_json`` gave.
        :raises IntegrityError: when it is something else, or says that it passed where its checks say otherwise.
        """
        try:
            given = {key: item for key, item in value.items() if key != "passed"}
            given["checks"] = tuple(Check(**check) for check in given["checks"])
            verdict = cls(**given | {"notes": tuple(given["notes"])})
            sound = verdict.passed == value["passed"]
        except (AttributeError, KeyError, TypeError) as error:
            raise _damaged(str(error)) from error
        if not sound:
            raise _damaged(f"passed: {value['passed']} with {len(verdict.failed)} failed checks")
        return verdict

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The verdict that lies in a folder.

        :raises IntegrityError: when there is none, or it is damaged.
        """
        try:
            return cls.from_json(json.loads((folder / VERDICT_FILE).read_text()))
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{folder} holds no verdict", expected=VERDICT_FILE, found=str(error), todo="clear the gate's task"
            ) from error

    def write(self, folder: Path) -> None:
        """Write it as ``gate.json``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        storage.write(folder / VERDICT_FILE, json.dumps(self.to_json(), indent=1))

    def tags(self) -> dict[str, str]:
        """What MLflow shows with the version: ``gate``, and ``gate.NAME`` of each check.

        Checks of one group share a tag, because a model may have hundreds of slices.
        """
        said = {"gate": "passed" if self.passed else "failed"}
        return said | {f"gate.{_key(name)}": text[:_LONGEST_TAG] for name, text in self._told()}

    def _told(self) -> Iterator[tuple[str, str]]:
        groups: dict[str, list[Check]] = {}
        for check in self.checks:
            if check.group:
                groups.setdefault(check.group, []).append(check)
            else:
                yield check.name, check.line
        for name, checks in groups.items():
            failed = [check for check in checks if not check.passed]
            word = "failed" if failed else "passed"
            told = "".join(f"; {check.name}: {check.value}, asked for {check.limit}" for check in failed)
            yield name, f"{word}: {len(checks) - len(failed)} of {len(checks)}{told}"


def _key(name: str) -> str:
    """A name that MLflow takes in the key of a tag."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _damaged(found: str) -> IntegrityError:
    return IntegrityError(
        "the verdict is damaged", expected="what the gate wrote", found=found[:400], todo="clear the gate's task"
    )
