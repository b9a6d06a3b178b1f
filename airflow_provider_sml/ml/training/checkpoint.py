"""Checkpoints of a training: one object that holds the booster and everything needed to go on as if nothing happened.

The state travels inside the booster, as an attribute, so that model and state can never be of different rounds. An
object is replaced as a whole: on a file system by a temporary file, ``fsync`` and a rename, in an object store by one
PUT. A checkpoint of another training, or one that cannot be read, is refused and never silently thrown away.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sml.errors import IntegrityError

if TYPE_CHECKING:
    import xgboost

#: Name of the booster's attribute that holds the state.
STATE = "sml_state"


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

    def write(self, booster: xgboost.Booster, state: State) -> int:
        """Replace the checkpoint; gives its bytes.

        The booster gets its attribute for the moment of writing only.
        """
        booster.set_attr(**{STATE: json.dumps(asdict(state))})
        try:
            raw = bytes(booster.save_raw("ubj"))
        finally:
            booster.set_attr(**{STATE: None})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.path, os.PathLike):  # an object store: a PUT is atomic
            self.path.write_bytes(raw)
            return len(raw)
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return len(raw)

    def read(self) -> tuple[bytes, State] | None:
        """The booster's bytes and the state; None when there is no checkpoint.

        :raises IntegrityError: when it is broken, or belongs to another training.
        """
        import xgboost

        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        booster = xgboost.Booster()
        try:
            booster.load_model(bytearray(raw))
            state = State(**json.loads(booster.attr(STATE) or ""))
        except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
            raise self._refused(
                "is broken", "a checkpoint of this library", str(error).splitlines()[0][:200]
            ) from error
        if state.training != self.training:
            raise self._refused("belongs to another training", self.training, state.training)
        if booster.num_boosted_rounds() != state.rounds:
            raise self._refused("is inconsistent", f"{state.rounds} rounds", booster.num_boosted_rounds())
        booster.set_attr(**{STATE: None})
        return bytes(booster.save_raw("ubj")), state

    def remove(self) -> None:
        """Remove the checkpoint of a training that has come to its end."""
        self.path.unlink(missing_ok=True)

    def _refused(self, what: str, expected: Any, found: Any) -> IntegrityError:
        return IntegrityError(
            f"the checkpoint {self.path} {what}", expected=expected, found=found,
            todo="move it away to start from the first round, or give the training another place",
        )  # fmt: skip
