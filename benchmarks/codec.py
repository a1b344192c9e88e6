"""Bytes against information: the size and error of Lectern's codecs, and their effect on a student's gradient.

    just bench-codec [SOURCE.safetensors ...]

A source holds hidden [N, D] and head [V, D] (float16), input_ids [N] and seq_len [S]; the teacher's logits are
`hidden.float() @ head.float().T`. Without one, a source is made. Bytes are those of real shards; speeds are positions
per CPU second of one thread. With QUICK=1: less data. Writes benchmarks/out/codec.json and codec.png.
"""

import math
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from codec_plot import plot
from codec_speed import decoding, encoding, selecting
from gradient import PAPER_DRAWS, Effect, effects, stored, variance
from rates import (
    Measured,
    bound_bytes,
    bytes_at,
    curves,
    kl_at,
    measure,
    plain_bytes,
    shard_bytes,
    smallest_levels,
    sparse,
)
from report import Figure, write_figures
from settings import OUT, QUICK, sized
from sources import Source, load, make

from shared.dump.codecs import Threshold, TopK
from shared.dump.codecs.selection.presets import PRESETS
from shared.dump.codecs.sparse import DEFAULT_LEVELS

POSITIONS = sized(4096, quick=2048, tiny=256)
GRADIENT_POSITIONS, SEEDS = sized((1024, 3), quick=(448, 2), tiny=(32, 1))
SPEED_POSITIONS, RUNS = sized((100_000, 5), quick=(100_000, 5), tiny=(256, 1))
BUDGETS = (20, 40, 80)
MOST_CODEC_KL = 3e-4
DEFAULT_THRESHOLD = 0.03


class Quoted(NamedTuple):
    """DistillKit's own settings on a source, as reported in this project's issue 3; not measured here."""

    bytes: float
    end_to_end_kl: float


QUOTED = {
    "gpt25": {50: Quoted(89, 0.335), 128: Quoted(242, 0.167)},
    "synth": {50: Quoted(125, 0.443), 128: Quoted(332, 0.230)},
}
# Target of bytes, as a share of the quoted ones.
BYTES_TARGETS = {("gpt25", 50): 0.75, ("synth", 50): 0.92, ("gpt25", 128): 0.70, ("synth", 128): 0.82}
EQUAL_KL_BYTES_TARGET = 0.36
# Positions per CPU second, by k.
DECODE_TARGETS = {50: 1_500_000, 128: 600_000}
ENCODE_TARGET = 300_000
EQUAL_VARIANCE_BYTES = 20


def main() -> None:
    """Measure all parts for every source, print, write."""
    torch.set_num_threads(1)
    # Pages of a shard are read-only, and no decoder writes to them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    sources = [load(Path(name)) for name in sys.argv[1:]] or [make(POSITIONS)]
    figures: list[Figure] = []
    measured = {}
    for source in sources:
        if QUICK:
            source = source.first(min(POSITIONS, len(source.hidden_ND)))
        entropy = float(source.candidates.entropy_N.mean())
        print(
            f"\n=== {source.name}: vocabulary {source.vocabulary:,}, {len(source.hidden_ND):,} positions, "
            f"mean entropy {entropy:.2f} nats ==="
        )
        figures += fixed_top_k(source)
        by_rule, found = rate_and_distortion(source)
        figures += found
        few = source.first(min(GRADIENT_POSITIONS, len(source.hidden_ND)))
        by_method, found = gradients(few)
        figures += found
        when_to_use(by_method, by_rule, len(few.hidden_ND))
        presets(source)
        figures += speeds(source)
        measured[source.name] = (by_rule, by_method)
    write_figures("codec", figures)
    plot(measured, QUOTED, OUT / "codec.png")


def fixed_top_k(source: Source) -> list[Figure]:
    """Bytes and codec error at k = 50 and 128."""
    figures = []
    print(f"\n{'top-k':<28}{'bytes':>7}{'ids':>7}{'tail':>7}{'floor':>7}{'codec KL':>10}{'best kept':>11}")
    for k in (50, 128):
        levels = smallest_levels(TopK(k=k), source, MOST_CODEC_KL)
        rows = [measure(sparse(TopK(k=k), source, each), source) for each in dict.fromkeys((levels, DEFAULT_LEVELS))]
        for row in rows:
            each = {name.rsplit(".", 1)[1]: size for name, size in row.columns.items()}
            default = " (default)" if row.codec.levels == DEFAULT_LEVELS else ""
            print(
                f"{f'k={k}, {row.codec.levels} levels{default}':<28}{row.bytes:>7.1f}{each['entries']:>7.1f}"
                f"{each['tail']:>7.2f}{each['floor']:>7.2f}{row.codec_kl:>10.1e}{row.same_best:>11.2%}"
            )
        plain = plain_bytes(source, k)
        print(f"  ids alone, every set of {k} as likely: {bound_bytes(source.vocabulary, k):.1f} bytes")
        print(f"  plain lists, int32 and bfloat16: {', '.join(f'{v:.1f} ({n} column)' for n, v in plain.items())}")
        name = f"{source.name}: bytes at k={k}, codec KL <= {MOST_CODEC_KL:g}"
        figures.append(lower(f"{name}, against plain lists", rows[0].bytes, min(plain.values()), 1, "bytes/position"))
        if source.name in QUOTED:
            quoted, target = QUOTED[source.name][k].bytes, BYTES_TARGETS[source.name, k]
            print(f"  DistillKit: {quoted:g} bytes (quoted, not measured here): ours is {rows[0].bytes / quoted:.3f}")
            figures.append(lower(f"{name}, DistillKit (quoted)", rows[0].bytes, quoted, target, "bytes/position"))
    return figures


def rate_and_distortion(source: Source) -> tuple[dict[str, list[Measured]], list[Figure]]:
    """End-to-end KL by bytes and rule."""
    by_rule = curves(source)
    figures = []
    print("\nend-to-end KL, the tail spread evenly")
    for name, rows in by_rule.items():
        print(f"  {name}")
        for row in rows:
            print(
                f"    {row.codec.selection.describe():<44}{row.bytes:>7.1f} bytes{row.ids:>8.1f} ids"
                f"{row.kept_mass:>8.3f} kept{row.end_to_end_kl:>9.4f}"
            )
    threshold = by_rule["threshold"]
    for k in (50, 128):
        fixed = next(row for row in by_rule["top-k"] if row.codec.selection == TopK(k=k))
        at = kl_at(threshold, fixed.bytes)
        if not math.isnan(at):
            name = f"{source.name}: end-to-end KL at {fixed.bytes:.0f} bytes, threshold against top-{k}"
            figures.append(lower(name, at, fixed.end_to_end_kl, 1, "nats"))
    if source.name in QUOTED:
        few, many = QUOTED[source.name][50], QUOTED[source.name][128]
        for name, rows in by_rule.items():
            same_bytes, same_kl = kl_at(rows, few.bytes), bytes_at(rows, many.end_to_end_kl)
            print(
                f"  {name}: KL {same_bytes:.3f} at {few.bytes:g} bytes (DistillKit, quoted: {few.end_to_end_kl:g}); "
                f"{same_kl:.1f} bytes at KL {many.end_to_end_kl:g} (DistillKit, quoted: {many.bytes:g})"
            )
            if name.startswith("threshold"):
                # A curve that does not extend to this point gives no figure.
                figures += [
                    lower(f"{source.name}: {what}, {name}, DistillKit (quoted)", value, quoted, target, unit)
                    for what, value, quoted, target, unit in (
                        (f"KL at {few.bytes:g} B", same_bytes, few.end_to_end_kl, 0.5, "nats"),
                        (
                            f"bytes at {many.end_to_end_kl:g}",
                            same_kl,
                            many.bytes,
                            EQUAL_KL_BYTES_TARGET,
                            "bytes/position",
                        ),
                    )
                    if not math.isnan(value)
                ]
    return by_rule, figures


def gradients(source: Source) -> tuple[list[Effect], list[Figure]]:
    """Variance and gradients at equal bytes."""
    found = effects(source, BUDGETS, SEEDS)
    students = list(found[0].angles)
    print(
        f"\ngradient of the loss by the head over {len(source.hidden_ND)} positions, against that of full targets:"
        f"\nangle in degrees and ratio of lengths, for students that are {', '.join(students)}; means of {SEEDS} draws."
        f"\nVariance of the targets: sum of (w - p)**2; of rules that do not sample it is squared bias (*)."
    )
    print(f"{'targets':<33}{'rule':<26}{'bytes':>6}{'ids':>6}{'variance':>11}" + "".join(f"{s:>16}" for s in students))
    for effect in found:
        sampled = effect.method.codec.samples
        cells = "".join(f"{f'{effect.angles[s]:.1f}° x {effect.norms[s]:.2f}':>16}" for s in students)
        rule = effect.method.codec.selection.describe().split(", ")[0]
        print(
            f"{effect.method.name:<33}{rule:<26}{effect.bytes:>6.1f}{effect.ids:>6.1f}"
            f"{effect.variance:>10.5f}{' ' if sampled else '*'}{cells}"
        )
    paper, equal = found[0], found[1]
    ratio = equal.variance / paper.variance
    print(
        f"threshold, tail sampled: the variance of {PAPER_DRAWS} draws (x {ratio:.2f} as measured) at {equal.bytes:.1f}"
    )
    name = f"{source.name}: bytes at the variance of {PAPER_DRAWS} draws"
    target = EQUAL_VARIANCE_BYTES / paper.bytes
    return found, [lower(name, equal.bytes, paper.bytes, target, "bytes/position", SEEDS)]


def when_to_use(found: list[Effect], by_rule: dict[str, list[Measured]], positions: int) -> None:
    """Which rule is best for which purpose, from the measured figures."""
    print("\nwhich to use, by these figures")
    at_budgets = found[2:]
    count = len(at_budgets) // len(BUDGETS)
    for index, budget in enumerate(BUDGETS):
        rows = at_budgets[index * count : (index + 1) * count]
        drawn = min((row for row in rows if row.method.codec.samples), key=lambda row: row.variance)
        print(f"  {budget} bytes")
        print(f"    forward KL, many batches: {drawn.method.name} ({drawn.ids:.0f} ids), unbiased with least variance")
        for student in drawn.angles:
            known = [row for row in rows if not row.method.codec.samples]
            best = min(known, key=lambda row: row.angles[student])
            # Noise falls with the root of the positions that gradients are averaged over; a bias stays.
            meet = positions * (drawn.angles[student] / best.angles[student]) ** 2
            print(
                f"      {student} student: {drawn.angles[student]:.1f}° in one batch, {best.angles[student]:.1f}° by "
                f"{best.method.name}; ahead after some {meet:,.0f} positions, if that bias stays"
            )
        sums = {name: kl_at(curve, budget) for name, curve in by_rule.items()}
        name = min((name for name in sums if not math.isnan(sums[name])), key=lambda name: sums[name])
        print(f"    reverse KL, temperatures (known probabilities): {name}, end-to-end KL {sums[name]:.3f}")


def speeds(source: Source) -> list[Figure]:
    """Positions per CPU second."""
    source = source.first(min(POSITIONS, len(source.hidden_ND)))
    figures = []
    print("\nthousand positions per CPU second, one thread")
    sampling = Threshold(threshold=DEFAULT_THRESHOLD)
    for k in (50, 128):
        decode = decoding(TopK(k=k), source, k, SPEED_POSITIONS, RUNS)
        encode = encoding(k, source, SPEED_POSITIONS, RUNS)
        for what, speed, target in (
            ("decode", decode, DECODE_TARGETS[k]),
            ("encode", encode, ENCODE_TARGET if k == 50 else 0),
        ):
            print(f"  {what} k={k}: {speed.ours / 1e3:,.0f}; plain lists {speed.plain / 1e3:,.0f}")
            if target:
                name = f"{source.name}: {what} k={k} (target {target / 1e6:g}M/s)"
                figures.append(higher(name, speed.ours, speed.plain, target / speed.plain))
    decode = decoding(sampling, source, 50, SPEED_POSITIONS, RUNS)
    print(f"  decode {sampling.describe()}: {decode.ours / 1e3:,.0f}; plain lists of 50 {decode.plain / 1e3:,.0f}")
    print("  softmax and selection over the vocabulary, which are the teacher's side:")
    for rule in (TopK(k=50), TopK(k=128), sampling):
        print(f"    {rule.describe()}: {selecting(rule, source) / 1e3:,.1f}")
    return figures


def presets(source: Source) -> None:
    """The size and error of each preset. The variance of sampled targets is measured on fewer positions."""
    print(
        f"\n{'preset':<20}{'bytes':>7}{'ids':>8}{'kept mass':>11}{'codec KL':>10}{'end-to-end KL':>15}{'variance':>11}"
    )
    few = source.first(min(GRADIENT_POSITIONS, len(source.hidden_ND)))
    for name, (rule, levels) in PRESETS.items():
        codec = sparse(rule, source, levels)
        if codec.samples:
            flat = stored(codec, few, 0)
            targets = codec.decode(flat)
            size = sum(shard_bytes(codec, flat, few.lengths).values())
            ids = float((targets.log_probs_NK != -torch.inf).sum(-1).double().mean())
            exact = float(targets.exact().log_probs_NK.exp().sum(-1).mean())
            cells = f"{exact:>11.3f}{'':>10}{'':>15}{variance(targets, few, 'sampled'):>11.5f}"
        else:
            row = measure(codec, source)
            size, ids = row.bytes, row.ids
            cells = f"{row.kept_mass:>11.3f}{row.codec_kl:>10.1e}{row.end_to_end_kl:>15.4f}"
        print(f"{name:<20}{size:>7.1f}{ids:>8.1f}{cells}")


def lower(name: str, value: float, baseline: float, target: float, unit: str, runs: int = 1) -> Figure:
    """A figure that is better when lower. (Bytes and divergences are the same in every run.)"""
    return Figure(name, value, baseline, target, higher_is_better=False, unit=unit, runs=runs)


def higher(name: str, value: float, baseline: float, target: float) -> Figure:
    """A speed, which is better when higher."""
    return Figure(name, value, baseline, target, higher_is_better=True, unit="positions/CPU second", runs=RUNS)


if __name__ == "__main__":
    main()
