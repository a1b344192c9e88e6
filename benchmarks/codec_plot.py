"""The plot of the codec benchmark: for each source, error against bytes, and the effect of sampling on the gradient."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradient import Effect
from rates import Measured

# In the order of the curves.
CURVE_COLOURS = ("#d95f02", "#7570b3", "#1b9e77", "#66c2a5")
METHOD_COLOURS = {
    "top-k, renormalised": "#e7298a",
    "top-k, tail a class": "#d95f02",
    "threshold, tail a class": "#1b9e77",
    "threshold, tail sampled": "#1f78b4",
    "random draws": "#666666",
}
STUDENT = "halfway"


def plot(
    measured: Mapping[str, tuple[dict[str, list[Measured]], list[Effect]]],
    quoted: Mapping[str, Mapping[int, Any]],
    file: Path,
) -> None:
    """Draw one row of three plots for each source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(len(measured), 3, figsize=(16.5, 4.4 * len(measured)), squeeze=False)
    for (name, (by_rule, effects)), (left, middle, right) in zip(measured.items(), axes, strict=True):
        for (rule, rows), colour in zip(by_rule.items(), CURVE_COLOURS, strict=True):
            sizes, divergences = [row.bytes for row in rows], [row.end_to_end_kl for row in rows]
            left.plot(sizes, divergences, "o-", ms=3.5, lw=1.5, color=colour, label=rule)
        for index, (k, point) in enumerate(quoted.get(name, {}).items()):
            label = "DistillKit (quoted)" if index == 0 else None
            left.plot(point.bytes, point.end_to_end_kl, "k*", ms=12, ls="none", label=label)
            left.annotate(f"k={k}", (point.bytes, point.end_to_end_kl), (6, 6), textcoords="offset points")
        left.set(xscale="log", yscale="log", xlabel="bytes a position", ylabel="end-to-end KL, nats")
        left.set_title(f"{name}: rate and distortion, tail summed")
        left.legend(fontsize=8, loc="lower left")
        for method, colour in METHOD_COLOURS.items():
            mine = [effect for effect in effects if effect.method.name == method]
            sizes, style = [effect.bytes for effect in mine], "o-" if mine[0].method.codec.samples else "o--"
            middle.plot(sizes, [effect.variance for effect in mine], style, ms=4, color=colour, label=method)
            right.plot(sizes, [effect.angles[STUDENT] for effect in mine], style, ms=4, color=colour, label=method)
        for axis, value in ((middle, effects[0].variance), (right, effects[0].angles[STUDENT])):
            axis.plot(effects[0].bytes, value, "k*", ms=12, ls="none", label="50 draws (the paper's)")
            axis.set(yscale="log", xlabel="bytes a position")
        middle.set(title=f"{name}: targets", ylabel="variance (dashed: squared bias)")
        right.set(title=f"{name}: gradient of a {STUDENT} student", ylabel="degrees from the full gradient")
        right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
        for axis in (left.xaxis, left.yaxis, right.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())
        for axis in (left, middle, right):
            axis.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    print(f"written to {file}")
