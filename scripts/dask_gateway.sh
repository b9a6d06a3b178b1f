#!/usr/bin/env bash
# Makes the Dask Gateway server that tests run clusters on, once, in an environment of its own outside the tree. Prints
# the path of its program; says why and fails where it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
version=2026.3.0
cache="${SML_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/airflow-provider-sml/servers}"
home="$cache/dask-gateway-server-$version"
if [ ! -x "$home/bin/dask-gateway-server" ]; then
  uv=$(scripts/setup.sh uv)
  python=${PYTHON:-.venv/bin/python}
  mkdir -p "$cache"
  building=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$building"' EXIT
  export UV_PYTHON_DOWNLOADS=never
  "$uv" venv --quiet --clear --relocatable --python "$python" "$building/env" >&2
  "$uv" pip install --quiet --python "$building/env/bin/python" "dask-gateway-server[local]==$version" \
    'sqlalchemy<2.2' 'aiohttp<3.15' 'traitlets<6' >&2
  # Another process may have been quicker; its environment is as good.
  mv -T "$building/env" "$home" 2>/dev/null || [ -x "$home/bin/dask-gateway-server" ]
fi
printf '%s\n' "$home/bin/dask-gateway-server"
