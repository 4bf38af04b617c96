#!/bin/sh
# MEDITRON-70B's continued pretraining (arXiv 2311.16079, section 4.1): Llama-2-70B on the shards of
# recipes/gap-replay.sh (made with the 70B's tokenizer, which is the 7B's). 128 GPUs: 16 nodes of 8, each running this
# with NODES, RANK and HOST set. 23,000 steps of 512 sequences of 4,096 tokens are 48.2 billion tokens.
set -eu
MODEL=${MODEL:-models/Llama-2-70b-hf} NODES=${NODES:-16} RANK=${RANK:-0} HOST=${HOST:-localhost}

torchrun --nnodes "$NODES" --nproc-per-node 8 --node-rank "$RANK" --master-addr "$HOST" train.py \
    --model "$MODEL" --out runs/meditron-70b --tp 8 --pp 8 --recompute attention \
    --data shards/guidelines shards/papers shards/abstracts shards/replay=0.01 \
    --steps 23000 --sequence-length 4096 --global-batch-size 512 --micro-batch-size 2 \
    --lr 1.5e-4 --min-lr-ratio 0.1 --warmup-steps 2000 --weight-decay 0.1 --beta1 0.9 --beta2 0.95 --eps 1e-5 --clip 1.0
