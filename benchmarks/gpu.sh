#!/usr/bin/env bash
# Everything of the benchmarks that needs an NVIDIA GPU, in parts of ten minutes at most that go on where they stopped.
#
#   benchmarks/gpu.sh PART        from the top of the repository; repeat a part until it says "part PART: done"
#
#   1  GPU tests, and what doctor finds
#   2  latency tables, PyTorch eager with CUDA graphs: ofa-mbv2, ofa-mbv3 (width 1.0, resolution 160)
#   3  the same: fbnet, mnasnet, nasbench201
#   4  the same five, eager without graphs
#   5  nasbench201, fbnet and ofa-mbv3, torch.compile with graphs (each block is compiled twice; repeat)
#   6  batches of 1, 8 and 32, a cold L2, half precision and energy: nasbench201
#   7  the seed paper's experiment, 300 and 150 networks, eager with graphs, then 60 and 30 by torch.compile (repeat)
#   8  the seed paper's experiment, 2,000 and 1,000 networks, eager with graphs (repeat)
#   9  a Once-for-All super-network on CIFAR-10 (repeat)
#  10  a search with it under a latency budget of this GPU, the winner measured on it
#  11  what a step of progressive shrinking takes beside a plain one
#
# Parts 7 and 8 measure alone; with their folders at hand, `benchmarks/seed_figure4.py --fit-only --out FOLDER` fits the
# models on any machine. All parts want one kind of GPU: another kind is another target, and is refused.
#
# The machine needs no network and no installed hwnas. It needs Python 3.11 or later with torch built for CUDA, numpy,
# scipy, onnx, onnxruntime, pyarrow, typer, rich, pyyaml, psutil, scikit-learn, safetensors, pillow, threadpoolctl and
# pytest. Carry what it lacks as wheels in the folder WHEELS, fetched where there is a network:
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
#       pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions lightgbm \
#       hypothesis sortedcontainers nvidia-ml-py
# nvidia-ml-py is optional: without it clocks are not logged and energy is unmeasurable. Parts 9 and 10 read CIFAR-10 as
# Parquet, cifar10_train.parquet and cifar10_test.parquet, from HWNAS_REFERENCE_DATA, which has to be the same path
# whenever part 9 is repeated.
#
# WORK    where runs are kept and resumed (runs/gpu)      WHEELS  packages to unpack (wheels, where it exists)
# OUT     where to leave WORK at the end, as an archive   STATE   the folder of such an archive, to go on from it where
#         in pieces of 15 MB, gpu-work.tar.gz.*                   WORK is new
# PYTHON  python3      SECONDS_A_PART  540      DEVICE  gpu; cpu rehearses the script where there is no GPU
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:?"usage: benchmarks/gpu.sh PART, from 1 to 11"}
work=${WORK:-runs/gpu}
wheels=${WHEELS:-wheels}
python=${PYTHON:-python3}
device=${DEVICE:-gpu}
data=${HWNAS_REFERENCE_DATA:-../shared/data}
deadline=$((SECONDS + ${SECONDS_A_PART:-540}))
large="ofa-mbv2:width=1.0,resolution=160 ofa-mbv3:width=1.0,resolution=160"
small="fbnet mnasnet nasbench201"
cifar="ofa-mbv3:variant=cifar,width=1.0,num_classes=10" networks=150
graphs=(--graphs) cold=(--cache cold) quick=()
if [ "$device" = cpu ]; then
    cifar="ofa-mbv3:variant=cifar,width=0.25,resolution=8,num_classes=10" networks=30
    large=nasbench-macro small=nasbench201 graphs=() cold=() quick=(--time-limit 0.05 --goal 0.5)
fi

# Runs a command until it ends or this part's time is over; a command that was cut short goes on at the next call.
run() {
    local left=$((deadline - SECONDS)) code=0
    if [ "$left" -lt 15 ]; then more; fi
    echo "+ $*" >&2
    timeout --signal=INT --kill-after=20 "$left" "$@" || code=$?
    if [ "$code" -eq 124 ] || [ "$code" -eq 130 ] || [ "$code" -eq 137 ]; then more; fi
    if [ "$code" -ne 0 ]; then
        keep
        exit "$code"
    fi
}

keep() {
    if [ -n "${OUT:-}" ]; then
        tar -cz -C "$work" --exclude ./cache . | split --bytes=15m - "$OUT/gpu-work.tar.gz."
    fi
}

more() {
    echo "part $part: time is over; repeat it to go on"
    keep
    exit 0
}

# tables NAME RUNTIME SPACES [options of profile]
tables() {
    local name=$1 runtime=$2 space
    for space in $3; do
        run "$python" -m hwnas profile --space "$space" --device "$device" --runtime "$runtime" \
            --out "$work/tables/$name/${space//[:,=]/-}" "${@:4}" "${quick[@]}"
    done
}

# figure4 NAME RUNTIME [options]
figure4() {
    run "$python" benchmarks/seed_figure4.py --measure-only --device "$device" --runtime "$2" \
        --out "$work/figure4/$1" "${@:3}"
}

# The latency that a third of the measured networks keep.
budget() {
    "$python" -c "import sys, numpy, pyarrow.parquet as parquet
print(numpy.nanquantile(parquet.read_table(sys.argv[1])['latency_ms'].to_numpy(), 1 / 3))" "$1"
}

prepare() {
    mkdir -p "$work"
    if [ -n "${STATE:-}" ] && [ -z "$(ls -A "$work")" ]; then
        cat "$STATE"/gpu-work.tar.gz.* | tar -xz -C "$work"
    fi
    if [ -d "$wheels" ] && [ ! -d "$work/../carried" ]; then
        for wheel in "$wheels"/*.whl; do
            "$python" -m zipfile -e "$wheel" "$work/../carried"
        done
    fi
    if [ -d "$work/../carried" ]; then
        PYTHONPATH="$(realpath "$work/../carried")${PYTHONPATH:+:$PYTHONPATH}"
    fi
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
    XDG_CACHE_HOME="$(realpath "$work")/cache"
    TORCHINDUCTOR_CACHE_DIR="$XDG_CACHE_HOME/inductor"
    export XDG_CACHE_HOME TORCHINDUCTOR_CACHE_DIR
}

supernet_config() {
    cat >"$work/supernet.yaml" <<END
space: $cifar
data: {name: parquet, path: $data/cifar10_train.parquet, test_path: $data/cifar10_test.parquet}
rule: sandwich
epochs: ${EPOCHS:-60}
batch: 256
subnets: 4
teacher_fraction: 0.2
precision: bf16
checkpoint_s: 30
END
}

prepare
case $part in
1)
    run "$python" -m hwnas doctor
    run "$python" -m pytest -q -rs -m gpu tests/contract/test_backends.py -p no:cacheprovider
    ;;
2) tables graphs torch "$large" "${graphs[@]}" ;;
3) tables graphs torch "$small" "${graphs[@]}" ;;
4) tables eager torch "$large $small" ;;
5) tables compiled torch-compile "nasbench201 fbnet ${large#* }" "${graphs[@]}" ;;
6)
    tables batches torch nasbench201 --batch 1,8,32 "${graphs[@]}"
    tables cold torch nasbench201 "${graphs[@]}" "${cold[@]}"
    tables fp16 torch nasbench201 --precision fp16 "${graphs[@]}"
    tables energy torch nasbench201 --metrics latency_ms,memory_mib,energy_mj
    ;;
7)
    figure4 quick torch --quick "${graphs[@]}"
    figure4 compiled torch-compile --networks 60 30 --chunk 5 "${graphs[@]}"
    ;;
8) figure4 full torch "${graphs[@]}" ;;
9)
    supernet_config
    run "$python" -m hwnas train-supernet "$work/supernet.yaml" --out "$work/supernet"
    ;;
10)
    run "$python" -m hwnas profile --space "$cifar" --device "$device" --runtime torch --networks "$networks" \
        --repeats 20 --out "$work/cifar/run" "${graphs[@]}" "${quick[@]}"
    run "$python" -m hwnas fit-predictor "$work/cifar/run" --space "$cifar" --metric latency_ms --test 10 \
        --out "$work/cifar/model"
    run "$python" -m hwnas search --space "$cifar" --accuracy "$work/supernet" --cost "$work/cifar/model" \
        --max "latency_ms=$(budget "$work/cifar/run/networks.parquet")" --store "$work/cifar/run/samples.sqlite" \
        --measure 8 --out "$work/cifar/found"
    ;;
11)
    step=(--space "$cifar" --device "$([ "$device" = gpu ] && echo cuda || echo cpu)")
    run "$python" benchmarks/train_step.py "${step[@]}" --batch 256 --precision bf16
    run "$python" benchmarks/train_step.py "${step[@]}" --batch 64
    ;;
*)
    echo "there is no part $part; parts are 1 to 11" >&2
    exit 2
    ;;
esac
echo "part $part: done"
keep
