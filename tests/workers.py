"""Airflow's own worker processes: a task is run as an executor runs it on another machine, and can be killed there.

Each try of a task is a process of ``airflow.sdk.execution_time.execute_workload``, which supervises the task's process
and speaks to an execution API over HTTP; that one is served here, on Airflow's database. What a scheduler does between
two tries is done by Airflow's own methods.
"""

import os
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.jobs import until

ROOT = Path(__file__).resolve().parents[1]


class Workers:
    """Workers of one task of one run of a DAG; ends what is left of them.

    :param file: the DAG file, in Airflow's DAG folder.
    :param dag_id: the DAG; it has one task.
    """

    def __init__(self, file, dag_id):
        self.file, self.dag_id, self.run_id = file, dag_id, f"run-{uuid.uuid4().hex[:8]}"
        self._processes = []
        self._serve()
        self._create_run()

    # --- tries ----------------------------------------------------------------------------------------------------

    def start(self):
        """Queue the next try and start a worker for it."""
        from airflow.executors.workloads import ExecuteTask
        from airflow.utils.session import create_session

        with create_session() as session:
            instance = self._instance(session)
            instance.try_number += 1
            instance.set_state("queued", session=session)
            session.flush()
            workload = ExecuteTask.make(instance, dag_rel_path=Path(self.file.name)).model_dump_json()
        env = os.environ | {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": self.url}
        command = [sys.executable, "-m", "airflow.sdk.execution_time.execute_workload", "--json-string", workload]
        process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, stdout=subprocess.DEVNULL)
        self._processes.append(psutil.Process(process.pid))
        process_of = self._processes[-1]
        threading.Thread(target=process.wait, daemon=True).start()
        return process_of

    def kill(self, worker):
        """SIGKILL the worker and the task's process, as a machine that is gone does; gives their numbers."""
        below = worker.children(recursive=True)
        for process in (worker, *below):  # the supervisor first, so that nobody tells Airflow what has happened
            process.kill()
        assert until(lambda: not any(_lives(process) for process in (worker, *below)), 20)
        return [process.pid for process in (worker, *below)]

    def retry(self):
        """What Airflow does with a task whose heartbeat has been missing for too long; gives the new state."""
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.utils.session import create_session

        with create_session() as session:
            instance = self._instance(session)
            assert instance.state == "running"
            instance.task = SerializedDagModel.get_dag(self.dag_id, session=session).get_task(instance.task_id)
            instance.handle_failure("the worker is gone", session=session)
        return self.state()

    def end(self, worker, seconds=120):
        """Wait for the end of a worker; gives the task's state."""
        assert until(lambda: not _lives(worker), seconds), "the worker does not end"
        return self.state()

    def state(self):
        """State of the task."""
        from airflow.utils.session import create_session

        with create_session() as session:
            return str(self._instance(session).state)

    def result(self):
        """What the task gave to XCom."""
        from airflow_provider_sml.testing.plugin import _results

        [result] = _results(self.dag_id, self.run_id).values()
        return result

    def close(self):
        """Kill what is left, and end the API."""
        for process in self._processes:
            if _lives(process):
                self.kill(process)
        self._server.should_exit = True
        self._thread.join(10)

    # --- the parts ------------------------------------------------------------------------------------------------

    def _serve(self):
        import uvicorn
        from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI

        config = uvicorn.Config(InProcessExecutionAPI().app, host="127.0.0.1", port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert until(lambda: self._server.started, 60)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def _create_run(self):
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        manager = DagBundlesManager()
        with create_session() as session:
            manager.sync_bundles_to_db(session=session)
        [bundle] = [bundle for bundle in manager.get_all_dag_bundles() if bundle.name == "dags-folder"]
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, bundle.version)
        now = datetime.now(UTC)
        with create_session() as session:
            SerializedDagModel.get_dag(self.dag_id, session=session).create_dagrun(
                run_id=self.run_id, logical_date=now, data_interval=(now, now), run_after=now, state="running",
                run_type=DagRunType.MANUAL, triggered_by=DagRunTriggeredByType.TEST, session=session,
            )  # fmt: skip

    def _instance(self, session):
        from airflow.models.taskinstance import TaskInstance
        from sqlalchemy import select

        query = select(TaskInstance).where(TaskInstance.dag_id == self.dag_id, TaskInstance.run_id == self.run_id)
        return session.execute(query).scalar_one()


def _lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
