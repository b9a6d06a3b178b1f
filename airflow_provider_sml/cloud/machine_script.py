"""What a machine does from its start to its end: bring one worker up, and shut itself down when that has ended.

A script of bash that cloud-init (EC2) or the guest agent (Compute Engine) runs as root. It ends the machine in every
case: when the worker ends, because its scheduler is gone or it was told to; when anything before that fails; and at the
latest after ``hours``, by a shutdown that is set before anything else. The worker's key lies in memory (``/dev/shm``),
and is gone with it.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

#: Where the worker's files are, in its command.
FOLDER = "{folder}"
#: The threads of one worker, in its command: the processors of the machine, shared by its workers.
THREADS = "{threads}"


@dataclass(frozen=True)
class MachineScript:
    """The script.

    :param command: of the worker; ``{folder}`` in it stands for the folder of its files, ``{threads}`` for its threads.
    :param files: what the worker reads, by name; secret.
    :param env: its variables; nothing secret.
    :param image: container image that the command runs in, by Docker; on the machine itself when empty.
    :param gpus: of the machine: one worker for each of them. One worker without GPUs when 0.
    :param prepare: lines of bash before it, such as a log-in at a registry.
    :param last: lines of bash after it, before the shutdown, however it ended.
    :param hours: after which the machine shuts down, whatever it does.
    """

    command: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    gpus: int = 0
    prepare: Sequence[str] = ()
    last: Sequence[str] = ()
    hours: float = 24.0

    def text(self) -> str:
        """The script as text."""
        workers = max(1, self.gpus)
        lines = [
            "#!/bin/bash",
            f"shutdown -h +{max(1, round(self.hours * 60))} || true",
            "folder= workers=()",
            "finish() {",
            "set +eu",
            'kill -TERM "${workers[@]}" 2>/dev/null; wait',
            'rm -rf "$folder"',
            *self.last,
            "shutdown -h now",
            "}",
            "trap finish EXIT",
            "set -euo pipefail",
            "umask 077",
            "folder=$(mktemp -d -p /dev/shm sml.XXXXXX)",
            f"threads=$(( $(nproc) / {workers} )); [ $threads -gt 0 ] || threads=1",
        ]
        for name, content in self.files.items():
            lines.append(f'base64 -d > "$folder"/{shlex.quote(name)} <<< {base64.b64encode(content.encode()).decode()}')
        lines += self.prepare
        for number in range(workers):
            lines.append(f'{self._started(number)} & workers+=("$!")')
        # A shell would keep SIGTERM to itself until the worker ends. A machine of which one worker ended ends whole.
        lines += ["trap 'kill -TERM \"${workers[@]}\"' TERM", "wait -n || true"]
        return "\n".join(lines) + "\n"

    def _started(self, number: int) -> str:
        words = [_word(word) for word in self.command]
        env = dict(self.env) | ({"CUDA_VISIBLE_DEVICES": str(number)} if self.gpus else {})
        settings = [shlex.quote(f"{name}={value}") for name, value in env.items()]
        if not self.image:
            return " ".join([*(["env", *settings] if settings else []), *words])
        # The files are root's alone.
        options = ["--rm", "--init", "--network=host", "--ipc=host", "--user=0:0", '--volume="$folder":"$folder":ro']
        options += ["--gpus=all"] * bool(self.gpus) + [f"--env={setting}" for setting in settings]
        return " ".join(["docker", "run", *options, shlex.quote(self.image), *words])


def _word(word: str) -> str:
    """A word of the command, quoted but for what the shell knows."""
    for name in (FOLDER, THREADS):
        if name in word:
            return shlex.quote(word).replace(name, f"'\"${name[1:-1]}\"'")
    return shlex.quote(word)


class Provider(Protocol):
    """Machines of one label at a cloud."""

    def run(self, count: int, spot: bool, script: MachineScript) -> int:
        """Start machines; gives how many were to be had."""

    def alive(self) -> list[str]:
        """Names of those that run or are about to."""

    def remove(self) -> list[str]:
        """End all of the label; gives their names."""

    def why(self) -> str:
        """What keeps machines from coming; empty when nothing is known."""


@dataclass(frozen=True)
class MachineFleet:
    """A fleet of machines that are started by a script.

    :param machines: of a cloud.
    :param script: what goes around the worker; its command and files are those of the cluster.
    """

    machines: Provider
    script: MachineScript

    def launch(self, count: int, spot: bool, bootstrap: Any) -> int:
        """Start machines; gives how many were to be had."""
        env = {**bootstrap.env, **self.script.env}
        script = replace(self.script, command=bootstrap.command, files=bootstrap.files, env=env)
        return self.machines.run(count, spot, script)

    def alive(self) -> list[str]:
        """Names of those that run or are about to."""
        return self.machines.alive()

    def remove(self) -> list[str]:
        """End all of the label; gives their names."""
        return self.machines.remove()

    def why(self) -> str:
        """What keeps machines from coming; empty when nothing is known."""
        return self.machines.why()
