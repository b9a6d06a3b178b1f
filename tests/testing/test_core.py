"""The clock, the timeline and the command line of the fake clouds."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from airflow_provider_sml.testing.core import Timeline, VirtualClock


def test_a_clock_stands_still_or_runs_at_a_multiple():
    clock = VirtualClock(1000.0)
    assert clock.now() == 1000.0
    assert clock.advance(5) == 1005.0
    clock.scale = 3600
    time.sleep(0.05)
    assert clock.now() > 1005 + 3600 * 0.05 - 1
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_each_call_can_take_its_time():
    clock = VirtualClock(0.0, per_call=30)
    clock.tick()
    clock.tick()
    assert clock.now() == 60


def test_a_timeline_is_read_at_a_time_and_changed_from_a_time_on():
    line = Timeline(100, [("new", 10, ""), ("busy", 20, ""), ("done", 0, "well")])
    assert [line.at(now).state for now in (0, 100, 109, 110, 129.9, 130, 1e9)] == [
        "new", "new", "new", "busy", "busy", "done", "done",
    ]  # fmt: skip
    assert line.seconds(["busy"], 115) == 5
    assert line.settled == 130
    line.change(120, [("stopping", 5, ""), ("stopped", 0, "")])
    assert [phase.state for phase in line.history(200)] == ["new", "busy", "stopping", "stopped"]
    assert line.seconds(["busy"], 200) == 10


def documented_commands():
    """The commands of the how-to that drive a fake which is served, without the interpreter and the module."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "fake-clouds.md").read_text()
    begins = "python -m airflow_provider_sml.testing "
    block = page.split("test_core.py runs it -->")[1].partition("```bash")[2].partition("```")[0]
    return [line.removeprefix(begins) for line in block.splitlines() if line.startswith(begins)]


def test_the_shell_moves_the_clock_makes_faults_and_reads_the_bill(tmp_path):
    """The server runs as a process of its own, as beside ``make up``."""
    command = [sys.executable, "-m", "airflow_provider_sml.testing"]
    server = subprocess.Popen(
        [*command, "serve", "--scale", "0", "--s3", "http://127.0.0.1:9"], stdout=subprocess.PIPE, text=True
    )
    try:
        told = {}
        for line in server.stdout:
            if line.startswith("#"):
                break
            name, _, value = line.removeprefix("export ").strip().partition("=")
            told[name] = value
        url = told["SML_FAKE_URL"]

        def shell(*words, fails=False):
            done = subprocess.run(
                [*command, *words], env=os.environ | {"SML_FAKE_URL": url}, capture_output=True, text=True
            )
            assert (done.returncode != 0) is fails, done.stderr
            return done.stdout

        emr = boto3.client(
            "emr-serverless", endpoint_url=told["AWS_ENDPOINT_URL_EMR_SERVERLESS"], region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="x",
        )  # fmt: skip
        application = emr.create_application(releaseLabel="emr-7.9.0", type="SPARK")["applicationId"]
        shell("fault", "fail", "StartJobRun", "--detail", "reason=disk full")
        driver = {"sparkSubmit": {"entryPoint": "s3://code/app.py"}}
        role = "arn:aws:iam::123456789012:role/spark"
        run = emr.start_job_run(applicationId=application, executionRoleArn=role, jobDriver=driver)["jobRunId"]
        before = emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]["state"]
        assert json.loads(shell("advance", "3600"))["now"] > 3600
        after = emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]
        assert (before, after["state"]) == ("SUBMITTED", "FAILED")
        assert "disk full" in after["stateDetails"]
        assert "0 left running" in shell("bill")
        assert [call["operation"] for call in json.loads(shell("calls"))][:2] == ["CreateApplication", "StartJobRun"]
        assert shell("faults") == "[]\n"
        shell("fault", "fail", "--detail", "no equals sign", fails=True)
        assert told["AIRFLOW_CONN_AWS_DEFAULT"] == "aws://"
        documented = [shell(*shlex.split(line)) for line in documented_commands()]
        assert '"kind": "throttle"' in documented[2] and documented[-1].endswith("0 left running\n")
    finally:
        server.terminate()
        server.wait(10)
