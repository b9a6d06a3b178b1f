"""Classifiers as ONNX graphs, scored by onnxruntime on the processor.

A graph is data: it runs no code but onnxruntime's own operators, and no library of custom ones is loaded. One float
input takes the features as (rows, features); the one float output is the probability of the label, alone or beside that
of the other class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from airflow_provider_sml.errors import ConfigurationError, DataError, require

if TYPE_CHECKING:
    from airflow_provider_sml.ml.contract import Feature

_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def adopt(content: bytes, trusted: Sequence[str] = ()) -> bytes:
    """A graph's file as it is.

    :param content: of the file.
    :param trusted: means nothing here: a graph names no types.
    :raises ConfigurationError: when it is no graph, or keeps its weights in other files.
    """
    require("onnx", "onnx")
    import onnx

    try:
        model = onnx.load_model_from_string(content)
        outside = [
            tensor.name for tensor in _tensors(model.graph) if onnx.external_data_helper.uses_external_data(tensor)
        ]
        if not outside:
            onnx.checker.check_model(model)
    except Exception as error:  # of protobuf's or of the checker's own
        raise ConfigurationError(
            "the file is no ONNX model", expected="a graph as one file", found=f"{type(error).__name__}: {error}"[:400],
            todo="write it by skl2onnx, torch.onnx or the like",
        ) from error  # fmt: skip
    if outside:
        raise ConfigurationError(
            "the model keeps weights outside its file", expected="one file",
            found=", ".join(outside[:5]), todo="onnx.save_model(model, path, save_as_external_data=False)",
        )  # fmt: skip
    return content


def load(content: bytes, features: Sequence[Feature], threads: int = 0, trusted: Sequence[str] = ()) -> GraphModel:
    """The graph of some bytes; see ``Flavour.load``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each kind, and no base of them
        raise ConfigurationError(
            "onnxruntime cannot read the model", expected="an ONNX model that this version of it knows",
            found=f"{type(error).__name__}: {error}"[:400],
        ) from error  # fmt: skip
    return GraphModel(session, features)


class GraphModel:
    """A graph that scores.

    :param session: onnxruntime's.
    :param features: that it is asked with, in this order.
    """

    def __init__(self, session: Any, features: Sequence[Feature]) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        width = inputs[0].shape[-1] if len(inputs) == 1 and len(inputs[0].shape) == 2 else None
        if len(inputs) != 1 or inputs[0].type not in _FLOATS or (isinstance(width, int) and width != len(features)):
            raise ConfigurationError(
                "the graph does not take the features of the dataset",
                expected=f"one input of floats, shape (rows, {len(features)})",
                found="; ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs),
            )
        scores = [one.name for one in outputs if one.type in _FLOATS]
        if len(scores) != 1:
            raise ConfigurationError(
                "the graph does not give the probability of the label", expected="one output of floats",
                found="; ".join(f"{one.name}: {one.type}" for one in outputs),
                todo="convert it without ZipMap: skl2onnx.to_onnx(..., options={'zipmap': False})",
            )  # fmt: skip
        self._session, self._output = session, scores[0]
        self._input, self._type = inputs[0].name, _FLOATS[inputs[0].type]

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """See ``Model``; of two columns the second is that of the label."""
        rows = matrix.astype(np.float32).astype(self._type)
        found = np.asarray(self._session.run([self._output], {self._input: rows})[0], dtype=np.float64)
        if found.shape[1:] not in ((), (1,), (2,)) or len(found) != len(rows):
            raise DataError(
                f"the output {self._output} of the graph is no score of each row",
                expected=f"shape ({len(rows)},), ({len(rows)}, 1) or ({len(rows)}, 2)", found=found.shape,
            )  # fmt: skip
        return found if found.ndim == 1 else found[:, -1]

    def importance(self) -> dict[str, float]:
        """Nothing: a graph does not say it."""
        return {}


def _tensors(graph: Any) -> Iterator[Any]:
    """The constants of a graph and of the graphs within it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(inner)
