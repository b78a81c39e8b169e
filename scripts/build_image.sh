#!/usr/bin/env bash
# Builds an image of this checkout with Docker or Podman: build_image.sh DOCKERFILE TAG [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
dockerfile=$1 tag=$2
shift 2
if ! program=$(command -v docker || command -v podman); then
  echo "error: neither docker nor podman is installed" >&2
  exit 1
fi
# Podman's own format has no health checks.
case "$program" in */podman) set -- --format docker "$@" ;; esac
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
exec "$program" build --file "$dockerfile" --tag "$tag" --build-arg "REVISION=$revision" "$@" .
