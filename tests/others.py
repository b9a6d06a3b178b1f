"""Models that are not trained by this package, as files: a scikit-learn classifier and the same one as a graph."""

from pathlib import Path

import numpy as np

from airflow_provider_sml.ml.sampling import split_files
from airflow_provider_sml.ml.training import data
from airflow_provider_sml.refs import SampleRef
from tests.ml.test_lake_shops import DATASET


def training_rows(sample):
    """Features and labels of the sample's training rows."""
    parts = [data.read(path, DATASET.feature_list) for path in split_files(SampleRef.load(sample), "train")]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([labels for _, labels in parts])


def fitted(sample):
    """A classifier that deals with missing values."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(*training_rows(sample))


def graph_of(classifier, width, **options):
    """The classifier as an ONNX model's bytes."""
    from skl2onnx import to_onnx

    return to_onnx(
        classifier, np.zeros((1, width), np.float32), options={id(classifier): {"zipmap": False} | options}
    ).SerializeToString()


def write_model(kind, folder, sample):
    """Fit to the sample and write the model's file; gives its path."""
    import skops.io

    classifier = fitted(sample)
    path = Path(folder) / {"sklearn": "model.skops", "onnx": "model.onnx"}[kind]
    if kind == "sklearn":
        skops.io.dump(classifier, path)
    else:
        path.write_bytes(graph_of(classifier, len(DATASET.features)))
    return str(path)
