"""What the API costs against the number of instances: hearth on simulated hosts,
beside moto's server where moto can do it at all.

    scale.py HEARTH OUT [--moto PYTHON] [--sizes N,...] [--hosts N]

HEARTH is the program, OUT a folder for scale.json and scale.svg. Times are the
client's, from the first byte sent to the last received, over one connection that is
kept; what a client does with an answer is no part of it. Every request is signed
before its clock starts (moto doesn't look).
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from plot import plot

REGION = "us-east-1"
ZONES = [REGION + letter for letter in "abcdef"]
# A default subnet is a /20, less EC2's five addresses; some are left free.
IN_SUBNET = 4000
IN_ACCOUNT = IN_SUBNET * len(ZONES)
AT_ONCE = 1000
PAGE = 1000


class Cloud:
    """An EC2 endpoint, spoken to as one account after the other."""

    def __init__(self, name, process, port, accounts):
        self.name, self.process, self.port, self.accounts = name, process, port, accounts
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        self.made = 0

    def call(self, account, action, **parameters):
        """The answer, and the seconds it took."""
        body = urllib.parse.urlencode({"Action": action, "Version": "2016-11-15", **parameters})
        request = AWSRequest("POST", f"http://127.0.0.1:{self.port}/", data=body, headers={
            "Content-Type": "application/x-www-form-urlencoded"})
        SigV4Auth(Credentials(*self.accounts[account]), "ec2", REGION).add_auth(request)
        headers = dict(request.headers.items())
        start = time.perf_counter()
        self.connection.request("POST", "/", body, headers)
        response = self.connection.getresponse()
        answer = response.read().decode()
        took = time.perf_counter() - start
        if response.status != 200:
            sys.exit(f"{self.name}: {action}: {response.status}: {answer[:500]}")
        return answer, took

    def memory(self):
        """Resident, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10

    def cpu(self):
        """Seconds of user and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def image(self):
        answer, _ = self.call(0, "DescribeImages")
        return re.search(r"<imageId>(ami-[0-9a-f]+)</imageId>", answer)[1]

    def grow(self, size, image):
        """Instances until there are so many; the seconds of each call."""
        times = []
        while self.made < size:
            account, within = divmod(self.made, IN_ACCOUNT)
            zone, used = divmod(within, IN_SUBNET)
            count = min(AT_ONCE, size - self.made, IN_SUBNET - used)
            _, took = self.call(account, "RunInstances", ImageId=image, InstanceType="t3.micro",
                                MinCount=count, MaxCount=count,
                                **{"Placement.AvailabilityZone": ZONES[zone]})
            times.append((count, took))
            self.made += count
        return times

    def running(self, account):
        """How many of an account's instances run."""
        total, token = 0, {}
        while True:
            answer, _ = self.call(account, "DescribeInstances", MaxResults=PAGE, **{
                "Filter.1.Name": "instance-state-name", "Filter.1.Value.1": "running"}, **token)
            total += answer.count("<instanceId>i-")
            following = re.search(r"<nextToken>([^<]+)</nextToken>", answer)
            if not following:
                return total
            token = {"NextToken": following[1]}

    def wait_until_all_run(self):
        deadline = time.monotonic() + 600
        for account in range(-(-self.made // IN_ACCOUNT)):
            want = min(IN_ACCOUNT, self.made - account * IN_ACCOUNT)
            while self.running(account) < want:
                if time.monotonic() > deadline:
                    sys.exit(f"{self.name}: not all of {self.made} run after 600 s")
                time.sleep(0.1)

    def end(self):
        self.connection.close()
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(process, port, name):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{name} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    sys.exit(f"{name} doesn't listen")


def hearth(program, folder, hosts, largest):
    keys = [(f"AKIASCALE{n:011}", "secret") for n in range(largest // IN_ACCOUNT + 1)]
    config = [f"[[region]]\nname = '{REGION}'\nzones = {ZONES}\n"]
    for n, (key, secret) in enumerate(keys):
        config.append(f"[[account]]\nid = '{n + 1:012}'\n[[account.key]]\n"
                      f"access_key_id = '{key}'\nsecret_access_key = '{secret}'\n")
    folder = Path(folder)
    (folder / "config.toml").write_text("".join(config))
    port = free_port()
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [program, "serve", "--name", f"scale-{os.getpid()}", "--data-dir", folder / "data",
         "--run-dir", folder / "run", "--config", folder / "config.toml",
         "--hosts", f"simulated:{hosts}", "--public-pool", "100.64.0.0/12",
         "--listen", f"127.0.0.1:{port}"],
        stdout=log, stderr=log, env={"HEARTH_LOG": "warn", **os.environ})
    listens(process, port, "hearth")
    return Cloud("hearth", process, port, keys)


def moto(python, folder):
    port = free_port()
    log = (Path(folder) / "moto.log").open("w")
    process = subprocess.Popen([python, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    listens(process, port, "moto")
    return Cloud("moto", process, port, [("testing", "testing")])


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
