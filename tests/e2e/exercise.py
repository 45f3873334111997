"""The classic first EC2 exercise with boto3: exercise.py IMAGE USER.

Waiters, paginators and exceptions are botocore's own: what a person's program
would use. The endpoint and the credentials come from the environment.
"""

import ipaddress
import os
import pathlib
import subprocess
import sys
import time

import boto3
from botocore.exceptions import ClientError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVE = {
    "micro": "busybox httpd -p 80 -h /srv",
    "debian-12": "systemd-run --collect python3 -m http.server 80 --directory /srv",
}

# The host speaks to its instances from the first address of the public pool.
POOL = ipaddress.ip_network(os.environ.get("HEARTH_CLOUD_POOL", "203.0.113.0/24"))
HOST = f"{POOL[1]}/32"

# A lab has one processor: two vCPUs take twice as long there to boot what is large.
KIND = {"micro": "t3.small", "debian-12": "t2.small"}


def on_host(script):
    """Runs a shell script on the machine that the instances run on."""
    lab = [str(ROOT / "scripts/lab")] if os.environ.get("HEARTH_LAB") == "1" else []
    done = subprocess.run([*lab, "bash", "-s"], input=script, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip(), done.stderr


def eventually(what, seconds, look):
    """Looks until `look` gives something true; fails when the time is over."""
    deadline = time.monotonic() + seconds * int(os.environ.get("HEARTH_TEST_PATIENCE", "1"))
    while True:
        seen = look()
        if seen:
            print(f"  {what}", file=sys.stderr)
            return seen
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.5)


def page(ip):
    status, out, _ = on_host(f"curl -sS --fail --max-time 5 http://{ip}/")
    return out if status == 0 else None


def main(image, user):
    ec2 = boto3.client("ec2", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    name = f"boto3-{image}"

    key = ec2.create_key_pair(KeyName=name, KeyType="rsa")["KeyMaterial"]
    group = ec2.create_security_group(GroupName=name, Description="the exercise")["GroupId"]
    world = [{"CidrIp": "0.0.0.0/0", "Description": "anyone"}]
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": HOST}]},
            {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "IpRanges": world},
        ],
    )

    image_id = ec2.describe_images(Filters=[{"Name": "name", "Values": [image]}])["Images"][0]["ImageId"]
    launched = ec2.run_instances(
        ImageId=image_id, InstanceType=KIND[image], MinCount=1, MaxCount=1, KeyName=name, SecurityGroupIds=[group],
        UserData=f"#!/bin/sh\nmkdir -p /srv\necho hello boto3 > /srv/index.html\n{SERVE[image]}\n",
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}],
    )
    instance = launched["Instances"][0]["InstanceId"]
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 120})

    def describe():
        pages = ec2.get_paginator("describe_instances").paginate(Filters=[{"Name": "tag:Name", "Values": [name]}])
        found = [i for p in pages for r in p["Reservations"] for i in r["Instances"] if i["InstanceId"] == instance]
        assert len(found) == 1, found
        return found[0]

    ip = describe()["PublicIpAddress"]
    assert eventually("the page", 420, lambda: page(ip)) == "hello boto3"

    ssh = (
        "umask 077; k=$(mktemp); cat > $k <<'KEY'\n" + key.strip() + "\nKEY\n"
        "ssh -i $k -o BatchMode=yes -o ConnectTimeout=8 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
        f"-o LogLevel=ERROR {user}@{ip} id -un; s=$?; rm -f $k; exit $s"
    )
    assert eventually("ssh", 120, lambda: on_host(ssh)[1]) == user

    try:
        ec2.describe_instances(InstanceIds=["i-00000000000000bad"])
        raise SystemExit("an instance that does not exist was described")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidInstanceID.NotFound", error

    ec2.stop_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_stopped").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 240})
    assert "PublicIpAddress" not in describe()
    ec2.start_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    assert describe()["PublicIpAddress"] != ip

    ec2.terminate_instances(InstanceIds=[instance])
    ec2.get_waiter("instance_terminated").wait(InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    ec2.delete_security_group(GroupId=group)
    ec2.delete_key_pair(KeyName=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
