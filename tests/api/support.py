"""What the scripts of this folder share."""

import contextlib

import boto3
from botocore.exceptions import ClientError

ec2 = boto3.client("ec2")
sts = boto3.client("sts")


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


def default_vpc():
    """The id of the default VPC."""
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    return vpc["VpcId"]
