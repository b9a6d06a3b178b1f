"""The gate before production: judge a registered version by its evidence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.errors import GateError, IntegrityError, SmlError
from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import reached, report_folder
from airflow_provider_sml.links.pages import EvaluationLink, GateLink, MlflowLink, ModelLink
from airflow_provider_sml.operators.base import SmlOperator, announce, sample_of
from airflow_provider_sml.refs import EvaluationRef, ModelVersionRef, VerdictRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.gate import Served
    from airflow_provider_sml.ml.registry import Registry


def verdict_folder(reports: str | None, version: ModelVersionRef) -> Path:
    """Where the verdict of a version lies.

    :param reports: folder of the reports, as an operator was given it.
    :param version: the version.
    """
    return report_folder(reports, version.name, "gate", version.version)


class GateOperator(SmlOperator):
    """Judges a version by its evidence; the task fails when a check fails, and its outlets then get no event.

    Most checks read the evaluation. ``parity`` and ``latency`` start the serving process with the registered model on a
    private port of this worker for some seconds, and end it. The verdict becomes ``gate.json``, a page, and tags
    ``sml.gate`` and ``sml.gate.CHECK`` of the version.

    :param version: what ``RegisterModelOperator`` gave.
    :param evaluation: what ``EvaluateModelOperator`` gave.
    :param checks: ``auc``, ``log_loss``, ``brier``, ``ece``, ``own``, ``baseline``, ``slices``, ``parity``, ``size``,
        ``latency``, as in a spec's ``gate``.
    :param approval: whether a person is asked afterwards: no operator deploys the version until somebody has approved
        it.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = ("version", "evaluation", "checks", "mlflow", "reports")
    ui_color = "#fff3b0"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), GateLink(), EvaluationLink(), MlflowLink())

    def __init__(
        self,
        *,
        version: Any,
        evaluation: Any,
        checks: Mapping[str, Any] | None = None,
        approval: bool = False,
        mlflow: str = MlflowHook.default_conn_name,
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.evaluation = evaluation
        self.checks = checks or {}
        self.approval = approval
        self.mlflow = mlflow
        self.reports = reports

    def run(self, context: Context) -> VerdictRef:
        """Judge, write the verdict, tag the version."""
        from airflow_provider_sml.ml.gate import Verdict, check_settings, judge
        from airflow_provider_sml.ml.registry import CHAMPION

        check_settings(self.checks)
        version = ModelVersionRef.load(self.version)
        registry = MlflowHook(self.mlflow).get_conn()
        champion = registry.version(version.name, alias=CHAMPION)
        folder = verdict_folder(self.reports, version)
        evidence = reached(EvaluationRef.load(self.evaluation).uri)
        found = judge(
            version, _evaluation(evidence), self.checks, folder, champion.version if champion else None,
            evidence=evidence, served=self._served(registry, version),
        )  # fmt: skip
        verdict = Verdict.read(folder)
        if self.approval or registry.tags(version).get("approval"):
            registry.set_tags(version, {"approval": "waiting" if self.approval else ""})
        registry.set_tags(version, verdict.tags())
        for check in verdict.checks:
            self.log.info("%s %s: %s", "✓" if check.passed else "✗", check.name, check.line)
        if not found.passed:
            raise GateError(
                f"{version.name} version {version.version} failed {len(found.failed)} of {found.checks} checks of its "
                "gate",
                expected="; ".join(f"{check.name}: {check.limit}" for check in verdict.failed),
                found="; ".join(f"{check.name}: {check.value}" for check in verdict.failed),
                todo=f"read {folder / 'gate.html'}; the champion stays",
            )
        self.log.info("passed: %d of %d checks", found.checks, found.checks)
        announce(context, {"version": version.version})
        return found

    def _served(self, registry: Registry, version: ModelVersionRef) -> Served | None:
        """What is measured of the stored model, where a check asks for it."""
        from airflow_provider_sml.ml.gate import SERVED
        from airflow_provider_sml.ml.gate.served import ROWS, Served, measure
        from airflow_provider_sml.ml.serving.stored import stored_rows

        wanted = {name: self.checks.get(name) for name in SERVED}
        if all(setting is None for setting in wanted.values()):
            return None
        with tempfile.TemporaryDirectory(prefix="sml-gate-") as temporary:
            folder = Path(temporary) / "bundle"
            bundle = registry.bundle(version, folder)
            rows: list[dict[str, Any]] = []
            scores: list[float] = []
            problem = ""
            if wanted["parity"] is not None or wanted["latency"]:
                tags = registry.tags(version)
                try:
                    sample = LakeHook(tags.get("lake", "")).place(sample_of(version, tags))
                    rows, scores = stored_rows(bundle, sample, int((wanted["parity"] or {}).get("rows") or ROWS))
                except SmlError as error:  # evidence that is lacking fails the check, and says why
                    problem = str(error)
            if problem:
                measured = measure(folder, version.name, version.version, [], [], {})
                return Served(size=measured.size, problem=problem)
            return measure(folder, version.name, version.version, rows, scores, wanted)


def _evaluation(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "evaluation.json").read_text()))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            "the evaluation is gone or damaged", expected=folder / "evaluation.json", found=error,
            todo="clear the evaluating task",
        ) from error  # fmt: skip
