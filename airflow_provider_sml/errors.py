"""The errors of this package: each says what was expected, what was found and what to do.

Nothing here imports Airflow, so that the engine can raise these anywhere. The operators decide what a retry may mend:
an error with ``retryable = False`` fails the task at once (a wrong configuration stays wrong), every other one leaves
the retry to Airflow.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SmlError(Exception):
    """Base of all errors of this package.

    :param message: what happened, in one sentence.
    :param expected: what would have been right.
    :param found: what was there instead.
    :param todo: what the reader can do about it; a question ("did you mean x?") is put beside what was found.
    """

    retryable = True

    def __init__(self, message: str, *, expected: object = None, found: object = None, todo: str | None = None) -> None:
        self.message = message
        self.expected = expected
        self.found = found
        self.todo = todo
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        facts = []
        if self.expected is not None:
            facts.append(f"expected: {self.expected}")
        if self.found is not None:
            facts.append(f"found: {self.found}")
        if self.todo and self.todo.endswith("?"):
            facts.append(self.todo)
        if facts:
            lines.append("  " + "; ".join(facts))
        if self.todo and not self.todo.endswith("?"):
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


class ConfigurationError(SmlError):
    """Something that a person wrote is wrong; trying again changes nothing."""

    retryable = False


class MissingExtraError(ConfigurationError):
    """A library of an optional extra is not installed."""


class ExpressionError(ConfigurationError):
    """An expression is outside the closed subset of SQL, or its types do not fit."""


class DataError(SmlError):
    """The data breaks its contract; the old data stays visible. Landing better data mends it, a retry does not."""

    retryable = False


class GateError(SmlError):
    """A model did not pass its gate; it gets no alias."""

    retryable = False


class JobError(SmlError):
    """A remote or local job failed, was cancelled or ran past its deadline."""


class DeploymentError(SmlError):
    """A deployment did not reach its goal; what served before still serves."""


class DeploymentRolledBack(DeploymentError):
    """A roll-out ended on the old version, which serves on; the new one got no alias. A retry would end the same."""

    retryable = False


class ConflictError(SmlError):
    """Another process changed the same thing first; what it made stays, and nothing of this one is visible."""

    retryable = False


class CommitError(SmlError):
    """A commit did not get its turn among those of other processes; a retry may."""


class IntegrityError(SmlError):
    """Something stored is not what was recorded about it."""

    retryable = False


def did_you_mean(name: object, known: Iterable[object]) -> str | None:
    """The question for the known name that is nearest to one that is not known; None when none is near.

    :param name: what was written.
    :param known: what might have been meant.
    """
    close = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"did you mean {close[0]}?" if close else None


def require(module: str, extra: str) -> None:
    """Check that an optional library can be imported, and name the extra that brings it if not.

    :param module: the module to look for, such as ``"pyspark"``.
    :param extra: the extra of this package that installs it, such as ``"spark"``.
    :raises MissingExtraError: when the module is not installed.
    """
    import importlib.util

    try:
        present = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        present = False
    if not present:
        raise MissingExtraError(
            f"{module} is not installed",
            expected=f"the extra {extra!r} of airflow-provider-sml",
            todo=f"pip install 'airflow-provider-sml[{extra}]'",
        )
