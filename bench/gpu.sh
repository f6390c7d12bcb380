#!/usr/bin/env bash
# Everything a GPU is needed for, in one call: build, tests, compute-sanitizer, benchmarks.
# Needs torch with CUDA, nvcc, cmake, ninja, pybind11, pytest, numpy, scipy; no network.
#
#   OUT=gpu-results bash bench/gpu.sh
#
# Leaves logs and JSON under $OUT. Afterwards: copy the JSON to bench/results/, run
# `python bench/fill.py`, bring bench/GPU_STATUS.md up to date.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu-results}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 FLOWINV_CUDA=on
export FLOWINV_CUDA_ARCHS=${FLOWINV_CUDA_ARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)-real}
failed=0
step() {  # name, time limit in seconds, command
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
  local code=$?
  tail -n 3 "$OUT/$name.log"
  echo "== $name: exit $code"
  [ $code -eq 0 ] || failed=1
}
step build 200 python3 -m pip install --no-build-isolation --no-deps -e .
python3 -c "import flowinv_fast; print(flowinv_fast.show_config())" | tee "$OUT/config.txt"
step tests 240 python3 -m pytest -q python_tests --ignore=python_tests/test_native.py \
  --ignore=python_tests/test_build.py --ignore=python_tests/test_style.py \
  --ignore=python_tests/test_extending.py
# The sanitizer slows a kernel a hundredfold: one op test of values is enough for each tool.
for tool in memcheck racecheck initcheck synccheck; do
  step "sanitizer-$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    python3 -m pytest -q -x python_tests/ops/test_ops.py -k "every_output and cuda"
  step "sanitizer-frozen-$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    python3 -m pytest -q -x python_tests/flows/test_frozen.py -k "float64_flow and cuda and 7"
done
# Four runs add up to one JSON. What is not ours or a graph of eager is timed on small models only.
for model in M C; do
  step "map-step-$model" 600 python3 bench/map_step.py --device cuda --models "$model" \
    --batches 1 16 128 --out "$OUT"
done
for model in Mp Cp; do
  step "map-step-$model" 180 python3 bench/map_step.py --device cuda --models "$model" \
    --batches 1 16 128 --contenders ours "ours tf32" "ours bf16" "folded eager" \
    "channels-last eager" graph --out "$OUT"
done
for model in M C Mp Cp; do  # these add up too; only M and C are compiled
  step "training-$model" 600 python3 bench/training.py speed --device cuda --models "$model" \
    --batches 16 128 --out "$OUT"
done
step training-memory 180 python3 bench/training.py memory --device cuda --images 8 --out "$OUT"
step memory 120 python3 bench/memory.py --device cuda --out "$OUT"
step solve 180 python3 bench/solve.py --device cuda --batches 1 16 --out "$OUT"
step kernels 180 python3 bench/kernels.py --device cuda --batches 1 128 --out "$OUT"
# Priors at the paper's size, as long as the lease allows: carry the data in an ignored folder, e.g.
# DATA=gpu-data with mnist/ (the IDX files) and photos/ (train, test). Weights and logs go to $OUT.
MINUTES=${MINUTES:-8}
if [ -d "${DATA:-}/mnist" ]; then
  step train-mnist-28 $((60 * MINUTES + 120)) flowinv-fast train mnist-28 --minutes "$MINUTES" \
    --data "$DATA/mnist/train-images-idx3-ubyte.gz" --precision bf16 --quiet --out "$OUT/mnist-28" \
    --held-out "$DATA/mnist/t10k-images-idx3-ubyte.gz"
fi
if [ -d "${DATA:-}/photos" ]; then
  step train-photo-64 $((60 * MINUTES + 120)) flowinv-fast train photo-64 --minutes "$MINUTES" \
    --data "$DATA/photos" --precision bf16 --quiet --out "$OUT/photo-64"
fi
step demo 60 flowinv-fast demo --out "$OUT/demo"
exit $failed
