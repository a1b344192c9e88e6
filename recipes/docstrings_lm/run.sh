#!/usr/bin/env bash
# A small causal LM of docstrings as teacher, its top 64 of the training text, and students half as deep and half as
# wide: from the text alone, and from the teacher, at equal steps. From the repository's folder, with .venv/bin on the
# PATH:
#
#     recipes/docstrings_lm/run.sh
#
# Everything goes to out/docstrings_lm; started again, it goes on where it was stopped. The tables of RESULTS.md:
# python recipes/results.py
set -euo pipefail
here=$(dirname "$0")
out=out/docstrings_lm

[ -d $out/data ] || python "$here/make_text.py" --out $out/data
distill run "$here/teacher.toml" --resume
dump --teacher $out/teacher --task causal-lm --top-k 64 --max-length 128 \
    --data $out/data/train.jsonl --out $out/dumps/train
dump --teacher $out/teacher --task causal-lm --top-k 64 --max-length 128 \
    --data $out/data/valid.jsonl --out $out/dumps/valid

for seed in 0 1 2; do
    for student in text kl renormalised kl-text; do
        distill run "$here/student-$student.toml" --resume \
            --set training.seed=$seed --set output=$out/student-$student-$seed
    done
done
