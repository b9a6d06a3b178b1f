#!/usr/bin/env bash
# Make .venv from the lock, once: find a Python that really starts, Java 17+, and uv. `setup.sh java` prints JAVA_HOME.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf '%s\n' "$*" >&2; exit 1; }

# A shim on the PATH may not start, so each candidate is run; prints the absolute path of the real interpreter.
find_python() {
  local name dir candidate
  local -a candidates=()
  [ -n "${PYTHON:-}" ] && candidates+=("$PYTHON")
  for name in python3.12 python3.11 python3.13 python3; do
    while IFS= read -r candidate; do candidates+=("$candidate"); done < <(type -ap "$name" || true)
  done
  for dir in "$HOME"/.pyenv/versions/3.1[123].*/bin; do candidates+=("$dir/python3"); done
  for candidate in "${candidates[@]}"; do
    "$candidate" -c 'import sys, venv, ensurepip
assert (3, 11) <= sys.version_info[:2] <= (3, 13)
print(sys.executable)' 2>/dev/null && return 0
  done
  fail "No Python of 3.11 to 3.13 that starts was found. Install one: apt-get install -y python3 python3-venv"
}

find_java() {
  local home version
  local -a homes=()
  [ -n "${JAVA_HOME:-}" ] && homes+=("$JAVA_HOME")
  command -v java >/dev/null && homes+=("$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")")
  homes+=(/usr/lib/jvm/*)
  for home in "${homes[@]}"; do
    version=$("$home/bin/java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1) || true
    if [ "${version:-0}" -ge 17 ]; then printf '%s\n' "$home"; return 0; fi
  done
  fail "Java 17 or later was not found; Spark needs it. Install it: apt-get install -y openjdk-17-jre-headless"
}

find_uv() {
  if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then command -v uv; return 0; fi
  if ! .tools/bin/uv --version >/dev/null 2>&1; then
    rm -rf .tools
    "$1" -m venv .tools && .tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5' >&2
  fi
  printf '%s\n' "$PWD/.tools/bin/uv"
}

if [ "${1:-}" = java ]; then find_java; exit 0; fi
if [ "${1:-}" = uv ]; then find_uv "$(find_python)"; exit 0; fi

stamp=$(cat constraints.txt setup.cfg airflow_provider_sml/cloud/class_archive.py | sha256sum | cut -c1-16)
if [ "$(cat .venv/.stamp 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then exit 0; fi

find_java >/dev/null
python=$(find_python)
uv=$(find_uv "$python")
export UV_PYTHON_DOWNLOADS=never
printf 'Setting up .venv from constraints.txt (a few minutes the first time) ...\n' >&2
rm -f .venv/.stamp
[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$uv" venv --quiet --clear --python "$python" .venv
"$uv" pip sync --quiet --python .venv/bin/python constraints.txt
"$uv" pip install --quiet --python .venv/bin/python --no-deps -e .
# Spark starts some seconds sooner with it, and works without it.
JAVA_HOME=$(find_java) .venv/bin/python -m airflow_provider_sml.cloud.class_archive >/dev/null \
  || printf 'No archive of Spark'"'"'s classes was made; each Spark job starts a few seconds later.\n' >&2
printf '%s' "$stamp" > .venv/.stamp
