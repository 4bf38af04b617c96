#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the tests marked gpu, then the benchmarks, figures as JSON in $1.
set -u
out=${1:?usage: bench/gpu_check.sh FOLDER}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu.txt"
python -m pytest -m gpu -q 2>&1 | tee "$out/tests.txt"
python -m pytest bench/ -q -s --json "$out" 2>&1 | tee "$out/bench.txt"
