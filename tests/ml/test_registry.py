"""The registry on the embedded store and on a real server that asks for a password."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airflow_provider_sml.errors import ConfigurationError, DataError, IntegrityError
from airflow_provider_sml.ml.bundle import BUNDLE_FILE, MODEL_FILE, Bundle, Scorer
from airflow_provider_sml.ml.registry import CHALLENGER, CHAMPION, Registry, example_rows
from airflow_provider_sml.ml.registry.lineage import TAGS
from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.ml.training.evaluation import evaluate
from airflow_provider_sml.refs import ModelRef
from tests.ml.test_lake_shops import DATASET
from tests.mlflow_server import PASSWORD, TOKEN, USER

LOGIN = {"username": USER, "password": PASSWORD}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return Registry(str(tmp_path_factory.mktemp("registry") / "mlflow"))


@pytest.fixture(scope="module")
def example(shop_sample):
    return example_rows(data.read(split_files(shop_sample, "test")[0], DATASET.feature_list)[0])


@pytest.fixture(scope="module")
def evaluation(shop_model, shop_sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate(Bundle.read(Path(shop_model.uri)), shop_sample, folder, baseline=["city"])


@pytest.fixture(params=["embedded", "server"])
def registry(request, embedded):
    if request.param == "embedded":
        return embedded
    return Registry(request.getfixturevalue("mlflow_server").uri, LOGIN)


@pytest.fixture
def name(request):
    """A model's name of its own for each test."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[-80:].strip("-")


def other(model: ModelRef, folder: Path, model_id: str = "othermodel00") -> ModelRef:
    """The same model under another id."""
    bundle = replace(Bundle.read(Path(model.uri)), model_id=model_id)
    bundle.write(folder)
    return replace(model, uri=str(folder), model_id=model_id)


def state(registry, name):
    """Runs, logged models and versions of a model."""
    with registry._client() as client:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return [], [], []
        ids = [experiment.experiment_id]
        return (
            [run.info.status for run in client.search_runs(ids)],
            [str(logged.status) for logged in client.search_logged_models(ids)],
            [version.version for version in client.search_model_versions(f"name = '{name}'")],
        )


# --- the life of a version --------------------------------------------------------------------------------------------


def test_a_version_holds_what_was_made_from_what(
    registry, name, shop_model, shop_sample, example, evaluation, tmp_path
):
    version = registry.register(name, shop_model, example, evaluation=evaluation, lineage={"dag_id": "train"})
    assert (version.name, version.version, version.model_id) == (name, "1", shop_model.model_id)
    assert registry.version(name, alias=CHALLENGER) == registry.version(name, "1") == version
    assert registry.version(name, alias=CHAMPION) is None
    tags = registry.tags(version)
    assert tags.items() >= {
        "model_id": shop_model.model_id, "digest": shop_model.digest, "contract": DATASET.hash, "table": "orders",
        "snapshot_id": str(shop_sample.snapshot_id), "sample_id": shop_sample.sample_id, "dag_id": "train",
        "recalibration": "1.0", "auc": str(evaluation.auc), "test_rows": str(evaluation.rows), "workers": "1",
        "alias.challenger": registry.history(name).last(CHALLENGER).hash,
    }.items()  # fmt: skip
    assert {"seed", "params", "environment", "python", "xgboost", "seconds"} < set(tags) <= {*TAGS, "alias.challenger"}
    assert name in registry.models()
    assert registry.bundle(version) == Bundle.read(Path(shop_model.uri))
    with registry._client() as client:
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["max_depth"] == "3" and run.data.params["rounds_kept"] == str(shop_model.rounds)
        assert run.data.metrics["test_auc"] == evaluation.auc
        assert run.data.metrics["baseline_auc"] == evaluation.baseline_auc
        kept = {item.path for item in client.list_artifacts(version.run_id, "evaluation")}
        picture = Path(
            client.download_artifacts(version.run_id, "evaluation/learning_curve_logloss.svg", str(tmp_path))
        )
    pictures = {"learning_curve_logloss", "importance", "calibration", "lift"}
    assert {f"evaluation/{name}.svg" for name in pictures} < kept
    assert {name for name in kept if not name.endswith(".svg")} == {
        "evaluation/evaluation.html", "evaluation/evaluation.json", "evaluation/predictions.parquet"
    }  # fmt: skip
    assert f"kept: {shop_model.rounds} rounds" in picture.read_text()


def test_everyones_tools_load_the_model_and_its_example(registry, name, shop_model, example):
    import mlflow

    version = registry.register(name, shop_model, example)
    with registry._client():
        model = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
        scores = model.predict(model.input_example.astype(np.float32))
        requirements = Path(mlflow.pyfunc.get_model_dependencies(f"models:/{name}/1")).read_text()
    expected = Scorer(Bundle.read(Path(shop_model.uri))).score_features(example)
    assert np.abs(np.asarray(scores) - expected).max() < 1e-6
    assert model.input_example.to_numpy() == pytest.approx(example)
    assert [column.name for column in model.metadata.signature.inputs] == list(DATASET.features)
    assert "xgboost==" in requirements and "mlflow" in requirements


def test_a_version_without_an_evaluation_has_the_pictures_of_its_training(registry, name, shop_model, example):
    version = registry.register(name, shop_model, example)
    with registry._client() as client:
        kept = {item.path for item in client.list_artifacts(version.run_id, "pictures")}
    history = Bundle.read(Path(shop_model.uri)).lineage["history"]
    assert kept == {f"pictures/learning_curve_{metric}.svg" for metric in history} | {"pictures/importance.svg"}


def test_registering_again_finds_the_version_and_makes_it_challenger_again(
    registry, name, shop_model, example, tmp_path
):
    first = registry.register(name, shop_model, example)
    second = registry.register(name, other(shop_model, tmp_path), example)
    assert second.version == "2" and registry.aliases(name) == {CHALLENGER: "2"}
    assert registry.register(name, shop_model, example) == first
    assert registry.aliases(name) == {CHALLENGER: "1"}
    runs, models, versions = state(registry, name)
    assert len(runs) == len(models) == len(versions) == 2


def test_aliases_and_tags_move(registry, name, shop_model, example):
    version = registry.register(name, shop_model, example)
    registry.set_alias(version, CHAMPION)
    registry.set_alias(version, CHAMPION)
    registry.set_tags(version, {"gate": "failed"})
    registry.set_tags(version, {"gate": "passed"})
    assert registry.aliases(name) == {CHALLENGER: "1", CHAMPION: "1"}
    assert registry.tags(version)["gate"] == "passed"


@pytest.mark.parametrize("store", ["mlflow_server", "mlflow_on_postgres"])
def test_a_server_keeps_versions_aliases_and_history_in_sqlite_and_in_postgresql(
    store, name, shop_model, example, tmp_path, request
):
    registry = Registry(request.getfixturevalue(store).uri, LOGIN)
    first = registry.register(name, shop_model, example, lineage={"dag_id": "train"})
    second = registry.register(name, other(shop_model, tmp_path), example)
    registry.set_alias(first, CHAMPION, "anna", {"gate": "passed"})
    registry.set_alias(second, CHAMPION, "otto")
    assert registry.aliases(name) == {CHALLENGER: "2", CHAMPION: "2"}
    moves = [(line.before, line.after, line.by) for line in registry.history(name).lines if line.alias == CHAMPION]
    assert moves == [("", "1", "anna"), ("1", "2", "otto")] and registry.verify(name) == []
    assert registry.newest(name) == second and registry.tags(first)["dag_id"] == "train"
    assert [one["version"] for one in registry.described(f"name = '{name}'")] == ["1", "2"]
    assert registry.bundle(first) == Bundle.read(Path(shop_model.uri))


def test_what_is_not_there(registry, name):
    assert registry.version("nobody", alias=CHAMPION) is None
    assert registry.version("nobody", "1") is None
    assert registry.version(name, "77") is None
    assert "nobody" not in registry.models()


# --- the bundle of a version ------------------------------------------------------------------------------------------


def test_a_bundle_is_kept_and_a_damaged_one_is_mended(registry, name, shop_model, example, tmp_path):
    version = registry.register(name, shop_model, example)
    folder = tmp_path / "models" / version.model_id
    bundle = registry.bundle(version, folder)
    assert Bundle.read(folder) == bundle
    stamp = (folder / MODEL_FILE).stat().st_mtime_ns
    registry.bundle(version, folder)
    assert (folder / MODEL_FILE).stat().st_mtime_ns == stamp
    (folder / BUNDLE_FILE).unlink()
    registry.bundle(version, folder)
    assert Bundle.read(folder) == bundle
    assert [path.name for path in folder.parent.iterdir()] == [version.model_id]


def test_a_bundle_that_was_changed_in_the_store_is_refused(embedded, name, shop_model, example, tmp_path):
    version = embedded.register(name, shop_model, example)
    [stored] = Path(embedded.uri.removeprefix("sqlite:///")).parent.glob(f"artifacts/{version.run_id}/artifacts/bundle")
    with (stored / MODEL_FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match="has changed"):
        embedded.bundle(version, tmp_path / "kept")
    replace(Bundle.read(Path(shop_model.uri)), model=b"another").write(stored)
    with pytest.raises(IntegrityError, match=f"is not what was registered(.|\n)*{shop_model.digest}"):
        embedded.bundle(version, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# --- the input example ------------------------------------------------------------------------------------------------


def test_example_rows_are_whole_ones_where_there_are_any():
    matrix = np.array([[1, np.nan], [2, 2], [np.nan, 3], [4, 4], [5, 5]])
    assert example_rows(matrix, 2).tolist() == [[2, 2], [4, 4]]
    missing = np.array([[1, np.nan], [2, np.nan]])
    assert np.array_equal(example_rows(missing, 1), missing[:1], equal_nan=True)


def test_an_example_without_rows_is_refused_before_anything_is_logged(embedded, name, shop_model):
    with pytest.raises(DataError, match="has no row"):
        embedded.register(name, shop_model, np.empty((0, 5), np.float32))
    assert state(embedded, name) == ([], [], [])


def test_an_example_with_missing_values_is_registered(embedded, name, shop_model, example):
    rows = example.copy()
    rows[:, 2] = np.nan
    assert embedded.register(name, shop_model, rows).version == "1"


def test_a_model_that_is_not_what_was_trained_is_not_registered(embedded, name, shop_model, example, tmp_path):
    """A booster that reads other columns scores the stored example differently, so the check is a real one."""
    bundle = Bundle.read(Path(shop_model.uri))
    folder = tmp_path / "model"
    replace(bundle, model=bundle.model[:-8]).write(folder)
    with pytest.raises(Exception):  # noqa: B017 - XGBoost's own error
        embedded.register(name, replace(shop_model, uri=str(folder)), example)
    assert state(embedded, name)[2] == []


# --- a crash at each step ---------------------------------------------------------------------------------------------

CRASHES = [
    ("before", "POST", "runs/create"),
    ("after", "POST", "runs/create"),
    ("before", "PUT", "mlflow-artifacts"),
    ("after", "POST", "logged-models"),
    ("before", "POST", "registered-models/create"),
    ("before", "POST", "model-versions/create"),
    ("after", "POST", "model-versions/create"),
    ("before", "POST", "registered-models/alias"),
]


@pytest.mark.parametrize(("when", "method", "path"), CRASHES)
def test_a_retry_after_a_crash_gives_one_run_one_model_and_one_version(
    mlflow_server, name, shop_model, example, evaluation, when, method, path
):
    registry = Registry(mlflow_server.uri, LOGIN)
    broken = []

    def trap(given, where):
        hit = given == method and path in where
        broken.extend([where] * hit)
        return hit

    setattr(mlflow_server, when, trap)
    with pytest.raises(Exception, match="broken"):
        registry.register(name, shop_model, example, evaluation=evaluation)
    assert broken
    assert registry.version(name, alias=CHALLENGER) is None
    mlflow_server.mend()
    version = registry.register(name, shop_model, example, evaluation=evaluation)
    assert version.version == "1" and registry.aliases(name) == {CHALLENGER: "1"}
    assert registry.register(name, shop_model, example, evaluation=evaluation) == version
    runs, models, versions = state(registry, name)
    assert (runs, len(models), versions) == (["FINISHED"], 1, ["1"])
    assert registry.bundle(version).digest == shop_model.digest


def test_a_retry_after_a_kill_gives_one_run(mlflow_server, name, shop_model, example, tmp_path):
    np.save(tmp_path / "example.npy", example)
    script = """
        import json, sys
        import numpy as np
        from airflow_provider_sml.ml.registry import Registry
        from airflow_provider_sml.refs import ModelRef
        uri, login, name, model, example = (json.loads(text) for text in sys.argv[1:])
        Registry(uri, login).register(name, ModelRef.load(model), np.load(example))
    """
    import json

    given = [mlflow_server.uri, LOGIN, name, shop_model.to_xcom(), str(tmp_path / "example.npy")]
    killed = []

    def kill(method, path):
        if "logged-models" in path and not killed:
            killed.append(path)
            os.kill(process.pid, signal.SIGKILL)
        return False

    mlflow_server.before = kill
    command = [sys.executable, "-c", textwrap.dedent(script), *map(json.dumps, given)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(timeout=120) == -signal.SIGKILL and killed
    registry = Registry(mlflow_server.uri, LOGIN)
    assert state(registry, name)[0] == ["RUNNING"]
    version = registry.register(name, shop_model, example)
    runs, models, versions = state(registry, name)
    assert (runs, len(models), versions) == (["FINISHED"], 1, [version.version])


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def test_a_wrong_password_is_an_error_and_not_an_absence(mlflow_server):
    with pytest.raises(Exception, match="401") as caught:
        Registry(mlflow_server.uri, {"username": USER, "password": "wrong-word"}).version("orders", alias=CHAMPION)
    assert "wrong-word" not in str(caught.value)
    with pytest.raises(Exception, match="401"):
        Registry(mlflow_server.uri).models()


def test_a_token_opens_the_door(mlflow_server):
    assert isinstance(Registry(mlflow_server.uri, {"token": TOKEN}).models(), list)
    assert {given for _, _, given in mlflow_server.seen} == {f"Bearer {TOKEN}"}


def test_credentials_of_the_environment_are_sent_to_nobody(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "for another server")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another token")
    with pytest.raises(Exception, match="401"):
        Registry(mlflow_server.uri).models()
    assert {given for _, _, given in mlflow_server.seen} == {""}
    Registry(mlflow_server.uri, LOGIN).models()
    assert mlflow_server.seen[-1][2].startswith("Basic ")
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "another token"


def test_certificates_are_checked_whatever_the_environment_says(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with Registry(mlflow_server.uri, LOGIN)._client():
        assert "MLFLOW_TRACKING_INSECURE_TLS" not in os.environ
    assert os.environ["MLFLOW_TRACKING_INSECURE_TLS"] == "true"


def test_nothing_of_a_secret_is_left(mlflow_server, name, shop_model, example, caplog, tmp_path):
    registry = Registry(mlflow_server.uri, LOGIN)
    version = registry.register(name, shop_model, example)
    registry.bundle(version, tmp_path / "bundle")
    assert not any(key in os.environ for key in SECRETS)
    shown = [
        repr(version),
        repr(registry),
        str(version.to_xcom()),
        caplog.text,
        (tmp_path / "bundle" / BUNDLE_FILE).read_text(),
    ]
    with registry._client() as client:
        run = client.get_run(version.run_id)
        shown += [str(run.data), str(client.get_model_version(name, "1"))]
    assert not [text for text in shown if PASSWORD in text]


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_a_password_in_the_address_is_refused_and_not_repeated(scheme):
    with pytest.raises(ConfigurationError, match="a connection of type mlflow") as caught:
        Registry(f"{scheme}://{USER}:{PASSWORD}@mlflow.example.com/x")
    assert PASSWORD not in str(caught.value) and USER not in str(caught.value)


def test_unknown_credentials():
    with pytest.raises(ConfigurationError, match="username, password, token"):
        Registry("http://127.0.0.1:1", {"pass": "word"})


def test_threads_with_two_servers_send_each_its_own_credentials(mlflow_server, embedded):
    with_name, with_token = Registry(mlflow_server.uri, LOGIN), Registry(mlflow_server.uri, {"token": TOKEN})
    errors = []

    def ask(registry, expected):
        for _ in range(8):
            try:
                with registry._client() as client:
                    before = len(mlflow_server.seen)
                    client.search_registered_models()
                    sent = {given for _, _, given in mlflow_server.seen[before:]}
                    if len(sent) != 1 or not sent.pop().startswith(expected):
                        errors.append("somebody else's credentials")
                embedded.models()
            except Exception as error:
                errors.append(error)

    threads = [
        threading.Thread(target=ask, args=pair) for pair in [(with_name, "Basic"), (with_token, "Bearer")] for _ in "12"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not any(key in os.environ for key in SECRETS)


def test_what_mlflow_was_set_to_is_set_again(embedded, tmp_path):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mine.db")
    with pytest.raises(RuntimeError), embedded._client():
        assert mlflow.get_tracking_uri() == embedded.uri
        raise RuntimeError("in the middle")
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/mine.db"
    mlflow.set_tracking_uri(None)


# --- other people's things --------------------------------------------------------------------------------------------


def test_a_version_of_somebody_else_is_told(embedded, name):
    with embedded._client() as client:
        client.create_registered_model(name)
        client.create_model_version(name, source="file:///tmp/elsewhere")
    with pytest.raises(ConfigurationError, match="was not registered by this provider"):
        embedded.version(name, "1")


def test_a_deleted_experiment_is_told(embedded, name, shop_model, example):
    with embedded._client() as client:
        client.delete_experiment(client.create_experiment(name))
    with pytest.raises(ConfigurationError, match=r"was deleted(.|\n)*mlflow experiments restore --experiment-id \d+"):
        embedded.register(name, shop_model, example)


def test_all_models_are_listed_however_many(tmp_path):
    registry = Registry(str(tmp_path / "mlflow"))
    with registry._client() as client:
        for number in range(105):
            client.create_registered_model(f"model-{number:03d}")
    assert registry.models() == [f"model-{number:03d}" for number in range(105)]
