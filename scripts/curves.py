"""Draws curves of runs, by the minute: each seed a thin line, the mean of a group's seeds a thick one.

    python -m scripts.curves eval/goal_reached eval/syntax_accuracy --runs AFSFT=runs/seeds/babyai_online \
        --output docs/pictures/babyai-online.png

A group is NAME=FOLDER; its runs are the folders ``seed-*`` in it, or it is one run itself. Needs matplotlib (extra
``dev``).
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tags", nargs="+", help="numbers in TensorBoard, a panel each")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER", help="groups of runs")
    parser.add_argument("--by", choices=["minutes", "updates"], default="minutes", help="horizontal axis")
    parser.add_argument("--mark", type=float, help="where to draw a vertical line")
    parser.add_argument("--output", type=Path, required=True, help="the picture, .png or .svg")
    options = parser.parse_args()
    figure, panels = plt.subplots(1, len(options.tags), figsize=(4.5 * len(options.tags), 3), squeeze=False)
    for panel, tag in zip(panels[0], options.tags, strict=True):
        for number, group in enumerate(options.runs):
            name, _, folder = group.partition("=")
            curves = [curve(run, tag, options.by) for run in runs(Path(folder))]
            for x, y in curves:
                panel.plot(x, y, color=f"C{number}", alpha=0.35, linewidth=1)
            panel.plot(*mean(curves), color=f"C{number}", linewidth=2, label=f"{name} ({len(curves)})")
        if options.mark is not None:
            panel.axvline(options.mark, color="grey", linestyle=":", linewidth=1)
        panel.set(title=tag, xlabel=options.by)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)
    print(options.output)


def runs(folder: Path) -> list[Path]:
    """The seeds in a folder, or the folder."""
    found = sorted(folder.glob("seed-*")) or [folder]
    if not all(list(run.glob("events.out.*")) for run in found):
        raise SystemExit(f"{folder} holds no run with TensorBoard's files, and no folders seed-* with them")
    return found


def curve(run: Path, tag: str, by: str) -> Curve:
    """Where and what was logged under a tag; minutes count from the fit's first loss."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    if tag not in events.Tags()["scalars"]:
        raise SystemExit(f"{run} has no {tag}; it has {', '.join(events.Tags()['scalars'])}")
    points, start = events.Scalars(tag), events.Scalars("loss")[0].wall_time
    x = [(p.wall_time - start) / 60 if by == "minutes" else p.step + 1 for p in points]
    return np.array(x), np.array([p.value for p in points])


def mean(curves: list[Curve]) -> Curve:
    """Mean of curves where all of them are known, between their points by straight lines."""
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(first <= places) & (places <= last)]
    return places, np.mean([np.interp(places, x, y) for x, y in curves], axis=0)


if __name__ == "__main__":
    main()
