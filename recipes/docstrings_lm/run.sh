#!/usr/bin/env bash
# A small causal LM of docstrings as teacher, its top 64 of a sixth of its text, and students half as deep and half as
# wide: from that text alone, and from the teacher, at equal steps. From the repository's folder, with .venv/bin on the
# PATH:
#
#     recipes/docstrings_lm/run.sh [SEED...]
#
# RESULTS.md shows seed 0, and seed 1 of student-text and student-kl-text.
# Everything goes to out/docstrings_lm; started again, it goes on where it was stopped. The tables of RESULTS.md:
# python recipes/results.py
set -euo pipefail
here=$(dirname "$0")
out=out/docstrings_lm

[ -f $out/data/train.jsonl ] || python "$here/make_text.py" --out $out/data
distill run "$here/teacher.toml" --resume
dump --teacher $out/teacher --task causal-lm --top-k 64 --max-length 128 --limit 1000 \
    --data $out/data/train.jsonl --out $out/dumps/train
dump --teacher $out/teacher --task causal-lm --top-k 64 --max-length 128 \
    --data $out/data/valid.jsonl --out $out/dumps/valid
distill eval $out/teacher --data $out/data/valid.jsonl --dump $out/dumps/valid --json $out/teacher/metrics.json

for seed in "${@:-0}"; do
    for student in text kl renormalised kl-text; do
        distill run "$here/student-$student.toml" --resume \
            --set training.seed=$seed --set output=$out/student-$student-$seed
    done
    # As many steps over all the text that the teacher saw.
    distill run "$here/student-text.toml" --resume --set data.limit=6000 \
        --set training.seed=$seed --set output=$out/student-more-text-$seed
done
