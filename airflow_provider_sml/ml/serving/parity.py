"""Score parity: a server that is about to go live must give the scores that training gave on stored rows.

It compares numbers, over HTTP or as the caller asks for them; what the rows are and what was expected is the caller's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from airflow_provider_sml.errors import DeploymentError

BATCH = 1000


@dataclass(frozen=True)
class ParityResult:
    """What a check of parity saw.

    :param rows: rows compared.
    :param worst: largest absolute difference of two scores.
    :param worst_row: position of that row.
    :param tolerance: the largest difference allowed.
    """

    rows: int
    worst: float
    worst_row: int
    tolerance: float


def check_parity(
    url: str,
    rows: Sequence[Mapping[str, Any]],
    expected: Sequence[float],
    tolerance: float = 1e-6,
    *,
    batch: int = BATCH,
    timeout: float = 60.0,
) -> ParityResult:
    """Compare the scores of a server with the expected ones.

    :param url: address of ``POST /invocations``.
    :param rows: raw columns of each row as JSON-able values; times as ISO 8601.
    :param expected: the score of each row.
    :param tolerance: largest absolute difference allowed.
    :param batch: rows per request.
    :param timeout: seconds per request.
    :raises DeploymentError: when there is nothing to compare, a request fails, or a score is too far off.
    """
    # Proxies of the environment are for the outside world, not for a server on this machine.
    with httpx.Client(timeout=timeout, trust_env=False) as client:
        return compare(url, rows, expected, lambda part: _scores(client, url, part), tolerance, batch=batch)


def compare(
    what: str,
    rows: Sequence[Mapping[str, Any]],
    expected: Sequence[float],
    score: Callable[[list[dict[str, Any]]], list[float]],
    tolerance: float = 1e-6,
    *,
    batch: int = BATCH,
) -> ParityResult:
    """Compare the scores of anything that scores with the expected ones.

    :param what: what scores, for messages.
    :param rows: raw columns of each row as JSON-able values; times as ISO 8601.
    :param expected: the score of each row.
    :param score: gives the scores of some rows.
    :param tolerance: largest absolute difference allowed.
    :param batch: rows per question.
    :raises DeploymentError: when there is nothing to compare, or a score is too far off.
    """
    if not rows or len(rows) != len(expected):
        raise DeploymentError(
            "score parity cannot be checked",
            expected="at least one stored row, and a score for each",
            found=f"{len(rows)} rows and {len(expected)} scores",
        )
    scores: list[float] = []
    for start in range(0, len(rows), batch):
        scores += score([dict(row) for row in rows[start : start + batch]])
    off = [abs(score - wanted) for score, wanted in zip(scores, expected, strict=True)]
    off = [math.inf if math.isnan(value) else value for value in off]
    worst_row = max(range(len(off)), key=off.__getitem__)
    if off[worst_row] > tolerance:
        wrong = sum(value > tolerance for value in off)
        raise DeploymentError(
            f"{what} scores otherwise than training did: {wrong} of {len(rows)} rows off by more than {tolerance:g}",
            expected=f"{expected[worst_row]:.9g} for row {worst_row}, the worst",
            found=f"{scores[worst_row]:.9g}",
            todo="compare the versions of the model's library and of this package that trained and that serve; "
            f"the row is {json.dumps(dict(rows[worst_row]), default=str)[:400]}",
        )
    return ParityResult(len(rows), off[worst_row], worst_row, tolerance)


def _scores(client: httpx.Client, url: str, rows: list[dict[str, Any]]) -> list[float]:
    try:
        answer = client.post(url, json={"instances": rows})
    except httpx.HTTPError as error:
        raise DeploymentError(f"{url} does not answer", found=f"{type(error).__name__}: {error}") from error
    if answer.status_code != 200:
        raise DeploymentError(
            f"{url} refuses stored rows", expected="200", found=f"{answer.status_code}: {answer.text[:600]}"
        )
    return predictions(url, answer.content, len(rows))


def predictions(what: str, answer: bytes, rows: int) -> list[float]:
    """The scores in an answer of ``POST /invocations``.

    :raises DeploymentError: when it does not hold one for each row.
    """
    try:
        scores = json.loads(answer)["predictions"]
    except (ValueError, LookupError, TypeError):
        scores = None
    if not isinstance(scores, list) or len(scores) != rows:
        raise DeploymentError(f"{what} gives no score for each row", expected=rows, found=repr(answer[:200]))
    return [math.nan if score is None else float(score) for score in scores]
