"""A person decides whether a version that passed its gate is deployed, through Airflow's own form of approval.

It adds to Airflow's ``ApprovalOperator`` what a promotion needs: the evidence in the form, the decision on the version,
and the one who triggered the training kept out. Who may see the form and answer it at all is Airflow's to say.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import BaseOperatorLink, Param

from airflow_provider_sml.compat import AirflowFailException, AirflowSkipException
from airflow_provider_sml.errors import ConfigurationError, GateError, SmlError
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.links.pages import GateLink, MlflowLink, ModelLink
from airflow_provider_sml.operators.base import announce
from airflow_provider_sml.operators.gate import verdict_folder
from airflow_provider_sml.refs import ApprovalRef, ModelVersionRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.gate import Verdict
    from airflow_provider_sml.ml.registry import Registry

#: What happens when nobody answers in time, and the option of the form that then counts as chosen.
NO_ANSWER = {"reject": ApprovalOperator.REJECT, "approve": ApprovalOperator.APPROVE, "fail": None}
_COMMENT = "comment"
# Earlier versions of Airflow's standard provider take the time to answer for the time to run.
_TIMEOUT = "response_timeout"
if _TIMEOUT not in inspect.signature(HITLOperator.__init__).parameters:
    _TIMEOUT = "execution_timeout"


class ApproveModelOperator(ApprovalOperator):
    """Asks a person whether a version that passed its gate may be deployed, and waits without a worker.

    The form (*Required Actions* in Airflow) shows every check of the verdict and links its page. Approved, the task
    succeeds and its outlets get their event; rejected, it is skipped, and with it what needs its success. The decision,
    who made it and the comment become tags of the version (``sml.approval``, ``sml.approval_by``,
    ``sml.approval_time``, ``sml.approval_comment``), ``approval.json`` and a line on the gate's page. Until it is
    approved, ``DeployModelOperator`` refuses the version. An answer that MLflow could not be told of is not lost: the
    retry finds it and asks nobody.

    :param version: what ``RegisterModelOperator`` gave; its gate has passed.
    :param by: users who may answer: names, or mappings with ``id`` and ``name`` where the auth manager's ids are no
        names; everybody who may answer tasks of the DAG when empty.
    :param within: how long the answer is waited for, a timedelta or seconds; for ever when None.
    :param on_no_answer: what then happens: ``reject``, ``approve``, or ``fail``, which fails the task and alerts.
    :param exclude_trigger: whether the user who triggered this run may not answer. A run that a schedule or an asset
        started was triggered by nobody.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param reports: folder of the reports.
    :param notifiers: told when the question is asked.
    """

    template_fields: Collection[str] = ("subject", "body", "version", "mlflow", "reports")
    ui_color = "#ffe3a8"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), GateLink(), MlflowLink())

    def __init__(
        self,
        *,
        version: Any,
        by: Sequence[str | Mapping[str, str]] = (),
        within: dt.timedelta | float | None = None,
        on_no_answer: str = "reject",
        exclude_trigger: bool = False,
        mlflow: str = MlflowHook.default_conn_name,
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        if on_no_answer not in NO_ANSWER:
            raise ConfigurationError("on_no_answer", expected=" or ".join(NO_ANSWER), found=on_no_answer)
        # Airflow shows only the fields that it knows to be the task's own; it marks those that a caller gives.
        own = {"source": "task"} if "source" in inspect.signature(Param.__init__).parameters else {}
        comment = Param(
            "", type=["string", "null"], title="Comment", description="Why; it is kept with the version.", **own
        )
        given = kwargs.pop("params", None) or {}  # those of the DAG are among them
        fields = {key: given.get_param(key) if hasattr(given, "get_param") else given[key] for key in given}
        kwargs = {"subject": "Deploy this version?", "params": {_COMMENT: comment} | fields} | kwargs
        timeout = dt.timedelta(seconds=within) if isinstance(within, int | float) else within
        super().__init__(defaults=NO_ANSWER[on_no_answer], **{_TIMEOUT: timeout}, **kwargs)
        if not own and self.has_dag():  # an Airflow that would ask for the DAG's parameters as well
            asked: Any = vars(self)["params"]
            self.params = type(asked)({key: asked.get_param(key) for key in asked if key not in self.dag.params})
        self.version = version
        self.by = by
        self.within = within
        self.on_no_answer = on_no_answer
        self.exclude_trigger = exclude_trigger
        self.mlflow = mlflow
        self.reports = reports

    def execute(self, context: Context) -> Any:
        """Put the evidence into the form, and wait for the answer."""
        try:
            if given := self._ask(context):
                return self._finish(context, given)
        except SmlError as error:
            raise _failed(error) from error
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Record the answer; go on, or skip what follows."""
        try:
            decision = self._decide(context, event)
        except SmlError as error:
            raise _failed(error) from error
        # Past ApprovalOperator's own: after a rejection it skips what follows but succeeds itself, and so it would send
        # the events of its outlets.
        super(ApprovalOperator, self).execute_complete(context, event)
        getattr(self, "hitl_summary_extra", {})["approved"] = decision.decision == "approved"
        return self._finish(context, decision)

    def _finish(self, context: Context, decision: ApprovalRef) -> dict[str, Any]:
        """Let the run go on where the version was approved."""
        if decision.decision == "rejected":
            raise AirflowSkipException(f"{_told(decision)}; the champion stays")
        self.log.info("%s", _told(decision))
        announce(context, {"version": decision.version, "approved_by": decision.by})
        return decision.to_xcom()

    # --- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, context: Context) -> ApprovalRef | None:
        """Fill the form; gives the answer that an earlier try was given and could not record, and then asks nobody."""
        from airflow_provider_sml.ml.gate import forget_approval, kept_approval
        from airflow_provider_sml.ml.gate.page import verdict_markdown

        version, verdict, registry = self._evidence()
        folder = verdict_folder(self.reports, version)
        waiting = registry.tags(version).get("approval") == "waiting"
        if waiting and (given := kept_approval(folder, verdict)) is not None:
            self._settle(registry, version, verdict, given)
            return given
        forget_approval(folder)
        registry.set_tags(version, {"approval": "waiting"})
        self.assigned_users = self._answerers(context)
        self.subject = f"Deploy {version.name} version {version.version}?"
        link = GateLink().address({"name": version.name, "version": version.version})
        self.body = verdict_markdown(verdict, link)
        who = ", ".join(user["name"] for user in self.assigned_users or []) or "everybody who may answer"
        self.log.info("%s asked: %s; without an answer: %s", self.subject, who, self.on_no_answer)
        return None

    def _evidence(self) -> tuple[ModelVersionRef, Verdict, Registry]:
        """The version and its verdict, which must have passed."""
        from airflow_provider_sml.ml.gate import Verdict

        version = ModelVersionRef.load(self.version)
        verdict = Verdict.read(verdict_folder(self.reports, version))
        if verdict.model_id != version.model_id or not verdict.passed:
            raise GateError(
                f"{version.name} version {version.version} is not up for approval",
                expected=f"a gate that model {version.model_id} passed",
                found=f"one that model {verdict.model_id} {'passed' if verdict.passed else 'did not pass'}",
                todo="clear the gate's task",
            )
        return version, verdict, MlflowHook(self.mlflow).get_conn()

    def _answerers(self, context: Context) -> list[Any] | None:
        """The users who may answer; None for everybody."""
        users = [{"id": who, "name": who} if isinstance(who, str) else {**who} for who in self.by]
        trigger = self._excluded(context)
        left = [user for user in users if trigger not in (user["id"], user["name"])]
        if users and not left:
            raise ConfigurationError(
                "nobody is left who may approve", expected=f"a user other than {trigger}, who triggered the run",
                found=", ".join(user["name"] for user in users), todo="name another user in gate.approval.by",
            )  # fmt: skip
        return left or None

    def _excluded(self, context: Context) -> str | None:
        """The user who triggered this run and may therefore not answer; None where nobody is kept out."""
        if not self.exclude_trigger:
            return None
        run = context["dag_run"]
        if not hasattr(run, "triggering_user_name"):
            raise ConfigurationError(
                "this Airflow does not tell tasks who triggered their run", expected="apache-airflow 3.1 or later",
                found="a run without triggering_user_name", todo="take exclude_trigger out, or upgrade",
            )  # fmt: skip
        name: str | None = run.triggering_user_name
        return name

    # --- deciding -------------------------------------------------------------------------------------------------

    def _decide(self, context: Context, event: Mapping[str, Any]) -> ApprovalRef:
        """What was answered, kept and recorded."""
        version, verdict, registry = self._evidence()
        now = dt.datetime.now(dt.UTC)
        if "error" in event:
            if event.get("error_type") != "timeout":
                raise GateError("the answer cannot be taken", found=event["error"], todo="clear this task to ask again")
            self._settle(
                registry, version, verdict,
                ApprovalRef(version.name, version.version, "unanswered", "", _stamp(now), ""),
            )  # fmt: skip
            raise GateError(
                f"nobody decided on {version.name} version {version.version}",
                expected="an answer in time", found=f"none within {self.within}",
                todo="clear this task to ask again; the champion stays",
            )  # fmt: skip
        self.validate_chosen_options(event["chosen_options"])
        user = event.get("responded_by_user") or {}
        self._may(context, user)
        decision = ApprovalRef(
            version.name, version.version,
            "approved" if list(event["chosen_options"]) == [self.APPROVE] else "rejected",
            str(user.get("name") or ""), _stamp(event.get("responded_at") or now),
            str((event.get("params_input") or {}).get(_COMMENT) or ""),
        )  # fmt: skip
        self._settle(registry, version, verdict, decision)
        return decision

    def _may(self, context: Context, user: Mapping[str, str]) -> None:
        """Refuse an answer of somebody who may not give it.

        Airflow refuses those who were not asked, but not where it takes everybody for an administrator, and it cannot
        keep one person out of everybody.
        """
        if not user:  # nobody answered, and the default counts
            return
        asked, trigger = self._answerers(context), self._excluded(context)
        if trigger in (user["id"], user["name"]) or (asked and user["id"] not in [each["id"] for each in asked]):
            raise GateError(
                f"the answer of {user['name']} does not count",
                expected=", ".join(each["name"] for each in asked or []) or f"somebody other than {trigger}",
                found=f"{user['name']}, who {'triggered the run' if user['name'] == trigger else 'was not asked'}",
                todo="clear this task to ask again",
            )

    def _same_champion(self, registry: Registry, version: ModelVersionRef, verdict: Verdict) -> None:
        """The evidence must still be about the version that serves."""
        from airflow_provider_sml.ml.registry import CHAMPION

        champion = registry.version(version.name, alias=CHAMPION)
        now = champion.version if champion and champion.version != version.version else None
        if now != verdict.champion and champion is not None:
            raise GateError(
                f"the champion has changed since {version.name} version {version.version} was judged",
                expected=f"version {verdict.champion}" if verdict.champion else "none",
                found=f"version {champion.version}",
                todo="clear the evaluating task and those after it: the version is compared and asked about anew",
            )

    def _settle(self, registry: Registry, version: ModelVersionRef, verdict: Verdict, decision: ApprovalRef) -> None:
        """Keep the decision beside the verdict, then on the version; the first outlives an MLflow that is down."""
        from airflow_provider_sml.ml.gate import forget_approval, record_approval

        folder = verdict_folder(self.reports, version)
        record_approval(folder, verdict, decision)
        if decision.decision == "approved":
            try:
                self._same_champion(registry, version, verdict)
            except GateError:
                forget_approval(folder)
                raise
        # The decision comes last: a retry looks at it.
        told = {"by": decision.by, "time": decision.time, "comment": decision.comment[:400]}
        registry.set_tags(version, {f"approval_{key}": text for key, text in told.items()})
        registry.set_tags(version, {"approval": decision.decision})


def _stamp(moment: Any) -> str:
    return moment.isoformat(timespec="seconds") if isinstance(moment, dt.datetime) else str(moment)


def _told(decision: ApprovalRef) -> str:
    who = f"by {decision.by}" if decision.by else "because nobody answered in time"
    return f"{decision.name} version {decision.version} was {decision.decision} {who}"


def _failed(error: SmlError) -> Exception:
    """An error that no retry mends: a retry would ask the same people again, who have not seen it."""
    return error if error.retryable else AirflowFailException(f"{type(error).__name__}: {error}")
