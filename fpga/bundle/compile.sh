#!/usr/bin/env bash
# Quantise and compile every model of this bundle in the Vitis AI container.
#   ./compile.sh [IMAGE]        IMAGE: xilinx/vitis-ai-pytorch-cpu:latest unless named
set -euo pipefail

bundle="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
image="${1:-xilinx/vitis-ai-pytorch-cpu:latest}"

if grep -q '"fingerprint": null' "$bundle/arch.json"; then
    echo "arch.json has no fingerprint: put in what \`xdputil query\` says on the board" >&2
    exit 2
fi
if ! command -v docker >/dev/null; then
    echo "docker is not installed; run compile.py inside a Vitis AI environment instead" >&2
    exit 2
fi

docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp --volume "$bundle:/bundle" --workdir /bundle "$image" \
    bash -lc 'conda activate vitis-ai-pytorch && python compile.py'
