"""Run Airflow with its UI on this project; Ctrl-C ends all of it.

What it does: prepares ``.airflow`` (settings, keys, the password, the SQLite database), starts the API servers, the
scheduler, the DAG processor and the triggerer, waits until Airflow reports itself healthy, and prints where to log in.
Everything listens on 127.0.0.1 only. The log-in is a real one; its password and the keys lie in ``.airflow``, readable
by their owner alone.

How it ends: at Ctrl-C, SIGTERM or a closed terminal the scheduler, the DAG processor, the triggerer and whatever tasks
left running in the background (a scoring endpoint, say) are asked to stop; tasks get six seconds for their ``on_kill``,
are then killed, and are reported as failed; last come the API servers. What is still there after that is killed. A
second Ctrl-C kills at once. One component that ends by itself ends all of them.

What it does not do: serve other people. It is for one developer's machine: SQLite, two tasks at a time, no TLS.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parent.parent
HOME = PROJECT / ".airflow"
HOST = "127.0.0.1"
FIRST_PORT = 8080
USER = "admin"
HEALTHY_WITHIN = 240  # seconds; a cold start on two busy cores takes one minute
PARSED_WITHIN = 60  # seconds after that for the first look at dags/
# The tasks have an API server of their own. In a shared one, a write of the UI that waits for SQLite's lock blocks the
# event loop that a task's request needs to release that lock, until SQLite gives up and the UI shows an error.
COMPONENTS = {
    "api_server": ["api-server", "--host", HOST, "--workers", "1", "--apps", "core"],
    "execution_api": ["api-server", "--host", HOST, "--workers", "1", "--apps", "execution"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag_processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
SERVERS = ("api_server", "execution_api")


def main() -> int:
    stop = StopRequest()
    HOME.mkdir(mode=0o700, exist_ok=True)
    HOME.chmod(0o700)
    lock = lock_project()
    ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
    url = f"http://{HOST}:{ports['api_server']}"
    password, env = settings(**ports)
    lock.write(f"pid {os.getpid()}, {url}\n")
    lock.flush()

    processes = Processes(env, lock)
    try:
        say("Preparing the database ...")
        migration = processes.start("migration", ["db", "migrate"])
        code = processes.wait_for(migration, stop)
        if code:
            raise ComponentEnded("migration", code)
        if not stop:
            say("Starting Airflow ...")
            for name, arguments in COMPONENTS.items():
                more = ["--port", str(ports[name])] if name in ports else []
                processes.start(name, arguments + more)
            api = Api(url, password)
            if wait_until_healthy(api, processes, stop):
                dags, broken = wait_until_parsed(api, processes, stop)
                if not stop:
                    say(box(url, password, dags, broken))
        while not stop:
            processes.check()
            time.sleep(0.3)
        say("\nStopping; running tasks may clean up (Ctrl-C again kills them) ...")
        result = 0
    except (ComponentEnded, NotHealthy) as error:
        say(f"\n{error}\nStopping the rest ...", file=sys.stderr)
        result = 1
    finally:
        left = processes.stop(stop)
    if left:
        say(f"These processes could not be ended: {' '.join(map(str, left))}", file=sys.stderr)
        return 1
    say("Stopped.")
    return result


# --- settings ---------------------------------------------------------------------------------------------------------


def lock_project() -> TextIO:
    """Hold the project, so that two schedulers never share one SQLite file.

    The components inherit the lock: it is held for as long as one of them lives.
    """
    lock = (HOME / "up.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise SystemExit(
            f"Airflow already runs on this project ({lock.read().strip()}).\n"
            "Stop that one first: Ctrl-C where it was started, or kill the pid. If that process is gone and its "
            "children are not, `fuser .airflow/up.lock` names them."
        ) from None
    lock.seek(0)
    lock.truncate()
    return lock


def free_ports(count: int) -> list[int]:
    """The first free ports from 8080 on."""
    free: list[int] = []
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe, socket.socket() as client:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(1)
            try:
                if client.connect_ex((HOST, port)) == 0:
                    continue
                probe.bind((HOST, port))
            except OSError:
                continue
            free.append(port)
            if len(free) == count:
                return free
    raise SystemExit(f"Fewer than {count} of the ports {FIRST_PORT} to {FIRST_PORT + 99} are free on {HOST}.")


def kept_secret(name: str, make: Callable[[], str]) -> Path:
    """A file under .airflow that holds a secret, made once, readable by its owner alone."""
    path = HOME / name
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        path.chmod(0o600)
    else:
        with os.fdopen(handle, "w") as file:
            file.write(make())
    return path


def settings(api_server: int, execution_api: int) -> tuple[str, dict[str, str]]:
    """The password, and the environment of every component; the arguments are the ports of the two servers.

    The keys reach Airflow as commands that print them, so that no task finds them in its environment.
    """
    passwords = kept_secret("passwords.json", lambda: json.dumps({USER: secrets.token_urlsafe(12)}))
    try:
        password = json.loads(passwords.read_text())[USER]
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"{passwords} is damaged; delete it, and a new password is made.") from None
    fernet = kept_secret("fernet.key", lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    jwt = kept_secret("jwt.key", lambda: secrets.token_urlsafe(64))
    session = kept_secret("session.key", lambda: secrets.token_urlsafe(32))

    auth = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
    airflow = {
        "CORE__DAGS_FOLDER": PROJECT / "dags",
        "CORE__PLUGINS_FOLDER": PROJECT / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 2,
        "CORE__AUTH_MANAGER": auth,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": False,
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": passwords,
        "CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{execution_api}/execution/",
        "CORE__FERNET_KEY_CMD": f"cat {shlex.quote(str(fernet))}",
        "API__BASE_URL": f"http://{HOST}:{api_server}",
        "API__HOST": HOST,
        "API__PORT": api_server,
        "API__LOG_FETCH_TIMEOUT_SEC": 1,  # of a running task, which the UI finds on disk anyway
        "API__SECRET_KEY_CMD": f"cat {shlex.quote(str(session))}",
        "API_AUTH__JWT_SECRET_CMD": f"cat {shlex.quote(str(jwt))}",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME / 'airflow.db'}",
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 15,
        "LOGGING__BASE_LOG_FOLDER": HOME / "logs",
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    env = dict(os.environ)
    for name in ("CORE__FERNET_KEY", "API__SECRET_KEY", "API_AUTH__JWT_SECRET", "API_AUTH__JWT_PRIVATE_KEY_PATH"):
        env.pop(f"AIRFLOW__{name}", None)
    env.update({f"AIRFLOW__{name}": str(value) for name, value in airflow.items()})
    loopback = f"{HOST},localhost"
    env.update(
        AIRFLOW_HOME=str(HOME),
        AIRFLOW_CONFIG=str(HOME / "airflow.cfg"),
        PYTHONPATH=joined(str(PROJECT), env.get("PYTHONPATH"), by=os.pathsep),
        PATH=joined(str(Path(sys.executable).parent), env.get("PATH"), by=os.pathsep),
        PYTHONUNBUFFERED="1",
        SPARK_LOCAL_IP=HOST,
        DO_NOT_TRACK="1",
        SCARF_ANALYTICS="false",
        SCARF_NO_ANALYTICS="true",
        MLFLOW_DISABLE_TELEMETRY="true",
        # A proxy of the environment must not stand between the tasks and the API server.
        NO_PROXY=joined(env.get("NO_PROXY"), loopback, by=","),
        no_proxy=joined(env.get("no_proxy"), loopback, by=","),
    )
    if sys.platform == "darwin":
        env["OBJC_DISABLE_INITIALIZE_FORK_SAFETY"] = "YES"
    return password, env


def joined(*parts: str | None, by: str) -> str:
    return by.join(part for part in parts if part)


# --- processes --------------------------------------------------------------------------------------------------------


class StopRequest:
    """True once a signal asked to stop; ``kill`` is true once a second one did."""

    def __init__(self) -> None:
        self._first: float | None = None
        self.kill = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > 0.5:  # sooner it is the same request, passed on by make as well
            self.kill = True

    def __bool__(self) -> bool:
        return self._first is not None


class ComponentEnded(Exception):
    """A component ended although nobody asked it to."""

    def __init__(self, name: str, code: int) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log = log_of(name)
        super().__init__(f"{name} {how}. The end of its log, {shown(log)}:\n{tail(log)}")


class NotHealthy(Exception):
    """Airflow did not become healthy in time."""


class Processes:
    """The components, each in a session and process group of its own, and everything that they start.

    On Linux this process adopts whatever its descendants orphan, so that nothing can slip out of its sight; elsewhere
    a task's process that detaches itself completely is not found.
    """

    def __init__(self, env: dict[str, str], lock: TextIO) -> None:
        self._env = env
        self._lock = lock
        self._names: dict[int, str] = {}
        self._ended: dict[int, int] = {}
        if sys.platform == "linux":
            set_child_subreaper = 36
            ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)

    def start(self, name: str, arguments: list[str]) -> int:
        """Start ``airflow ARGUMENTS`` with its output in a log file, and return its pid."""
        log = log_of(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                cwd=PROJECT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self._lock.fileno(),),
            )
        process.returncode = 0  # this class waits for the process, not Popen
        self._names[process.pid] = name
        return process.pid

    def wait_for(self, pid: int, stop: StopRequest) -> int:
        """Wait until a process has ended, and return its exit code; 0 when asked to stop before that."""
        while pid not in self._ended and not stop:
            self._reap()
            time.sleep(0.1)
        return self._ended.get(pid, 0)

    def check(self) -> None:
        """:raises ComponentEnded: when a component has ended."""
        self._reap()
        for pid, code in self._ended.items():
            if self._names[pid] in COMPONENTS:
                raise ComponentEnded(self._names[pid], code)

    def stop(self, request: StopRequest) -> list[int]:
        """End everything, and return the pids of what could not be ended."""
        components = self._alive()
        servers = [pid for pid in components if self._names[pid] in SERVERS]
        # The triggerer itself waits ten seconds for a child that is gone long before, and a second signal does not
        # shorten that: the end of the child is awaited, then the triggerer is killed.
        triggerer = [pid for pid in components if self._names[pid] == "triggerer"]
        awaited = set(components) - set(servers) - set(triggerer)
        seen = set(self._family())

        def ended() -> bool:
            running = [pid for pid, (_, group) in process_table().items() if group in triggerer]
            return not awaited & set(self._alive()) and set(running) <= set(triggerer)

        if not request.kill:
            # The scheduler's workers pass the signal on to their tasks: on_kill runs, and may end the task or not.
            signal_groups(set(components) - set(servers), signal.SIGTERM)
            signal_each(self._orphans(), signal.SIGTERM)
            self._wait_until(ended, 6, request)
            seen.update(self._family())
        if not request.kill and not ended():
            # Without their tasks the workers report these as failed and end as well.
            signal_each(self._outside(components), signal.SIGKILL)
            self._wait_until(ended, 8, request)
        if not request.kill:
            signal_groups(triggerer, signal.SIGKILL)
            signal_groups(components, signal.SIGTERM)
            self._wait_until(lambda: not self._family(seen), 8, request)
        for _ in range(50):
            left = self._family(seen)
            if not left:
                return []
            signal_each(left, signal.SIGKILL)
            time.sleep(0.1)
        return self._family(seen)

    def _orphans(self) -> list[int]:
        """What tasks left running in the background: this process is its parent now."""
        me = os.getpid()
        return [pid for pid, (parent, _) in process_table().items() if parent == me and pid not in self._names]

    def _outside(self, leaders: list[int]) -> list[int]:
        """The descendants outside the components' own process groups: the tasks and what they started."""
        table = process_table()
        return [pid for pid in self._family() if pid in table and table[pid][1] not in leaders]

    def _alive(self) -> list[int]:
        self._reap()
        return [pid for pid in self._names if pid not in self._ended]

    def _wait_until(self, done: Callable[[], bool], seconds: float, request: StopRequest) -> None:
        deadline = time.monotonic() + seconds
        while not request.kill and time.monotonic() < deadline and not done():
            time.sleep(0.1)

    def _family(self, known: Iterable[int] = ()) -> list[int]:
        """The living descendants of this process; and, where orphans are not adopted, of those known before."""
        self._reap()
        table = process_table()
        family = {os.getpid()}
        if sys.platform != "linux":
            family.update(pid for pid in known if pid in table)
        while more := {pid for pid, (parent, _) in table.items() if parent in family} - family:
            family |= more
        return sorted(family - {os.getpid()})

    def _reap(self) -> None:
        """Collect what has ended: the components, and orphans that this process adopted."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._names:
                self._ended[pid] = os.waitstatus_to_exitcode(status)


def process_table() -> dict[int, tuple[int, int]]:
    """Every living process with its parent and its process group."""
    table: dict[int, tuple[int, int]] = {}
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="]
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            pid, parent, group, state = line.split()
            if not state.startswith("Z"):
                table[int(pid)] = (int(parent), int(group))
        return table
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent, group = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
            except (OSError, ValueError):  # it has just ended
                continue
            if state != "Z":
                table[int(entry.name)] = (int(parent), int(group))
    return table


def signal_groups(leaders: Iterable[int], number: signal.Signals) -> None:
    for pid in leaders:
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def signal_each(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


# --- the running Airflow ----------------------------------------------------------------------------------------------


class Api:
    """The little of Airflow's REST API that is asked here."""

    def __init__(self, url: str, password: str) -> None:
        self._url = url
        self._password = password
        self._token: str | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def health(self) -> dict[str, str]:
        """The status of each component; empty while the server does not answer."""
        try:
            answer = self._call("/api/v2/monitor/health")
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        return {name: (part or {}).get("status") or "not started" for name, part in answer.items()}

    def dags(self) -> tuple[list[str], list[str]]:
        """The ids of the DAGs, and the files that do not import."""
        if self._token is None:
            self._token = self._call("/auth/token", {"username": USER, "password": self._password})["access_token"]
        dags = [dag["dag_id"] for dag in self._call("/api/v2/dags?limit=100&order_by=dag_id")["dags"]]
        return dags, [error["filename"] for error in self._call("/api/v2/importErrors?limit=20")["import_errors"]]

    def _call(self, path: str, body: dict[str, str] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        with self._opener.open(urllib.request.Request(self._url + path, data, headers), timeout=10) as answer:
            return json.load(answer)


def wait_until_healthy(api: Api, processes: Processes, stop: StopRequest) -> bool:
    """True once every component is healthy, false when asked to stop before that."""
    wanted = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    deadline = time.monotonic() + HEALTHY_WITHIN
    while not stop:
        processes.check()
        health = api.health()
        if all(health.get(name) == "healthy" for name in wanted):
            return True
        if time.monotonic() > deadline:
            states = ", ".join(f"{name}: {health.get(name, 'no answer')}" for name in wanted)
            raise NotHealthy(
                f"Airflow was not healthy after {HEALTHY_WITHIN} s ({states}). The logs: {shown(HOME / 'logs')}/*.log"
            )
        time.sleep(0.5)
    return False


def wait_until_parsed(api: Api, processes: Processes, stop: StopRequest) -> tuple[list[str], list[str]]:
    """The DAGs and the broken files, once there are any; the UI shows later ones by itself."""
    deadline = time.monotonic() + PARSED_WITHIN
    dags: list[str] = []
    broken: list[str] = []
    expected = any((PROJECT / "dags").rglob("*.py"))
    while expected and not stop and not dags and not broken and time.monotonic() < deadline:
        processes.check()
        try:
            dags, broken = api.dags()
        except urllib.error.HTTPError as error:
            raise NotHealthy(
                f"The API server answered {error.code} to {error.url}. Its log: {shown(log_of('api_server'))}"
            ) from None
        except (OSError, http.client.HTTPException):
            continue  # busy; it is asked again
        finally:
            time.sleep(0.5)
    return dags, broken


# --- what is printed --------------------------------------------------------------------------------------------------


def box(url: str, password: str, dags: list[str], broken: list[str]) -> str:
    lines = ["Airflow is ready.", "", f"  URL       {url}", f"  user      {USER}", f"  password  {password}", ""]
    if dags and (PROJECT / "include" / "data" / "lake").is_dir():
        first = next((dag for dag in dags if dag.endswith("_monitor")), dags[0])
        lines += [
            f"First: log in, open Dags > {first}, press Trigger (top right). The run appears in the",
            "grid on the left; click one of its squares for the task's log. Then look at the page Models.",
        ]
    elif dags:
        lines += [
            "First: end this, run `make demo`, which fills the lake and trains a model, and come back.",
            f"DAGs: {', '.join(dags[:4])}{', ...' if len(dags) > 4 else ''}",
        ]
    else:
        lines += ["First: put a DAG into dags/; it appears under Dags within a minute."]
    for name in broken:
        lines += [f"Does not import: {name}; the reason stands on the Dags page."]
    lines += ["", f"Logs of Airflow itself: {shown(HOME / 'logs')}/*.log", "Ctrl-C ends all of it."]
    width = min(max(map(len, lines)), max(shutil.get_terminal_size((100, 24)).columns - 4, 60))
    rule = "-" * (width + 2)
    return "\n".join(["", f"+{rule}+", *(f"| {line:<{width}} |" for line in lines), f"+{rule}+", ""])


def say(text: str, file: TextIO | None = None) -> None:
    """Print at once; a closed terminal does not matter any more."""
    with contextlib.suppress(OSError):
        print(text, file=file or sys.stdout, flush=True)


def log_of(name: str) -> Path:
    return HOME / "logs" / f"{name}.log"


def shown(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
    return "\n".join(f"    {line}" for line in text)


if __name__ == "__main__":
    sys.exit(main())
