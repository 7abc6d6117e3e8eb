#!/usr/bin/env bash
# Time every model with trtexec on an NVIDIA GPU. The same command goes on where it was stopped.
#   [PRECISION=fp32|fp16] ./run_trtexec.sh [OPTION_OF_TRTEXEC...]
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need trtexec
precision="${PRECISION:-fp32}"
case "$precision" in
    fp32) options=(--noTF32) ;;
    fp16) options=(--fp16) ;;
    *) echo "PRECISION is $precision, expected fp32 or fp16" >&2; exit 2 ;;
esac
logs="$(log_folder trtexec "${options[@]}" "$@")"

for model in "$bundle"/onnx/*.onnx; do
    name="$(basename "$model" .onnx)"
    if pending "$logs/$name.txt"; then
        trtexec "--onnx=$model" "${options[@]}" --useSpinWait "--exportTimes=$logs/$name.times.json" \
            "$@" >"$logs/$name.part" 2>&1 || { tail -n 20 "$logs/$name.part" >&2; exit 1; }
        mv "$logs/$name.part" "$logs/$name.txt"
    fi
done
echo "now: hwnas parse '$logs' --space SPACE --out table.csv"
