#!/usr/bin/env bash
# Build docker/scoring.Dockerfile without any image registry and serve a bundle with it: build.sh WORK BUNDLE PORT [BASE]
#
# The base is Debian made by debootstrap (BASE: a folder that holds one already). Runs as root; needs podman, debootstrap
# and runc, and the package index. Prints what the container answers; everything that it makes lies in WORK.
set -euo pipefail
work=$1 bundle=$2 port=$3 base=${4:-$1/base}
cd "$(dirname "$0")/../.."
export PATH="$PATH:/usr/sbin"
run=$(mktemp -d) # podman takes no path of more than 50 characters for it
trap 'rm -rf "$run"' EXIT
podman() { command podman --root "$work/store" --runroot "$run" "$@"; }

if [ ! -d "$base/etc" ]; then
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$base" ${DEBIAN_MIRROR:-} >&2
fi
tar -C "$base" -c . | podman import - localhost/sml-base:test >&2

# The machine's own certificates and pip settings, where it needs any to reach the index.
mounts=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
[ -e /etc/pip.conf ] && mounts+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
podman build --isolation=chroot --network=host --format docker "${mounts[@]}" \
  --build-arg BASE=localhost/sml-base:test -f docker/scoring.Dockerfile -t localhost/sml-scoring:test . >&2
podman images --format 'size: {{.Size}}' localhost/sml-scoring:test

# Without systemd there are no health timers, and the limits that podman asks for may lie above those of this machine.
options=(--rm --runtime runc --network=host --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --no-healthcheck --env SML_SERVE_HOST=127.0.0.1)
user=$(podman run "${options[@]}" --entrypoint id localhost/sml-scoring:test -u)
dask=$(podman run "${options[@]}" --entrypoint dask localhost/sml-scoring:test --version)
printf 'user: %s\n%s\n' "$user" "$dask"
podman run "${options[@]}" --entrypoint python localhost/sml-scoring:test -c 'import onnxruntime, skops.io, xgboost'
if podman run "${options[@]}" --entrypoint python localhost/sml-scoring:test -c 'import airflow' 2>/dev/null; then
  printf 'Airflow is in the image\n'
  exit 1
fi
container=$(podman run --detach "${options[@]}" --volume "$bundle:/opt/ml/model:ro" --env SAGEMAKER_BIND_TO_PORT="$port" \
  localhost/sml-scoring:test serve)
trap 'podman stop --time 10 "$container" >/dev/null; rm -rf "$run"' EXIT
for _ in $(seq 120); do
  if python3 -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/ping', timeout=2)" 2>/dev/null; then
    printf 'answered: ok\n'
    exit 0
  fi
  sleep 1
done
podman logs "$container" >&2
exit 1
