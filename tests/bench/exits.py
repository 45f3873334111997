"""The picture of an exit trace: `hearth-vmm --exit-trace path=FILE` (vmm/src/vcpu/trace.rs).

    python3 tests/bench/exits.py TRACE OUT.svg    draws it
    python3 tests/bench/exits.py TRACE            prints each exit, a line of CSV
"""

import json
import struct
import sys

# Time mark, and what a record has (the table in vmm/src/vcpu/trace.rs).
MARK = 255
RECORD = struct.Struct("<QIBBBxQ8s")
BINS = 400
COLOURS = {
    "port-read": "#2a6f97",
    "port-write": "#d1495b",
    "memory-read": "#5fa8d3",
    "memory-write": "#edae49",
    "halt": "#7a8b99",
    "interrupted": "#9d8189",
    "other": "#222222",
}


class Exit:
    """One exit; times in nanoseconds."""

    def __init__(self, vcpu, at, took, reason, target, width, address, value):
        self.vcpu, self.at, self.took = vcpu, at, took
        self.reason, self.target = reason, target
        self.width, self.address, self.value = width, address, value


def read(path):
    """All exits of a trace, by vCPU."""
    with open(path, "rb") as file:
        first = file.readline()
        head = json.loads(first)
        if head.get("format") != "hearth-vmm exit trace" or head["version"] != 1:
            raise SystemExit(f"{path} is no exit trace of version 1")
        exits, reasons, targets = [], head["reasons"], head["targets"]
        size = head["block_bytes"]
        for vcpu in range(head["vcpus"]):
            file.seek(head["head_bytes"] + vcpu * head["blocks"] * size)
            for _ in range(head["blocks"]):
                block = file.read(size)
                block = block[: len(block) // RECORD.size * RECORD.size]
                records = list(RECORD.iter_unpack(block))
                if not records or records[0][2] != MARK:
                    break
                ticks, ns = records[0][0], int.from_bytes(records[0][6], "little")
                tick = ns / max(ticks, 1)
                for at, took, reason, target, width, address, value in records[1:]:
                    if not reason:
                        break
                    exits.append(Exit(vcpu, at * tick, took * tick, reasons[reason - 1],
                                      targets[target], width, address, value[:width]))
    return exits


def table(exits):
    """A line for each."""
    print("ns,vcpu,reason,device,address,bytes,value,took_ns")
    for one in sorted(exits, key=lambda one: one.at):
        value = int.from_bytes(one.value, "little")
        print(f"{one.at:.0f},{one.vcpu},{one.reason},{one.target},{one.address:#x},"
              f"{one.width},{value:#x},{one.took:.0f}")


def picture(exits, path):
    """A row for each device, over time; the taller a line, the more exits."""
    import matplotlib

    matplotlib.use("svg")
    from math import log10, nan
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "hearth"
    matplotlib.rcParams["svg.fonttype"] = "none"
    targets = sorted({one.target for one in exits},
                     key=lambda name: min(one.at for one in exits if one.target == name))
    reasons = [reason for reason in COLOURS if any(one.reason == reason for one in exits)]
    end = max(one.at for one in exits)
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.5 * len(targets)))
    labels = []
    for row, target in enumerate(targets):
        mine = [one for one in exits if one.target == target]
        took = sum(one.took for one in mine) / 1e6
        labels.append(f"{target}\n{len(mine):,} exits, {took:.1f} ms")
        for reason in reasons:
            bins = {}
            for one in mine:
                if one.reason == reason:
                    bins.setdefault(min(int(one.at / end * BINS), BINS - 1), []).append(one)
            # A shift for each reason, so that none hides another.
            shift = (reasons.index(reason) - len(reasons) / 2) / len(reasons) / BINS
            xs, ys = [], []
            for place in sorted(bins):
                height = 0.12 + 0.2 * log10(len(bins[place]))
                at = round(((place + 0.5) / BINS + shift) * end / 1e6, 2)
                xs += [at, at, nan]
                ys += [row, row - round(min(height, 0.9), 2), nan]
            axes.plot(xs, ys, color=COLOURS[reason], linewidth=1.2, solid_capstyle="butt",
                      label=reason if row == 0 else None)
    for reason in reasons:
        axes.plot([], [], color=COLOURS[reason], linewidth=4, label=reason)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(handles.values(), handles.keys(), ncols=len(handles), fontsize=7,
                loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.set_yticks(range(len(targets)), labels, fontsize=7)
    axes.set_ylim(len(targets) - 0.8, -1)
    axes.set_xlabel("ms since the trace began")
    axes.grid(True, axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    exits = read(sys.argv[1])
    if not exits:
        raise SystemExit("it has no exits")
    if len(sys.argv) == 2:
        table(exits)
    else:
        picture(exits, sys.argv[2])


if __name__ == "__main__":
    main()
