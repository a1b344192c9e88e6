# The one list of commands. `pip install rust-just`, then `just demo`.

python := env("PYTHON", "python3")
bin := justfile_directory() / ".venv/bin"
export PATH := bin + ":" + env("PATH")
export HF_HUB_OFFLINE := "1"

# Show this list.
default:
    @just --list

# Make .venv with everything pinned in constraints.txt; does nothing where it is up to date.
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=.venv/lectern-stamp
    want=$(cat pyproject.toml constraints.txt | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi
    [ -x .venv/bin/python ] || {{ python }} -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
    echo "$want" > "$stamp"

# The main job: a teacher, its dump, students from that dump, a table and a plot in out/demo.
demo: setup
    python recipes/docstrings/demo.py

# Every test but the slow ones (`just test -m slow`), a process a core; `just test tests/shared -x` for some of them, `just test -n0 --pdb ...` in one process.
test *arguments: setup
    python -m pytest -n logical --maxprocesses 4 --dist worksteal {{ arguments }}

# Attack dumps, runs and commands for some minutes (seeded; `--only kills`, `--repeat calls 7`), and count what ends badly.
campaign minutes="30" *arguments: setup
    nice python -m tests.campaign {{ minutes }} {{ arguments }}

# Lint, types, which package may import which, and how large files and folders may be.
check: setup
    ruff check .
    ruff format --check .
    mypy
    lint-imports --no-cache
    python .ci/sizes.py

# Every benchmark; figures go to benchmarks/out. QUICK=1 for less data.
bench: setup bench-dump
    python benchmarks/memory.py
    python benchmarks/codec.py
    python benchmarks/positions.py
    python benchmarks/vectors.py
    python benchmarks/attention_inputs.py
    python benchmarks/fused_kl.py

# Bytes, errors, gradients and speeds of the codecs of distributions, on SOURCE.safetensors files or one that it makes.
bench-codec *sources: setup
    python benchmarks/codec.py {{ sources }}

# `dump` against the teacher alone, against a plain script, and itself: speed, memory, processes, selections, stages.
bench-dump: setup
    python benchmarks/dump_speed.py
    python benchmarks/dump_script.py
    python benchmarks/dump_memory.py
    python benchmarks/dump_workers.py
    python benchmarks/dump_selection.py
    python benchmarks/dump_stages.py

# What training costs beside the student: reading, the losses of a large vocabulary, the teacher in the loop, two ranks.
bench-train: setup
    python benchmarks/reader.py
    python benchmarks/loaders.py
    python benchmarks/online.py
    python benchmarks/two_ranks.py
    python benchmarks/bilstm.py
    python benchmarks/fused_kl.py

# One dump and ten students against ten students with the teacher alongside: `just bench-students TEACHER FILE...`.
bench-students teacher +data: setup
    python benchmarks/ten_students.py --teacher {{ teacher }} --data {{ replace(data, " ", " --data ") }}
