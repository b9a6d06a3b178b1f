"""What a spec says of a search for hyper-parameters."""

from __future__ import annotations

from pydantic import Field, model_validator

from airflow_provider_sml.ml.contract.model import Flag, Number, Strict, Whole, misfit
from airflow_provider_sml.ml.training.space import Space


class Search(Strict):
    """Which hyper-parameters are searched before the training, and what that may cost.

    The first of ``trials``, ``minutes`` and ``usd`` that is used up ends the search. The best values go over those of
    ``params``.

    :param space: by parameter of XGBoost, ``{min: 0.01, max: 0.3, log: true}`` for a number (whole where ``min``,
        ``max`` and ``step`` are whole), or a list of values.
    :param trials: most trials.
    :param minutes: most minutes in which trials run.
    :param usd: most USD for the trials' workers, by ``train.usd_per_hour``.
    :param parallel: trials at once, each on ``train.workers`` workers of its own.
    :param prune: whether a trial ends early whose loss is worse than the median of others at the same round.
    :param startup: trials that come to their end before any other is ended early.
    :param warmup: rounds of a trial before it may be ended early.
    :param seed: another one proposes others.
    """

    space: Space
    trials: Whole | None = Field(default=None, ge=1, le=10_000)
    minutes: Number | None = Field(default=None, gt=0)
    usd: Number | None = Field(default=None, gt=0)
    parallel: Whole = Field(default=1, ge=1, le=64)
    prune: Flag = True
    startup: Whole = Field(default=5, ge=1)
    warmup: Whole = Field(default=20, ge=0)
    seed: Whole = Field(default=7, ge=0)

    @model_validator(mode="after")
    def _ends(self) -> Search:
        if self.trials is None and self.minutes is None and self.usd is None:
            raise misfit("trials", "a budget: trials, minutes or usd", "none")
        return self

    @property
    def budget(self) -> str:
        """The budget in words."""
        parts = [f"{self.trials} trials"] if self.trials is not None else []
        parts += [f"{self.minutes:g} minutes"] if self.minutes is not None else []
        parts += [f"{self.usd:g} USD"] if self.usd is not None else []
        return " or ".join(parts)
