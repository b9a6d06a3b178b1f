"""The DAGs of a spec as Airflow sees them: asset links, schedules, forms, documentation, and what is handed down."""

import datetime as dt
import logging

import pytest

from airflow_provider_sml.pipelines import PipelineSpecError, build_dags
from airflow_provider_sml.pipelines.dags import locate
from tests.pipelines.conftest import FLIGHTS, line_of

ROOT = FLIGHTS.parents[2]
STAGES = ("ingest", "train", "deploy", "monitor")


@pytest.fixture(scope="module")
def flights(airflow_db):
    """The DAGs of dags/flights.py as Airflow loads them."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(ROOT / "dags" / "flights.py"))
    assert not bag.import_errors
    return dict(bag.dags)


@pytest.fixture
def build(airflow_db, spoilt):
    """The DAGs of flights.yaml with texts replaced, by stage."""

    def make(*changes, **options):
        dags = build_dags(spoilt(*changes), **options)
        return {dag_id.removeprefix("flights_"): dag for dag_id, dag in dags.items()}

    return make


def uris(assets):
    return [asset.uri for asset in assets]


def awaited(dag):
    """The assets that start a DAG."""
    found = getattr(dag.timetable, "asset_condition", None)
    return uris(getattr(found, "objects", [found])) if found else []


def test_the_file_in_dags_gives_the_four_dags(flights):
    assert set(flights) == {f"flights_{stage}" for stage in STAGES}
    assert len((ROOT / "dags" / "flights.py").read_text().splitlines()) < 10


def test_the_tasks_of_each_dag_follow_each_other(flights):
    def edges(stage):
        tasks = flights[f"flights_{stage}"].task_dict
        return {(task_id, below) for task_id, task in tasks.items() for below in task.downstream_task_ids}

    assert edges("ingest") == {
        ("wait_for_landing", "etl"),
        ("etl", "publish_lake"),
        ("publish_lake", "publish_warehouse"),
    }
    assert {("sample", "train"), ("train", "evaluate"), ("evaluate", "register"), ("register", "gate")} <= edges(
        "train"
    )
    assert flights["flights_deploy"].task_ids == ["deploy"]
    assert {("score", "drift"), ("score", "performance"), ("drift", "request_retraining")} <= edges("monitor")


def test_assets_link_the_dags(flights):
    dags = {stage: flights[f"flights_{stage}"] for stage in STAGES}
    sent = {stage: [uri for task in dag.tasks for uri in uris(task.outlets)] for stage, dag in dags.items()}
    assert sent == {
        "ingest": ["x-sml://flights/published"],
        "train": ["x-sml://flights/passed"],
        "deploy": ["x-sml://flights/deployed"],
        "monitor": ["x-sml://flights/drift"],
    }
    assert awaited(dags["ingest"]) == []
    assert awaited(dags["train"]) == ["x-sml://flights/drift"]
    assert awaited(dags["deploy"]) == ["x-sml://flights/passed"]
    assert awaited(dags["monitor"]) == ["x-sml://flights/published"]


def test_the_schedules_are_those_of_the_spec(build):
    from airflow.sdk import CronDataIntervalTimetable, CronTriggerTimetable
    from airflow.sdk.definitions.timetables.assets import AssetOrTimeSchedule

    dags = build(("ingest: daily, train: weekly", "ingest: 30 4 * * 1-5, train: monthly"))
    ingest, train = dags["ingest"].timetable, dags["train"].timetable
    assert isinstance(ingest, CronDataIntervalTimetable) and ingest.expression == "30 4 * * 1-5"
    assert isinstance(train, AssetOrTimeSchedule) and isinstance(train.timetable, CronTriggerTimetable)
    assert train.timetable.expression == "0 3 1 * *"
    assert not any(dag.catchup for dag in dags.values())
    alone = [stage for stage, dag in dags.items() if dag.max_active_runs == 1]
    assert alone == ["train", "deploy", "monitor"], "only days that wait for their files stand side by side"


def test_nothing_runs_by_itself_where_the_spec_says_so(build):
    dags = build(
        ("{ingest: daily, train: weekly, monitor: nightly}", "{ingest: null, train: null, monitor: null}"),
        ("then: retrain", "then: alert"),
    )
    assert [dags[stage].schedule for stage in ("ingest", "train", "monitor")] == [None, None, None]
    assert awaited(dags["deploy"]) == ["x-sml://flights/passed"]


def test_drift_alone_may_start_training(build):
    dags = build(("train: weekly", "train: null"))
    assert awaited(dags["train"]) == ["x-sml://flights/drift"]
    assert awaited(build(("then: retrain", "then: alert"))["train"]) == []


# --- the form ---------------------------------------------------------------------------------------------------------


def test_every_field_of_the_forms_has_a_title_a_help_text_and_a_valid_default(flights):
    for dag in flights.values():
        dag.params.validate()
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.schema["title"] and param.description and param.description.endswith("."), name


@pytest.mark.parametrize(
    ("stage", "name", "good", "bad"),
    [
        ("ingest", "first_day", ["2026-01-31", None], ["31.1.2026", 5]),
        ("ingest", "last_day", ["2026-01-31", None], ["tomorrow"]),
        ("train", "as_of", ["2026-01-31", None], [""]),
        ("train", "rate", [0.01, 1], [0, 1.01, "half", None]),
        ("train", "cluster", ["local", "processes"], ["vertex", "", None]),
        ("deploy", "version", ["12", None], ["v12", 12, ""]),
        ("deploy", "target", ["local"], ["vertex", None]),
        ("deploy", "dry_run", [True, False], ["yes", None]),
        ("monitor", "day", ["2026-01-31", None], ["yesterday"]),
        ("monitor", "last_day", ["2026-01-31", None], ["tomorrow"]),
    ],
)
def test_the_form_refuses_what_a_run_could_not_use(flights, stage, name, good, bad):
    from airflow.sdk.exceptions import ParamValidationError

    param = flights[f"flights_{stage}"].params.get_param(name)
    for value in good:
        assert param.resolve(value) == value
    for value in bad:
        with pytest.raises(ParamValidationError):
            param.resolve(value)


def test_the_rate_is_asked_for_only_where_rows_are_drawn(build):
    assert "of the tailnum" in build()["train"].params.get_param("rate").description
    dags = build(("sample: {method: hash, by: [tailnum], rate: 0.5}", "sample: {method: all}"))
    assert list(dags["train"].params) == ["as_of", "cluster"]


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("cluster: processes\n  workers: 2", None),  # local has one worker
        ("cluster: my_dask\n  workers: 2", ["my_dask", "processes"]),
        ("cluster: cuda", ["cuda", "local", "processes"]),
        ("cluster: gateway", None),
        ("cluster: kubernetes\n  cluster_settings: {image: i}", None),
    ],
)
def test_a_training_may_run_where_the_spec_says_or_on_the_machine_of_its_task(build, said, choice):
    dag = build(("  cluster: local", f"  {said}"))["train"]
    asked = dag.params.get_param("cluster").schema["enum"] if "cluster" in dag.params else None
    assert asked == choice
    where = dag.task_dict["train"].cluster
    assert where == "{{ params.cluster }}" if choice else "{{" not in str(where)


def test_a_deployment_may_go_to_the_place_of_the_spec_or_to_this_machine(build):
    assert build()["deploy"].params.get_param("target").schema["enum"] == ["local"]
    said = (
        "  target: vertex\n  settings: {artifacts: 'gs://models', region: europe-west1, image: i, "
        "machine: n1-standard-4}"
    )
    dag = build(("  target: local", said))["deploy"]
    target = dag.params.get_param("target")
    assert (target.schema["enum"], target.value) == (["vertex", "local"], "vertex")
    deploy = dag.task_dict["deploy"]
    assert (deploy.target, deploy.plan) == ("{{ params.target }}", "{{ params.dry_run }}")


# --- documentation and alerts -----------------------------------------------------------------------------------------


def test_each_dag_has_its_picture(flights):
    for stage in STAGES:
        dag = flights[f"flights_{stage}"]
        assert dag.doc_md.startswith(f"### flights: {stage}\nWill this flight arrive")
        picture = dag.doc_md.split("```text\n")[1].split("\n```")[0]
        assert picture.startswith("starts: ") and max(map(len, picture.splitlines())) <= 110
        assert dag.tags == {"sml", "flights", stage}
        assert dag.description.startswith("flights: ")


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("ingest", (), ["starts: daily", "more than 30 % of bad rows", "warehouse", "flights_monitor"]),
        ("ingest", (("monitor: nightly", "monitor: null"),), ["flights_monitor, by hand"]),
        ("ingest", (("ingest: daily", "ingest: null"),), ["starts: by hand"]),
        ("train", (), ["starts: weekly, or drift, found by", "120 days to train on (50 % of tailnum, hash)"]),
        ("train", (("then: retrain", "then: alert"),), ["starts: weekly\n"]),
        ("deploy", (("port: 8500", "port: 8600"),), ["endpoint on port 8600", "champion"]),
        ("monitor", (), ["2 of the last 3 nights drifted", "15 % of the columns", "alert, and flights_train"]),
        ("monitor", (("nights: 2 of 3", "nights: 1 of 1"),), ["the night drifted"]),
    ],
)
def test_the_picture_shows_the_numbers_of_the_spec(build, stage, change, said):
    text = build(*change)[stage].doc_md
    for words in said:
        assert words in text


def test_a_picture_without_a_warehouse_shows_none(build):
    dag = build(("warehouse: include/data/warehouse.duckdb", "warehouse: null"))["ingest"]
    assert "warehouse" not in dag.doc_md and "publish_warehouse" not in dag.task_ids


def test_failures_and_drift_alert_the_channels_of_the_spec(build, caplog, capfd):
    dags = build(("alerts: []", "alerts: [{slack: ops}]"))
    for dag in dags.values():
        for task in dag.tasks:
            [alert] = task.on_failure_callback
            assert alert.channels == [{"slack": "ops", "at": "info"}] and alert.severity == "critical"
    decision = dags["monitor"].task_dict["request_retraining"]
    assert decision.alert.channels == [{"slack": "ops", "at": "info"}] and decision.follows == "Training starts."
    assert (decision.nights, decision.severity, decision.budget) == ((2, 3), "warning", (4, 30))
    told = decision.alert.about(title="flights: night of 2013-12-09", channels=[])
    with caplog.at_level(logging.WARNING):
        told.notify({})
    assert "ALERT [WARNING] flights: night of 2013-12-09" in caplog.text + capfd.readouterr().out


# --- what is handed down ----------------------------------------------------------------------------------------------


def test_places_start_at_the_project(flights, spoilt):
    task = flights["flights_ingest"].task_dict["etl"]
    assert task.lake == str(ROOT / "include/data/lake")
    assert task.places == {"landing": str(ROOT / "include/data/landing"), "lake": task.lake}
    path = spoilt(
        ("lake: include/data/lake", "lake: my_lake"), ("mlflow: include/data/mlflow", "mlflow: http://ml:5000")
    )
    dags = build_dags(path)
    assert dags["flights_ingest"].task_dict["etl"].lake == "my_lake", "a connection is no path"
    assert dags["flights_train"].task_dict["register"].mlflow == "http://ml:5000"


def test_nights_are_compared_and_profiled_as_the_spec_says(build):
    dags = build(
        ("reference: training", "reference: trailing  14 days\n  segments: {by: origin}\n  profile_in: warehouse"),
        ("warehouse: include/data/warehouse.duckdb", "warehouse: bigquery://project/data"),
    )
    drift = dags["monitor"].task_dict["drift"]
    assert (drift.reference, drift.segment, drift.min_rows) == ("trailing 14 days", "origin", 200)
    assert drift.warehouse == "bigquery://project/data"


def test_spark_profiles_the_nights_after_their_scores_and_before_the_report(build):
    said = "reference: trailing 14 days\n  segments: {by: origin}\n  profile_in: spark"
    dags = build(
        ("reference: training", said),
        ("\nschedule:", "\nspark: {on: emr-serverless, settings: {application_id: a1, role: r}}\nschedule:"),
    )
    tasks = dags["monitor"].task_dict
    profile, drift = tasks["profile"], tasks["drift"]
    assert profile.upstream_task_ids == {"score"} and drift.upstream_task_ids == {"profile"}
    assert tasks["performance"].upstream_task_ids == {"score"}, "it waits for no profile"
    for name in ("name", "lake", "mlflow", "first", "last", "reference", "segment", "leave_out"):
        assert getattr(profile, name) == getattr(drift, name), name
    assert profile.spark == dags["ingest"].task_dict["etl"].spark == {
        "on": "emr-serverless", "application_id": "a1", "role": "r",
    }  # fmt: skip
    assert "Spark: what has no profile yet" in dags["monitor"].doc_md


def test_what_a_task_gets_is_what_the_spec_says(build):
    dags = build(("leave_out: [weekday]", "only: [hour, wind]"))
    assert "weekday" in dags["monitor"].task_dict["drift"].leave_out
    assert not {"hour", "wind"} & set(dags["monitor"].task_dict["drift"].leave_out)
    drift = dags["monitor"].task_dict["drift"]
    assert (drift.reference, drift.segment, drift.warehouse) == ("training", None, None)
    assert dags["monitor"].task_dict["performance"].served.endswith("include/data/endpoints/flights/predictions")
    gate = dags["train"].task_dict["gate"].checks
    assert gate["auc"] == {"min": 0.65, "not_worse_than": "champion", "margin": 0.005} and "approval" not in gate
    assert gate["ece"] == {"max": 0.05, "margin": 0.0} and "latency" not in gate


def test_what_steers_a_training_reaches_the_planner_and_the_training(build):
    said = (
        "  monotone: {distance: 1}\n  class_weights: {negative: 1, positive: 4}\n"
        "  metrics: [include.money:cost, {function: include.money:won, higher_is_better: true}]"
    )
    tasks = build(("rate: 0.5", "rate: auto"), ("  cluster: local", said))["train"].task_dict
    for task in (tasks["plan_sample"], tasks["train"]):
        assert task.hyperparameters["monotone"] == {"distance": 1} and task.hyperparameters["rounds"] == 300
        assert task.hyperparameters["class_weights"] == {"negative": 1, "positive": 4}
        assert task.hyperparameters["metrics"] == [
            "include.money:cost", {"function": "include.money:won", "higher_is_better": True},
        ]  # fmt: skip
    assert tasks["train"].warm_start == ""
    for said, given in (("champion", "champion"), ("3", "3")):
        train = build(("  cluster: local", f"  warm_start: {said}"))["train"].task_dict["train"]
        assert (train.warm_start, train.name) == (given, "flights") and train.mlflow.endswith("include/data/mlflow")


def test_a_person_is_asked_after_the_gate_where_the_spec_says_so(build):
    assert "approve" not in build()["train"].task_dict
    said = "  ece: {max: 0.05}\n  approval: {by: [ann, {id: '7', name: bob}], within: 4h, exclude_trigger: true}"
    dag = build(("  ece: {max: 0.05}", said))["train"]
    gate, approve = dag.task_dict["gate"], dag.task_dict["approve"]
    assert gate.approval and uris(gate.outlets) == [] and uris(approve.outlets) == ["x-sml://flights/passed"]
    assert approve.upstream_task_ids == {"register", "gate"} and approve.reports == gate.reports
    assert approve.by == ["ann", {"id": "7", "name": "bob"}] and approve.response_timeout == dt.timedelta(hours=4)
    assert (approve.on_no_answer, approve.defaults, approve.exclude_trigger) == ("reject", ["Reject"], True)
    assert "ann, bob decides; no answer in 4 h: rejected" in dag.doc_md
    assert approve.notifiers[0].severity == "info" and "approval" not in gate.checks


SEARCH = (
    "  cluster: processes\n  workers: 2\n  usd_per_hour: 0.5\n"
    "  search: {space: {max_depth: {min: 3, max: 10}, learning_rate: {min: 0.01, max: 0.3, log: true}},"
    " trials: 40, minutes: 30, usd: 5, parallel: 2}"
)


def test_a_search_stands_between_the_sample_and_the_training(build):
    assert "search" not in build()["train"].task_dict
    dag = build(("  cluster: local", SEARCH))["train"]
    search, train = dag.task_dict["search"], dag.task_dict["train"]
    assert "sample" in search.upstream_task_ids and {"search", "sample"} <= train.upstream_task_ids
    assert (search.trials, search.minutes, search.usd, search.usd_per_hour) == (40, 30, 5, 0.5)
    assert (search.cluster, search.workers, search.parallel) == ("processes", 2, 2)
    assert search.hyperparameters["rounds"] == 300 and search.space["learning_rate"]["log"] is True
    assert "Optuna: 40 trials or 30 minutes or 5 USD, 2 at once" in dag.doc_md
    assert "hyper-parameters: max_depth, learning_rate" in dag.doc_md


def test_spare_capacity_reaches_the_training(build):
    assert build()["train"].task_dict["train"].spot is False
    said = (
        "  cluster: some_dask\n  workers: 4\n  min_workers: 2\n  usd_per_hour: 1.2\n"
        "  spot: {checkpoint: '{lake}/ckpt', every: 2 minutes, on_demand_after: 2 interruptions, deadline: 4 h,"
        " usd_per_hour: 0.4}"
    )
    train = build(("  cluster: local", said))["train"].task_dict["train"]
    assert (train.spot, train.on_demand_after, train.on_demand_deadline) == (True, 2, 4 * 3600)
    assert (train.min_workers, train.workers, train.checkpoint_seconds) == (2, 4, 120)
    assert (train.usd_per_hour, train.on_demand_usd_per_hour) == (0.4, 1.2)
    assert train.checkpoint.endswith("include/data/lake/ckpt") and train.checkpoint.startswith("/")


def test_retries_and_the_owner_come_from_the_spec_and_the_caller(build):
    task = build(default_args={"retries": 5})["train"].task_dict["train"]
    assert task.retries == 5 and task.owner == "ops-analytics"


def test_the_profile_of_the_environment_is_taken(build, spoilt, monkeypatch):
    spoilt().with_name("flights.production.yaml").write_text("train: {cluster: dask_prod, workers: 4}\n")
    monkeypatch.setenv("SML_PROFILE", "production")
    assert build()["train"].params["cluster"] == "dask_prod"
    assert build(profile="")["train"].params["cluster"] == "local"


def test_a_cluster_on_kubernetes_is_given_with_its_settings(build):
    said = "  cluster: kubernetes\n  cluster_settings: {image: 'registry/train:1', spot_on: gke}\n  workers: 2\n"
    train = build(("  cluster: local", said))["train"].task_dict["train"]
    assert train.cluster == {"on": "kubernetes", "image": "registry/train:1", "spot_on": "gke"}


# --- finding the spec -------------------------------------------------------------------------------------------------


def test_a_path_is_taken_from_the_projects_root(tmp_path):
    spec = tmp_path / "include" / "pipelines" / "x.yaml"
    spec.parent.mkdir(parents=True)
    spec.touch()
    for caller in (tmp_path / "dags" / "x.py", tmp_path / "dags" / "team" / "x.py", tmp_path / "x.py"):
        assert locate("include/pipelines/x.yaml", caller) == (spec, tmp_path)
    assert locate(spec, None) == (spec, tmp_path)
    assert locate(tmp_path / "x.yaml", None) == (tmp_path / "x.yaml", tmp_path)
    with pytest.raises(PipelineSpecError, match=r"include/none\.yaml is not there\n  expected: a spec file"):
        locate("include/none.yaml", tmp_path / "dags" / "x.py")


def test_a_wrong_spec_is_an_import_error_that_airflow_shows(dag_project, spoilt):
    from airflow.dag_processing.dagbag import DagBag

    path = spoilt(("weather.wind_speed", "weather.wind_sped"))
    file = dag_project.write(
        "wrong.py",
        f"from airflow_provider_sml.pipelines import build_dags\nbuild_dags({str(path)!r}, into=globals())\n",
    )
    [error] = DagBag(str(file)).import_errors.values()
    assert f"{path}:{line_of('  wind: ')}: features.wind uses weather.wind_sped" in error
    assert "did you mean weather.wind_speed?" in error
