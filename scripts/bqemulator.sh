#!/usr/bin/env bash
# Makes the BigQuery emulator that tests run on, once, in an environment of its own outside the tree: its DuckDB is
# another one than ours. Prints the path of its program; says why and fails where it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.4.0
cache="${SML_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/airflow-provider-sml/servers}"
home="$cache/bqemulator-$version"
if [ ! -x "$home/bin/bqemulator" ]; then
  uv=$(scripts/setup.sh uv)
  python=${PYTHON:-.venv/bin/python}
  mkdir -p "$cache"
  building=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$building"' EXIT
  export UV_PYTHON_DOWNLOADS=never
  "$uv" venv --quiet --clear --relocatable --python "$python" "$building/env" >&2
  "$uv" pip install --quiet --python "$building/env/bin/python" "bqemulator==$version" 'sqlglot==30.11.0' \
    'duckdb==1.5.5' 'duckdb-extension-spatial==1.5.5' 'numpy<3' 'pyarrow<27' >&2
  # The emulator loads DuckDB's spatial extension at its start; this puts the packaged one where DuckDB looks.
  "$building/env/bin/python" - >&2 <<'PY'
import glob
import sysconfig

import duckdb

(found,) = glob.glob(sysconfig.get_path("purelib") + "/duckdb_extension_spatial/extensions/*/spatial.duckdb_extension")
duckdb.connect().execute(f"INSTALL '{found}'")
PY
  # Another process may have been quicker; its environment is as good.
  mv -T "$building/env" "$home" 2>/dev/null || [ -x "$home/bin/bqemulator" ]
fi
printf '%s\n' "$home/bin/bqemulator"
