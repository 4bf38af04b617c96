#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the tests marked gpu, the benchmarks, the tuner. What they print and measure
# goes to FOLDER, the tuned table to FOLDER/tiles.json (the checkout's is left as it is), a summary to the terminal last.
# A part that fails or runs out of its share of the time does not stop the next one.
#
#   bench/gpu_check.sh FOLDER [PART ...]     PART: tests, bench, tune (default: all three)
#   MINUTES=9 PYTHON=python                  time for all parts together, and the interpreter
set -u
folder=${1:?usage: bench/gpu_check.sh FOLDER [tests] [bench] [tune]}
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests bench tune)
python=${PYTHON:-python}
seconds=$((${MINUTES:-9} * 60))
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.." || exit 1

declare -A shares=([tests]=3 [bench]=5 [tune]=2)
total=0
for part in "${parts[@]}"; do
    [ -n "${shares[$part]:-}" ] || { echo "gpu_check.sh: no part $part; there are tests, bench and tune" >&2; exit 1; }
    total=$((total + shares[$part]))
done

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee "$folder/gpu.txt"
"$python" -c 'import sys, torch, triton
print(f"python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}, cuda {torch.version.cuda}")' \
    2>&1 | tee -a "$folder/gpu.txt"

summary="part   seconds  exit  last line"
worst=0
for part in "${parts[@]}"; do
    limit=$((seconds * shares[$part] / total))
    # the tuner ends by itself: half a minute before its limit it begins no further candidate
    minutes=$(awk "BEGIN { print ($limit > 60 ? $limit - 30 : $limit / 2) / 60 }")
    case $part in
    tests) command=("$python" -m pytest -m gpu -q -p no:cacheprovider) ;;
    bench) command=("$python" -m pytest bench/ -q -s -p no:cacheprovider --json "$folder") ;;
    tune) command=("$python" bench/tune.py --out "$folder/tiles.json" --minutes "$minutes") ;;
    esac
    began=$SECONDS
    # an interrupt first, so that pytest still prints what it has
    timeout --signal=INT --kill-after=15 "$limit" "${command[@]}" >"$folder/$part.txt" 2>&1
    code=$?
    [ "$code" -le "$worst" ] || worst=$code
    last=$(grep -v '^[[:space:]]*$' "$folder/$part.txt" | tail -n 1 | cut -c1-150)
    summary+=$'\n'"$(printf '%-6s %7d  %4d  %s' "$part" $((SECONDS - began)) "$code" "$last")"
done
grep -hE '^(FAILED|ERROR) ' "$folder"/{tests,bench}.txt 2>/dev/null | cut -c1-300
grep -h '^  -> ' "$folder/tune.txt" 2>/dev/null | cut -c1-300
grep -h '^| ' "$folder/bench.txt" 2>/dev/null
echo "$summary" | tee "$folder/summary.txt"
exit "$worst"
