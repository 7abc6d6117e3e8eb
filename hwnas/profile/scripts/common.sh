#!/usr/bin/env bash
# What the run scripts share. Source it: . common.sh
set -euo pipefail

bundle="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export bundle

# need TOOL: stop with one line where TOOL is not to be found.
need() {
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "$1 is not on the PATH: install it, or add its folder to PATH" >&2
        exit 2
    fi
}

# batch: images in one inference, from the manifest.
batch() {
    sed -n 's/^ *"batch": *\([0-9][0-9]*\).*/\1/p' "$bundle/hwnas_bundle.json" | head -n 1
}

# processor_name: the processor's name, with its family and model where it has no number (hwnas/profile/processor.py).
processor_name() {
    local name family model
    name="$(cpu_info 'model name')" family="$(cpu_info 'cpu family')" model="$(cpu_info model)"
    case "$name" in
        *[0-9]*) ;;
        ?*) name="$name${family:+ (family $family model $model)}" ;;
    esac
    printf '%s' "$name"
}

# cpu_info FIELD: what /proc/cpuinfo says of the first processor.
cpu_info() {
    sed -n "/^$1[[:space:]]*:/{s/^[^:]*: *//p;q;}" /proc/cpuinfo
}

# device_name: the processor's or the board's name, as the system gives it.
device_name() {
    local name=""
    if [ -n "${HWNAS_DEVICE:-}" ]; then
        name="$HWNAS_DEVICE"
    elif command -v getprop >/dev/null 2>&1; then
        name="$(getprop ro.product.model)"
    elif [ -r /proc/device-tree/model ]; then
        name="$(tr -d '\0' </proc/device-tree/model)"
    elif [ -r /proc/cpuinfo ]; then
        name="$(processor_name)"
    elif command -v sysctl >/dev/null 2>&1; then
        name="$(sysctl -n machdep.cpu.brand_string 2>/dev/null || true)"
    fi
    printf '%s' "${name:-$(uname -m)}" | tr -d '"\\\n'
}

# log_folder TOOL [OPTION...]: make a folder for the logs of a tool with these options; gives its path.
log_folder() {
    local folder
    folder="$bundle/logs/$(printf '%s' "$*" | tr -c 'A-Za-z0-9._=-' '_')"
    mkdir -p "$folder"
    printf '%s' "$folder"
}

# describe FOLDER PRECISION THREADS [RUNTIME]: write what the tool's own logs do not say; stop where they are of
# something else.
describe() {
    local text
    text="$(printf '{"format": "hwnas-device", "version": 1, "device": "%s", "precision": "%s", "batch": %s, "threads": %s%s}' \
        "$(device_name)" "$2" "$(batch)" "$3" "${4:+, \"runtime\": \"$4\"}")"
    if compgen -G "$1/*.txt" >/dev/null && [ "$(cat "$1/device.json" 2>/dev/null)" != "$text" ]; then
        echo "$1 holds logs of another device, precision or number of threads: move it away, or run as before" >&2
        exit 2
    fi
    printf '%s\n' "$text" >"$1/device.json"
}

# has PATTERN OPTION...: whether one of the options is as PATTERN, an extended regular expression, says.
has() {
    local pattern="$1" option
    shift
    for option in "$@"; do
        if [[ $option =~ ^($pattern)$ ]]; then
            return 0
        fi
    done
    return 1
}

# accelerated: stop where nobody has named the accelerator that runs the models, for it is not the processor.
accelerated() {
    if [ -z "${HWNAS_DEVICE:-}" ]; then
        echo "an accelerator has another name than the processor: set HWNAS_DEVICE to it" >&2
        exit 2
    fi
}

# pending LOG: true where LOG is not there yet; a run that was stopped goes on with the models it lacks.
pending() {
    [ ! -s "$1" ]
}
