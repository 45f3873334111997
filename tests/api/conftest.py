"""A cloud for each file of tests.

The clouds come from whoever started pytest, at the address HEARTH_TEST_CLOUDS:
each connection that asks for one gets its endpoint and keys in a line of JSON, and
the cloud is there until the connection ends.
"""

import os
import time

import pytest

from support import Asked, Cloud

for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(name, None)
os.environ.update(AWS_MAX_ATTEMPTS="1", AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE="/dev/null",
                  AWS_SHARED_CREDENTIALS_FILE="/dev/null")


@pytest.fixture(scope="module")
def cloud():
    asked = Asked("cloud")
    yield Cloud(asked.answer)
    asked.close()


@pytest.fixture(scope="module")
def ec2(cloud):
    return cloud.client("ec2")


@pytest.fixture(scope="module")
def sts(cloud):
    return cloud.client("sts")


@pytest.fixture
def shapes():
    """What every action looks like on the wire, read from its types."""
    asked = Asked("shapes")
    yield asked.answer
    asked.close()


@pytest.fixture(scope="module")
def vpc(ec2):
    """The id of the default VPC."""
    (found,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    return found["VpcId"]


@pytest.fixture(scope="module")
def image(ec2):
    """The id of the one image."""
    (found,) = ec2.describe_images()["Images"]
    return found["ImageId"]


BEGAN = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    """Counts in libtest's words, for who counts all tests."""
    seen = terminalreporter.stats
    failed = seen.get("failed", []) + seen.get("error", [])
    for report in failed:
        terminalreporter.write_line(f"test api::{report.nodeid} ... FAILED")
    for report in seen.get("skipped", []):
        terminalreporter.write_line(f"test api::{report.nodeid} ... ignored")
    terminalreporter.write_line(
        f"test result: {'FAILED' if failed else 'ok'}. {len(seen.get('passed', []))} passed; "
        f"{len(failed)} failed; {len(seen.get('skipped', []))} ignored; 0 measured; 0 filtered out; "
        f"finished in {time.monotonic() - BEGAN:.2f}s")
