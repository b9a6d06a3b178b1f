"""Checkpoints of a training: one object that holds the booster and everything needed to go on as if nothing happened.

Model and state travel in one object, so they can never be of different rounds: a line of JSON with the state and the
SHA-256 of the model, then the model as UBJSON. XGBoost itself aborts the process on a damaged model, so nothing is
given to it whose digest is wrong. The object is replaced as a whole: on a file system by a temporary file, ``fsync``
and a rename, in an object store by one PUT. A checkpoint of another training, or a damaged one, is refused and never
silently thrown away.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sml.errors import IntegrityError
from airflow_provider_sml.ml import storage

_FORMAT = "sml-checkpoint-1"


@dataclass
class State:
    """Where a training stands.

    :param training: id of the training: what decides the model's bytes.
    :param rounds: rounds that are done.
    :param best_round: the round with the best value so far, counted from 0; -1 before the first.
    :param best_value: the metric's value there.
    :param history: the metrics of each round.
    :param seconds: boosting time up to here, over all attempts.
    """

    training: str
    rounds: int = 0
    best_round: int = -1
    best_value: float = float("inf")
    history: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


class Checkpoint:
    """The place of one training's checkpoint.

    :param path: of the object: a path, or a path of an object store.
    :param training: id of the training that it belongs to.
    """

    def __init__(self, path: Path, training: str) -> None:
        self.path = path
        self.training = training

    def write(self, model: bytes, state: State) -> None:
        """Replace the checkpoint.

        :param model: the booster as UBJSON.
        :param state: where it stands.
        """
        head = {"format": _FORMAT, "digest": hashlib.sha256(model).hexdigest(), "state": asdict(state)}
        storage.write(self.path, json.dumps(head).encode() + b"\n" + model)

    def read(self) -> tuple[bytes, State] | None:
        """The booster as UBJSON, and the state; None when there is no checkpoint.

        :raises IntegrityError: when it is damaged, or belongs to another training.
        """
        try:
            head, _, model = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            told = json.loads(head)
            state, digest = State(**told["state"]), told["digest"]
            if told["format"] != _FORMAT:
                raise ValueError(f"format {told['format']}")
        except (ValueError, TypeError, KeyError) as error:
            raise self._refused("is damaged", f"an object of the form {_FORMAT}", str(error)[:200]) from error
        if (found := hashlib.sha256(model).hexdigest()) != digest:
            raise self._refused("is damaged", f"a model with the digest {digest}", found)
        if state.training != self.training:
            raise self._refused("belongs to another training", self.training, state.training)
        return model, state

    def remove(self) -> None:
        """Remove the checkpoint of a training that has come to its end."""
        self.path.unlink(missing_ok=True)

    def _refused(self, what: str, expected: Any, found: Any) -> IntegrityError:
        return IntegrityError(
            f"the checkpoint {self.path} {what}", expected=expected, found=found,
            todo="move it away to start from the first round, or give the training another place",
        )  # fmt: skip
