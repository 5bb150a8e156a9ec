#!/usr/bin/env bash
# A day with a GPU, in four parts: bash benchmarks/gpu_day.sh check | measure | profile | train [flags of action.train]
#
#   check    what the machine is and does at its best; the operators' tests; memory and race checks
#   measure  tiles, then every sweep beside plain PyTorch; tables go into the package and into the results
#   profile  Nsight Compute on one large call; enqueueing, launches and graph replay of small ones
#   train    the published configuration in bfloat16; called again, it goes on where it stopped
#
# Each part ends within ten minutes and leaves what it has in $OUT (results/gpu-day), also where a later command of it
# fails. Needs the project installed with its CUDA kernels (ACTION_CUDA_ARCHS=90 pip install -e '.[test]'), and for
# profile Nsight Compute. $PYTHON names another interpreter than python3.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1
part=${1:?check, measure, profile or train}
shift
out=${OUT:-results/gpu-day}
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

# limited SECONDS NAME COMMAND...: a command with a limit of time, whose output goes to NAME.txt and whose end is shown
limited() {
    local seconds=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -25 "$out/$name.txt"
    [ $code -eq 0 ] || { echo "== $name ended with $code" && failed=1; }
}

case $part in
check)
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv
    limited 60 rates "$python" -m benchmarks.rates --device cuda
    limited 60 backends "$python" -m action_kernels
    limited 250 tests "$python" -m pytest -q -m gpu -n 8 tests/kernels
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 80 memcheck compute-sanitizer --tool memcheck "$python" -m pytest -q -n 0 -m gpu -x tests/kernels/test_selection.py
    limited 80 racecheck compute-sanitizer --tool racecheck "$python" -m pytest -q -n 0 -m gpu -x -k cuda tests/kernels/test_selection.py
    ;;
measure)
    limited 150 tiles "$python" -m tools.tuning.tiles --kinds '[bfloat16]' --features '[128,64]'
    for sweep in large dtypes operators small; do
        limited 100 "$sweep" "$python" -m benchmarks --device cuda --sweeps "[$sweep]" --seconds 1.5 --output "$out"
    done
    limited 30 choice "$python" -m tools.tuning.backends "$out/operators.csv"
    cp action_kernels/backends/triton/tuned/*.json "$out/"
    for table in action_kernels/backends/measured/*.json; do cp "$table" "$out/order-$(basename "$table")"; done
    ;;
profile)
    limited 150 calls "$python" -m benchmarks.small_calls --device cuda --output "$out"
    for backend in triton cuda; do
        limited 150 "ncu-$backend" ncu --clock-control none --profile-from-start off --set full --page details "$python" -m benchmarks.one_call --backend "$backend"
    done
    limited 100 step "$python" -m benchmarks.training_step --device cuda --precision bf16 --output "$out"
    ;;
train)
    resume=()
    [ -f "$out/published/config.yaml" ] && resume=(--resume)
    limited 570 train "$python" -m action.train --config configs/published.yaml --config configs/acdc.yaml --labeled 3 --split.labeled_order=list --precision bf16 --output "$out/published" "$@" "${resume[@]}"
    ;;
*)
    echo "unknown part $part: check, measure, profile or train" >&2
    exit 2
    ;;
esac
exit $failed
