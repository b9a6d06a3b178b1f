"""One Airflow, with API server, scheduler, DAG processor and triggerer, and a browser, for all tests of this folder."""

import datetime as dt
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_sml.testing.processes import free_port
from tests import shops
from tests.browser.stack import ROOT, USERS
from tests.ui import big_model

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
DAYS = shops.days(17)
NIGHTS = 90
#: The last of them, which Airflow itself looks at.
WATCHED = 4
READY_WITHIN = 400
SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "240",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
}
SPEC_CHANGES = {
    "  slices: {by: [city], min_rows: 20, min_auc: 0.5, not_worse_than: champion, margin: 0.1}\n": "",
    "  parity: {rows: 50}\n": "",
    "  latency: {p99: 5s, requests: 100}\n": "  approval: {by: [admin, ann], within: 1h, exclude_trigger: true}\n",
    "rounds: 40, early_stopping: 10}": "rounds: 15, early_stopping: 10}\n  usd_per_hour: 360",
    "then: retrain": "then: alert",
}
DAG_FILE = """
from datetime import timedelta

from airflow.sdk import DAG, Asset
from airflow_provider_sml.operators.lineage import LineageReportOperator
from airflow_provider_sml.pipelines import build_dags

build_dags("include/pipelines/orders.yaml", into=globals(), default_args={{"retry_delay": timedelta(seconds=1)}})

with DAG("orders_lineage", schedule=[Asset("x-sml://orders/deployed")]):
    LineageReportOperator(
        task_id="lineage", name="orders", lake="{root}/lake", mlflow="{root}/mlflow", reports="{root}/reports"
    )
"""


def make_project(root):
    """A project with a lake of the shops, whose last day is a stormy one, and months of nights before the last days."""
    from airflow_provider_sml.ml.lake import Lake
    from tests.ml.test_lake_shops import publish, stored_day

    text = shops.spec_text(root, free_port())
    for old, new in SPEC_CHANGES.items():
        assert old in text, old
        text = text.replace(old, new)
    text += "schedule: {ingest: null, train: null, monitor: null}\n"
    big_model.write(root / "include/pipelines/orders.yaml", text)
    big_model.write(root / "dags/orders.py", DAG_FILE.format(root=root))
    (root / "plugins").mkdir()
    publish(Lake(str(root / "lake")), {day: stored_day(day, 150, stormy=day == DAYS[-1]) for day in DAYS})
    big_model.nights(root / "reports", NIGHTS - WATCHED, "orders", DAYS[-1] - dt.timedelta(days=NIGHTS - 1), COLUMNS)
    passwords = {user: secrets.token_urlsafe(9) for user in USERS}
    big_model.write(root / ".airflow/passwords.json", passwords)
    return SimpleNamespace(root=root, passwords=passwords)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project of these tests."""
    return make_project(tmp_path_factory.mktemp("browser"))


COLUMNS = ("hour", "weight", "rain", "age", "city", "score")


class Stack:
    """The running Airflow.

    :param url: of its UI.
    :param root: of its project.
    :param passwords: of its users.
    """

    def __init__(self, url, root, passwords):
        self.url, self.root, self.passwords = url, root, passwords
        self.tokens = {}

    def call(self, path, body=None, method=None, user="admin"):
        """Airflow's REST API as a user: status and answer."""
        if user not in self.tokens:
            given = {"username": user, "password": self.passwords[user]}
            self.tokens[user] = self._send("/auth/token", given, None, {})[1]["access_token"]
        return self._send(path, body, method, {"Authorization": f"Bearer {self.tokens[user]}"})

    def _send(self, path, body, method, headers):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, headers | {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def tasks(self, dag, run):
        """State of each task of a run."""
        found = self.call(f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances")[1]
        return {task["task_id"]: task["state"] for task in found["task_instances"]}

    def logs(self, dag):
        """The end of the logs of a DAG's tasks, for a test that fails."""
        found = sorted((self.root / ".airflow" / "logs" / f"dag_id={dag}").rglob("*.log"), key=os.path.getmtime)
        return "\n".join(f"{path.parent.name}: {path.read_text()[-3000:]}" for path in found[-3:])

    def until(self, found, what, within=400):
        """Wait until a question has an answer, and give it."""
        end = time.monotonic() + within
        while not (answer := found()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {within} s")
            time.sleep(0.5)
        return answer


@pytest.fixture(scope="module")
def stack(project):
    """Airflow, started for these tests and ended after them by its own pid."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | SETTINGS
    said = project.root / "up.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/browser/stack.py"), str(project.root)],
            env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + READY_WITHIN
        while not (found := re.search(r"URL\s+(http://127\.0\.0\.1:\d+)", said.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"Airflow has not started:\n{said.read_text()[-4000:]}")
            time.sleep(0.3)
        yield Stack(found[1], project.root, project.passwords)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        serving = project.root / "endpoints"
        if serving.exists():
            from airflow_provider_sml.ml.serving.local import LocalEndpoint

            endpoint = LocalEndpoint.load(serving, "orders")
            if endpoint is not None:
                endpoint.stop()


@pytest.fixture(scope="module")
def browser():
    """The system's chromium; none is ever fetched."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
