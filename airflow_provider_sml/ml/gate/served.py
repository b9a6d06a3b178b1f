"""What can be known only of the stored model itself: its size, its score parity, the time it takes for one row.

The bundle is the one that would be deployed, fetched from the registry. Parity and time are measured through the very
process that serves it, started on a private port of the loopback interface for this and ended after it. What could not
be measured is told with the reason, and fails its check.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DeploymentError, SmlError
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, Bundle, Scorer, file_of
from airflow_provider_sml.ml.contract.quantities import duration, size
from airflow_provider_sml.ml.gate.verdict import Check

ROWS, TOLERANCE, REQUESTS = 200, 1e-6, 300
#: Requests before the measurement: the first ones pay for imports and caches.
_WARM_UP = 30
_UNMEASURED = "was not measured"


@dataclass(frozen=True)
class Served:
    """What was measured of a stored model.

    :param size: bytes of the model.
    :param rows: stored rows whose scores were compared; 0 when none were.
    :param worst: largest absolute difference of two scores, infinite where a score is missing.
    :param through: ``process`` or ``bundle``: what scored them.
    :param p50: median seconds of one request with one row; None when none were sent.
    :param p99: 99th percentile of them.
    :param requests: requests measured.
    :param problem: why something was not measured; empty when all was.
    """

    size: int
    rows: int = 0
    worst: float = math.inf
    through: str = "process"
    p50: float | None = None
    p99: float | None = None
    requests: int = 0
    problem: str = ""


def measure(
    folder: Path,
    model: str,
    version: str,
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    settings: Mapping[str, Any],
) -> Served:
    """Measure what the settings ask for.

    :param folder: of the bundle.
    :param model: name of the registered model.
    :param version: its version.
    :param rows: stored rows as a client would send them.
    :param scores: the score that training gave each.
    :param settings: the gate of the spec.
    :raises ConfigurationError: when what serves is not installed.
    """
    file = file_of(json.loads((folder / BUNDLE_FILE).read_text()))
    found = Served(size=(folder / file).stat().st_size)
    parity, latency = settings.get("parity"), settings.get("latency")
    try:
        if not rows and (parity is not None or latency):
            raise DeploymentError("nothing can be sent to it", expected="at least one stored row", found="none")
        if parity is not None and parity.get("through") == "bundle":
            found = replace(found, through="bundle", rows=len(rows), worst=_reloaded(folder, rows, scores))
            parity = None
        if parity is not None or latency:
            found = _through_process(found, folder, model, version, rows, scores, parity, latency)
    except ConfigurationError:
        raise
    except SmlError as error:
        found = replace(found, problem=str(error))
    return found


def checks(found: Served | None, settings: Mapping[str, Any]) -> Iterator[Check]:
    """The checks on what was measured.

    :param found: None when nothing was.
    :param settings: the gate of the spec.
    """
    problem = _UNMEASURED if found is None or not found.problem else f"{_UNMEASURED}: {found.problem[:600]}"
    todo = "mend that and clear this task"
    compare = "compare the versions of the model's library and of this package that trained and that serve"
    if wanted := settings.get("size"):
        most = size(wanted["max"])
        yield Check(
            "size", found is not None and found.size <= most,
            problem if found is None else f"{found.size:,} bytes", f"at most {most:,} bytes",
            "a smaller model, such as one of fewer rounds or shallower trees",
        )  # fmt: skip
    if (wanted := settings.get("parity")) is not None:
        tolerance = wanted.get("tolerance") or TOLERANCE
        rows = 0 if found is None else found.rows
        where = "the serving process" if found is None or found.through == "process" else "the reloaded bundle"
        yield Check(
            "parity", found is not None and rows > 0 and found.worst <= tolerance,
            f"{found.worst:.3g} at most on {rows:,} stored rows" if found and rows else problem,
            f"scores of {where} within {tolerance:g} of training's",
            compare if rows else todo,
        )  # fmt: skip
    for name in ("p50", "p99"):
        if (limit := (settings.get("latency") or {}).get(name)) is None:
            continue
        longest, value = _seconds(limit), getattr(found, name, None)
        yield Check(
            f"latency {name}", value is not None and value <= longest,
            problem if value is None else f"{1000 * value:.2f} ms for one row",
            f"at most {1000 * longest:g} ms",
            todo if value is None else "a smaller model; look at what else ran on this machine",
        )  # fmt: skip


def note(found: Served) -> str:
    """How the time of one row was measured."""
    return (
        f"Latency: {found.requests} requests of one row each, one after the other over one connection to the serving "
        f"process on the loopback interface of this worker ({os.cpu_count()} processors), prediction log included."
    )


def _seconds(limit: Any) -> float:
    """Seconds of a limit: a number of seconds, or a duration such as ``20ms``."""
    return float(limit) if isinstance(limit, int | float) else duration(limit).total_seconds()


def _reloaded(folder: Path, rows: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> float:
    """Largest difference of the scores that the bundle gives in this process, from the raw columns."""
    from airflow_provider_sml.ml.serving.parity import compare
    from airflow_provider_sml.ml.serving.requests import RequestChecker

    bundle = Bundle.read(folder)
    scorer, checker = Scorer(bundle), RequestChecker(bundle)

    def score(part: list[dict[str, Any]]) -> list[float]:
        return [float(value) for value in scorer.score(checker.check(part).rows)]

    return compare(str(folder), rows, scores, score, math.inf).worst


def _through_process(
    found: Served,
    folder: Path,
    model: str,
    version: str,
    rows: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    parity: Mapping[str, Any] | None,
    latency: Mapping[str, Any] | None,
) -> Served:
    """Start the serving process, ask it, and end it."""
    from airflow_provider_sml.ml.serving.local import LocalEndpoint
    from airflow_provider_sml.ml.serving.parity import check_parity

    with tempfile.TemporaryDirectory(prefix="sml-gate-") as temporary:
        endpoint = LocalEndpoint(Path(temporary), "gate", _free_port())
        with endpoint.start_candidate(folder, model, version) as candidate:
            if parity is not None:
                checked = check_parity(candidate.url, rows, scores, math.inf)
                found = replace(found, rows=checked.rows, worst=checked.worst)
            if latency:
                times = _times(candidate.url, rows, int(latency.get("requests") or REQUESTS))
                # The next observed value at least: a percentile between two of them was nobody's time.
                p50, p99 = np.percentile(times, [50, 99], method="higher")
                found = replace(found, p50=float(p50), p99=float(p99), requests=len(times))
    return found


def _free_port() -> int:
    """A port that the endpoint could listen on; nothing of it goes public here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _times(url: str, rows: Sequence[Mapping[str, Any]], requests: int) -> list[float]:
    """Seconds from sending one row to having its score, request after request over one connection.

    :raises DeploymentError: when a row is refused, or the process does not answer.
    """
    parts = urlsplit(url)
    bodies = [json.dumps({"instances": [dict(row)]}).encode() for row in rows]
    # http.client, because it minds no proxies of the environment.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30.0)
    times = []
    try:
        for number in range(_WARM_UP + requests):
            start = time.perf_counter()
            connection.request(
                "POST", parts.path, bodies[number % len(bodies)], {"Content-Type": "application/json"}
            )  # fmt: skip
            answer = connection.getresponse()
            content = answer.read()
            if number >= _WARM_UP:
                times.append(time.perf_counter() - start)
            if answer.status != 200:
                raise DeploymentError(f"{url} refuses a stored row", expected="200", found=content[:400])
    except (OSError, http.client.HTTPException) as error:
        raise DeploymentError(f"{url} does not answer", found=f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return times
