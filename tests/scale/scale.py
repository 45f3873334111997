"""What the API costs against the number of instances: hearth on simulated hosts,
beside moto's server where moto can do it at all.

    scale.py HEARTH OUT [--moto PYTHON] [--sizes N,...] [--hosts N]

HEARTH is the program, OUT a folder for scale.json and scale.svg. Times are the
client's, from the first byte sent to the last received, over one connection that is
kept; what a client does with an answer is no part of it. Every request is signed
before its clock starts (moto doesn't look).
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from clouds import AT_ONCE, PAGE, hearth, moto
from plot import plot


def part(times, share):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * share))]


def measure(cloud, calls):
    """Each kind of question, so often."""
    account = 0
    answer, _ = cloud.call(account, "DescribeInstances", MaxResults=5)
    one = re.search(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)[1]
    questions = {
        "one id": {"InstanceId.1": one},
        "page of 1000": {"MaxResults": PAGE},
        "filtered page of 1000": {"MaxResults": PAGE, "Filter.1.Name": "instance-type",
                                  "Filter.1.Value.1": "t3.micro"},
    }
    found = {}
    for name, parameters in questions.items():
        times = [cloud.call(account, "DescribeInstances", **parameters)[1] for _ in range(calls)]
        found[name] = {"p50": part(times, 0.5), "p99": part(times, 0.99)}
    return found


def a_thousand_more(cloud, image):
    """One call for a thousand, when nothing else is under way. (Whole thousands fit in a
    subnet, so that it is one.)"""
    began, cpu = time.monotonic(), cloud.cpu()
    answered = sum(took for _, took in cloud.grow(cloud.made + AT_ONCE, image))
    cloud.wait_until_all_run()
    return {"answered": answered, "running": time.monotonic() - began, "work": cloud.cpu() - cpu}


def walk(cloud, sizes, calls):
    rows = []
    image = cloud.image()
    empty = cloud.memory()
    for size in sizes:
        print(f"  {cloud.name}: {size} instances", file=sys.stderr, flush=True)
        began, cpu = time.monotonic(), cloud.cpu()
        launches = cloud.grow(size, image)
        answered = time.monotonic() - began
        cloud.wait_until_all_run()
        row = {
            "instances": size,
            "launched": sum(count for count, _ in launches),
            "launch answered": max(took for _, took in launches),
            "all answered": answered,
            "all running": time.monotonic() - began,
            "work": cloud.cpu() - cpu,
            "bytes an instance": (cloud.memory() - empty) / size,
            **measure(cloud, calls),
        }
        if size >= AT_ONCE:
            row["a thousand more"] = a_thousand_more(cloud, image)
        rows.append(row)
    return rows


def table(results):
    def ms(seconds):
        return f"{seconds * 1000:.1f}"

    print(f"{'':8}{'instances':>10}{'one id':>16}{'page of 1000':>16}{'filtered page':>16}"
          f"{'launch call':>13}{'all run':>9}{'work':>8}{'KiB each':>10}")
    print(f"{'':8}{'':>10}{'p50/p99 ms':>16}{'p50/p99 ms':>16}{'p50/p99 ms':>16}"
          f"{'worst ms':>13}{'s':>9}{'CPU s':>8}")
    for name, rows in results.items():
        for row in rows:
            questions = "".join(
                f"{ms(row[q]['p50']) + '/' + ms(row[q]['p99']):>16}"
                for q in ("one id", "page of 1000", "filtered page of 1000"))
            print(f"{name:8}{row['instances']:>10}{questions}{ms(row['launch answered']):>13}"
                  f"{row['all running']:>9.1f}{row['work']:>8.1f}"
                  f"{row['bytes an instance'] / 1024:>10.1f}")
    for name, rows in results.items():
        for row in rows:
            if more := row.get("a thousand more"):
                print(f"{name}: 1000 more at {row['instances']}: answered after "
                      f"{more['answered']:.2f} s, all running after {more['running']:.1f} s, "
                      f"{more['work']:.1f} s of CPU, of this question's too")
    both = [row["instances"] for row in results.get("moto", [])]
    for size in both:
        ours, theirs = (next(r for r in results[n] if r["instances"] == size)
                        for n in ("hearth", "moto"))
        ratios = ", ".join(
            f"{q} {theirs[q]['p50'] / ours[q]['p50']:.0f}"
            for q in ("one id", "page of 1000", "filtered page of 1000"))
        print(f"at {size} instances moto takes so many times as long (p50): {ratios}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hearth")
    parser.add_argument("out", type=Path)
    parser.add_argument("--moto")
    parser.add_argument("--sizes", default="100,1000,10000,100000")
    parser.add_argument("--moto-most", type=int, default=10_000)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--moto-calls", type=int, default=10)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        cloud = hearth(arguments.hearth, folder, arguments.hosts, sizes[-1])
        try:
            results["hearth"] = walk(cloud, sizes, arguments.calls)
        finally:
            cloud.end()
            if os.environ.get("HEARTH_SCALE_LOG"):
                print((Path(folder) / "log").read_text()[-4000:], file=sys.stderr)
        if arguments.moto:
            cloud = moto(arguments.moto, folder)
            try:
                few = [size for size in sizes if size <= arguments.moto_most]
                results["moto"] = walk(cloud, few, arguments.moto_calls)
            finally:
                cloud.end()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scale.json").write_text(json.dumps(results, indent=1))
    plot(results, arguments.out / "scale.svg")
    table(results)


main()
