"""The picture of what scale.py measured."""

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

matplotlib.rcParams["svg.hashsalt"] = "hearth"
COLOURS = {"hearth": "#d1495b", "moto": "#7a8b99"}
QUESTIONS = {"one id": "-", "page of 1000": "--", "filtered page of 1000": ":"}


def plot(results, path):
    """Draws the results into an SVG file."""
    figure, (answers, launches) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, rows in results.items():
        sizes = [row["instances"] for row in rows]
        for question, style in QUESTIONS.items():
            times = [row[question]["p50"] * 1000 for row in rows]
            answers.plot(sizes, times, style, marker="o", markersize=3,
                         color=COLOURS[name], label=f"{name}, {question}")
        work = [row["work"] / row["launched"] * 1000 for row in rows]
        launches.plot(sizes, work, marker="o", markersize=3, color=COLOURS[name], label=name)
    answers.set_title("DescribeInstances, median")
    answers.set_ylabel("ms")
    launches.set_title("work for each instance, launch to running")
    launches.set_ylabel("ms of CPU")
    for axes in (answers, launches):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("instances")
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
