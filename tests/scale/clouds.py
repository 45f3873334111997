"""EC2 endpoints to measure: hearth on simulated hosts, and moto's server."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

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
