#!/usr/bin/env bash
# Run all tests in two processes side by side, because most of them wait for other processes: the engine on one Spark
# session, everything else on one Airflow database. The engine's output comes when both have ended.
set -uo pipefail
cd "$(dirname "$0")/.."
engine=(tests/ml tests/etl tests/cloud tests/docs tests/packaging)
others=()
for folder in tests/*/; do
  case " ${engine[*]} " in *" ${folder%/} "*) ;; *) [ -n "$(find "$folder" -name 'test_*.py' -print -quit)" ] && others+=("${folder%/}") ;; esac
done

log=$(mktemp)
.venv/bin/python -m pytest -p no:cacheprovider --durations=25 "${engine[@]}" >"$log" 2>&1 &
child=$!
trap 'kill "$child" 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT TERM
.venv/bin/python -m pytest -p no:cacheprovider --durations=25 "${others[@]}"
rest=$?
wait "$child"
first=$?
printf '\n%s\n' "${engine[*]}:"
cat "$log"
[ "$first" = 0 ] && [ "$rest" = 0 ]
