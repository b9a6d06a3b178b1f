"""``python -m airflow_provider_sml.ml.serving``: serve a bundle, and list or stop local endpoints.

``serve`` alone is also what a container runs: it reads the bundle of SM_MODEL_DIR and binds 127.0.0.1 unless
``--host`` or SML_SERVE_HOST says otherwise. On Vertex AI it first fetches the bundle from AIP_STORAGE_URI; elsewhere it
fetches nothing. ``train`` is the command of ``ml.training``, so that one image serves both: SageMaker and Vertex AI
start training containers with that word.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_sml.errors import ConfigurationError, SmlError, require
from airflow_provider_sml.ml.flavours import XGBOOST
from airflow_provider_sml.ml.training.__main__ import add_train, train


def main(arguments: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Run the command line; returns the exit code.

    :param arguments: of the command; those of the process when None.
    :param alone: whether the process does nothing else, so that imports may be spared for all of it.
    """
    options = _parser(os.environ).parse_args(arguments)
    options.alone = alone
    if options.run is train:
        _spare_imports(alone)
        return train(options)
    try:
        for module in ("fastapi", "uvicorn", "prometheus_client", "httpx", "psutil"):
            require(module, "serving")
        code: int = options.run(options)
        return code
    except SmlError as error:
        print(error, file=sys.stderr)
        return 1


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.ml.serving", description="Model serving.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a model bundle over HTTP until SIGTERM")
    serve.set_defaults(run=_serve)
    serve.add_argument("--bundle", type=Path, help="folder of the bundle (default: that of AIP_STORAGE_URI, which is "
                       "fetched, else SM_MODEL_DIR, else /opt/ml/model)")  # fmt: skip
    serve.add_argument("--model", help="name of the registered model (default: the bundle's)")
    serve.add_argument("--version", help="version that answers tell (default: the bundle's model id)")
    serve.add_argument("--host", default=environ.get("SML_SERVE_HOST", "127.0.0.1"), help="address to listen on")
    port = environ.get("AIP_HTTP_PORT") or environ.get("SAGEMAKER_BIND_TO_PORT") or "8080"
    serve.add_argument("--port", type=int, default=port, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--threads", type=int, default=1, help="threads of XGBoost and onnxruntime per request (default: 1)"
    )
    serve.add_argument("--log-dir", type=Path, help="folder of the prediction log (default: none is written)")
    serve.add_argument("--control", type=Path, help=argparse.SUPPRESS)
    serve.add_argument("--private-port-file", type=Path, help=argparse.SUPPRESS)
    serve.add_argument("--promote-within", type=float, default=900.0, help=argparse.SUPPRESS)

    stop = commands.add_parser("stop", help="stop local endpoints")
    stop.set_defaults(run=_stop)
    which = stop.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", metavar="NAME", help="the endpoint to stop")
    which.add_argument("--all", action="store_true", help="stop every endpoint under the root")

    add_train(commands)
    status = commands.add_parser("status", help="list local endpoints")
    status.set_defaults(run=_status)
    for command in (stop, status):
        command.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the endpoints")
    return parser


def _serve(options: argparse.Namespace) -> int:
    from airflow_provider_sml.ml.bundle import Bundle
    from airflow_provider_sml.ml.serving.log import PredictionLog
    from airflow_provider_sml.ml.serving.process import serve_candidate, serve_public
    from airflow_provider_sml.ml.serving.server import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    bundle = Bundle.read(options.bundle or _folder(os.environ))
    _spare_imports(options.alone and bundle.flavour == XGBOOST)
    version = options.version or bundle.model_id
    log = PredictionLog(options.log_dir) if options.log_dir else None
    app = create_app(bundle, version=version, model=options.model, log=log, threads=options.threads)
    what = f"{options.model or bundle.name} version {version}"
    if options.control and options.private_port_file:
        print(f"serving {what} as a candidate", flush=True)
        serve_candidate(app, log, options.control, options.private_port_file, options.promote_within)
    else:
        print(f"serving {what} on http://{options.host}:{options.port}/invocations", flush=True)
        serve_public(app, log, options.host, options.port)
    print(f"stopped serving {what}", flush=True)
    return 0


def _spare_imports(spare: bool) -> None:
    """xgboost imports scikit-learn and with it pandas where they are installed, for classes that nothing here uses:
    three seconds and a hundred megabytes per server."""
    if spare:
        sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]


def _folder(environ: Mapping[str, str]) -> Path:
    """Where the bundle lies that a service names in the environment."""
    if environ.get("AIP_STORAGE_URI", "").startswith("gs://"):
        from airflow_provider_sml.ml.serving.fetch import fetch_bundle

        return fetch_bundle(environ["AIP_STORAGE_URI"], environ)
    return Path(environ.get("SM_MODEL_DIR", "/opt/ml/model"))


def _stop(options: argparse.Namespace) -> int:
    from airflow_provider_sml.ml.serving.local import endpoints

    found = [endpoint for endpoint in endpoints(options.root) if options.all or endpoint.name == options.name]
    if not found and not options.all:
        raise ConfigurationError(
            f"there is no endpoint {options.name} under {options.root}",
            expected=", ".join(endpoint.name for endpoint in endpoints(options.root)) or "none was deployed here",
            found=options.name,
        )
    if not found:
        print(f"no endpoints under {options.root}")
    code = 0
    for endpoint in found:
        try:
            print(f"{endpoint.name}: {'stopped' if endpoint.stop() else 'was not running'}")
        except SmlError as error:  # the others are stopped all the same
            print(error, file=sys.stderr)
            code = 1
    return code


def _status(options: argparse.Namespace) -> int:
    from airflow_provider_sml.ml.serving.local import endpoints

    found = endpoints(options.root)
    if not found:
        print(f"no endpoints under {options.root}")
    for endpoint in found:
        status = endpoint.status()
        live = status.live
        if live is None:
            print(f"{endpoint.name}: not running")
        else:
            health = "healthy" if status.healthy else "NOT ANSWERING"
            what = f"{live.model} version {live.version} (model {live.model_id})"
            print(f"{endpoint.name}: {health}  {what} at {status.url}  pid {live.pid}  since {live.since}")
        if status.candidate is not None:
            print(f"  a candidate of version {status.candidate.version} runs as pid {status.candidate.pid}")
    return 0


if __name__ == "__main__":
    sys.exit(main(alone=True))
