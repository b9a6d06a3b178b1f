"""Prediction logs in the forms that servers write them, read as the same records, for ``skew``.

A record has ``id``, ``time`` (ISO 8601, UTC), ``version``, ``features`` (the raw values that were sent) and ``score``;
what cannot be read is given as None, to be counted. Three forms:

- this package's own server: ``DAY-PID-NUMBER.jsonl``, a line a prediction (``serving.log``);
- SageMaker's data capture: ``VARIANT/YYYY/MM/DD/HH/*.jsonl`` below the endpoint's folder in S3, a line a request
  (https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html);
- Vertex AI's request-response logging: a BigQuery table, a row a request
  (https://cloud.google.com/vertex-ai/docs/predictions/online-prediction-logging). The payloads are lists of texts: the
  whole body in one, or one for each instance; both are read.

Requests of another form than ``{"instances": [...]}`` or lines of JSON, such as the CSV of SageMaker's own XGBoost
image, carry no ids and are given as None.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from airflow_provider_sml.ml import storage

Record = dict[str, Any]


class ServedLog(Protocol):
    """Where answers of a server were logged."""

    def records(self, first: dt.date, last: dt.date) -> Iterator[Record | None]:
        """The answers of some days.

        :param first: UTC day.
        :param last: UTC day, inclusive.
        """


@dataclass(frozen=True)
class LocalLog:
    """The log of this package's own server.

    :param folder: of it.
    """

    folder: Path

    def records(self, first: dt.date, last: dt.date) -> Iterator[Record | None]:
        """Line by line; the last one of a server that was killed may be cut."""
        for path in sorted(self.folder.glob("????-??-??-*.jsonl")):
            if first.isoformat() <= path.name[:10] <= last.isoformat():
                with path.open("rb") as lines:
                    for line in lines:
                        yield _object(line)


@dataclass(frozen=True)
class SageMakerCapture:
    """What SageMaker's data capture wrote of an endpoint.

    :param folder: ``DestinationS3Uri/ENDPOINT``.
    """

    folder: Path

    def records(self, first: dt.date, last: dt.date) -> Iterator[Record | None]:
        """Request by request; those of shadow variants too, whose version tells them apart."""
        try:
            variants = sorted(str(path).rstrip("/") for path in self.folder.iterdir())
        except FileNotFoundError:
            return
        for variant in variants:
            for day in _days(first, last):
                found = storage.entries(storage.place(f"{variant}/{day:%Y/%m/%d}"))
                for path in sorted(entry.path for entry in found if entry.path.endswith(".jsonl")):
                    with storage.place(path).open("rb") as lines:
                        for line in lines:
                            yield from self._captured(line)

    def _captured(self, line: bytes) -> Iterator[Record | None]:
        try:
            told = json.loads(line)
            captured, when = told["captureData"], str(told["eventMetadata"]["inferenceTime"])
            sent, answered = (_data(captured[side]) for side in ("endpointInput", "endpointOutput"))
        except (ValueError, KeyError, TypeError):
            yield None
            return
        yield from _joined(sent, answered, when, None)


def _data(side: Mapping[str, Any]) -> str:
    if side["encoding"] == "BASE64":
        return base64.b64decode(side["data"]).decode()
    return str(side["data"])


@dataclass(frozen=True)
class VertexRequests:
    """What Vertex AI logged of an endpoint.

    :param rows: gives the rows from one moment to before another: ``deployed_model_id``, ``logging_time``,
        ``request_payload`` and ``response_payload``.
    :param versions: version by id of the deployed model, for answers that do not carry it.
    """

    rows: Callable[[dt.datetime, dt.datetime], Iterable[Mapping[str, Any]]]
    versions: Mapping[str, str] = field(default_factory=dict)

    def records(self, first: dt.date, last: dt.date) -> Iterator[Record | None]:
        """Request by request."""
        start, end = (dt.datetime.combine(day, dt.time(), dt.UTC) for day in (first, last + dt.timedelta(days=1)))
        for row in self.rows(start, end):
            sent, answered = (list(row[f"{side}_payload"] or ()) for side in ("request", "response"))
            when, version = row["logging_time"].isoformat(), self.versions.get(str(row["deployed_model_id"]))
            if len(sent) == len(answered) == 1 and "instances" in (_object(sent[0]) or {}):
                yield from _joined(sent[0], answered[0], when, version)
            else:
                yield from _joined("\n".join(sent), "\n".join(answered), when, version)


def vertex_sql(table: str, start: dt.datetime, end: dt.datetime) -> str:
    """The query of the rows that ``VertexRequests`` takes.

    :param table: ``project.dataset.table``.
    :param start: the first moment.
    :param end: the moment after the last.
    """
    within = " AND ".join(
        f"logging_time {sign} TIMESTAMP('{moment:%Y-%m-%d %H:%M:%S}+00')"
        for sign, moment in ((">=", start), ("<", end))
    )
    return (
        f"SELECT deployed_model_id, logging_time, request_payload, response_payload FROM `{table}` WHERE {within} "
        "ORDER BY logging_time"
    )


def _joined(sent: str, answered: str, when: str, version: str | None) -> Iterator[Record | None]:
    """The instances of a request with their answers."""
    try:
        instances, (scores, told) = _instances(sent), _answers(answered)
        if len(instances) != len(scores):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        yield None
        return
    for instance, score in zip(instances, scores, strict=True):
        features = {name: value for name, value in instance.items() if name != "id"}
        yield {
            "id": str(instance.get("id", "")), "time": when, "version": told or version, "features": features,
            "score": score,
        }  # fmt: skip


def _instances(text: str) -> Sequence[Mapping[str, Any]]:
    whole = _object(text)
    found = whole["instances"] if whole and "instances" in whole else _lines(text)
    return [dict(instance) for instance in found]


def _answers(text: str) -> tuple[list[float], str | None]:
    """The scores, and the version where the answer tells it."""
    whole = _object(text)
    if whole and "predictions" in whole:
        told = whole.get("version")
        return [float(score) for score in whole["predictions"]], None if told is None else str(told)
    return [float(one["prediction"] if isinstance(one, dict) else one) for one in _lines(text)], None


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _object(text: str | bytes) -> Record | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _days(first: dt.date, last: dt.date) -> list[dt.date]:
    return [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]
