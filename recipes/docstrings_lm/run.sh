#!/usr/bin/env bash
# A small causal LM of docstrings as teacher, a dump of its top 64 for a sixth of its text, and students half as deep and
# half as wide, trained with equal steps on that text alone and on the dump. Run it in the repository's folder, with
# .venv/bin on the PATH:
#
#     recipes/docstrings_lm/run.sh [SEED...]
#
# RESULTS.md shows seed 0, and seed 1 of student-text and student-kl-text.
# All files are written to out/docstrings_lm; after an interruption, the same command continues. To print the tables of
# RESULTS.md: python recipes/results.py
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
    # As many steps, on all the text that the teacher was trained on.
    distill run "$here/student-text.toml" --resume --set data.limit=6000 \
        --set training.seed=$seed --set output=$out/student-more-text-$seed
done
