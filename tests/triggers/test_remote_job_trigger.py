"""The trigger of remote jobs on real drivers: one event for each end, and a cancelled job when the task is killed."""

import asyncio
import importlib
import json
import time

import pytest

from airflow_provider_sml.cloud.remote_job import Adapter, JobState
from airflow_provider_sml.triggers.remote_job import RemoteJobTrigger
from tests.jobs import Work, until


@pytest.fixture
def work(tmp_path):
    work = Work(tmp_path)
    yield work
    work.end()


def again(trigger):
    """The trigger as a triggerer makes it: from its path and JSON arguments."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))


def events(trigger, seconds=90.0):
    async def run():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(asyncio.wait_for(run(), seconds))


def test_it_comes_back_from_what_airflow_keeps(work):
    trigger = RemoteJobTrigger(work.job().describe(), "1234", poll_interval=2.5, deadline=99.0)
    assert again(trigger).serialize() == trigger.serialize()


@pytest.mark.parametrize(
    ("what", "action", "retryable", "said"),
    [
        ("end", "done", True, ""),
        ("error", "fail", True, "ValueError: no such place"),
        ("input", "fail", False, "lacks the columns ['weight']"),
    ],
)
def test_one_event_tells_the_end(work, what, action, retryable, said):
    job = work.job(what)
    job_id = job.submit()
    [event] = events(again(RemoteJobTrigger(job.describe(), job_id, 0.1)))
    assert (event["action"], event["retryable"], event["job_id"]) == (action, retryable, job_id)
    assert said in event["message"]
    assert Adapter.load(json.loads(json.dumps(event))["described"]) == job


def test_a_slow_job_does_not_block_other_triggers(work):
    job = work.job()
    trigger = again(RemoteJobTrigger(job.describe(), job.submit(), 0.1))

    async def run():
        waiting = asyncio.create_task(anext(trigger.run()))
        beats = 0
        while not await asyncio.to_thread(work.starts):
            beats += 1
            await asyncio.sleep(0.01)
        assert not waiting.done()
        work.release()
        return beats, (await asyncio.wait_for(waiting, 60)).payload

    beats, event = asyncio.run(run())
    assert beats > 1 and event["action"] == "done"


def test_at_the_deadline_the_job_is_cancelled(work):
    job = work.job()
    job_id = job.submit()
    assert until(work.starts)
    [event] = events(RemoteJobTrigger(job.describe(), job_id, 0.1, deadline=time.time()))
    assert (event["action"], event["retryable"]) == ("fail", True)
    assert event["message"].endswith("still running at its deadline; it was cancelled")
    assert work.gone()


def test_a_job_that_ends_while_nobody_can_ask_is_still_found(work):
    """The record is away for some polls, as a file system that does not answer."""
    job = work.job()
    job_id = job.submit()
    record = work.root / "jobs" / "job" / f"{job_id}.json"
    hidden = record.rename(record.with_suffix(".away"))

    async def run():
        waiting = asyncio.create_task(anext(RemoteJobTrigger(job.describe(), job_id, 0.3).run()))
        await asyncio.sleep(0.7)
        assert not waiting.done()
        hidden.rename(record)
        work.release()
        return (await asyncio.wait_for(waiting, 60)).payload

    assert asyncio.run(run())["action"] == "done"


def test_a_job_that_nobody_can_ask_for_long_is_left_running(work):
    job = work.job()
    job_id = job.submit()
    assert until(work.starts)
    (work.root / "jobs" / "job" / f"{job_id}.json").unlink()
    [event] = events(RemoteJobTrigger(job.describe(), job_id, 0.01))
    assert (event["action"], event["retryable"]) == ("fail", True)
    assert "a retry attaches to it" in event["message"]
    assert work.processes()


def test_a_killed_task_cancels_its_job(work):
    job = work.job()
    job_id = job.submit()
    assert until(work.starts)
    trigger = again(RemoteJobTrigger(job.describe(), job_id, 0.1))

    async def run():
        waiting = asyncio.create_task(anext(trigger.run()))
        await asyncio.sleep(0.3)
        waiting.cancel()
        await trigger.on_kill()

    asyncio.run(run())
    assert job.status(job_id).state is JobState.FAILED
    assert work.gone()
