#!/usr/bin/env bash
# Run all tests in three processes side by side: on two cores each waits for the others, and for the processes that it
# starts, about as long as it works. The folders are parted so that all three end at about the same time; which tests
# share a process never changes. The output of the first two comes when all have ended.
set -uo pipefail
cd "$(dirname "$0")/.."
engine=(tests/ml tests/etl tests/docs tests/hooks)
airflow=(tests/operators)
others=()
for folder in tests/*/; do
  case " ${engine[*]} ${airflow[*]} " in *" ${folder%/} "*) continue ;; esac
  [ -n "$(find "$folder" -name 'test_*.py' -print -quit)" ] && others+=("${folder%/}")
done

logs=$(mktemp -d)
children=()
pytest=(.venv/bin/python -m pytest -p no:cacheprovider --durations=25)
"${pytest[@]}" "${engine[@]}" >"$logs/engine" 2>&1 &
children+=($!)
"${pytest[@]}" "${airflow[@]}" >"$logs/airflow" 2>&1 &
children+=($!)
trap 'kill "${children[@]}" 2>/dev/null; rm -rf "$logs"' EXIT
trap 'exit 130' INT TERM
"${pytest[@]}" "${others[@]}"
failed=$?
for child in "${children[@]}"; do wait "$child" || failed=1; done
printf '\n%s:\n' "${engine[*]}"
cat "$logs/engine"
printf '\n%s:\n' "${airflow[*]}"
cat "$logs/airflow"
exit "$failed"
