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
from dataclasses import dataclass, field

#: Where the worker's files are, in its command.
FOLDER = "{folder}"


@dataclass(frozen=True)
class MachineScript:
    """The script.

    :param command: of the worker; ``{folder}`` in it stands for the folder of its files.
    :param files: what the worker reads, by name; secret.
    :param env: its variables; nothing secret.
    :param image: container image that the command runs in, by Docker; on the machine itself when empty.
    :param gpus: give the container the machine's GPUs.
    :param prepare: lines of bash before it, such as a log-in at a registry.
    :param last: lines of bash after it, before the shutdown, however it ended.
    :param hours: after which the machine shuts down, whatever it does.
    """

    command: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    gpus: bool = False
    prepare: Sequence[str] = ()
    last: Sequence[str] = ()
    hours: float = 24.0

    def text(self) -> str:
        """The script as text."""
        lines = [
            "#!/bin/bash",
            f"shutdown -h +{max(1, round(self.hours * 60))} || true",
            "folder=",
            "finish() {",
            'rm -rf "$folder"',
            "set +eu",
            *self.last,
            "shutdown -h now",
            "}",
            "trap finish EXIT",
            "set -euo pipefail",
            "umask 077",
            "folder=$(mktemp -d -p /dev/shm sml.XXXXXX)",
        ]
        for name, content in self.files.items():
            lines.append(f'base64 -d > "$folder"/{shlex.quote(name)} <<< {base64.b64encode(content.encode()).decode()}')
        lines += [*self.prepare, f"{self._started()} & worker=$!"]
        # A shell would keep SIGTERM to itself until the worker ends.
        lines += ["trap 'kill -TERM $worker' TERM", "wait $worker || wait $worker"]
        return "\n".join(lines) + "\n"

    def _started(self) -> str:
        # quoted word by word, except for the folder, which the shell knows
        words = [shlex.quote(word).replace(FOLDER, "'\"$folder\"'") if FOLDER in word else shlex.quote(word)
                 for word in self.command]  # fmt: skip
        settings = [shlex.quote(f"{name}={value}") for name, value in self.env.items()]
        if not self.image:
            return " ".join([*(["env", *settings] if settings else []), *words])
        options = ["--rm", "--init", "--network=host", "--ipc=host", '--volume="$folder":"$folder":ro']
        options += ["--gpus=all"] * self.gpus + [f"--env={setting}" for setting in settings]
        # Its files are root's alone.
        return " ".join(["docker", "run", *options, "--user=0:0", shlex.quote(self.image), *words])
