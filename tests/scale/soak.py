"""What hearth holds after hours of launches and ends: memory, descriptors, threads and
the store's size against time.

    soak.py HEARTH OUT [--minutes N] [--each N] [--hosts N]

HEARTH is the program, OUT a folder for soak.json. Each round launches some instances
with user data and tags, waits until they run, stops and starts some, and terminates
all. What is terminated stays visible for an hour, as on EC2: only what grows after the
first hour and some minutes is kept for ever.
"""

import argparse
import base64
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from clouds import hearth

# When the first that was terminated is gone, and the garbage collector has come by.
SETTLED = 65 * 60


def sample(cloud, folder, began, rounds):
    of = Path(f"/proc/{cloud.process.pid}")
    store = sum(file.stat().st_size for file in (Path(folder) / "data").glob("*.db*"))
    threads = re.search(r"Threads:\s+(\d+)", (of / "status").read_text())[1]
    return {
        "seconds": round(time.monotonic() - began),
        "rounds": rounds,
        "resident": cloud.memory(),
        "descriptors": len(os.listdir(of / "fd")),
        "threads": int(threads),
        "store": store,
        "work": cloud.cpu(),
    }


def wait_for(cloud, ids, state):
    named = {f"InstanceId.{n}": id for n, id in enumerate(ids, 1)}
    deadline = time.monotonic() + 120
    while True:
        answer, _ = cloud.call(0, "DescribeInstances", **named)
        states = re.findall(r"<instanceState><code>\d+</code><name>([a-z-]+)<", answer)
        if states == [state] * len(ids):
            return
        if time.monotonic() > deadline:
            sys.exit(f"not all {state} after 120 s: {states}")
        time.sleep(0.2)


def one_round(cloud, image, each):
    answer, _ = cloud.call(0, "RunInstances", **{
        "ImageId": image, "InstanceType": "t3.micro", "MinCount": each, "MaxCount": each,
        "UserData": base64.b64encode(os.urandom(6000)).decode(),
        "ClientToken": os.urandom(16).hex(),
        "TagSpecification.1.ResourceType": "instance",
        "TagSpecification.1.Tag.1.Key": "Name", "TagSpecification.1.Tag.1.Value": "soak"})
    ids = re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)
    wait_for(cloud, ids, "running")
    cloud.call(0, "StopInstances", **{"InstanceId.1": ids[0]})
    wait_for(cloud, ids[:1], "stopped")
    cloud.call(0, "StartInstances", **{"InstanceId.1": ids[0]})
    wait_for(cloud, ids[:1], "running")
    cloud.call(0, "TerminateInstances", **{f"InstanceId.{n}": id for n, id in enumerate(ids, 1)})
    wait_for(cloud, ids, "terminated")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hearth")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=150)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--pause", type=float, default=2)
    parser.add_argument("--hosts", type=int, default=10)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples, rounds = [], 0
    with tempfile.TemporaryDirectory() as folder:
        cloud = hearth(arguments.hearth, folder, arguments.hosts, 1)
        try:
            image, began = cloud.image(), time.monotonic()
            while (now := time.monotonic() - began) < arguments.minutes * 60:
                if now >= 60 * len(samples):
                    samples.append(sample(cloud, folder, began, rounds))
                    print(json.dumps(samples[-1]), flush=True)
                    (arguments.out / "soak.json").write_text(json.dumps(samples, indent=1))
                one_round(cloud, image, arguments.each)
                rounds += 1
                time.sleep(arguments.pause)
            samples.append(sample(cloud, folder, began, rounds))
        finally:
            cloud.end()
    (arguments.out / "soak.json").write_text(json.dumps(samples, indent=1))
    settled = [s for s in samples if s["seconds"] >= SETTLED]
    if len(settled) < 2:
        return print(f"shorter than {SETTLED // 60} minutes: nothing said about growth")
    first, last = settled[0], settled[-1]
    instances = (last["rounds"] - first["rounds"]) * arguments.each
    for what in ("resident", "descriptors", "threads", "store"):
        print(f"{what}: {first[what]} after {first['seconds']} s, {last[what]} after "
              f"{last['seconds']} s and {instances} more instances")


if __name__ == "__main__":
    main()
