"""Plots of the operators' table: ours beside others, time and memory as problems grow, the share of the floor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from tools.figure_style import COMPILED, EAGER, INK, OURS, PLAIN, save

from .table import Row

Series = dict[str, dict[int, float]]

PROGRAMS = {  # label, colour and marker
    "fused": ("action_kernels", OURS, "o"),
    "compiled": ("torch.compile", COMPILED, "^"),
    "eager": ("eager PyTorch", EAGER, "s"),
    "chunked": ("chunked", PLAIN, "D"),
}
MODEST_MIB = 0.1  # logarithmic axes have no zero
SHOWN_FEATURES = 64  # of the problem in ``losses``


def draw(rows: list[Row], output: Path) -> None:
    """Draw the plots of the sweeps that the table has, from the newest measurement of every problem."""
    for name, plot in plots(rows).items():
        save(plot, output / name)


def plots(rows: list[Row]) -> dict[str, Callable[[], Figure]]:
    """Name -> what draws it, for the sweeps that the table has."""
    rows = [row for row in rows if row["pass"] == "both"]
    found: dict[str, Callable[[], Figure]] = {}
    if grown := [row for row in rows if row["sweep"] in ("queries", "rows")]:
        found["growth"] = partial(growth, grown)
    if by_features := [row for row in rows if row["sweep"] == "features"]:
        found["floor"] = partial(floor, by_features)
        if one := [r for r in by_features if r["operator"] == "action_contrast" and int(r["D"]) == SHOWN_FEATURES]:
            found["losses"] = partial(losses, one)
    return found


def series(rows: list[Row], sweep: str, operator: str, variable: str, value: Callable[[Row], float]) -> Series:
    """Values by program and by the sweep's variable; a later measurement replaces an earlier one."""
    found: Series = {}
    for row in rows:
        if row["sweep"] == sweep and row["operator"] == operator and row["program"] in PROGRAMS:
            found.setdefault(row["program"], {})[int(row[variable])] = value(row)
    return found


def lines(axis: Axes, values: Series) -> None:
    for program, points in values.items():
        label, color, marker = PROGRAMS[program]
        x = sorted(points)
        axis.plot(x, [points[i] for i in x], marker=marker, label=label, color=color)


def losses(rows: list[Row]) -> Figure:
    """Bars of the time and the peak memory of one problem, each with its number and how often ours fits into it."""
    newest = {row["program"]: row for row in rows}
    shown = {name: newest[name] for name in reversed(PROGRAMS) if name in newest}
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column, title in zip(axes, ("ms", "peak_mib"), ("time, ms", "peak memory, MiB"), strict=True):
        values = [float(row[column]) for row in shown.values()]
        least = float(shown["fused"][column])
        times = [f"{value:,.0f}" + (f"  ({value / least:.0f}×)" if value != least else "") for value in values]
        labels, colors, _ = zip(*(PROGRAMS[name] for name in shown), strict=True)
        bars = axis.barh(labels, values, color=colors, height=0.68)
        axis.bar_label(bars, times, padding=4)
        axis.set_title(title, loc="left")
        axis.margins(x=0.45)  # for the numbers
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(left=False)
    figure.suptitle(_title(list(shown.values())))
    return figure


def growth(rows: list[Row]) -> Figure:
    """Time and peak memory of ``action_contrast`` against N and against M, with a straight line through the largest."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (sweep, variable, label) in enumerate((("queries", "N", "queries N"), ("rows", "M", "bank rows M"))):
        time, memory = axes[0, column], axes[1, column]
        spans = series(rows, sweep, "action_contrast", variable, lambda row: float(row["ms"]))
        peaks = series(rows, sweep, "action_contrast", variable, lambda row: max(float(row["peak_mib"]), MODEST_MIB))
        lines(time, spans)
        lines(memory, peaks)
        x = sorted({int(row[variable]) for row in rows if row["sweep"] == sweep})
        if ours := spans.get("fused"):
            end = max(ours)
            time.plot(x, [ours[end] * i / end for i in x], ":", color=INK, label="linear")
        other = "M" if variable == "N" else "N"
        fixed = {int(row[other]) for row in rows if row["sweep"] == sweep}
        if x:
            matrix = [4 * i * max(fixed) / 2**20 for i in x]
            memory.plot(x, matrix, "--", color=INK, label="one N × M matrix")
        for axis in (time, memory):
            axis.set(xscale="log", yscale="log")
            axis.minorticks_off()
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
            axis.grid()
        time.set_title(f"{other} = {', '.join(f'{i:,}' for i in sorted(fixed))}")
        memory.set_xlabel(label)
    axes[0, 0].set_ylabel("forward + backward, ms")
    axes[1, 0].set_ylabel("peak above the tensors, MiB")
    _legend(figure, ncols=3)
    figure.suptitle(_title(rows))
    return figure


def floor(rows: list[Row]) -> Figure:
    """The share of the floor's speed that every program reaches, against D."""
    operators = list(dict.fromkeys(row["operator"] for row in rows))
    figure = Figure(figsize=(4 * len(operators), 4.6), layout="constrained")
    for axis, operator in zip(
        figure.subplots(1, len(operators), sharey=True, squeeze=False)[0], operators, strict=True
    ):
        lines(
            axis, series(rows, "features", operator, "D", lambda row: 100 * float(row["floor_ms"]) / float(row["ms"]))
        )
        ticks = sorted({int(row["D"]) for row in rows})
        axis.set(xscale="log", xlabel="features D", title=operator)
        axis.set_xticks(ticks, [str(i) for i in ticks])
        axis.minorticks_off()
        axis.axhline(100, color=INK, linestyle=":", label="the floor")
        axis.set_ylim(bottom=0)
        axis.grid()
    figure.axes[0].set_ylabel("share of the floor's speed, %")
    _legend(figure, ncols=3)
    figure.suptitle(_title(rows))
    return figure


def _legend(figure: Figure, ncols: int) -> None:
    """One for all panels, each label once."""
    found = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside lower center", ncols=ncols)


def _title(rows: list[Row]) -> str:
    """What all rows have in common: the problem in the first line, the machine in the second."""
    last = rows[-1]
    operators = {row["operator"] for row in rows}
    names = [last["operator"]] if len(operators) == 1 else []
    fixed = [f"{name} = {int(last[name]):,}" for name in ("N", "M", "D", "k") if len({row[name] for row in rows}) == 1]
    device = last["device"].replace("(R)", "").replace(" Processor", "")
    machine = f"{device}, {last['threads']} threads, PyTorch {last['torch'].partition('+')[0]}, {last['date'][:10]}"
    return f"{', '.join([*names, *fixed, last['dtype']])}\n{machine}"
