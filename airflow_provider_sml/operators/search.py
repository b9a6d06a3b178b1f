"""Before a training: which hyper-parameters give the best model on the rows of validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from airflow_provider_sml.hooks.lake import LakeHook
from airflow_provider_sml.hooks.places import report_folder
from airflow_provider_sml.links.pages import ModelLink, SearchLink
from airflow_provider_sml.ml.contract.dataset import Dataset
from airflow_provider_sml.operators.base import SmlOperator
from airflow_provider_sml.operators.clusters import Where, end_made, where
from airflow_provider_sml.operators.cost import Cost
from airflow_provider_sml.operators.openlineage import Data, parent
from airflow_provider_sml.refs import SampleRef, SearchRef

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_sml.ml.training.search import Search


class SearchHyperparametersOperator(SmlOperator):
    """Searches for hyper-parameters with Optuna: many trainings of one sample, bad ones ended early.

    Its output is what ``TrainXGBoostOperator`` takes as ``hyperparameters``. Every trial that has ended is stored: a
    retry, also after the task was killed, and a repeat with a larger budget go on from there. The test window is never
    read.

    :param sample: what ``SampleOperator`` gave.
    :param dataset: features and label.
    :param space: by parameter of XGBoost, ``{"min": 0.01, "max": 0.3, "log": True}`` for a number (whole where ``min``,
        ``max`` and ``step`` are whole), or a list of values.
    :param hyperparameters: those that stay as they are, as ``TrainXGBoostOperator`` takes them; the space goes before
        them. ``stop_on`` is the metric of the validation rows that decides.
    :param trials: most trials; None for any number. One budget is needed, and the first that is used up ends the
        search.
    :param minutes: most minutes in which trials run, over all tries of the task; None for any.
    :param usd: most USD for the trials' workers, by ``usd_per_hour``; None for any.
    :param usd_per_hour: what one worker costs in an hour; 0 when it is not known.
    :param parallel: trials at once, each on ``workers`` workers of its own. With several, the order in which they end
        decides what is tried next.
    :param prune: whether a trial ends early whose loss is worse than the median of others at the same round.
    :param startup: trials that come to their end before any other is ended early.
    :param warmup: rounds of a trial before it may be ended early.
    :param seed: of what is proposed.
    :param cluster: as for ``TrainXGBoostOperator``; it gets ``parallel * workers`` workers.
    :param workers: workers that the rows of one trial are split over.
    :param spot: of a cluster that is made for the task: on spare capacity, which may be taken away.
    :param machine: where the workers run, to notice an interruption in time: ``ec2``, ``gce`` or empty.
    :param device: ``auto`` (a GPU where a worker has one), ``cpu`` or ``cuda``.
    :param searches: folder for the trials; beside the sample's lake when None.
    :param reports: folder of the reports.
    """

    template_fields: Sequence[str] = (
        "sample", "space", "hyperparameters", "cluster", "device", "searches", "reports",
    )  # fmt: skip
    ui_color = "#f8d7da"
    operator_extra_links: Collection[BaseOperatorLink] = (ModelLink(), SearchLink())
    #: Where the workers run, once it does.
    _place: Where | None = None
    _killed = False

    def __init__(
        self,
        *,
        sample: Any,
        dataset: Dataset | Mapping[str, Any],
        space: Mapping[str, Any],
        hyperparameters: Mapping[str, Any] | None = None,
        trials: int | None = None,
        minutes: float | None = None,
        usd: float | None = None,
        usd_per_hour: float = 0.0,
        parallel: int = 1,
        prune: bool = True,
        startup: int = 5,
        warmup: int = 20,
        seed: int = 7,
        cluster: str | Mapping[str, Any] = "local",
        workers: int = 1,
        spot: bool = False,
        machine: str = "",
        device: str = "auto",
        searches: str | None = None,
        reports: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sample = sample
        self.dataset = dataset
        self.space = space
        self.hyperparameters = hyperparameters or {}
        self.trials = trials
        self.minutes = minutes
        self.usd = usd
        self.usd_per_hour = usd_per_hour
        self.parallel = parallel
        self.prune = prune
        self.startup = startup
        self.warmup = warmup
        self.seed = seed
        self.cluster = cluster
        self.workers = workers
        self.spot = spot
        self.machine = machine
        self.device = device
        self.searches = searches
        self.reports = reports

    def run(self, context: Context) -> SearchRef:
        """Search on the cluster, and write the page."""
        from airflow_provider_sml.ml.training.cluster import Cluster
        from airflow_provider_sml.ml.training.search import check_search
        from airflow_provider_sml.ml.training.search_page import write_report
        from airflow_provider_sml.ml.training.searcher import search_for

        sample = SampleRef.load(self.sample)
        place = self._place = where(self.cluster, context)
        # <lake>/samples/<table>/<id> lies beside <lake>/searches/<name>
        self.open_lake(sample.lake)
        hook = LakeHook(sample.lake)
        search = self._search(sample, place.replacement, self.machine or place.machine)
        name = search.dataset.name
        folder = hook.place(self.searches) if self.searches else hook.place(sample.uri).parents[2] / "searches" / name
        check_search(search)
        with Cluster(place.cluster, self.parallel * self.workers, place.patience, self.spot) as made:
            found = search_for(search, made, folder, lambda line: self.log.info("%s", line), lambda: self._killed)
        began = context["dag_run"].start_date.timestamp()
        self._spent = [trial.usd for trial in found.trials if trial.started >= began and trial.usd is not None]
        report = report_folder(self.reports, name, "search", found.search_id)
        write_report(found, report)
        value = found.value(found.best)
        result = SearchRef(
            uri=str(folder / found.search_id), search_id=found.search_id, hyperparameters=found.hyperparameters,
            best=found.best.params, metric=search.metric, value=0.0 if value is None else value,
            done=found.count("complete"), pruned=found.count("pruned"), failed=found.count("failed"),
            seconds=round(found.seconds, 1), usd=None if found.usd is None else round(found.usd, 4), lake=sample.lake,
        )  # fmt: skip
        self.log.info(
            "search %s: %s %.5f with %s; %d trials done, %d ended early, %d failed in %.1f minutes%s", result.search_id,
            result.metric, result.value, result.best, result.done, result.pruned, result.failed, result.seconds / 60,
            "" if result.usd is None else f", USD {result.usd:.2f}",
        )  # fmt: skip
        return result

    def on_kill(self) -> None:
        """End the trials that are under way, and a cluster that was made for the task."""
        self._killed = True
        end_made(self._place)

    def _search(self, sample: SampleRef, patience: float, machine: str) -> Search:
        from airflow_provider_sml.ml.training.search import Search

        return Search(
            Dataset.load(self.dataset), sample, self.space, {"device": self.device, **self.hyperparameters},
            self.workers, trials=self.trials, minutes=self.minutes, usd=self.usd, usd_per_hour=self.usd_per_hour,
            parallel=self.parallel, prune=self.prune, startup=self.startup, warmup=self.warmup, seed=self.seed,
            patience=patience, machine=machine,
        )  # fmt: skip

    #: USD of the trials of this DAG run, its earlier tries included.
    _spent: Sequence[float] = ()

    def costs(self, result: Any) -> list[Cost]:
        """What the trials of this DAG run cost, where a price was given; an earlier run has told those of its own."""
        if result.usd is None:
            return []
        what = f"search on {self.workers} workers a trial, {len(self._spent)} trials in this run"
        return [Cost(what=what, usd=round(sum(self._spent), 4))]

    def datasets(self, result: SearchRef) -> tuple[list[Data], list[Data]]:
        """The sample's rows for training and validation, and the search."""
        sample = SampleRef.load(self.sample)
        rows = sample.rows["train"] + sample.rows["validate"]
        return (
            [Data(parent(sample.uri), rows=rows, version=sample.sample_id)],
            [Data(parent(result.uri), version=result.search_id)],
        )
