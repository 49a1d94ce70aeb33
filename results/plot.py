"""Plot comparisons of runs: learning curves, scores, and statistics over tasks.

    python results/plot.py RUN_DIR... [--out FILE]

Writes FILE.pdf and FILE.png, and FILE.md, which says what they show. Runs of one method on one task that differ in
nothing but the seed are averaged; what all methods have in common is in the title, where they differ the legend says
so. What is left out is named, on stderr and in FILE.md.
"""

import collections
import dataclasses
import functools
import itertools
import math
import pathlib
import textwrap
from collections.abc import Callable
from typing import Literal, NamedTuple

import clone  # noqa: F401 (first: it lets this import the clone's modules)
import figures
import runs
from common import command_line
from common.errors import exit_in_one_line
from common.files import write_whole
from common.scores import SCORES
from published import num_tasks, published_scores
from runs import Comparison, Run, natural

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro
from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart. The paper's methods have the same in every figure.
COLOURS = {"DROL(16)": "#0072B2", "FQL": "#D55E00", "DROL*": "#009E73"}
SPARE_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
MORE_COLOURS = tuple(map(matplotlib.colors.to_hex, matplotlib.colormaps["tab20b"].colors[::2]))
MARKERS = "osD^vPX*"
CONFIDENCE = 0.95
PANEL = (3.1, 2.5)  # inches
PAPER = {1: 3.3, 2: 6.9}  # inches of a paper's column, and of two
FONT = 9  # points, and 7 in a paper's figure


@dataclasses.dataclass(frozen=True)
class PlotArgs:
    """Learning curves, scores and statistics of runs, as FILE.pdf and FILE.png."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Run directories, or folders that hold some."""
    out: pathlib.Path = pathlib.Path("comparison")
    """Name of the figure, without its ending."""
    x: Literal["updates", "minutes"] = "updates"
    """Learning curves over updates, or over wall-clock minutes (evaluation included)."""
    columns: Literal[1, 2] | None = None
    """For a paper: as wide as one column (3.3 inches) or two (6.9), with its fonts."""
    notes: bool = False
    """Put what FILE.md says under the figure, too."""
    formats: tuple[Literal["pdf", "png", "svg"], ...] = ("pdf", "png")
    """Files to write."""


class Style(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str


def styles(names: set[str]) -> dict[str, Style]:
    """A colour and a marker for each method. Its first variant has the colour if the method itself is not there.

    What a modified script does is not the paper's method, nor a variant of it.
    """
    spare, free, found = itertools.chain(SPARE_COLOURS, itertools.cycle(MORE_COLOURS)), dict(COLOURS), {}
    for i, name in enumerate(sorted(names, key=lambda name: (name not in COLOURS, natural(name)))):
        paper, *others = name.split(", ")
        colour = (free.pop(paper, None) if "modified" not in others else None) or next(spare)
        found[name] = Style(colour, MARKERS[i % len(MARKERS)])
    return found


def confidence_interval(values: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of the mean over seeds (rows), of what is possible; not a number for two and fewer.

    Of two seeds it is 13 times as wide as they are apart, and would hide everything else.
    """
    n = len(values)
    if n < 3:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * scipy.stats.sem(values, axis=0)
    low, high = (0, 100) if metric == "evaluation/success" else (-np.inf, np.inf)
    return np.clip(values.mean(axis=0) - half, low, high), np.clip(values.mean(axis=0) + half, low, high)


def draw_curves(axes: Axes, task: str, comparison: Comparison, style: dict[str, Style], x: str) -> None:
    """Mean and interval over the finished seeds (over all, while none is); each seed on its own as a thin line.

    With more than four methods the means alone, as the rest would hide them.
    """
    few = len(comparison.tasks[task]) <= 4
    for i, (method, members) in enumerate(comparison.tasks[task].items()):
        colour = style[method].colour
        for run in members if few else ():
            positions = [_position(run, step, x) for step in run.curve]
            axes.plot(positions, list(run.curve.values()), c=colour, lw=_scale(0.6), alpha=0.4)
        counted = [run for run in comparison.counted(task, method) if x == "updates" or run.minutes]
        steps = sorted(set.intersection(*(set(run.curve) for run in counted))) if counted else []
        if not steps:
            continue
        values = np.array([[run.curve[step] for step in steps] for run in counted])
        positions = np.mean([[_position(run, step, x) for step in steps] for run in counted], axis=0)
        if few:
            axes.fill_between(
                positions, *confidence_interval(values, counted[0].metric), color=colour, alpha=0.15, lw=0
            )
        # Of lines that coincide, the first ones look out from under the others: wider, with larger, hollow markers.
        under = len(comparison.tasks[task]) - 1 - i if few else 0
        width = {"ms": _scale(4 + 2.5 * under), "lw": _scale(1.8 + 1.1 * under), "mfc": "none" if under else colour}
        axes.plot(positions, values.mean(axis=0), c=colour, marker=style[method].marker, label=method, **width)
    members = [run for runs in comparison.tasks[task].values() for run in runs]
    switches = {_position(run, run.args["offline_steps"], x) for run in members if run.args["online_steps"] > 0}
    for i, switch in enumerate(sorted(switches)):
        axes.axvline(switch, c="0.3", ls="--", lw=1, label="from here on online" if i == 0 else None)
    axes.set(title=drawable(task), xlabel="updates (thousands)" if x == "updates" else "wall-clock (minutes)")
    _score_axis(axes, members)
    axes.grid(alpha=0.3, lw=0.5)


def _scale(points: float) -> float:
    """A length that goes with the font."""
    return points * plt.rcParams["font.size"] / FONT


def _position(run: Run, step: int, x: str) -> float:
    return step / 1000 if x == "updates" else run.minutes_at(step)


def _score_axis(axes: Axes, members: list[Run]) -> None:
    metrics = {run.metric for run in members}
    axes.set_ylabel(" / ".join(sorted(SCORES[metric] for metric in metrics)))
    if metrics == {"evaluation/success"}:
        axes.set_ylim(-3, 103)


def draw_scores(axes: Axes, comparison: Comparison, style: dict[str, Style], width: float) -> None:
    """Bars of the headline score: mean and interval over seeds, each seed a dot, the paper's number a line.

    The paper has numbers of groups of tasks alone: the line is there where a method has finished a whole group.
    """
    tasks, methods = list(comparison.tasks), comparison.methods
    bar, paper, sizes = 0.8 / len(methods), published_scores(), num_tasks()
    finished = collections.Counter(
        (comparison.finished(task, method)[0].paper_group, method)
        for task in tasks
        for method in methods
        if comparison.finished(task, method)
    )
    for i, task in enumerate(tasks):
        for j, method in enumerate(methods):
            scores = np.array([run.score for run in comparison.finished(task, method)])
            left = i - 0.4 + j * bar
            if scores.size == 0:
                if method in comparison.tasks[task]:
                    where = {"ha": "center", "va": "bottom", "fontsize": "x-small", "c": "0.4"}
                    axes.text(left + bar / 2, 1, "unfinished", rotation=90, **where)
                continue
            colour, metric = style[method].colour, comparison.tasks[task][method][0].metric
            axes.bar(left + bar / 2, scores.mean(), 0.9 * bar, color=colour, alpha=0.75)
            axes.hlines(0, left + 0.05 * bar, left + 0.95 * bar, colors=colour, lw=2.5)  # seen where the bar is 0
            if scores.size > 1:
                low, high = confidence_interval(scores[:, None], metric)
                error = [[scores.mean() - low[0]], [high[0] - scores.mean()]]
                axes.errorbar(left + bar / 2, scores.mean(), error, c="0.2", capsize=_scale(2), lw=_scale(1))
            dots = {"mfc": colour, "mec": "k", "mew": 0.5, "ms": _scale(2.8)}
            axes.plot(np.full(scores.size, left + 0.3 * bar), scores, "o", **dots)
            first = comparison.tasks[task][method][0]
            published = paper.get((first.paper_group, first.algorithm))
            if published is not None and finished[first.paper_group, method] == sizes[first.paper_group]:
                line = axes.hlines(published[0], left, left + bar, colors="k", linestyles=(0, (2, 1)), lw=_scale(1.6))
                line.set_label("paper: mean over the tasks of the group, full training")
    fits = sum(len(task) + 1 for task in tasks) * _letter(1) < width - 0.6
    rotation, side = (0, "center") if fits else (20, "right") if len(tasks) * _scale(0.35) < width else (90, "center")
    axes.set_xticks(range(len(tasks)), tasks, rotation=rotation, ha=side)
    axes.tick_params(axis="x", labelsize="medium" if rotation < 90 else "small")
    axes.set(title="headline score", xlim=(-0.6, len(tasks) - 0.4))
    _score_axis(axes, comparison.runs)
    axes.grid(axis="y", alpha=0.3, lw=0.5)


def common_tasks(comparison: Comparison) -> dict[str, dict[str, list[Run]]]:
    """Task -> algorithm -> its runs, for statistics over tasks.

    Only tasks that every algorithm has finished, with one setting: others would compare unlike with unlike. Only scores
    in percent: plain returns have no common scale. And of an algorithm only the seeds that it has on all these tasks:
    else a task with more seeds would weigh more.
    """
    common = {}
    for task in comparison.tasks:
        finished = {}
        for algorithm in comparison.algorithms:
            methods = comparison.methods_of(task, algorithm)
            runs = comparison.finished(task, methods[0]) if len(methods) == 1 else []
            if runs and runs[0].metric != "evaluation/return":
                finished[algorithm] = runs
        if len(finished) == len(comparison.algorithms):
            common[task] = finished
    seeds = {
        algorithm: set.intersection(*({run.seed for run in of[algorithm]} for of in common.values()))
        for algorithm in (comparison.algorithms if common else ())
    }
    if not all(seeds.values()):
        return {}
    return {task: {a: [r for r in runs if r.seed in seeds[a]] for a, runs in of.items()} for task, of in common.items()}


def bootstrap(scores: list[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stratified bootstrap: the seeds of each task are drawn anew, the tasks are kept. nan for single seeds."""
    if min(len(task) for task in scores) < 2:
        unknown = np.full_like(statistic(*scores, axis=-1), np.nan)
        return unknown, unknown
    interval = scipy.stats.bootstrap(
        scores,
        statistic,
        n_resamples=2000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def interquartile_mean(*scores: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the middle half of all runs of all tasks (Agarwal et al., 2021)."""
    return scipy.stats.trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


def performance_profile(thresholds: np.ndarray) -> Callable[..., np.ndarray]:
    """Statistic: share of runs that score above each threshold, in percent, averaged over tasks."""

    def profile(*scores: np.ndarray, axis: int) -> np.ndarray:
        return np.stack([100 * np.mean([(s > t).mean(axis=axis) for s in scores], axis=0) for t in thresholds])

    return profile


def draw_interquartile_means(
    axes: Axes, scores: dict[str, list[np.ndarray]], style: dict[str, Style], comparison: Comparison
) -> None:
    """One line a method."""
    for i, (method, tasks) in enumerate(reversed(scores.items())):
        centre = interquartile_mean(*tasks, axis=-1)
        low, high = bootstrap(tasks, interquartile_mean)
        axes.fill_betweenx([i - 0.25, i + 0.25], low, high, color=style[method].colour, alpha=0.5, lw=0)
        axes.plot([centre, centre], [i - 0.25, i + 0.25], c=style[method].colour, lw=3)
        axes.text(centre, i + 0.32, f"{centre:.1f}", ha="center", va="bottom", fontsize="small")
    axes.set_yticks(range(len(scores)), [comparison.label(method).replace(", ", ",\n") for method in reversed(scores)])
    axes.tick_params(axis="y", labelsize=min(plt.rcParams["font.size"], 40 / len(scores)))
    axes.set(title="interquartile mean", xlabel=f"score ({len(tasks)} tasks)", ylim=(-0.6, len(scores) - 0.1))
    axes.grid(axis="x", alpha=0.3, lw=0.5)


def draw_profiles(axes: Axes, scores: dict[str, list[np.ndarray]], style: dict[str, Style]) -> None:
    """One curve a method."""
    highest = max(score for tasks in scores.values() for task in tasks for score in task)
    thresholds = np.linspace(0, max(100, highest), 101)
    profile = performance_profile(thresholds)
    for method, tasks in scores.items():
        low, high = bootstrap(tasks, profile)
        axes.fill_between(thresholds, low, high, color=style[method].colour, alpha=0.15, lw=0)
        axes.plot(thresholds, profile(*tasks, axis=-1), c=style[method].colour, lw=1.8)
    axes.set(title="profile of scores", xlabel="score x", ylabel="runs above x (%)", ylim=(-3, 103))
    axes.grid(alpha=0.3, lw=0.5)


def arrange(tasks: list[str], statistics: list[str], most: int) -> list[list[str]]:
    """Rows of panels, at most so many in one: curves, spread evenly, then scores and statistics."""
    if len(tasks) == 1:
        return [[*tasks, "scores"]]
    rows = [row.tolist() for row in np.array_split(tasks, math.ceil(len(tasks) / most))]
    if len(tasks) > 12 or most < 3:  # so many bars need the whole width
        return [*rows, ["scores"], *([statistics] if statistics else [])]
    return [*rows, ["scores", *statistics]]


def draw(comparison: Comparison, x: str, columns: int | None = None, notes: bool = False) -> plt.Figure:
    """The whole figure: curves, scores, statistics over tasks where there are several."""
    with plt.rc_context({"font.size": 7, "axes.titlesize": 6.5, "axes.linewidth": 0.6} if columns else {}):
        return _draw(comparison, x, columns, notes)


def _draw(comparison: Comparison, x: str, columns: int | None, notes: bool) -> plt.Figure:
    style = styles({*comparison.methods, *comparison.algorithms})
    tasks, common = list(comparison.tasks), common_tasks(comparison)
    scores = {
        algorithm: [np.array([run.score for run in of[algorithm]]) for of in common.values()]
        for algorithm in comparison.algorithms
    }
    most = 2 * columns if columns else 4 if len(tasks) <= 12 else 6
    rows = arrange(tasks, ["means", "profiles"] if len(common) >= 2 else [], most)
    longest = max(map(len, rows))
    width = PAPER[columns] if columns else PANEL[0] * longest
    panel = 0.3 + 0.85 * width / most if columns else PANEL[1]

    title = _wrapped(comparison.title, width, 0)
    caption = "\n".join(_wrapped(line, width, -2) for line in caption_of(comparison, x)) if notes else ""
    legend = {method: _wrapped(_with_seeds(method, comparison), width - 0.4, -1) for method in comparison.methods}
    letters = max(len(line) for entry in legend.values() for line in entry.splitlines())
    beside = max(1, int(width / (letters * _letter(-1) + 0.6)))  # entries in a row, each with a handle
    in_legend = math.ceil((len(legend) + 1) / beside) + sum(entry.count("\n") for entry in legend.values())

    panels = [panel * (1.4 if row == ["scores"] else 1) for row in rows]  # alone where there are many, or little room
    heights = [_height(title, 0), *panels, _scale(0.2) * in_legend + 0.05, _height(caption, -2)]
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    above, *parts, below, foot = figure.subfigures(len(heights), 1, height_ratios=heights)
    above.text(0.5, 0.5, title, ha="center", va="center")
    foot.text(0.01, 1, caption, ha="left", va="top", fontsize=plt.rcParams["font.size"] - 2, c="0.25")
    axes = {}
    for part, row in zip(parts, rows, strict=True):
        ratios = [longest - len(row) + 1 if name == "scores" else 1 for name in row]
        axes |= zip(row, part.subplots(1, len(row), width_ratios=ratios, squeeze=False)[0], strict=True)
    for task in tasks:
        draw_curves(axes[task], task, comparison, style, x)
    draw_scores(axes["scores"], comparison, style, width * (longest - len(rows[-1]) + 1) / longest)
    if "means" in axes:
        draw_interquartile_means(axes["means"], scores, style, comparison)
        draw_profiles(axes["profiles"], scores, style)

    handles = {}
    for panel in axes.values():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(legend.get(label, label), handle)
    below.legend(handles.values(), handles.keys(), loc="center", ncols=beside, frameon=False, fontsize="small")
    return figure


def _letter(points: int) -> float:
    """Inches of a letter, by how much it is larger than the font."""
    return 0.0075 * (plt.rcParams["font.size"] + points)


def _wrapped(text: str, width: float, points: int) -> str:
    """In lines of so many inches."""
    return textwrap.fill(drawable(text), int(width / _letter(points)), subsequent_indent="    " * (points == -2))


def _height(text: str, points: int) -> float:
    """Inches of its lines."""
    return 0.018 * (plt.rcParams["font.size"] + points) * (text.count("\n") + 1) + 0.05 if text else 0.01


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(matplotlib.ft2font.FT2Font(matplotlib.font_manager.findfont("DejaVu Sans")).get_charmap())


def drawable(text: str) -> str:
    """Characters that the font lacks by their codes: it has boxes for them, and Matplotlib a warning for each."""
    return "".join(c if ord(c) in _glyphs() else c.encode("unicode_escape").decode() for c in text)


def _with_seeds(method: str, comparison: Comparison) -> str:
    """'FQL, 3 seeds', for a method; the number may differ between tasks."""
    numbers = sorted({len(comparison.counted(task, method)) for task in comparison.tasks} - {0})
    if not numbers:
        return comparison.label(method)
    count = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    return f"{comparison.label(method)}, {count} {'seed' if count == '1' else 'seeds'}"


def caption_of(comparison: Comparison, x: str) -> list[str]:
    """What the figure shows, on what data, and what it does not show."""
    data = "; ".join(sorted({run.data for run in comparison.runs}))
    lines = [
        "Thick lines and bars: mean over seeds; dots: seeds. Bands and whiskers, of three seeds and more: 95 % "
        "interval (Student's t over seeds; stratified bootstrap over seeds for interquartile means and performance "
        "profiles). Headline score: mean of the last three evaluations (D4RL: the last).",
        f"Data: {data}.",
    ]
    common = common_tasks(comparison)
    counted = {run.name for of in common.values() for runs in of.values() for run in runs}
    left_out = [task for task in comparison.tasks if task not in common]
    for task in common:
        of_task = [run for method in comparison.tasks[task] for run in comparison.finished(task, method)]
        left_out += [f"{run.name} (not every task has its seed)" for run in of_task if run.name not in counted]
    if left_out:
        lines.append(
            "Not in statistics over tasks, which take what every algorithm has finished with one setting and the same "
            f"seeds on each task, scored in percent: {', '.join(left_out)}."
        )
    missing = [
        f"{method}: {', '.join(tasks)}"
        for method in comparison.methods
        if (tasks := [task for task in comparison.tasks if method not in comparison.tasks[task]])
    ]
    if missing:
        lines.append(f"Not run: {'; '.join(missing)}.")
    if x == "minutes":
        lines += [f"no wall-clock, not in curves: {run.name}" for run in comparison.runs if not run.minutes]
        lines += comparison.notes_on_minutes
    return lines + comparison.notes


def main(args: PlotArgs) -> None:
    """Read, draw, write."""
    comparison = runs.read(list(args.runs))
    runs.report(comparison.notes)
    paths = figures.save(draw(comparison, args.x, args.columns, args.notes), args.out, args.formats)
    lines = [comparison.title, *caption_of(comparison, args.x)]
    text = "\n".join(f"- {runs.printable(line)}" for line in lines if line) + "\n"
    notes = args.out.with_name(f"{args.out.name}.md")
    write_whole(notes, lambda file: file.write_text(text, encoding="utf-8"))
    print(*paths, notes, sep="\n")


if __name__ == "__main__":
    exit_in_one_line(lambda: main(command_line.read(PlotArgs)))
