"""``python -m airflow_provider_sml.testing``: a fake cloud beside a running Airflow, driven from the shell.

``serve aws`` or ``serve google`` runs one until Ctrl-C and prints the environment that points clients at it; the other
commands move its clock, make faults happen, and show its calls and its bill. They reach it by ``--url`` or
SML_FAKE_URL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from airflow_provider_sml.errors import MissingExtraError, require
from airflow_provider_sml.testing.core import FakeCloud, VirtualClock
from airflow_provider_sml.testing.core.faults import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (ValueError, urllib.error.URLError, MissingExtraError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.testing", description="Fake clouds.")
    parser.add_argument("--url", default=os.environ.get("SML_FAKE_URL", ""), help="of the fake that runs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run a fake AWS or a fake Google Cloud until Ctrl-C")
    serve.set_defaults(run=_serve)
    serve.add_argument("cloud", nargs="?", choices=["aws", "google"], default="aws", help="which (default: aws)")
    serve.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    serve.add_argument("--scale", type=float, default=60.0, help="virtual seconds per second (default: 60)")
    serve.add_argument("--s3", default="", help="aws: address of an S3 server (default: moto, started beside)")
    serve.add_argument(
        "--gcs",
        default="",
        help="google: address of a Cloud Storage server (default: fake-gcs-server if it is built)",
    )

    advance = commands.add_parser("advance", help="move the clock forward")
    advance.add_argument("seconds", type=float)
    advance.set_defaults(run=lambda options: _show(_ask(options, "advance", {"seconds": options.seconds})))
    scale = commands.add_parser("scale", help="let the clock run at a multiple of real time")
    scale.add_argument("scale", type=float)
    scale.set_defaults(run=lambda options: _show(_ask(options, "scale", {"scale": options.scale})))

    fault = commands.add_parser(
        "fault", help="let a fault happen", epilog="; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    )
    fault.add_argument("kind", choices=list(KINDS))
    fault.add_argument("operation", nargs="?", default="*", help="such as CreateTrainingJob (default: any)")
    fault.add_argument("--name", default="*", help="of the resource, as a pattern")
    fault.add_argument("--times", type=int, default=1)
    fault.add_argument("--skip", type=int, default=0, help="fitting calls that pass before it happens")
    fault.add_argument("--detail", action="append", default=[], metavar="KEY=VALUE", help="such as count=2")
    fault.set_defaults(run=_fault)

    for verb, text in (("faults", "faults that wait"), ("calls", "calls so far"), ("bill", "what everything cost")):
        command = commands.add_parser(verb, help=text)
        command.set_defaults(run=lambda options, verb=verb: _show(_ask(options, verb, {})))
    behaviours = commands.add_parser("behaviours", help="what the fakes do, and where that is known from")
    behaviours.set_defaults(run=_behaviours)
    return parser


def _serve(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context((_google if options.cloud == "google" else _aws)(options, stack))
        for name, value in (cloud.environment() | cloud.connections() | {"SML_FAKE_URL": cloud.url}).items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# the fake runs, {options.scale:g} seconds a second; Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print(cloud.bill.text())
    return 0


def _aws(options: argparse.Namespace, stack: contextlib.ExitStack) -> FakeCloud:
    from airflow_provider_sml.testing.aws import FakeAws

    if not options.s3:
        from moto.server import ThreadedMotoServer

        moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        moto.start()
        stack.callback(moto.stop)
        options.s3 = "http://{}:{}".format(*moto.get_host_and_port())
    return FakeAws(VirtualClock(scale=options.scale), s3=options.s3, port=options.port)


def _google(options: argparse.Namespace, stack: contextlib.ExitStack) -> FakeCloud:
    kind = _fake_google()
    if not options.gcs:
        from airflow_provider_sml.testing.processes import ServerUnavailableError
        from airflow_provider_sml.testing.stores import fake_gcs

        try:
            options.gcs = stack.enter_context(fake_gcs()).store.endpoint
        except ServerUnavailableError as error:
            print(f"there is no Cloud Storage: {error}", file=sys.stderr)
    return kind(VirtualClock(scale=options.scale), gcs=options.gcs or None, port=options.port)


def _fake_google() -> Any:
    require("google.cloud.dataproc_v1", "google")
    from airflow_provider_sml.testing.google.cloud import FakeGoogle

    return FakeGoogle


def _fault(options: argparse.Namespace) -> int:
    detail: dict[str, Any] = {}
    for pair in options.detail:
        key, given, value = pair.partition("=")
        if not given or key in ("kind", "operation", "name", "times", "skip"):
            raise ValueError(f"--detail takes KEY=VALUE with a key such as reason, count or seconds, not {pair!r}")
        detail[key] = value
    fault = {key: getattr(options, key) for key in ("kind", "operation", "name", "times", "skip")}
    return _show(_ask(options, "fault", fault | detail))


def _behaviours(_: argparse.Namespace) -> int:
    from airflow_provider_sml.testing.aws import FakeAws

    kinds: list[type[FakeCloud]] = [FakeAws]
    try:
        kinds.append(_fake_google())
    except MissingExtraError as error:
        print(f"without Google Cloud: {error}", file=sys.stderr)
    for kind in kinds:
        with kind() as cloud:
            for item in cloud.behaviours():
                print(f"{item.service}: {item.what}\n    {item.basis}: {item.source}")
    return 0


def _ask(options: argparse.Namespace, verb: str, arguments: dict[str, Any]) -> Any:
    if not options.url.startswith("http://127.0.0.1:"):
        raise ValueError("give the address that serve printed, as --url or SML_FAKE_URL")
    request = urllib.request.Request(f"{options.url}/_fake/{verb}", json.dumps(arguments).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _show(found: Any) -> int:
    print(found["text"] if isinstance(found, dict) and "text" in found else json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
