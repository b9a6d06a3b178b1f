#!/usr/bin/env bash
# Builds a Kubernetes control plane for tests into a folder, once: etcd, API server, controller manager and scheduler.
# Needs Go; some ten minutes of two processors, 270 MB. With --there it only says whether all are there.
set -euo pipefail
check=no
if [ "$1" = --there ]; then check=yes && shift; fi
cache=$(cd "$1" && pwd)
kubernetes=v1.34.4 etcd=v3.6.4 # testing/kubernetes_api.py names the same
parts=(kube-apiserver kube-controller-manager kube-scheduler)

all_there() {
    local part
    for part in "etcd-$etcd" "${parts[@]/%/-$kubernetes}"; do [ -x "$cache/$part" ] || return 1; done
}
if all_there; then exit 0; fi
if [ "$check" = yes ]; then exit 1; fi

building="$(mktemp -d "$cache/build.XXXXXX")"
trap 'rm -rf "$building"' EXIT
cd "$building"
export CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -trimpath -buildvcs=false"

# built NAME MODULE@VERSION PACKAGE FLAGS: a program of a module, with the versions that its own go.mod names.
built() {
    [ -x "$cache/$1" ] && return
    rm -f go.mod go.sum
    go mod init servers
    local folder part
    folder="$(go mod download -json "$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')"
    # Its go.mod replaces modules by folders of its own tree, which counts only there; they are published as v0.X.Y.
    for part in $(sed -n 's|^\t\(k8s\.io/[a-z0-9-]*\) => \./staging/.*|\1|p' "$folder/go.mod"); do
        go mod edit -replace "$part=$part@v0.${kubernetes#v1.}"
    done
    go mod edit -require "$2" -godebug default=go1.24
    go build -ldflags "-s -w $4" -o "$1" "$3"
    mv "$1" "$cache/$1"
}

built "etcd-$etcd" "go.etcd.io/etcd/server/v3@$etcd" go.etcd.io/etcd/server/v3 ""
for part in "${parts[@]}"; do
    built "$part-$kubernetes" "k8s.io/kubernetes@$kubernetes" "k8s.io/kubernetes/cmd/$part" \
        "-X k8s.io/component-base/version.gitVersion=$kubernetes"
done
