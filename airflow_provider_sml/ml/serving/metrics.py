"""The server's Prometheus metrics, in a registry of their own so that several apps fit into one process.

It counts; it does not push anything anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from airflow_provider_sml.ml.serving.log import PredictionLog

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What one server counts.

    :param model: name of the model.
    :param version: its version.
    :param model_id: the trained model's id.
    :param log: the prediction log whose losses are told, if there is one.
    """

    def __init__(self, model: str, version: str, model_id: str, log: PredictionLog | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("sml_requests", "Scoring requests by HTTP status", ["status"], registry=self.registry)
        self._rows = Counter("sml_rows", "Rows scored", registry=self.registry)
        self._seconds = Histogram(
            "sml_request_seconds", "Seconds per scoring request", buckets=BUCKETS, registry=self.registry
        )
        info = Gauge("sml_model_info", "The model served", ["model", "version", "model_id"], registry=self.registry)
        info.labels(model, version, model_id).set(1)
        if log is not None:
            self.registry.register(_LogCollector(log))

    def request(self, status: int, rows: int, seconds: float) -> None:
        """Count one scoring request.

        :param status: its HTTP status.
        :param rows: rows that were scored.
        :param seconds: how long it took.
        """
        self._requests.labels(str(status)).inc()
        self._rows.inc(rows)
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _LogCollector:
    """Reads the prediction log's counters when they are asked for."""

    def __init__(self, log: PredictionLog) -> None:
        self._log = log

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily("sml_predictions_logged", "Predictions written to the log", value=self._log.written)
        yield CounterMetricFamily("sml_predictions_dropped", "Predictions lost to the log", value=self._log.dropped)
