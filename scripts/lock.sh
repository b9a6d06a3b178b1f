#!/usr/bin/env bash
# Resolve constraints.txt again from setup.cfg (every extra) and constraints.in, for Python 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(scripts/setup.sh uv)
export UV_PYTHON_DOWNLOADS=never
new=$(mktemp)
trap 'rm -f "$new"' EXIT
"$uv" pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --extra all \
  setup.cfg constraints.in -o "$new"
{
  echo '# One universal lock of everything that the tests need, for Python 3.11 to 3.13.'
  echo '# Made again by `make lock` from setup.cfg (every extra) and constraints.in.'
  cat "$new"
} > constraints.txt
