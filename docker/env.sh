#!/usr/bin/env bash
# Make docker/.env: every password and key of docker/compose.yaml, at random, readable by its owner alone. Run again, it
# changes nothing; delete the file (and the volumes that were made with it) to start anew.
set -euo pipefail
cd "$(dirname "$0")"
if [ -e .env ]; then
  printf 'docker/.env is there already; nothing was changed.\n'
  exit 0
fi
# 32 random bytes as text that needs no quoting in an address.
secret() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }
umask 077
temporary=$(mktemp .env.XXXXXX)
trap 'rm -f "$temporary"' EXIT
{
  printf 'POSTGRES_PASSWORD=%s\n' "$(secret)"
  printf 'AIRFLOW_ADMIN_PASSWORD=%s\n' "$(secret)"
  printf 'AIRFLOW_SESSION_KEY=%s\n' "$(secret)"
  printf 'AIRFLOW_JWT_KEY=%s\n' "$(secret)$(secret)"
  # A Fernet key is 32 bytes in URL-safe base64 with its padding.
  printf 'AIRFLOW_FERNET_KEY=%s\n' "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n')"
  printf 'S3_ACCESS_KEY=sml%s\n' "$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')"
  printf 'S3_SECRET_KEY=%s\n' "$(secret)"
} > "$temporary"
mv "$temporary" .env
printf 'docker/.env is made. Airflow: user admin, password AIRFLOW_ADMIN_PASSWORD in that file.\n'
