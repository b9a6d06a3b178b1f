"""A small model in a registry, made without the pipeline: versions to deploy, and the stored rows of their sample."""

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from airflow_provider_sml.ml.bundle import Bundle, feature_types
from airflow_provider_sml.ml.contract import Dataset
from airflow_provider_sml.ml.registry import Registry
from airflow_provider_sml.refs import ModelRef

CONTRACT = {
    "key": ["id"],
    "event_time": "at",
    "columns": {
        "id": {"type": "int", "required": True},
        "at": {"type": "timestamp", "required": True},
        "weight": {"type": "double", "required": True},
        "fuel": {"type": "double"},
        "late": {"type": "double", "known": "after"},
    },
}
FEATURES = {"hour": "hour(at)", "weight": "weight", "fuel": "fuel"}
TOY = {"name": "toy", "source": {"path": "raw/{date}.csv"}, "label": "late > 10"}
DATASET = Dataset(**TOY, contract=CONTRACT, features=FEATURES)
#: With a category as its fourth feature.
PORT = {"port": {"type": "string", "required": True, "values": ["north", "south"]}}
PORTS = Dataset(
    **TOY, contract=CONTRACT | {"columns": CONTRACT["columns"] | PORT}, features=FEATURES | {"port": "port"}
)


def make_rows(count: int = 60) -> pa.Table:
    """Rows of the sample's test split: raw columns, features and label."""
    random = np.random.default_rng(0)
    at = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=int(hour)) for hour in random.integers(0, 500, count)]
    weight, fuel = random.random(count) * 30, random.random(count)
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()), "at": pa.array(at, pa.timestamp("us")),
            "weight": weight, "fuel": fuel, "late": weight - 10, "hour": [float(moment.hour) for moment in at],
            "label": (weight > 20).astype("int64"),
        }
    )  # fmt: skip


def make_bundle(seed: int, category: bool = False) -> Bundle:
    """A model that learned from such rows; another seed makes another model.

    :param category: whether it has a fourth feature, the category ``port``, which decides half of the label.
    """
    rows, features = make_rows(400), (PORTS if category else DATASET).feature_list
    if category:
        ports = pa.array((np.arange(400) % 2).astype(float))
        rows = rows.append_column("port", ports).drop_columns("label").append_column("label", ports)
    names = [feature.name for feature in features]
    matrix = np.column_stack([rows[name].to_numpy() for name in names]).astype(np.float32)
    data = xgboost.DMatrix(
        matrix, rows["label"].to_numpy(), feature_names=names, feature_types=feature_types(features),
        enable_categorical=True,
    )  # fmt: skip
    params = {"objective": "binary:logistic", "max_depth": 2, "seed": seed, "eta": 0.1 * seed, "nthread": 1}
    booster = xgboost.train(params, data, 5)
    return Bundle("toy", f"toy{seed}", PORTS if category else DATASET, 5, {}, bytes(booster.save_raw("ubj")))


def make_other(flavour: str) -> Bundle:
    """A model that learned from such rows, and is none of XGBoost's.

    :param flavour: ``sklearn`` or ``onnx``.
    """
    import skops.io
    from sklearn.linear_model import LogisticRegression

    from tests.others import graph_of

    rows = make_rows(400)
    matrix = np.column_stack([rows[name].to_numpy() for name in FEATURES])
    classifier = LogisticRegression(max_iter=1000).fit(matrix, rows["label"].to_numpy())
    content = skops.io.dumps(classifier) if flavour == "sklearn" else graph_of(classifier, len(FEATURES))
    return Bundle("toy", f"toy-{flavour}", DATASET, 0, {}, content, flavour=flavour)


def register_versions(root: Path, count: int = 3, registry: Registry | None = None) -> Path:
    """Register versions 1, 2, ... of the model in ``root/mlflow``, or in another registry; gives the root."""
    sample = root / "sample"
    (sample / "test").mkdir(parents=True)
    pq.write_table(make_rows(), sample / "test" / "part.parquet")
    registry = registry or Registry(str(root / "mlflow"))
    for seed in range(1, count + 1):
        register(root, make_bundle(seed), registry)
    return root


def register(root: Path, bundle: Bundle, registry: Registry) -> str:
    """Register a version of the model, of ``root/sample``; gives its number."""
    folder = root / "bundles" / bundle.model_id
    bundle.write(folder)
    model = ModelRef(
        uri=str(folder), model_id=bundle.model_id, digest=bundle.digest, sample_id="s", rounds=bundle.rounds
    )
    lineage = {"sample_uri": str(root / "sample"), "gate": "passed"}
    return registry.register("toy", model, np.array([[1.0, 2.0, 0.5]]), lineage=lineage).version
