"""Deployments to Vertex AI through ``dag.test()``: a real model scores behind the fake endpoint, MLflow is real."""

import contextlib
import random
import signal

import pytest

from airflow_provider_sml.cloud.google import apart
from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout
from airflow_provider_sml.cloud.vertex_spec import VertexSpec
from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks.clients import GoogleHookClients
from airflow_provider_sml.ml.registry import CHAMPION, Registry
from airflow_provider_sml.operators.deployment_targets import Deployment, check_settings
from airflow_provider_sml.operators.deployment_targets.vertex import deployed_ids
from airflow_provider_sml.testing.google.vertex_containers import Scoring, scoring_app, scoring_process
from tests.toy import make_other, register

PARENT = "projects/fake-project/locations/europe-west1"
SETTINGS = {
    "artifacts": "gs://models/toy", "image": "europe-docker.pkg.dev/fake-project/images/serve:1",
    "region": "europe-west1", "wait": 0,
}  # fmt: skip
DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_provider_sml.operators.deployment import (
    DeployModelOperator, PromoteModelOperator, RollbackModelOperator,
)

with DAG("toy_deploy", default_args={{"retries": {retries}, "retry_delay": timedelta(0)}}):
    {operator}(
        task_id="deploy", name="toy", target="vertex", mlflow={root!r} + "/mlflow", poll_interval=0.01,
        endpoints={root!r} + "/endpoints", parity_rows=30,
        settings={settings},
        **dict({more}),
    )
"""


@pytest.fixture
def cloud(google, fake_gcs_address, monkeypatch):
    if fake_gcs_address is None:
        pytest.skip("fake-gcs-server is not built: make servers (needs Go)")
    monkeypatch.setattr("airflow_provider_sml.cloud.vertex_model.POLL_SECONDS", 0.01)
    google.vertex.endpoints.container = scoring_app
    google.storage.write("gs://models/there", b"")
    google.clock.per_call = 60
    return google


@pytest.fixture
def registry(toy):
    return Registry(str(toy / "mlflow"))


@pytest.fixture
def deploy(dag_project, cloud, toy):
    def deploy(version="", operator="DeployModelOperator", retries=0, more="", **settings):
        text = DAG_FILE.format(
            operator=operator, retries=retries, root=str(toy), settings=SETTINGS | settings,
            more=f"version={version!r}, {more}" if version else more,
        )  # fmt: skip
        return dag_project.run(dag_project.write("toy_deploy.py", text), "toy_deploy")

    return deploy


def champion(registry):
    found = registry.version("toy", alias=CHAMPION)
    return found.version if found else None


def served(cloud):
    """What has traffic: percent of each version of the registered model."""
    endpoint = cloud.vertex.endpoints.endpoints.get(f"{PARENT}/endpoints/toy")
    if endpoint is None:
        return {}
    cloud.vertex.endpoints._settle(endpoint)
    found = {}
    for key, share in endpoint.traffic.items():
        deployed = endpoint.deployed[key]
        spot = " spot" if deployed.message.dedicated_resources.spot else ""
        found[version(cloud, deployed.number) + spot] = share
    return found


def version(cloud, number):
    model = cloud.vertex.models.models[f"{PARENT}/models/toy"]
    return model.versions[number].message.version_description.partition("-")[0]


def left(cloud):
    """Versions that exist, and how many deployed models cost."""
    cloud.clock.advance(1000)
    for endpoint in cloud.vertex.endpoints.endpoints.values():
        cloud.vertex.endpoints._settle(endpoint)
    models = [item.message.version_description.partition("-")[0]
              for model in cloud.vertex.models.models.values() for item in model.versions.values()]  # fmt: skip
    return sorted(models), len(cloud.bill.running())


def labels(cloud):
    return {key: value for key, value in
            cloud.vertex.endpoints.endpoints[f"{PARENT}/endpoints/toy"].message.labels.items()
            if key in ("sml_rollout", "sml_previous")}  # fmt: skip


def splits(cloud):
    """The traffic of the new version after each step."""
    return [sorted(call.params["endpoint"]["traffic_split"].values()) for call in cloud.calls.of("UpdateEndpoint")
            if "traffic_split" in call.params["endpoint"]]  # fmt: skip


def test_a_version_is_deployed_by_a_canary_checked_and_made_champion(deploy, cloud, registry):
    """The first one by a real scoring process, which fetches the bundle as it does on Vertex AI."""
    cloud.vertex.endpoints.container = scoring_process
    result = deploy("1")
    assert result.state == "success"
    made = result.results["deploy"]
    assert (made["target"], made["version"], made["parity_rows"]) == ("vertex", "1", 30)
    assert made["url"] == f"vertex://{PARENT}/endpoints/toy"
    assert (champion(registry), served(cloud)) == ("1", {"v1": 100})
    cloud.vertex.endpoints.container = scoring_app
    assert deploy("2", more="deferrable=True").state == "success"
    assert (champion(registry), served(cloud)) == ("2", {"v2": 100})
    assert splits(cloud) == [[50, 50], [100]]  # the first step, 10, came with the deployment, by the key 0
    asked = [call.params.get("traffic_split") for call in cloud.calls.of("DeployModel")]
    assert asked[0] == {"0": 100} and sorted(asked[1].values()) == [10, 90] and asked[1]["0"] == 10
    assert left(cloud) == (["v1", "v2"], 1)
    assert labels(cloud) == {}
    second = registry.version("toy", version="2")
    logged = deployed_ids(Deployment("toy", "toy", "2", second.model_id, SETTINGS, {}))
    assert logged == list(cloud.vertex.endpoints.endpoints[f"{PARENT}/endpoints/toy"].deployed), "for its requests' log"
    model = cloud.vertex.models.models[f"{PARENT}/models/toy"]
    assert model.aliases["champion"] == model.aliases["default"] == 2


def test_a_graph_is_served_by_the_same_image(deploy, cloud, registry, toy):
    """By a real scoring process."""
    cloud.vertex.endpoints.container = scoring_process
    version = register(toy, make_other("onnx"), registry)
    result = deploy(version)
    assert (result.state, result.results["deploy"]["parity_rows"], champion(registry)) == ("success", 30, version)


def test_deploying_again_changes_nothing(deploy, cloud, registry):
    deploy("1")
    changing = ("UploadModel", "CreateEndpoint", "DeployModel", "UpdateEndpoint", "MergeVersionAliases")
    before = len(cloud.calls.of(*changing))
    assert deploy("1").state == "success"
    assert len(cloud.calls.of(*changing)) == before


@pytest.mark.parametrize(("fault", "deferrable"), [("fail", False), ("no_capacity", True)])
def test_a_deployment_that_fails_ends_red_and_the_champion_serves_on(deploy, cloud, registry, fault, deferrable, capfd):
    deploy("1")
    cloud.faults.add(fault, "DeployModel")
    result = deploy("2", retries=1 if fault == "fail" else 0, more=f"deferrable={deferrable}")
    assert result.state == "failed"
    said = capfd.readouterr().out
    assert ("Model server exited unexpectedly" if fault == "fail" else "Resources are insufficient") in said
    assert (champion(registry), served(cloud)) == ("1", {"v1": 100})
    assert left(cloud) == (["v1"], 1)
    assert labels(cloud) == {}
    assert cloud.calls.count("DeployModel") == 2


def test_the_first_deployment_that_fails_leaves_nothing_at_all(deploy, cloud, registry):
    cloud.faults.add("fail", "DeployModel")
    assert deploy("1").state == "failed"
    assert left(cloud) == ([], 0)
    assert cloud.vertex.endpoints.endpoints == {}
    assert deploy("1").state == "success"
    assert served(cloud) == {"v1": 100}


def test_a_failed_parity_takes_the_version_back(deploy, cloud, registry, capfd):
    """The container answers with other scores than training did, as a wrong image would."""
    deploy("1")
    wrong = b'{"predictions": [%s]}' % b",".join([b"0.5"] * 30)
    cloud.vertex.endpoints.container = lambda project, model: Scoring(
        lambda body, kind: (200, wrong, kind), lambda: None
    )
    assert deploy("2", retries=2).state == "failed"
    said = capfd.readouterr().out
    assert "was taken back" in said and "again" in said
    assert (champion(registry), served(cloud)) == ("1", {"v1": 100})
    assert left(cloud) == (["v1"], 1)
    assert labels(cloud) == {}


def test_a_lost_operation_ends_red_with_the_reason(deploy, cloud, registry, capfd):
    """The operation is forgotten, and nothing is deployed."""
    deploy("1")
    endpoints, forgotten = cloud.vertex.endpoints, []
    real = endpoints.deploy_model

    def lost(request):
        forgotten.append(request)
        endpoint = endpoints.find(request.endpoint)
        known = len(endpoint.changes)
        answer = real(request)
        del endpoint.changes[known:]
        del cloud.operations.known[answer.name]
        return answer

    endpoints.deploy_model = lost
    assert deploy("2").state == "failed"
    assert len(forgotten) == 1
    assert "is gone, and nothing is deployed" in capfd.readouterr().out
    assert (champion(registry), served(cloud), left(cloud)) == ("1", {"v1": 100}, (["v1"], 1))


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("UploadModel", "drop_after"), ("CreateEndpoint", "drop_after"), ("DeployModel", "drop_after"),
        ("UpdateEndpoint", "drop_after"), ("UndeployModel", "drop_after"), ("MergeVersionAliases", "drop_after"),
        ("DeployModel", "throttle"), ("UpdateEndpoint", "server_error"),
        ("UploadModel", "expired_token"), ("DeployModel", "quota"), ("RawPredict", "server_error"),
    ],
)  # fmt: skip
def test_a_fault_at_a_step_is_mended_by_a_retry(deploy, cloud, registry, operation, fault):
    if operation != "CreateEndpoint":
        deploy("1")
    cloud.faults.add(fault, operation, times=1 if fault == "expired_token" else 2)
    last = "2" if operation != "CreateEndpoint" else "1"
    retries = 3 if operation == "RawPredict" else 2
    result = deploy(last, retries=retries)
    if operation == "RawPredict" and fault != "expired_token":  # parity that cannot be asked is not passed
        assert (result.state, champion(registry), served(cloud)) == ("failed", "1", {"v1": 100})
        assert left(cloud) == (["v1"], 1)
        return
    assert result.state == "success"
    assert (champion(registry), served(cloud)) == (last, {f"v{last}": 100})
    assert left(cloud) == (["v1", "v2"][: int(last)], 1)
    assert labels(cloud) == {}


@pytest.mark.parametrize("operation", ["UploadModel", "CreateEndpoint", "DeployModel", "UpdateEndpoint"])
def test_a_missing_permission_is_not_retried_and_leaves_nothing(deploy, cloud, registry, operation):
    if operation == "UpdateEndpoint":
        deploy("1")
    cloud.faults.add("denied", operation, times=1, skip=1 if operation == "UpdateEndpoint" else 0)
    result = deploy("2", retries=2)
    assert result.state == "failed"
    assert left(cloud) == ((["v1"], 1) if operation == "UpdateEndpoint" else ([], 0))
    assert served(cloud) == ({"v1": 100} if operation == "UpdateEndpoint" else {})


ALARMS = {"alarms": {"error_rate": 0.05, "latency_p95": 300}}


def test_steps_follow_when_the_metrics_of_the_step_before_are_well(deploy, cloud, registry):
    """What is planned is what is called then: the exact calls, with the gates, in their order."""
    cloud.vertex.predictions.per_minute = 600
    deploy("1", **ALARMS)
    assert cloud.calls.count("ListTimeSeries") == 0  # nothing serves beside it that all could go back to
    planned = deploy("2", more="plan=True", **ALARMS).results["deploy"]["calls"]
    planned = [name for name in planned if not name.startswith("storage:")]  # not asked of this fake
    before = len(cloud.calls)
    cloud.faults.add("throttle", "ListTimeSeries", times=2)
    assert deploy("2", more="deferrable=True", **ALARMS).state == "success"
    assert (champion(registry), served(cloud), splits(cloud)) == ("2", {"v2": 100}, [[50, 50], [100]])
    called, asks = [], ("Get", "List", "RawPredict")
    for call in cloud.calls[before:]:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in call.operation)[1:]
        if name == "list_time_series" and called[-1:] != ["monitoring:list_time_series"]:
            called.append("monitoring:list_time_series")
        elif not call.operation.startswith(asks):
            called.append(f"aiplatform:{name}")
    gates = [name for number, name in enumerate(planned) if name != planned[number - 1] or "monitoring" not in name]
    assert called == gates
    assert planned.count("monitoring:list_time_series") == 6  # responses and latency, at three steps
    [asked] = {call.params["filter"] for call in cloud.calls.of("ListTimeSeries") if "response_count" in
               call.params["filter"] and "error" not in call.params}  # fmt: skip
    [ours] = cloud.vertex.endpoints.endpoints[f"{PARENT}/endpoints/toy"].deployed
    assert f'metric.labels.deployed_model_id="{ours}"' in asked


@pytest.mark.parametrize(
    ("detail", "deferrable", "said"),
    [
        ({"share": 0.3}, False, "error_rate is 0.3, above 0.05"),
        ({"latency_ms": 900}, True, "had 100 percent of the traffic: latency_p95 is 900, above 300"),
        (None, False, "no evidence in 0 seconds"),
        ("denied", False, "grant monitoring.timeSeries.list"),
    ],
)  # fmt: skip
def test_a_breach_and_lacking_evidence_take_the_version_back(deploy, cloud, registry, detail, deferrable, said, capfd):
    deploy("1")
    evidence = {"evidence_within": 0 if detail is None else 1800, "rollout": "blue-green" if deferrable else "linear"}
    if detail:
        cloud.vertex.predictions.per_minute = 600
    if detail == "denied":
        cloud.faults.add("denied", "ListTimeSeries")
    elif detail:
        cloud.faults.add("degraded", "DeployModel", **detail)
    result = deploy("2", retries=1, more=f"deferrable={deferrable}", **ALARMS, **evidence)
    assert result.state == "failed"
    assert said in capfd.readouterr().out
    assert (champion(registry), served(cloud), splits(cloud)) == ("1", {"v1": 100}, [[100]])
    assert (left(cloud), labels(cloud)) == ((["v1"], 1), {})
    assert cloud.calls.count("DeployModel") == 2


def test_google_s_own_xgboost_image_serves_the_booster_and_passes_parity(deploy, cloud, registry):
    google = {"image": "europe-docker.pkg.dev/vertex-ai/prediction/xgboost-cpu.3-1:latest", "container": "xgboost"}
    result = deploy("1", **google)
    assert (result.state, result.results["deploy"]["parity_rows"]) == ("success", 30)
    [model] = cloud.vertex.models.models.values()
    message = model.versions[1].message
    assert message.artifact_uri.endswith("/toy1/xgboost") and not message.container_spec.args
    assert cloud.storage.read(f"{message.artifact_uri}/model.bst")
    assert deploy("2", mode="ab", percent=20, **google).results["deploy"]["parity_rows"] == 30
    assert (champion(registry), served(cloud)) == ("1", {"v1": 80, "v2": 20})


def test_spot_machines_have_a_floor_on_demand_beside_them(deploy, cloud, registry):
    deploy("1")
    settings = {"spot": True, "floor": {"replicas": 1, "percent": 25}, "min_replicas": 2, "max_replicas": 4}
    assert deploy("2", **settings).state == "success"
    assert (champion(registry), served(cloud)) == ("2", {"v2": 25, "v2 spot": 75})
    assert [line.what for line in cloud.bill.running()] == [
        "endpoint 1 x n1-standard-2", "spot endpoint 2 x n1-standard-2",
    ]  # fmt: skip
    assert deploy("3", retries=1).state == "success"
    assert (served(cloud), left(cloud)) == ({"v3": 100}, (["v1", "v2", "v3"], 1))


def test_going_back_takes_alias_and_endpoint_together(deploy, cloud, registry):
    for number in ("1", "2"):
        assert deploy(number).state == "success"
    result = deploy(operator="RollbackModelOperator", retries=1)
    assert (result.state, result.results["deploy"]["version"]) == ("success", "1")
    assert (champion(registry), served(cloud)) == ("1", {"v1": 100})


def test_an_a_b_test_gives_no_alias_and_is_promoted_or_ended(deploy, cloud, registry, capfd):
    assert deploy("1", mode="ab").state == "failed"
    assert "deploy a champion first" in capfd.readouterr().out and left(cloud) == ([], 0)
    deploy("1")
    for version in ("2", "3"):  # another one takes the place of the first
        result = deploy(version, mode="ab", percent=20)
        assert (result.state, result.results["deploy"]["parity_rows"]) == ("success", 30)
        assert (champion(registry), served(cloud)) == ("1", {"v1": 80, f"v{version}": 20})
        assert left(cloud)[1] == 2
    assert deploy("3", mode="ab", percent=30).state == "success"
    assert served(cloud) == {"v1": 70, "v3": 30}
    assert deploy("3", operator="PromoteModelOperator", mode="ab", percent=30).state == "success"
    assert (champion(registry), served(cloud)) == ("3", {"v3": 100})
    assert (left(cloud)[1], labels(cloud)) == (1, {})
    deploy("2", mode="ab")
    assert deploy("3").state == "success", "the champion again, alone"
    assert (champion(registry), served(cloud), left(cloud)[1]) == ("3", {"v3": 100}, 1)


def test_a_kill_after_the_alias_has_moved_undoes_nothing(deploy, cloud, registry, monkeypatch):
    """The task dies while it undeploys the old version; Airflow cancels, and a later run ends what is left."""
    from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout

    deploy("1")

    def killed(self, endpoint, key):
        self.cancel(self.key)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(VertexRollout, "_undeploy", killed)
        assert deploy("2").state == "failed"
    assert (champion(registry), served(cloud)) == ("2", {"v2": 100})
    assert deploy("2").state == "success"
    assert left(cloud) == (["v1", "v2"], 1)


def test_a_signal_in_the_middle_of_a_call_does_not_damage_the_process(cloud):
    """As ``execution_timeout`` does: an exception out of a signal's handler. It once damaged gRPC's memory, and the
    next call, which was to cancel, aborted the process."""

    class OutOfTime(BaseException):
        pass

    def handler(*_):
        raise OutOfTime

    job = VertexRollout(
        name="toy", model="toy", version="1", spec={"image": "i", "artifact": "gs://models/toy"},
        project="fake-project", region="europe-west1",
    ).connect(GoogleHookClients("google_cloud_default", "europe-west1"))  # fmt: skip
    assert job.endpoint() is None  # and all is imported
    before, moments, interrupted = signal.signal(signal.SIGALRM, handler), random.Random(7), 0
    try:
        while interrupted < 300:
            with contextlib.suppress(OutOfTime):
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 0.01))
                try:
                    for _ in range(5):
                        assert job.endpoint() is None
                except OutOfTime:
                    interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        assert job.endpoint() is None
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_exception_out_of_a_signals_handler_stays_what_it_is():
    """While a call is waited for. By a future's wait it became "release unlocked lock", or the process stood still."""

    class OutOfTime(BaseException):
        pass

    def handler(*_):
        raise OutOfTime

    before, moments, interrupted = signal.signal(signal.SIGALRM, handler), random.Random(7), 0
    try:
        while interrupted < 500:
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 1e-3))
                for _ in range(1000):
                    assert apart(int, "1") == 1
            except OutOfTime:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ValueError, match="no number"):
        apart(int, "no number")


def test_a_killed_task_takes_its_roll_out_back(deploy, cloud, registry):
    deploy("1")
    cloud.vertex.endpoints.deploy_seconds = 1e9  # it does not end while the task waits
    more = "execution_timeout=timedelta(seconds=6)"
    assert deploy("2", more=more).state == "failed"
    assert (champion(registry), served(cloud)) == ("1", {"v1": 100})
    assert left(cloud) == (["v1"], 1)
    assert labels(cloud) == {}


def test_a_roll_out_that_was_left_is_taken_over(deploy, cloud, registry):
    """Version 2 stands at half of the traffic and nobody drives it; version 3 comes."""
    from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout

    deploy("1")
    real = VertexRollout.status
    calls = []

    def dies(self, job_id):
        found = real(self, job_id)
        calls.append(found)
        if found.message == "10 percent":
            raise MemoryError  # not an error of ours: it passes through everything, as a kill does
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VertexRollout, "status", dies)
        patch.setattr("airflow_provider_sml.cloud.remote_job.JobWatch.decide", _raise)
        deploy("2")
    assert served(cloud) != {"v1": 100}
    assert deploy("3").state == "success"
    assert (champion(registry), served(cloud)) == ("3", {"v3": 100})
    assert len(cloud.bill.running()) == 1


def test_a_step_lasts_as_long_as_it_is_told_to(cloud):
    """The adapter alone: a look before the time does nothing."""
    import time

    from google.auth.credentials import AnonymousCredentials

    from airflow_provider_sml.cloud.google import GoogleClients
    from airflow_provider_sml.cloud.vertex_endpoint import VertexRollout
    from tests.toy import make_bundle

    cloud.vertex.endpoints.container = lambda project, model: Scoring(lambda body, kind: (200, b"", kind), lambda: None)
    spec = {"image": "europe-docker.pkg.dev/p/i/serve:1", "artifact": f"gs://models/{make_bundle(1).model_id}"}

    def roll_out(version):
        rollout = VertexRollout(name="toy", model="toy", version=version, spec=spec | {"steps": [30, 100], "wait": 0.5},
                                project="fake-project", region="europe-west1")  # fmt: skip
        return rollout.connect(GoogleClients("europe-west1", AnonymousCredentials()))

    def messages(rollout, job_id, seconds):
        found, until = [], time.monotonic() + seconds
        while time.monotonic() < until and found[-1:] != [""]:
            found.append(rollout.status(job_id).message)
        return found

    first = roll_out("1")
    messages(first, first.submit(), 20)
    first.complete()
    second = roll_out("2")
    job_id = second.submit()
    began = time.monotonic()
    seen = messages(second, job_id, 20)
    assert list(dict.fromkeys(seen)) == ["deploying", "30 percent", ""]
    assert time.monotonic() - began > 0.5
    assert second.undo() == f"serves {first.key} again"


def _raise(self, outcome, now):
    if isinstance(outcome, Exception):
        raise outcome
    from airflow_provider_sml.cloud.remote_job import Step

    return Step("wait")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"artifacts": "s3://x"}, "Cloud Storage"), ({"region": ""}, "europe-west1"), ({"machin": "x"}, "machine"),
        ({"steps": [50, 10, 100]}, "rising"), ({"floor": {"replicas": 1, "percent": 5}}, "floor: with spot"),
        ({"min_replicas": 0}, "1 or more"), ({"logging": {"table": "x"}}, "bq://"),
        ({"machine": {"type": "n1-standard-4", "gpus": 1}}, "gpus"), ({"alarms": {"errors": 1}}, "error_rate"),
        ({"alarms": {"error_rate": "1%"}}, "limits"), ({"min_requests": 0}, "min_requests"),
        ({"container": "xgbost"}, "container"), ({"rollout": "rolling"}, "blue-green"),
        ({"rollout": "canary", "steps": [10, 100]}, "either steps"),
        ({"image": "us-docker.pkg.dev/vertex-ai/prediction/xgboost-cpu.3-1:latest"}, "container: xgboost"),
        ({"image": "us-docker.pkg.dev/vertex-ai/prediction/xgboost-cpu.2-1:latest", "container": "xgboost"}, "3.1"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    good = {"artifacts": "gs://models/toy", "image": "europe-docker.pkg.dev/p/i/serve:1", "region": "europe-west1"}
    check_settings("vertex", good)
    with pytest.raises(ConfigurationError) as raised:
        check_settings("vertex", good | settings)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ({"rollout": "canary", "step": 20}, (20, 100)), ({"rollout": "linear", "step": 34}, (34, 68, 100)),
        ({"rollout": "blue-green"}, (100,)), ({"rollout": "all-at-once"}, (100,)), ({}, (10, 50, 100)),
    ],
)  # fmt: skip
def test_roll_outs_may_be_told_in_the_words_of_sagemaker(words, steps):
    spec = VertexSpec.load({"image": "serve:1", "artifact": "gs://models/toy", **words})
    assert spec.steps == steps


def test_bad_settings_fail_the_task_before_google_is_asked(deploy, cloud, capfd):
    assert deploy("1", retries=2, machin="n1-standard-4").state == "failed"
    assert "did you mean machine?" in capfd.readouterr().out
    assert cloud.calls == []


def test_the_plan_shows_the_calls_and_changes_nothing(deploy, cloud, registry, capfd):
    settings = {
        "spot": True, "floor": {"replicas": 1, "percent": 25}, "service_account": "serve@p.iam.gserviceaccount.com",
        "kms_key": "projects/p/locations/l/keyRings/r/cryptoKeys/k", "logging": {"table": "bq://p.d.t", "percent": 10},
    }  # fmt: skip
    result = deploy("1", more="plan=True", **settings)
    assert result.state == "success"
    assert result.results["deploy"]["calls"] == [
        "storage:objects.insert", "storage:objects.insert", "aiplatform:upload_model", "aiplatform:create_endpoint",
        "aiplatform:deploy_model", "aiplatform:deploy_model", "aiplatform:update_endpoint",
        "aiplatform:merge_version_aliases",
    ]  # fmt: skip
    assert result.results["deploy"]["cost"] == "0.1533 USD per hour while it serves"
    assert all(call.operation.startswith("Get") for call in cloud.calls)
    assert champion(registry) is None
    said = capfd.readouterr().out
    assert '"kms_key_name"' in said and '"sampling_rate": 0.1' in said and '"0": 75' in said


def test_what_is_logged_encrypted_and_served_as_whom_reaches_the_service(deploy, cloud):
    key = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    account = "serve@p.iam.gserviceaccount.com"
    result = deploy(
        "1", kms_key=key, service_account=account, logging={"table": "bq://p.d.t"},
        machine={"type": "n1-standard-4", "accelerator": "nvidia_tesla_t4"}, min_replicas=1, max_replicas=3,
    )  # fmt: skip
    assert result.state == "success"
    endpoint = cloud.vertex.endpoints.endpoints[f"{PARENT}/endpoints/toy"]
    assert endpoint.message.encryption_spec.kms_key_name == key
    assert len(cloud.vertex.predictions.logged) == 2  # one row, then thirty
    [deployed] = endpoint.deployed.values()
    resources = deployed.message.dedicated_resources
    assert (resources.min_replica_count, resources.max_replica_count) == (1, 3)
    assert (resources.machine_spec.accelerator_type.name, deployed.message.service_account) == (
        "NVIDIA_TESLA_T4",
        account,
    )
    assert endpoint.message.labels["dag_id"] == "toy_deploy"
