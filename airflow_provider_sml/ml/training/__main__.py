"""``python -m airflow_provider_sml.ml.training train``: train what a request says, as a job of SageMaker or Vertex AI.

SageMaker starts a container with the one word ``train`` and tells it the rest by files; Vertex AI gives the arguments
that the operator asked for, and tells places by the environment. On any other machine ``--request`` and ``--model`` are
given. The exit code is 0 for a model, 3 for an interruption, 2 for what a retry cannot mend, 1 for the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from airflow_provider_sml.errors import ConfigurationError, SmlError, require


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.ml.training", description="Training jobs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``train`` to a command line.

    :param commands: of the command line.
    """
    command = commands.add_parser("train", help="train a model, as a job of SageMaker or Vertex AI")
    command.set_defaults(run=train)
    command.add_argument("--request", default="", help="folder of the request (default: SageMaker's hyper-parameter)")
    command.add_argument("--store", default="{}", help="how the lake's store is reached, as JSON without credentials")
    command.add_argument("--model", default="", help="folder of the model (default: that of the service)")
    command.add_argument("--checkpoint", default="", help="folder of the checkpoints (default: that of the service)")


def train(options: argparse.Namespace) -> int:
    """Train what the command line says; returns the exit code."""
    for module, extra in (("xgboost", "xgboost"), ("pyarrow", "lake"), ("dask", "dask")):
        require(module, extra)
    from airflow_provider_sml.ml.training.host import sagemaker_host, train_on, vertex_host
    from airflow_provider_sml.ml.training.runner import InterruptedTraining

    environ = _given(options, os.environ)
    host = None
    try:
        host = None if options.request else sagemaker_host(environ)
        if host is None and not options.request:
            raise ConfigurationError("there is nothing to train", expected="--request, or SageMaker's files in /opt/ml")
        host = host or vertex_host(options.request, json.loads(options.store), environ)
        train_on(host, environ, lambda line: print(line, flush=True))
    except SmlError as error:
        said = f"{type(error).__name__}: {error}"
        print(said, file=sys.stderr, flush=True)
        if host and host.failure:  # SageMaker's FailureReason has its first 1,024 characters
            host.failure.parent.mkdir(parents=True, exist_ok=True)
            host.failure.write_text(said)
        return 3 if isinstance(error, InterruptedTraining) else 1 if error.retryable else 2
    return 0


def _given(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what the command line says in its place."""
    given = {"AIP_MODEL_DIR": options.model, "SML_CHECKPOINT_DIR": options.checkpoint}
    return {**environ, **{name: value for name, value in given.items() if value}}


if __name__ == "__main__":
    # xgboost imports scikit-learn and with it pandas where they are installed, for classes that this does not use.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    sys.exit(main())
