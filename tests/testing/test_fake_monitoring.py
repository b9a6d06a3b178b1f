"""The fake Cloud Monitoring as a plain script with Google's client sees it."""

import time

import pytest
from google.api_core import exceptions as google
from google.auth.credentials import AnonymousCredentials

from airflow_provider_sml.testing.google.vertex_containers import Scoring

PARENT = "projects/fake-project/locations/europe-west1"
BASE = "aiplatform.googleapis.com/prediction/online"
SUM = {"alignment_period": {"seconds": 3600}, "per_series_aligner": "ALIGN_DELTA"}


@pytest.fixture
def cloud(fake_google):
    """A project with an endpoint, on which model 1 has 75 percent of the traffic, and model 2, which fails, 25."""
    from google.cloud import aiplatform_v1

    fake_google.vertex.endpoints.container = lambda project, model: Scoring(
        lambda body, kind: (200, b'{"predictions": [1]}', kind), lambda: None
    )
    known = {"credentials": AnonymousCredentials(),
             "client_options": {"api_endpoint": "europe-west1-aiplatform.googleapis.com:443"}}  # fmt: skip
    model = {"display_name": "toy", "artifact_uri": "gs://b/toy", "container_spec": {"image_uri": "serve:1"}}
    aiplatform_v1.ModelServiceClient(**known).upload_model({"parent": PARENT, "model": model, "model_id": "toy"})
    endpoints, name = aiplatform_v1.EndpointServiceClient(**known), f"{PARENT}/endpoints/toy"
    endpoints.create_endpoint({"parent": PARENT, "endpoint": {"display_name": "toy"}, "endpoint_id": "toy"})
    for key, split in (("1", {"0": 100}), ("2", {"1": 75, "0": 25})):
        fake_google.clock.advance(600)
        if key == "2":
            fake_google.faults.add("degraded", "DeployModel", share=0.5, latency_ms=900)
        resources = {"machine_spec": {"machine_type": "n1-standard-2"}, "min_replica_count": 1}
        deployed = {"id": key, "model": f"{PARENT}/models/toy", "dedicated_resources": resources}
        endpoints.deploy_model({"endpoint": name, "deployed_model": deployed, "traffic_split": split})
    fake_google.clock.advance(600)
    asked = aiplatform_v1.PredictionServiceClient(**known)
    statuses = []
    for _ in range(16):
        try:
            asked.raw_predict({"endpoint": name, "http_body": {"data": b"{}", "content_type": "application/json"}})
            statuses.append(200)
        except google.InternalServerError:
            statuses.append(500)
    assert statuses.count(500) == 2  # the half of what model 2 gets
    return fake_google


@pytest.fixture
def ask():
    from google.cloud import monitoring_v3

    client = monitoring_v3.MetricServiceClient(credentials=AnonymousCredentials())

    def ask(metric="response_count", more="", aggregation=None, **changes):
        now = time.time()
        interval = {"start_time": {"seconds": int(now) - 600}, "end_time": {"seconds": int(now) + 1}}
        request = {"name": "projects/fake-project", "filter": f'metric.type="{BASE}/{metric}"{more}',
                   "interval": interval, "aggregation": aggregation}  # fmt: skip
        return list(client.list_time_series(request=request | changes, timeout=10, retry=None))

    return ask


def counts(series):
    return {
        tuple(sorted(one.metric.labels.items())): sum(point.value.int64_value for point in one.points) for one in series
    }


def test_answers_are_counted_by_model_and_status_once_they_can_be_seen(cloud, ask):
    assert ask() == []
    cloud.clock.advance(400)
    assert counts(ask()) == {
        (("deployed_model_id", "1"), ("response_code", "200")): 12,
        (("deployed_model_id", "2"), ("response_code", "200")): 2,
        (("deployed_model_id", "2"), ("response_code", "500")): 2,
    }
    [one] = ask(more=' AND metric.labels.deployed_model_id="1" AND resource.labels.endpoint_id="toy"')
    assert (one.resource.type, one.resource.labels["location"]) == (
        "aiplatform.googleapis.com/Endpoint",
        "europe-west1",
    )
    assert one.points[0].interval.end_time > one.points[-1].interval.end_time
    assert ask(more=' AND resource.labels.endpoint_id="other"') == []
    assert counts(ask("error_count")) == {(("deployed_model_id", "2"),): 2}
    grouped = SUM | {"cross_series_reducer": "REDUCE_SUM", "group_by_fields": ["metric.labels.response_code"]}
    both = ' AND metric.labels.deployed_model_id=one_of("1", "2")'
    assert counts(ask(more=both, aggregation=grouped)) == {
        (("response_code", "200"),): 14, (("response_code", "500"),): 2
    }  # fmt: skip
    assert len(ask(page_size=1)) == 3  # the client fetches all pages
    assert all(not one.points for one in ask(view="HEADERS"))


def test_percentiles_are_of_the_model_that_is_asked_for(cloud, ask):
    cloud.clock.advance(400)
    slow = ' AND metric.labels.deployed_model_id="2" AND metric.labels.latency_type="total"'
    [one] = ask("prediction_latencies", slow, SUM | {"cross_series_reducer": "REDUCE_PERCENTILE_95"})
    assert [point.value.double_value for point in one.points] == [900.0]
    [one] = ask("prediction_latencies", slow, SUM)
    assert one.points[0].value.distribution_value.count == 4
    assert ask("cpu/utilization") == []


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"filter": 'metric.type="aiplatfrom.googleapis.com/x"'}, google.NotFound, "Cannot find metric"),
        ({"filter": 'resource.labels.endpoint_id="toy"'}, google.InvalidArgument, "single metric type"),
        ({"filter": f'metric.type="{BASE}/error_count" OR x'}, google.InvalidArgument, "could not parse"),
        ({"filter": ""}, google.InvalidArgument, "filter"), ({"order_by": "x"}, google.InvalidArgument, "order_by"),
        ({"interval": {}}, google.InvalidArgument, "interval"), ({"name": "projects/x"}, google.NotFound, "projects/x"),
        ({"interval": {"start_time": {"seconds": 9}, "end_time": {"seconds": 8}}}, google.InvalidArgument, "after"),
        ({"aggregation": {"cross_series_reducer": "REDUCE_SUM"}}, google.InvalidArgument, "perSeriesAligner"),
        ({"aggregation": SUM | {"alignment_period": {"seconds": 30}}}, google.InvalidArgument, "60 seconds"),
        ({"aggregation": SUM | {"per_series_aligner": "ALIGN_PERCENTILE_95"}}, google.InvalidArgument, "distribution"),
        ({"aggregation": SUM | {"per_series_aligner": "ALIGN_STDDEV"}}, google.MethodNotImplemented, "ALIGN_STDDEV"),
    ],
)  # fmt: skip
def test_a_question_that_does_not_fit_is_refused(fake_google, ask, changes, error, said):
    with pytest.raises(error, match=said):
        ask(**changes)
