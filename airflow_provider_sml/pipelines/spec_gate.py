"""The part of a spec that says what a version must fulfil to be deployed, and who may let it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from airflow_provider_sml.ml.contract.model import Name, Number, Strict, Whole, misfit
from airflow_provider_sml.ml.contract.quantities import Duration, Share, Size
from airflow_provider_sml.ml.training.custom import PATH

Rival = Literal["champion"]


class AucCheck(Strict):
    """Area under the ROC curve.

    :param min: the lower end of its interval must reach this.
    :param not_worse_than: the version in production, compared on the same rows.
    :param margin: how much worse it may be.
    """

    min: Share = 0.5
    not_worse_than: Rival | None = None
    margin: Share = 0.0


class _LossCheck(Strict):
    not_worse_than: Rival | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> _LossCheck:
        limits = [name for name in ("min", "max") if name in type(self).model_fields]
        if self.not_worse_than is None and all(getattr(self, name) is None for name in limits):
            raise misfit(limits[-1], f"{' or '.join(limits)}, or not_worse_than: champion", "neither")
        return self


class LossCheck(_LossCheck):
    """A measure of which less is better.

    :param max: the upper end of its interval may not exceed this.
    :param not_worse_than: the version in production, compared on the same rows.
    :param margin: how much worse it may be.
    """

    max: Number | None = Field(default=None, ge=0)
    margin: Number = Field(default=0.0, ge=0)


class EceCheck(_LossCheck):
    """Expected calibration error.

    :param max: it may not exceed this; the error itself, because chance moves its interval upward.
    :param not_worse_than: the version in production, compared on the same rows.
    :param margin: how much worse it may be.
    """

    max: Share | None = None
    margin: Share = 0.0


class OwnCheck(_LossCheck):
    """A metric of one's own, one of ``train.metrics``.

    :param min: the lower end of its interval must reach this.
    :param max: the upper end of its interval may not exceed this.
    :param not_worse_than: the version in production, compared on the same rows.
    :param margin: how much worse it may be.
    """

    min: Number | None = None
    max: Number | None = None
    margin: Number = Field(default=0.0, ge=0)


class BaselineCheck(Strict):
    """The AUC of plain rates by a few columns, which the model must beat.

    :param by: the columns.
    :param margin: by how much; the lower end of the difference's interval must reach this.
    """

    by: list[Name] = Field(min_length=1)
    margin: Share = 0.0


class SliceCheck(Strict):
    """Each slice by itself, and all of them against the champion.

    :param by: the columns whose values make the slices.
    :param min_rows: smallest slice that is judged.
    :param min_auc: what each must reach.
    :param not_worse_than: the version in production: no slice may have lost against it, on the same rows.
    :param measure: by which they are compared.
    :param margin: how much worse a slice may be.
    :param alpha: chance of refusing a version that is worse in no slice; p-values are corrected for the number of
        slices by Holm's procedure.
    """

    by: list[Name] = Field(min_length=1)
    min_rows: Whole = Field(default=500, ge=2)
    min_auc: Share = 0.5
    not_worse_than: Rival | None = None
    measure: Literal["auc", "log_loss", "brier", "ece"] = "auc"
    margin: Number = Field(default=0.0, ge=0)
    alpha: Number = Field(default=0.05, gt=0, lt=0.5)


class ParityCheck(Strict):
    """The stored model's scores against those of training, on stored rows.

    :param rows: how many.
    :param tolerance: largest absolute difference of two scores.
    :param through: what scores them: the serving ``process``, started for it, or the reloaded ``bundle``.
    """

    rows: Whole = Field(default=200, ge=1, le=10_000)
    tolerance: Number = Field(default=1e-6, gt=0, lt=1)
    through: Literal["process", "bundle"] = "process"


class SizeCheck(Strict):
    """The model's bytes.

    :param max: the most that it may have, such as 50 MB.
    """

    max: Size


class LatencyCheck(Strict):
    """The time of one row, measured through the serving process on the worker that judges.

    :param p50: half of the requests must be at least as quick, such as 5ms.
    :param p99: all but one in a hundred must be.
    :param requests: how many are measured.
    """

    p50: Duration | None = None
    p99: Duration | None = None
    requests: Whole = Field(default=300, ge=100, le=100_000)

    @model_validator(mode="after")
    def _asks_for_something(self) -> LatencyCheck:
        if self.p50 is None and self.p99 is None:
            raise misfit("p99", "p50 or p99, such as p99: 20ms", "neither")
        return self


class Approver(Strict):
    """A person, where the log-in's id is another than the name.

    :param id: as the auth manager knows the user, such as the number in Flask-AppBuilder's table of users.
    :param name: the user's name, by which the one who triggered a run is known.
    """

    id: str = Field(min_length=1)
    name: str = Field(min_length=1)


class Approval(Strict):
    """A person decides, after the checks have passed, whether the version is deployed.

    :param by: names of the users who may; everybody who may answer tasks of the DAG when empty.
    :param within: how long the task waits for the answer; for ever when null.
    :param on_no_answer: what then happens: ``reject``, ``approve``, or ``fail``, which alerts.
    :param exclude_trigger: whether the user who triggered the training may not approve its outcome.
    """

    by: list[Annotated[str, StringConstraints(min_length=1)] | Approver] = []
    within: Duration | None = Field(default="24h", validate_default=True)
    on_no_answer: Literal["reject", "approve", "fail"] = "reject"
    exclude_trigger: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The approval as ``ApproveModelOperator`` takes it."""
        return self.model_dump()

    @model_validator(mode="after")
    def _fits(self) -> Approval:
        if self.within is not None and not self.within:
            raise misfit("within", "longer than nothing, or null", "0s")
        names = [who if isinstance(who, str) else who.name for who in self.by]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise misfit("by", "each user once", f"{twice} twice")
        return self


class Gate(Strict):
    """What a version must fulfil to be deployed.

    :param auc: area under the ROC curve.
    :param log_loss: mean negative log likelihood.
    :param brier: mean squared difference of score and label.
    :param ece: expected calibration error.
    :param own: metrics of one's own, by the names of ``train.metrics``.
    :param baseline: the AUC of plain rates, which the model must beat.
    :param slices: each slice by itself, and against the champion.
    :param parity: the stored model's scores against those of training.
    :param size: the model's bytes.
    :param latency: the time of one row.
    :param approval: a person who decides in the end; ``none`` for nobody.
    """

    auc: AucCheck = AucCheck()
    log_loss: LossCheck | None = None
    brier: LossCheck | None = None
    ece: EceCheck | None = None
    own: dict[Annotated[str, StringConstraints(pattern=f"^{PATH}$")], OwnCheck] = {}
    baseline: BaselineCheck | None = None
    slices: SliceCheck | None = None
    parity: ParityCheck | None = None
    size: SizeCheck | None = None
    latency: LatencyCheck | None = None
    approval: Literal["none"] | Approval = "none"

    @property
    def checks(self) -> dict[str, object]:
        """The checks as ``GateOperator`` takes them."""
        return self.model_dump(mode="json", exclude={"approval"}, exclude_none=True)
