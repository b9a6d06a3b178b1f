#!/usr/bin/env bash
# Writes docs/faults.md: each fault of a cloud, met by the official operator and by ours.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true SPARK_LOCAL_IP=127.0.0.1
SML_WRITE_FAULTS=docs/faults.md .venv/bin/python -m pytest tests/operators/test_faults.py \
    tests/operators/test_faults_vertex.py tests/operators/test_killed_workers.py
