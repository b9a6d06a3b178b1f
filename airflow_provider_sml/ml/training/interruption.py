"""Notices that this machine is about to be taken away: SIGTERM, and the metadata servers of EC2 and Compute Engine.

A watch only looks and remembers; what follows is the runner's, which asks it after every round. Sources: EC2 announces
two minutes ahead under ``/latest/meta-data/spot/instance-action``, which is 404 before (Amazon EC2 User Guide, "Spot
Instance interruption notices"; a token of IMDSv2 is asked for first); Compute Engine sets ``instance/preempted`` to
``TRUE`` thirty seconds ahead (Compute Engine documentation, "Preemptible VM instances").
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

#: Addresses of the metadata servers; another one, such as a test's, is given by the variable.
EC2, GCE = "SML_EC2_METADATA", "SML_GCE_METADATA"
#: Seconds that a metadata server has for an answer.
ASK_SECONDS = 2.0


class Interruption:
    """Whether a notice has come.

    :param notices: functions that give a notice's text, or None while there is none; asked every ``interval``.
    :param interval: seconds between questions.
    """

    def __init__(self, notices: list[Callable[[], str | None]] | None = None, interval: float = 5.0) -> None:
        self.notice: str | None = None
        self._notices = notices or []
        self._interval = interval
        self._ended = threading.Event()

    def announce(self, notice: str) -> None:
        """Remember the first notice."""
        self.notice = self.notice or notice

    def _watch(self) -> None:
        while not self._ended.is_set() and self.notice is None:
            for ask in self._notices:
                if found := ask():
                    self.announce(found)
            self._ended.wait(self._interval)


@contextlib.contextmanager
def watching(kind: str = "", interval: float = 5.0) -> Iterator[Interruption]:
    """Watch for notices while a training runs on this machine.

    :param kind: where it runs: ``ec2``, ``gce``, or empty for signals only.
    :param interval: seconds between questions to the metadata server.
    """
    asks: dict[str, Callable[[], str | None]] = {"ec2": ec2_notice, "gce": gce_notice}
    watch = Interruption([asks[kind]] if kind in asks else [], interval)
    before = None
    if threading.current_thread() is threading.main_thread():  # Python takes signal handlers nowhere else
        before = signal.signal(signal.SIGTERM, lambda *_: watch.announce("SIGTERM"))
    thread = threading.Thread(target=watch._watch, name="sml-interruption", daemon=True)
    if watch._notices:
        thread.start()
    try:
        yield watch
    finally:
        watch._ended.set()
        if thread.is_alive():
            thread.join(timeout=2 * ASK_SECONDS)  # one question may still be on its way
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def ec2_notice() -> str | None:
    """EC2's notice that this spot instance will be stopped or terminated."""
    base = os.environ.get(EC2, "http://169.254.169.254")
    token = _ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    headers = {"X-aws-ec2-metadata-token": token} if token else {}
    found = _ask(f"{base}/latest/meta-data/spot/instance-action", headers)
    return f"EC2 spot: {found}" if found else None


def gce_notice() -> str | None:
    """Compute Engine's notice that this instance is being preempted."""
    base = os.environ.get(GCE, "http://metadata.google.internal")
    found = _ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return "Compute Engine: preempted" if found and found.strip().upper() == "TRUE" else None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """The text at an address; None when there is none, or nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask its own metadata server
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with opener.open(request, timeout=ASK_SECONDS) as answer:
            return str(answer.read(4096).decode(errors="replace"))
    except (OSError, urllib.error.URLError, ValueError):
        return None
