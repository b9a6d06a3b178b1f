"""Cloud Monitoring, as far as gates on the metrics of Vertex AI's endpoints ask it: ``ListTimeSeries``.

The points are of the predictions that the fake has answered. They carry the time of this machine's clock, because that
is the one by which clients name an interval; how late they are to be seen goes by the virtual clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.cloud import monitoring_v3

from airflow_provider_sml.testing.core import Behaviour
from airflow_provider_sml.testing.core.behaviour import ASSUMED, DOCUMENTED
from airflow_provider_sml.testing.core.clock import moment
from airflow_provider_sml.testing.google.errors import GoogleError, invalid

if TYPE_CHECKING:
    from airflow_provider_sml.testing.google.cloud import FakeGoogle
    from airflow_provider_sml.testing.google.vertex_predict import Seen

_API = "https://cloud.google.com/monitoring/api/ref_v3/rpc/google.monitoring.v3"
_METRICS = "https://cloud.google.com/monitoring/api/metrics_gcp_a_b#gcp-aiplatform"
_BASE, _RESOURCE = "aiplatform.googleapis.com/prediction/online/", "aiplatform.googleapis.com/Endpoint"
_CLAUSE = re.compile(r'\s*([a-z_.]+)\s*=\s*(one_of\([^)]*\)|"[^"]*")\s*')
#: Metrics whose points the fake has, with their labels.
_KNOWN: dict[str, Callable[[Any], dict[str, str]]] = {
    "response_count": lambda seen: {"deployed_model_id": seen.deployed, "response_code": str(seen.status)},
    "prediction_count": lambda seen: {"deployed_model_id": seen.deployed},
    "error_count": lambda seen: {"deployed_model_id": seen.deployed},
    "prediction_latencies": lambda seen: {"deployed_model_id": seen.deployed, "latency_type": "total"},
}
_PERCENTILE = re.compile(r"(?:ALIGN|REDUCE)_PERCENTILE_(\d+)")


@dataclass
class _Series:
    """A time series while it is made.

    :param metric: its labels.
    :param resource: those of its resource.
    :param points: by the end of each: what was seen until then.
    """

    metric: dict[str, str]
    resource: dict[str, str]
    points: dict[float, list[Seen]] = field(default_factory=dict)


class Monitoring:
    """``google.monitoring.v3.MetricService``: the time series of online predictions.

    :param cloud: the project.
    """

    TRANSPORT = "google.cloud.monitoring_v3.services.metric_service.transports.grpc.MetricServiceGrpcTransport"
    QUOTA = "Quota exceeded for quota metric 'Time series queries'"
    BEHAVIOURS: tuple[Behaviour, ...] = (
        Behaviour("monitoring", "A filter names one metric type, and labels joined by AND; a label may be one_of some "
                  "values.", DOCUMENTED, "https://cloud.google.com/monitoring/api/v3/filters"),
        Behaviour("monitoring", "Only series with points in the interval are listed; one without points is not there.",
                  DOCUMENTED, f"{_API}#listtimeseriesrequest"),
        Behaviour("monitoring", "An alignment period is at least 60 s; a reducer needs an aligner.", DOCUMENTED,
                  f"{_API}#aggregation"),
        Behaviour("monitoring", "Points come newest first.", DOCUMENTED, f"{_API}#listtimeseriesrequest"),
        Behaviour("monitoring", "Alignment periods are counted back from the end of the interval.", ASSUMED,
                  "the reference says that a point ends with its period, and not where the periods begin"),
        Behaviour("monitoring", "A metric type that nobody knows is NOT_FOUND: Cannot find metric(s) that match type.",
                  ASSUMED, "the reference does not say it"),
        Behaviour("monitoring", "Points of online predictions are to be seen 360 s later (of the virtual clock).",
                  DOCUMENTED, _METRICS),
        Behaviour("monitoring", "Points are those of the requests themselves, not sampled every 60 s; their latency is "
                  "of type total alone, and their percentiles are exact rather than of buckets.", ASSUMED,
                  "gates ask for sums and percentiles over a step"),
        Behaviour("monitoring", "A prediction is one request, whatever its instances; an error is a status from 400 "
                  "on.", ASSUMED, "the list of metrics does not say"),
    )  # fmt: skip

    #: Virtual seconds until a point can be seen.
    late_seconds = 360.0

    def __init__(self, cloud: FakeGoogle) -> None:
        self.cloud = cloud

    def list_time_series(self, request: monitoring_v3.ListTimeSeriesRequest) -> monitoring_v3.ListTimeSeriesResponse:
        """The series that fit."""
        if request.name != f"projects/{self.cloud.project}":
            raise GoogleError("NOT_FOUND", f"Project {request.name} is not found")
        clauses, (start, end) = _clauses(request.filter), _interval(request)
        metric = next(iter(clauses.pop("metric.type", [])), "")
        if not metric:
            raise invalid("Field filter must specify a single metric type")
        if not metric.startswith(_BASE):
            raise GoogleError("NOT_FOUND", f'Cannot find metric(s) that match type = "{metric}".')
        name = metric.removeprefix(_BASE)
        how: Any = request.aggregation  # its periods are of the type that proto-plus makes of them
        _check(request, name)
        series = self._raw(name, clauses, start, end)
        if how.per_series_aligner.name != "ALIGN_NONE":
            series = _aligned(series, how.alignment_period.total_seconds(), end)
        if how.cross_series_reducer.name != "REDUCE_NONE":
            series = _reduced(series, list(how.group_by_fields))
        made = [_message(one, metric, how, full=request.view.name == "FULL") for one in series]
        first, size = int(request.page_token or 0), request.page_size or 100_000
        more = str(first + size) if len(made) > first + size else ""
        return monitoring_v3.ListTimeSeriesResponse(time_series=made[first : first + size], next_page_token=more)

    def _raw(self, name: str, clauses: Mapping[str, Sequence[str]], start: float, end: float) -> list[_Series]:
        """The series that fit, with a point for each time at which something was answered."""
        if name not in _KNOWN:
            return []
        predictions, seen_by = self.cloud.vertex.predictions, self.cloud.clock.now() - self.late_seconds
        predictions.settle()
        found: dict[tuple[Any, ...], _Series] = {}
        for seen in predictions.seen:
            if not (start < seen.at <= end and seen.virtual <= seen_by) or (
                name == "error_count" and seen.status < 400
            ):
                continue
            _, project, _, region, _, endpoint = seen.endpoint.split("/")
            resource = {"resource_container": project, "location": region, "endpoint_id": endpoint}
            metric = _KNOWN[name](seen)
            labels = {"resource.type": _RESOURCE}
            labels |= {f"metric.labels.{key}": value for key, value in metric.items()}
            labels |= {f"resource.labels.{key}": value for key, value in resource.items()}
            if all(labels.get(key) in wanted for key, wanted in clauses.items()):
                series = found.setdefault(tuple(labels.items()), _Series(metric, resource))
                series.points.setdefault(seen.at, []).append(seen)
        return list(found.values())


def _clauses(text: str) -> dict[str, list[str]]:
    """The values that each field may have."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"\s+AND\s+", text.strip()):
        clause = _CLAUSE.fullmatch(part)
        if not clause or clause[1].partition(".")[0] not in ("metric", "resource"):
            raise invalid(f"Field filter had an invalid value of {text!r}: could not parse {part!r}")
        found[clause[1].replace(".label.", ".labels.")] = re.findall(r'"([^"]*)"', clause[2])
    return found


def _interval(request: Any) -> tuple[float, float]:
    """Start, exclusive, and end, in seconds since the epoch; without a start the end alone."""
    if not request.interval.end_time:
        raise invalid("Field interval.end_time is required")
    end = request.interval.end_time.timestamp()
    start = request.interval.start_time.timestamp() if request.interval.start_time else math.nextafter(end, 0)
    if start > end:
        raise invalid("Field interval.start_time had an invalid value: it must not be after the end time")
    return start, end


def _check(request: Any, name: str) -> None:
    """What the service refuses, and what the fake does not know, of an aggregation."""
    how, spread = request.aggregation, name == "prediction_latencies"
    aligner, reducer = how.per_series_aligner.name, how.cross_series_reducer.name
    if request.order_by:
        raise invalid("Field order_by is not supported and must be blank")
    if reducer != "REDUCE_NONE" and aligner == "ALIGN_NONE":
        raise invalid("Field aggregation.perSeriesAligner is required with a crossSeriesReducer")
    if aligner != "ALIGN_NONE" and (not how.alignment_period or how.alignment_period.total_seconds() < 60):
        raise invalid("Field aggregation.alignmentPeriod must be at least 60 seconds")
    if _PERCENTILE.fullmatch(aligner) and not spread:
        raise invalid(f"Field aggregation.perSeriesAligner had an invalid value of {aligner}: not of a distribution")
    known = aligner in ("ALIGN_NONE", "ALIGN_DELTA", "ALIGN_SUM") or _PERCENTILE.fullmatch(aligner)
    if not known or not (reducer in ("REDUCE_NONE", "REDUCE_SUM") or _PERCENTILE.fullmatch(reducer)):
        raise GoogleError("UNIMPLEMENTED", f"the fake does not implement {aligner} with {reducer}")
    if "secondary_aggregation" in request:
        raise GoogleError("UNIMPLEMENTED", "the fake does not implement secondary_aggregation")


def _aligned(series: Iterable[_Series], period: float, end: float) -> list[_Series]:
    """One point for each period, counted back from the end."""
    found = []
    for one in series:
        points: dict[float, list[Seen]] = {}
        for at, seen in one.points.items():
            points.setdefault(end - period * math.floor((end - at) / period), []).extend(seen)
        found.append(_Series(one.metric, one.resource, points))
    return found


def _reduced(series: Iterable[_Series], fields: Sequence[str]) -> list[_Series]:
    """Series of which each holds those that have the same values of some fields."""
    found: dict[tuple[str, ...], _Series] = {}
    kept = {name.rpartition(".")[2]: name.partition(".")[0] for name in fields}
    for one in series:
        metric = {key: value for key, value in one.metric.items() if kept.get(key) == "metric"}
        resource = {key: value for key, value in one.resource.items() if kept.get(key) == "resource"}
        whole = found.setdefault((*metric.values(), *resource.values()), _Series(metric, resource))
        for at, seen in one.points.items():
            whole.points.setdefault(at, []).extend(seen)
    return list(found.values())


def _message(series: _Series, metric: str, how: Any, full: bool) -> monitoring_v3.TimeSeries:
    """A series as the API gives it."""
    steps = (how.cross_series_reducer.name, how.per_series_aligner.name)
    percent = next((int(found[1]) for step in steps if (found := _PERCENTILE.fullmatch(step))), None)
    spread = metric.endswith("/prediction_latencies")
    period = how.alignment_period.total_seconds() if how.alignment_period else 60.0
    made: Any = monitoring_v3.TimeSeries(
        metric={"type": metric, "labels": series.metric}, resource={"type": _RESOURCE, "labels": series.resource},
        metric_kind="DELTA" if percent is None else "GAUGE",
        value_type="DOUBLE" if percent is not None else "DISTRIBUTION" if spread else "INT64",
    )  # fmt: skip
    for at in sorted(series.points, reverse=True) if full else ():
        interval = {"start_time": moment(at - period), "end_time": moment(at)}
        made.points.append({"interval": interval, "value": _value(series.points[at], percent, spread)})
    return made


def _value(seen: Sequence[Seen], percent: int | None, spread: bool) -> dict[str, Any]:
    """The value of a point: a percentile, a distribution, or a count."""
    count = sum(item.count for item in seen)
    if percent is None and not spread:
        return {"int64_value": count}
    if percent is None:
        return {
            "distribution_value": {
                "count": count,
                "mean": sum(item.milliseconds * item.count for item in seen) / count,
            }
        }
    left = math.ceil(count * percent / 100)
    for item in sorted(seen, key=lambda item: item.milliseconds):
        left -= item.count
        if left <= 0:
            break
    return {"double_value": item.milliseconds if spread else float(count)}
