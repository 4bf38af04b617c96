#!/bin/sh
# MEDITRON-7B's continued pretraining (arXiv 2311.16079, section 4.1): Llama-2-7B on the shards of recipes/gap-replay.sh.
# 64 GPUs: 8 nodes of 8, each running this with NODES, RANK and HOST set; fewer GPUs take smaller --global-batch-size or
# longer. 14,250 steps of 1,600 sequences of 2,048 tokens are one epoch of 46.7 billion tokens.
set -eu
MODEL=${MODEL:-models/Llama-2-7b-hf} NODES=${NODES:-8} RANK=${RANK:-0} HOST=${HOST:-localhost}

# The paper's text ends at 10 % of the peak; its run stopped half-way down a cosine over two epochs, at about 50 %.
torchrun --nnodes "$NODES" --nproc-per-node 8 --node-rank "$RANK" --master-addr "$HOST" train.py \
    --model "$MODEL" --out runs/meditron-7b --tp 4 --recompute attention \
    --data shards/guidelines shards/papers shards/abstracts shards/replay=0.01 \
    --steps 14250 --sequence-length 2048 --global-batch-size 1600 --micro-batch-size 10 \
    --lr 3e-4 --min-lr-ratio 0.1 --warmup-steps 2000 --weight-decay 0.1 --beta1 0.9 --beta2 0.95 --eps 1e-5 --clip 1.0
