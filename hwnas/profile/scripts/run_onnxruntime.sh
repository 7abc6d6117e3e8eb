#!/usr/bin/env bash
# Time every model with onnxruntime_perf_test on the CPU, or with -e PROVIDER on the accelerator HWNAS_DEVICE.
# The same command goes on where it was stopped.
#   [RUNS=200] [THREADS=1] [HWNAS_DEVICE=NAME] ./run_onnxruntime.sh [OPTION_OF_PERF_TEST...]
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need onnxruntime_perf_test
runs="${RUNS:-200}"
threads="${THREADS:-1}"
runtime=""
if [[ " $* " =~ \ -e\ ?([a-z]+)\  ]] && [ "${BASH_REMATCH[1]}" != cpu ]; then
    runtime="onnxruntime-${BASH_REMATCH[1]}"
    accelerated
fi
logs="$(log_folder onnxruntime "$@")"
describe "$logs" fp32 "$threads" "$runtime"

for model in "$bundle"/onnx/*.onnx; do
    name="$(basename "$model" .onnx)"
    if pending "$logs/$name.txt"; then
        rm -f "$logs/$name.samples.csv"
        onnxruntime_perf_test -I -m times -r "$runs" -x "$threads" "$@" "$model" "$logs/$name.samples.csv" \
            >"$logs/$name.part" 2>&1 || { cat "$logs/$name.part" >&2; exit 1; }
        mv "$logs/$name.part" "$logs/$name.txt"
    fi
done
echo "now: hwnas parse '$logs' --space SPACE --out table.csv"
