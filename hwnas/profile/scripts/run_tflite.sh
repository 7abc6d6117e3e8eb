#!/usr/bin/env bash
# Time every model with TensorFlow Lite's benchmark_model, or with --use_gpu=true ... on the accelerator HWNAS_DEVICE.
# The same command goes on where it was stopped.
#   [RUNS=50] [THREADS=1] [HWNAS_DEVICE=NAME] ./run_tflite.sh [OPTION_OF_BENCHMARK_MODEL...]
# Models are taken from tflite/ID.tflite; those that are not there are converted with onnx2tf, which may be done on
# another machine beforehand: ./run_tflite.sh --convert-only
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

convert() {
    local model="$1" name="$2" work
    work="$(mktemp -d)"
    onnx2tf -i "$model" -o "$work" -n >"$work/onnx2tf.txt" 2>&1 || { tail -n 20 "$work/onnx2tf.txt" >&2; exit 1; }
    mkdir -p "$bundle/tflite"
    mv "$work/${name}_float32.tflite" "$bundle/tflite/$name.tflite"
    rm -rf "$work"
}

for model in "$bundle"/onnx/*.onnx; do
    name="$(basename "$model" .onnx)"
    if pending "$bundle/tflite/$name.tflite"; then
        need onnx2tf
        convert "$model" "$name"
    fi
done
if [ "${1:-}" = "--convert-only" ]; then
    exit 0
fi

need benchmark_model
threads="${THREADS:-1}"
precision=fp32
if has '--use_(gpu|nnapi|hexagon|coreml)(=(true|1))?|--external_delegate_path=.*' "$@"; then
    accelerated
    precision="" # the delegate chooses it, and says so nowhere
fi
logs="$(log_folder tflite "$@")"
describe "$logs" "$precision" "$threads"
for model in "$bundle"/tflite/*.tflite; do
    name="$(basename "$model" .tflite)"
    if pending "$logs/$name.txt"; then
        benchmark_model "--graph=$model" "--num_threads=$threads" "--num_runs=${RUNS:-50}" "$@" \
            >"$logs/$name.part" 2>&1 || { tail -n 20 "$logs/$name.part" >&2; exit 1; }
        mv "$logs/$name.part" "$logs/$name.txt"
    fi
done
echo "now: hwnas parse '$logs' --space SPACE --out table.csv"
