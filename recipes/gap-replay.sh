#!/bin/sh
# MEDITRON's corpus GAP-Replay (arXiv 2311.16079, section 2: 46.7 billion tokens of guidelines, abstracts, papers and
# replay) from raw sources to token shards, in MEDITRON's text format, with what it lacks: near-duplicates gone,
# benchmark questions kept out, every drop counted.
#
# In the folder RAW:
#   pubmed/      baseline and updatefiles of PubMed (pubmedNNnNNNN.xml.gz with their .md5)
#   pmc/         the PMC open-access packages oa_comm and oa_noncomm (*.tar.gz)
#   guidelines/  the public guidelines collection (open_guidelines.jsonl)
#   wikipedia/   a Wikipedia dump (*pages-articles*.xml.bz2): the replay; any other general jsonl will do
# and in EVAL the benchmarks' own files. MODEL is a Hugging Face folder of Llama-2.
# On one machine: WORKERS=16 recipes/gap-replay.sh. Over several: MPI="mpiexec -n 128" recipes/gap-replay.sh
set -eu
RAW=${RAW:-raw} EVAL=${EVAL:-eval} MODEL=${MODEL:-models/Llama-2-7b-hf} WORKERS=${WORKERS:-1} MPI=${MPI:-}

# Full text is preferred to its abstract by itself; the order of sources decides between copies of equal rank.
$MPI python -m data curate --out corpus --workers "$WORKERS" --special-tokens \
    --source guidelines="$RAW/guidelines" jats:papers="$RAW/pmc" medline:abstracts="$RAW/pubmed" \
    wikipedia:replay="$RAW/wikipedia" \
    --benchmark pubmedqa="$EVAL/pubmedqa" medqa="$EVAL/medqa5" medqa4="$EVAL/medqa4" medmcqa="$EVAL/medmcqa" \
    mmlu-medical="$EVAL/mmlu" truthfulqa-medical="$EVAL/truthfulqa"

$MPI python -m data tokenize corpus --tokenizer "$MODEL" --special-tokens --out shards --workers "$WORKERS"

# 1 % replay is set in training (recipes/meditron-7b.sh); this says how many epochs of each source that makes.
python -m data inspect shards --share replay=0.01 --budget 46700000000
