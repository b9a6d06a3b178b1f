"""Gates on metrics after the steps of a roll-out on Vertex AI: what Cloud Monitoring has seen of a version by now.

The version is judged by its own deployed models and since its present step alone, so that what served before neither
hides nor causes a breach. Points come late: those of Vertex AI are sampled every 60 seconds and are not to be seen for
up to 360 seconds more. So no point is no evidence, and neither good nor bad.

Metrics and their labels: cloud.google.com/monitoring/api/metrics_gcp_a_b#gcp-aiplatform; the questions:
cloud.google.com/monitoring/api/ref_v3/rpc/google.monitoring.v3#metricservice.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sml.cloud.google import CALL_SECONDS, GoogleJob

#: What can be limited, with its unit.
ALARMS = {
    "error_rate": "share of the responses with a status of 400 or more, 0 to 1",
    "server_error_rate": "share of the responses with a status of 500 or more, 0 to 1",
    "latency_p50": "milliseconds",
    "latency_p95": "milliseconds",
    "latency_p99": "milliseconds",
}
_LEAST = {"error_rate": 400, "server_error_rate": 500}
_BASE, _RESOURCE = "aiplatform.googleapis.com/prediction/online", "aiplatform.googleapis.com/Endpoint"
#: An alignment period of Cloud Monitoring is at least so many seconds.
_LEAST_PERIOD = 60


@dataclass(frozen=True)
class Place:
    """Whose metrics are asked for.

    :param project: id of the project.
    :param region: of the endpoint.
    :param endpoint: id of the endpoint.
    :param deployed: ids of the deployed models.
    """

    project: str
    region: str
    endpoint: str
    deployed: Sequence[str]


@dataclass(frozen=True)
class Evidence:
    """What was seen.

    :param responses: answers of the version, good and bad.
    :param values: by alarm; what has no point yet is not there.
    """

    responses: int
    values: Mapping[str, float] = field(default_factory=dict)

    def breaches(self, alarms: Mapping[str, float]) -> list[str]:
        """The alarms whose limit is exceeded, in words."""
        return [
            f"{name} is {self.values[name]:.4g}, above {limit:g}"
            for name, limit in alarms.items()
            if self.values.get(name, -math.inf) > limit
        ]

    def lacks(self, alarms: Mapping[str, float], least: int) -> str:
        """What is missing before anything can be said, in words; empty when nothing is.

        :param least: responses that are enough.
        """
        if self.responses < least:
            return f"{self.responses} of {least} responses seen"
        missing = [name for name in alarms if name not in self.values]
        return f"no points of {', '.join(missing)}" if missing else ""

    def __str__(self) -> str:
        told = (f"{name} {value:.4g}" for name, value in self.values.items())
        return ", ".join((f"{self.responses} responses", *told))


def look(job: GoogleJob, place: Place, alarms: Mapping[str, float], start: float, end: float) -> Evidence:
    """Ask Cloud Monitoring.

    :param job: whose connection asks; its account needs ``monitoring.timeSeries.list``.
    :param alarms: what is asked for, by the names of ``ALARMS``.
    :param start: seconds since the epoch, exclusive.
    :param end: likewise, inclusive.
    """
    moments = dt.datetime.fromtimestamp(start, dt.UTC), dt.datetime.fromtimestamp(end, dt.UTC)
    period = max(_LEAST_PERIOD, math.ceil(end - start))
    responses, values = 0, dict[str, float]()
    for name, request in questions(place, alarms, moments, period).items():
        series = job.ask("monitoring", "monitoring.timeSeries.list", _question(request))
        if name == "responses":
            counts = [(_status(one), sum(point.value.int64_value for point in one.points)) for one in series]
            responses = sum(count for _, count in counts)
            for alarm, least in _LEAST.items():
                if alarm in alarms and responses:
                    values[alarm] = sum(count for status, count in counts if status >= least) / responses
        elif points := [point.value.double_value for one in series for point in one.points]:
            values[name] = max(points)
    return Evidence(responses, values)


def questions(
    place: Place, alarms: Mapping[str, float], moments: tuple[Any, Any], period: int
) -> dict[str, dict[str, Any]]:
    """The requests of ``ListTimeSeries`` by what they are for: ``responses``, and one for each limit of latency.

    :param moments: start and end of the interval.
    :param period: seconds that each point is of: all of the interval.
    """
    clauses = [
        'metric.type="{metric}"', f'resource.type="{_RESOURCE}"', f'resource.labels.location="{place.region}"',
        f'resource.labels.endpoint_id="{place.endpoint}"', f"metric.labels.deployed_model_id={_one_of(place.deployed)}",
    ]  # fmt: skip
    by_status = {"cross_series_reducer": "REDUCE_SUM", "group_by_fields": ["metric.labels.response_code"]}
    found = {"responses": _request(place, " AND ".join(clauses), "response_count", moments, period, by_status)}
    whole = " AND ".join((*clauses, 'metric.labels.latency_type="total"'))
    for name in alarms:
        if name.startswith("latency_p"):
            reduced = {"cross_series_reducer": f"REDUCE_PERCENTILE_{name.removeprefix('latency_p')}"}
            found[name] = _request(place, whole, "prediction_latencies", moments, period, reduced)
    return found


def _request(
    place: Place, clauses: str, metric: str, moments: tuple[Any, Any], period: int, reduced: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": f"projects/{place.project}",
        "filter": clauses.format(metric=f"{_BASE}/{metric}"),
        "interval": {"start_time": moments[0], "end_time": moments[1]},
        "aggregation": {
            "alignment_period": {"seconds": period}, "per_series_aligner": "ALIGN_DELTA", **reduced,
        },
        "view": "FULL",
    }  # fmt: skip


def _question(request: dict[str, Any]) -> Any:
    def ask(client: Any) -> list[Any]:
        return list(client.list_time_series(request=request, timeout=CALL_SECONDS, retry=None))

    return ask


def _one_of(names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return quoted if len(names) == 1 else f"one_of({quoted})"


def _status(series: Any) -> int:
    """The status of a series of responses; one that is no number counts as a failure inside the service."""
    told = str(series.metric.labels.get("response_code", ""))
    return int(told) if told.isdigit() else 500
