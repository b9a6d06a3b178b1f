#!/usr/bin/env bash
# Builds a Kubernetes control plane for tests (etcd, API server, controller manager, scheduler), once, into a folder.
# Some ten minutes of two processors; 300 MB. Usage: kubernetes.sh FOLDER. Needs Go.
set -euo pipefail
cache="$1" kubernetes=v1.34.4 etcd=v3.6.4
building="$(mktemp -d "$cache/build.XXXXXX")"
trap 'rm -rf "$building"' EXIT
cd "$building"
export CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -trimpath -buildvcs=false -p=${SML_BUILD_JOBS:-2}"

# make NAME MODULE@VERSION PACKAGE FLAGS: builds a program of a module as that module's own go.mod would.
make() {
    rm -rf go.mod go.sum
    go mod init servers 2>/dev/null
    local folder
    folder="$(go mod download -json "$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')"
    # A dependency's replacements do not count: the modules that it takes from its own tree are published as v0.X.Y.
    sed -n 's|^\t\(k8s\.io/[a-z0-9-]*\) => \./staging/.*|\1|p' "$folder/go.mod" | while read -r part; do
        go mod edit -replace "$part=$part@v0.${kubernetes#v1.}"
    done
    go mod edit -require "$2" -godebug default=go1.24
    go build -ldflags "-s -w $4" -o "$1" "$3"
    mv "$1" "$cache/$1"
}

[ -x "$cache/etcd-$etcd" ] || make "etcd-$etcd" "go.etcd.io/etcd/server/v3@$etcd" go.etcd.io/etcd/server/v3 ""
for name in kube-apiserver kube-controller-manager kube-scheduler; do
    [ -x "$cache/$name-$kubernetes" ] ||
        make "$name-$kubernetes" "k8s.io/kubernetes@$kubernetes" "k8s.io/kubernetes/cmd/$name" \
            "-X k8s.io/component-base/version.gitVersion=$kubernetes"
done
