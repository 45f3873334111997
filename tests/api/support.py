"""What the tests of this folder share."""

import contextlib
import json
import os
import socket

import boto3
from botocore.exceptions import ClientError


@contextlib.contextmanager
def refused(code, contains=""):
    """The call inside must be refused with this code and words in its message."""
    try:
        yield
    except ClientError as error:
        got = error.response["Error"]
        assert got["Code"] == code, got
        assert contains in got["Message"], got
        assert error.response["ResponseMetadata"]["RequestId"], error.response
    else:
        raise AssertionError(f"not refused: {code}")


def wait(ec2, waiter, **ids):
    ec2.get_waiter(waiter).wait(**ids, WaiterConfig={"Delay": 0.1, "MaxAttempts": 600})


class Asked:
    """A connection to who has the clouds, and its answer to one question."""

    def __init__(self, question):
        host, port = os.environ["HEARTH_TEST_CLOUDS"].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=120)
        self.socket.sendall(f"{question}\n".encode())
        self.answer = json.loads(self.socket.makefile().readline())

    def close(self):
        self.socket.close()


class Cloud:
    """A running cloud: its endpoint, its region, and clients of it."""

    def __init__(self, answer):
        self.endpoint = answer["endpoint"]
        self.region = answer["region"]
        self.key = answer["access_key_id"]
        self.secret = answer["secret_access_key"]
        self.others = answer["other"]

    def client(self, service, **more):
        asked = {"endpoint_url": self.endpoint, "region_name": self.region, "aws_access_key_id": self.key,
                 "aws_secret_access_key": self.secret, **more}
        return boto3.client(service, **asked)

    def other(self, service):
        """A client of another account."""
        return self.client(service, aws_access_key_id=self.others["access_key_id"],
                           aws_secret_access_key=self.others["secret_access_key"])
