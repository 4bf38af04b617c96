#!/bin/sh
# The whole job on the demo world: raw files -> documents -> token shards -> base model -> continued model -> scores.
# It only runs the public commands, one after another, and prints each before running it.
set -eu

export CUDA_VISIBLE_DEVICES=  # on two CPU cores everywhere: a model this small gains nothing from a GPU
export OMP_NUM_THREADS=1  # two training processes of one thread each: threads of small operators mostly wait

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf demo runs/demo-base runs/demo-continued

# A small fictional medicine, as MEDLINE XML, JATS, HTML and jsonl files, and benchmarks in their real formats.
run python -m data demo demo
run python -m data curate --out demo/corpus --source \
    medline=demo/sources/medline \
    jats=demo/sources/jats \
    guidelines=demo/sources/guidelines \
    guidelines:questions=demo/sources/questions \
    jsonl:replay=demo/sources/replay \
    --benchmark medqa4=demo/benchmarks/medqa4 medmcqa=demo/benchmarks/medmcqa mmlu-medical=demo/benchmarks/mmlu-medical
run python -m data demo demo --check demo/corpus
run python -m data tokenize demo/corpus --tokenizer demo/tokenizer/tokenizer.model --out demo/shards

# The base model knows general text only; continued pretraining adds the medicine, with 2 % general text replayed.
TRAIN="--sequence-length 256 --global-batch-size 8 --micro-batch-size 4 --lr 3e-3 --min-lr-ratio 0.05 --eps 1e-8"
run torchrun --nproc-per-node 2 train.py --model demo --data demo/shards/replay --out runs/demo-base \
    $TRAIN --validation-every 250 --steps 160
run torchrun --nproc-per-node 2 train.py --model runs/demo-base --out runs/demo-continued \
    --data demo/shards/medline demo/shards/jats demo/shards/guidelines demo/shards/questions demo/shards/replay=0.02 \
    $TRAIN --validation-every 250 --steps 1250

# Option letters, then five reasoned answers a question, then option texts before and after.
run python eval.py --model runs/demo-continued --score letter --out demo/scores/letter
run python eval.py --model runs/demo-continued --sc-cot --limit 40 --max-new-tokens 64 --out demo/scores/sc-cot
run python eval.py --model runs/demo-base --score text --out demo/scores/base
run python eval.py --model runs/demo-continued --score text --baseline demo/scores/base --out demo/scores/continued

printf '\nloss: runs/demo-continued/loss.png   before and after: demo/scores/continued/scores.png\n'
