#!/usr/bin/env bash
# Builds the servers that tests run S3, GCS and Kubernetes on, once, into a cache outside the tree. Needs Go; says so and
# succeeds where there is none, because the tests that need them are skipped then and moto serves S3. Kubernetes takes
# some ten minutes of two processors: SML_KUBERNETES=no leaves it out.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${SML_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/airflow-provider-sml/servers}"
declare -A modules=(
    [versitygw]=github.com/versity/versitygw/cmd/versitygw@v1.8.0
    [fake-gcs-server]=github.com/fsouza/fake-gcs-server@v1.56.1
)
mkdir -p "$cache"
for name in "${!modules[@]}"; do
    version="${modules[$name]##*@}"
    [ -x "$cache/$name-$version" ] && continue
    if ! command -v go >/dev/null; then
        echo "servers: no Go on the PATH, so $name is not built and its tests are skipped (apt-get install golang)"
        continue
    fi
    echo "servers: building $name $version (some minutes, once)"
    building="$(mktemp -d "$cache/build.XXXXXX")"
    trap 'rm -rf "$building"' EXIT
    if GOBIN="$building" CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" "${modules[$name]}" >"$cache/$name.log" 2>&1; then
        mv "$building/$name" "$cache/$name-$version"
    else
        echo "servers: $name could not be built, so its tests are skipped; see $cache/$name.log"
    fi
    rm -rf "$building"
done

if [ "${SML_KUBERNETES:-yes}" = yes ] && ! scripts/kubernetes.sh --there "$cache"; then
    if ! command -v go >/dev/null; then
        echo "servers: no Go on the PATH, so Kubernetes is not built and its tests are skipped (apt-get install golang)"
    else
        echo "servers: building Kubernetes (some ten minutes, once)"
        scripts/kubernetes.sh "$cache" >"$cache/kubernetes.log" 2>&1 ||
            echo "servers: Kubernetes could not be built, so its tests are skipped; see $cache/kubernetes.log"
    fi
fi
