"""Plots of the operators' table: time and memory as problems grow, the share of the floor, the gain by size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .table import Row

Series = dict[str, dict[int, float]]

STYLE = {
    "fused": ("action_kernels", "tab:blue"),
    "eager": ("eager", "tab:red"),
    "compiled": ("torch.compile", "tab:orange"),
    "chunked": ("chunked, checkpointed", "tab:gray"),
}
MODEST_MIB = 0.1  # logarithmic axes have no zero


def draw(rows: list[Row], output: Path) -> None:
    """Draw the plots of the sweeps that the table has, from the newest measurement of every problem."""
    rows = [row for row in rows if row["pass"] == "both"]
    sweeps = {row["sweep"] for row in rows}
    output.mkdir(parents=True, exist_ok=True)
    if sweeps & {"queries", "rows"}:
        save(growth(rows), output / "growth.png")
    if "features" in sweeps:
        save(floor(rows), output / "floor.png")


def series(rows: list[Row], sweep: str, operator: str, variable: str, value: Callable[[Row], float]) -> Series:
    """Values by program and by the sweep's variable; a later measurement replaces an earlier one."""
    found: Series = {}
    for row in rows:
        if row["sweep"] == sweep and row["operator"] == operator and row["program"] in STYLE:
            found.setdefault(row["program"], {})[int(row[variable])] = value(row)
    return found


def lines(axis: Axes, values: Series) -> None:
    for program, points in values.items():
        label, color = STYLE[program]
        x = sorted(points)
        axis.plot(x, [points[i] for i in x], "o-", markersize=4, label=label, color=color)


def growth(rows: list[Row]) -> Figure:
    """Time and peak memory of ``action_contrast`` against N and against M, with a straight line through the largest."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    sizes = [row for row in rows if row["sweep"] in ("queries", "rows")]
    for column, (sweep, variable, label) in enumerate((("queries", "N", "queries N"), ("rows", "M", "bank rows M"))):
        time, memory = axes[0, column], axes[1, column]
        spans = series(rows, sweep, "action_contrast", variable, lambda row: float(row["ms"]))
        peaks = series(rows, sweep, "action_contrast", variable, lambda row: max(float(row["peak_mib"]), MODEST_MIB))
        lines(time, spans)
        lines(memory, peaks)
        x = sorted({int(row[variable]) for row in sizes if row["sweep"] == sweep})
        if ours := spans.get("fused"):
            end = max(ours)
            time.plot(x, [ours[end] * i / end for i in x], "k:", label="linear")
        other = "M" if variable == "N" else "N"
        fixed = {int(row[other]) for row in sizes if row["sweep"] == sweep}
        if x:
            matrix = [4 * i * max(fixed) / 2**20 for i in x]
            memory.plot(x, matrix, "k--", label="one N × M matrix")
        for axis in (time, memory):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
        time.set_title(f"{other} = {', '.join(str(i) for i in sorted(fixed))}")
        memory.set_xlabel(label)
    axes[0, 0].set_ylabel("forward + backward, ms")
    axes[1, 0].set_ylabel("peak above the tensors, MiB")
    for axis in (axes[0, 0], axes[1, 0]):
        axis.legend()
    figure.suptitle(_title(sizes))
    return figure


def floor(rows: list[Row]) -> Figure:
    """The share of the floor's speed that every program reaches, against D."""
    sizes = [row for row in rows if row["sweep"] == "features"]
    operators = list(dict.fromkeys(row["operator"] for row in sizes))
    figure = Figure(figsize=(5 * len(operators), 4.5), layout="constrained")
    for axis, operator in zip(
        figure.subplots(1, len(operators), sharey=True, squeeze=False)[0], operators, strict=True
    ):
        lines(
            axis, series(rows, "features", operator, "D", lambda row: 100 * float(row["floor_ms"]) / float(row["ms"]))
        )
        ticks = sorted({int(row["D"]) for row in sizes})
        axis.set(xscale="log", xlabel="features D", title=operator)
        axis.set_xticks(ticks, [str(i) for i in ticks])
        axis.minorticks_off()
        axis.axhline(100, color="k", linestyle=":", label="floor: 3 products and 2 N M exponentials at PyTorch's rates")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of the floor's speed, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(_title(sizes))
    return figure


def _title(rows: list[Row]) -> str:
    """What all rows have in common."""
    last = rows[-1]
    fixed = [f"{name} = {last[name]}" for name in ("N", "M", "D", "k") if len({row[name] for row in rows}) == 1]
    operators = {row["operator"] for row in rows}
    names = [last["operator"]] if len(operators) == 1 else []
    return ", ".join([*names, *fixed, last["dtype"], last["device"], f"{last['threads']} threads"])


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
