"""The search for hyper-parameters on real Dask clusters: what it finds, spends, ends early, and goes on with."""

import json
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from airflow_provider_sml.errors import ConfigurationError, JobError
from airflow_provider_sml.ml.training.cluster import Cluster, cluster
from airflow_provider_sml.ml.training.search import Search
from airflow_provider_sml.ml.training.search_page import write_report
from airflow_provider_sml.ml.training.searcher import search_for
from airflow_provider_sml.ml.training.space import load_space
from airflow_provider_sml.ml.training.trials import TrialRecord, Trials, clock, seen
from tests.ml.test_lake_shops import DATASET
from tests.processes import start
from tests.trained import make_sample, rows_of

SPACE = {"max_depth": {"min": 1, "max": 8}, "learning_rate": {"min": 0.001, "max": 0.5, "log": True}}
PARAMS = {"rounds": 25, "early_stopping": 10}
ENDLESS = {"rounds": 1_000_000, "early_stopping": 1_000_000}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Rows to train and to validate on; none to test on."""
    splits = {"train": rows_of(0, 8), "validate": rows_of(8, 10), "test": rows_of(10, 11)}
    made = make_sample(tmp_path_factory.mktemp("searched") / "sample", splits)
    shutil.rmtree(Path(made.uri) / "test")
    return made


@pytest.fixture(scope="module")
def local():
    with cluster("local") as client:
        yield client


@pytest.fixture(scope="module")
def processes():
    with cluster("processes", workers=2) as client:
        yield client


def searched(sample, client, folder, lines=None, space=SPACE, params=PARAMS, **settings):
    search = Search(DATASET, sample, space, params, **{"warmup": 5} | settings)
    return search_for(search, client, folder, (lines if lines is not None else []).append)


def essence(found):
    """What does not depend on the clock."""
    return [(t.number, t.state, t.params, t.losses, t.loss, t.rounds) for t in found.trials]


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/trials/*.json")}


def at_work(client):
    """Tasks that the scheduler knows or a worker executes, and trainings that wait to be stopped."""
    tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    busy = client.run(lambda dask_worker: (len(dask_worker.state.executing), getattr(dask_worker, "sml_stops", {})))
    return tasks, list(busy.values())


def nothing_runs(client, seconds=20.0):
    deadline = time.monotonic() + seconds
    while (found := at_work(client)) != (0, [(0, {})] * len(found[1])) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found == (0, [(0, {})] * len(found[1]))


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_the_best_of_the_trials_is_found_without_the_test_window(local, sample, tmp_path):
    lines = []
    found = searched(sample, local, tmp_path, lines, trials=10)
    ended = [trial for trial in found.trials if trial.state == "complete"]
    assert len(found.trials) == 10 and found.count("failed") == 0 and len(ended) >= 5
    assert found.best.loss == min(trial.loss for trial in ended) < max(trial.loss for trial in ended) - 0.01
    assert found.hyperparameters == {**PARAMS, **found.best.params}
    assert all(1 <= trial.params["max_depth"] <= 8 and trial.usd is None for trial in found.trials)
    assert sum(line.startswith("trial ") and "; best is trial " in line for line in lines) == 10


def test_more_of_a_rising_metric_is_better(local, sample, tmp_path):
    found = searched(sample, local, tmp_path, trials=3, params=PARAMS | {"stop_on": "auc"}, space={"max_depth": [1, 8]})
    values = [found.value(trial) for trial in found.trials]
    assert found.value(found.best) == max(values) and 0.5 < max(values) < 1


def test_a_search_that_goes_on_makes_the_trials_of_one_that_was_not_interrupted(local, sample, tmp_path):
    whole = searched(sample, local, tmp_path / "whole", trials=9)
    part = searched(sample, local, tmp_path / "parts", trials=4)
    before, lines = files(tmp_path / "parts"), []
    parts = searched(sample, local, tmp_path / "parts", lines, trials=9)
    assert essence(part) == essence(whole)[:4] and essence(parts) == essence(whole)
    assert files(tmp_path / "parts").items() > before.items()
    assert lines[0].startswith("going on with 4 trials") and parts.seconds > part.seconds
    assert searched(sample, local, tmp_path / "parts", trials=9) == parts


def test_what_decides_a_search_is_in_its_id_and_its_budget_is_not(sample):
    def ident(space=SPACE, params=PARAMS, **settings):
        return Search(DATASET, sample, space, params, **settings).search_id

    others = [
        ident(), ident(SPACE | {"gamma": [0, 1]}), ident(params=PARAMS | {"rounds": 26}), ident(seed=8),
        ident(workers=2), ident(prune=False), ident(warmup=3),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert ident() == ident(trials=3, usd=2, usd_per_hour=1.0, minutes=1, parallel=4)
    assert ident() == ident(params=PARAMS | {"max_depth": 4}), "the space goes before a fixed value"


def test_the_report_is_one_page_that_names_the_best_trial_and_every_other(local, sample, tmp_path):
    found = searched(sample, local, tmp_path, trials=12, usd_per_hour=1.0, startup=12)
    write_report(found, tmp_path / "report")
    told = json.loads((tmp_path / "report" / "search.json").read_text())
    assert told["best"] == found.best.number and len(told["trials"]) == 12 and "losses" not in told["trials"][0]
    assert sum(told["importance"].values()) == pytest.approx(1) and set(told["importance"]) == set(SPACE)
    page = (tmp_path / "report" / "search.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    assert f"Trial {found.best.number} is the best" in page and page.count("<tr>") == 13


# --- what it spends ---------------------------------------------------------------------------------------------------


def stored_trial(search, folder, usd=None):
    """A trial that no other can keep up with, as if it had been made in one second, a while ago."""
    losses, began = [0.01] * 500, time.time() - 1000
    params = {"max_depth": 2, "learning_rate": 0.1}
    record = TrialRecord(0, "complete", params, 0.01, losses, 1, began, began + 1, 1, usd)
    Trials(folder / search.search_id, search.search_id, load_space(SPACE)).write(record)


def test_a_budget_in_usd_ends_it_and_counts_what_was_spent_before(local, sample, tmp_path):
    price = {"usd_per_hour": 3600.0, "usd": 1.5}  # a dollar a second
    stored_trial(Search(DATASET, sample, SPACE, PARAMS, warmup=5), tmp_path, usd=1.0)
    found = searched(sample, local, tmp_path, **price)
    assert found.usd == pytest.approx(sum(trial.seconds for trial in found.trials), rel=1e-6)
    assert found.usd >= 1.5 and len(found.trials) > 1
    assert found.usd - found.trials[-1].usd < 1.5, "no trial began that the budget did not allow"
    again = searched(sample, local, tmp_path, **price)
    assert again.trials == found.trials
    assert len(searched(sample, local, tmp_path, **price | {"usd": found.usd + 0.5}).trials) > len(found.trials)


def test_a_budget_in_minutes_ends_it(local, sample, tmp_path):
    stored_trial(Search(DATASET, sample, SPACE, PARAMS, warmup=5), tmp_path)
    found = searched(sample, local, tmp_path, minutes=0.03)
    assert found.seconds >= 1.8 and len(found.trials) > 1 and found.usd is None
    assert searched(sample, local, tmp_path, minutes=0.03).trials == found.trials
    assert searched(sample, local, tmp_path, minutes=0.01).trials == found.trials


def test_a_trial_under_way_is_ended_when_the_budget_is_used_up(processes, sample, tmp_path):
    with pytest.raises(ConfigurationError, match="no trial came to its end within the budget"):
        searched(sample, processes, tmp_path, params=ENDLESS, minutes=0.02, workers=2)
    assert nothing_runs(processes)
    [stored] = tmp_path.glob("*/trials/*.json")
    trial = json.loads(stored.read_text())
    assert (trial["state"], trial["reason"]) == ("pruned", "the budget was used up") and trial["seconds"] >= 1.2


# --- what it ends early -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_trial_ends_on_all_its_workers_and_nothing_runs_on(processes, sample, tmp_path, workers):
    search = Search(DATASET, sample, SPACE, ENDLESS, trials=3, startup=1, warmup=5, workers=workers)
    stored_trial(search, tmp_path)
    found = search_for(search, processes, tmp_path, lambda line: None)
    assert [trial.state for trial in found.trials] == ["complete", "pruned", "pruned"]
    assert all((len(trial.losses), trial.reason) == (6, "worse than the median") for trial in found.trials[1:])
    assert found.best.number == 0 and nothing_runs(processes)


@pytest.mark.timeout(120)
def test_a_search_that_is_given_up_leaves_nothing_at_work(processes, sample, tmp_path):
    lines = []
    search = Search(DATASET, sample, SPACE, ENDLESS, trials=2, parallel=2)
    with pytest.raises(JobError, match="the search was given up"):
        search_for(search, processes, tmp_path, lines.append, lambda: sum("round 1 of" in line for line in lines) == 2)
    assert nothing_runs(processes) and files(tmp_path) == {}


@pytest.mark.timeout(120)
def test_a_search_that_is_broken_off_leaves_nothing_at_work(processes, sample, tmp_path):
    def on_alarm(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(4)
    try:
        with pytest.raises(KeyboardInterrupt):
            searched(sample, processes, tmp_path, params=ENDLESS, trials=2, parallel=2)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert nothing_runs(processes) and files(tmp_path) == {}


# --- several at once --------------------------------------------------------------------------------------------------


def test_two_trials_run_at_once_on_workers_of_their_own(processes, sample, tmp_path):
    params = {"rounds": 300, "early_stopping": 300}
    found = searched(sample, processes, tmp_path, trials=4, parallel=2, prune=False, params=params)
    assert found.count("complete") == 4
    assert found.seconds < 0.9 * sum(trial.seconds for trial in found.trials)
    most = max(sum(t.started <= trial.started < t.ended for t in found.trials) for trial in found.trials)
    assert most == 2 and nothing_runs(processes)


@pytest.mark.slow
def test_a_trial_whose_worker_was_lost_is_tried_again(sample, tmp_path):
    lines = []
    with Cluster("processes", 1) as made:
        [pid] = made.client.run(os.getpid).values()

        def log(line):
            lines.append(line)
            if "round 1 of" in line and sum("round 1 of" in other for other in lines) == 1:
                os.kill(pid, signal.SIGKILL)

        params = {"rounds": 150, "early_stopping": 150}
        found = search_for(Search(DATASET, sample, SPACE, params, trials=2), made, tmp_path, log)
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    assert any("it was tried 1 of 2 times" in line for line in lines)
    assert all(len(trial.losses) == 150 for trial in found.trials)


# --- what it goes on with ---------------------------------------------------------------------------------------------


def drive(sample, folder):
    with cluster("local") as client:
        searched(sample, client, folder, trials=8)


def test_after_the_driver_was_killed_the_trials_that_ended_are_not_run_again(local, sample, tmp_path):
    folder = tmp_path / "killed"
    driver = start(drive, sample, folder)
    deadline = time.monotonic() + 120
    while len(files(folder)) < 3 and driver.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.kill()
    driver.join()
    before = files(folder)
    assert 3 <= len(before) < 8
    found = searched(sample, local, folder, trials=8)
    assert files(folder).items() >= before.items() and len(found.trials) == 8
    assert essence(found) == essence(searched(sample, local, tmp_path / "whole", trials=8))


def test_trials_that_are_damaged_or_of_another_search_are_run_again(local, sample, tmp_path):
    whole = searched(sample, local, tmp_path, trials=4)
    zero, one, two, _ = sorted(tmp_path.glob("*/trials/*.json"))
    zero.write_bytes(zero.read_bytes()[:-20])
    one.write_text(json.dumps(json.loads(one.read_text()) | {"search_id": "another"}))
    two.write_text(json.dumps(json.loads(two.read_text()) | {"params": {"max_depth": 40, "learning_rate": 0.1}}))
    lines = []
    found = searched(sample, local, tmp_path, lines, trials=4)
    assert [line.split(" is damaged")[0] for line in lines[:3]] == [f"the trial {path}" for path in (zero, one, two)]
    assert {number for number, *_ in essence(found)} == {0, 1, 2, 3} and found.trials[3] == whole.trials[3]
    assert essence(found)[0][2] == essence(whole)[0][2]


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"no budget(.|\n)*trials, minutes or usd"),
        ({"trials": 0}, "budget of trials(.|\n)*above 0; found: 0"),
        ({"usd": 2}, "no price is known"),
        ({"trials": 1, "parallel": 0}, "parallel trials"),
        ({"trials": 1, "space": {}}, "space is wrong"),
        ({"trials": 1, "space": {"max_depth": 3}}, "space of max_depth is wrong"),
        ({"trials": 1, "space": {"max_depth": {"min": 3}}}, "space of max_depth is wrong"),
        ({"trials": 1, "space": {"max_depth": {"min": 9, "max": 3}}}, "above min, which is 9"),
        ({"trials": 1, "space": {"gamma": {"min": 0, "max": 3, "log": True}}}, "above 0, because log"),
        ({"trials": 1, "space": {"gamma": {"min": 0, "max": 3, "step": 4}}}, "up to 3, from min to max"),
        ({"trials": 1, "space": {"max_depth": [3]}}, "two or more different values"),
        ({"trials": 1, "space": {"max_dept": [3, 4]}}, r"space of max_dept(.|\n)*does not know(.|\n)*max_dept"),
        ({"trials": 1, "space": {"max_depth": {"min": -3, "max": 4}}}, r"space of max_depth(.|\n)*refuses"),
        ({"trials": 1, "space": {"objective": ["a", "b"]}}, "names objective(.|\n)*the same in all of them"),
        ({"trials": 1, "params": {"max_dept": 3}}, "does not know"),
        ({"trials": 1, "params": {"stop_on": "error"}}, "stop_on is no metric"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_cluster_is_asked(sample, tmp_path, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        searched(sample, None, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_search_in_which_every_trial_fails_gives_up(local, sample, tmp_path):
    splits = {split: rows_of(0, 2) for split in ("train", "validate", "test")}
    broken = make_sample(tmp_path / "sample", splits, 1)
    (Path(broken.uri) / "train" / "000.parquet").write_bytes(b"no parquet")
    with pytest.raises(JobError, match=r"all trials of the search fail(.|\n)*(Parquet|magic)"):
        searched(broken, local, tmp_path / "searches", trials=10)
    assert len(files(tmp_path / "searches")) == 3


def test_optuna_is_told_of_a_few_thousand_rounds_at_most():
    assert all(seen(number) for number in range(1000))
    assert [number for number in range(1000, 1030) if seen(number)] == [1000, 1010, 1020]
    assert sum(map(seen, range(100_000))) == 2800


def test_the_clock_counts_trials_that_overlap_once():
    assert clock([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert clock([]) == 0
    assert asdict(TrialRecord(0, "failed", {}, None, [], 0, 0, 1, 1, None))["reason"] == ""
