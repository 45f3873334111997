"""Signatures, versions, unknown actions and parameters, dry runs, limits."""

import http.client
import os
import urllib.parse

import boto3
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from support import ec2, refused, sts

endpoint = os.environ["AWS_ENDPOINT_URL"]
host = urllib.parse.urlsplit(endpoint).netloc
account = sts.get_caller_identity()
assert account["Account"] == "000000000000", account
assert account["Arn"] == "arn:aws:iam::000000000000:root", account


def raw(body, headers=None, method="POST", path="/"):
    connection = http.client.HTTPConnection(host, timeout=30)
    headers = headers or {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def signed(body, service="ec2", region="us-east-1"):
    credentials = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("POST", endpoint + "/", data=body, headers={
        "Content-Type": "application/x-www-form-urlencoded"})
    SigV4Auth(credentials, service, region).add_auth(request)
    return raw(body, dict(request.headers.items()))


# Nothing unsigned gets in.
for body in ["Action=DescribeRegions&Version=2016-11-15", "", "x" * 1000, "\0%ff"]:
    status, text = raw(body)
    assert status == 403 and "<Code>MissingAuthenticationToken</Code>" in text, text
status, text = raw("x" * (2 << 20))
assert status == 413, (status, text)


def other(service, **kwargs):
    return boto3.client(service, **kwargs)


# Each key is its own account's.
identity = other("sts", aws_access_key_id=os.environ["OTHER_ACCESS_KEY_ID"],
                 aws_secret_access_key=os.environ["OTHER_SECRET_ACCESS_KEY"]).get_caller_identity()
assert identity["Account"] == "111122223333", identity
assert identity["Arn"] == "arn:aws:iam::111122223333:root", identity

with refused("AuthFailure"):
    other("ec2", aws_access_key_id="AKIANOBODY", aws_secret_access_key="x").describe_regions()
with refused("InvalidClientTokenId"):
    other("sts", aws_access_key_id="AKIANOBODY", aws_secret_access_key="x").get_caller_identity()
with refused("SignatureDoesNotMatch"):
    other("ec2", aws_secret_access_key="wrong",
          aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"]).describe_regions()
with refused("InvalidClientTokenId", "Session tokens"):
    other("ec2", aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
          aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
          aws_session_token="t").describe_regions()
with refused("SignatureDoesNotMatch", "eu-west-1"):
    other("ec2", region_name="eu-west-1").describe_regions()

# A presigned URL is as good as a signed header, until it is touched.
url = ec2.generate_presigned_url("describe_regions", ExpiresIn=60, HttpMethod="GET")
path = url[url.index("/", 8):]
status, text = raw(None, method="GET", path=path)
assert status == 200 and "us-east-1" in text, text
status, text = raw(None, method="GET", path=path.replace("DescribeRegions", "DescribeVpcs"))
assert status == 403 and "SignatureDoesNotMatch" in text, text

# A GET has one meaning: the parameters that reach the action are those that were
# signed. A plus is a plus, and a space is %20.
def get(query, presigned):
    credentials = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("GET", f"{endpoint}/?Version=2016-11-15&{query}")
    if presigned:
        SigV4QueryAuth(credentials, "ec2", "us-east-1", expires=60).add_auth(request)
    else:
        SigV4Auth(credentials, "ec2", "us-east-1").add_auth(request)
    parts = urllib.parse.urlsplit(request.url)
    return raw(None, dict(request.headers.items()), "GET", f"/?{parts.query}")


for presigned in (False, True):
    for value, encoded in [("a b", "a%20b"), ("a+b", "a%2Bb"), ("a%20b", "a%2520b"),
                           ("é+ü", "%C3%A9%2B%C3%BC"), ("日本", "%E6%97%A5%E6%9C%AC"),
                           ("a&b=c", "a%26b%3Dc"), ("~-._", "~-._")]:
        # An id that can't be is repeated in the error, letter by letter.
        status, text = get(f"Action=DescribeKeyPairs&KeyName.1={encoded}", presigned)
        shown = value.replace("&", "&amp;")
        assert status == 400 and f"'{shown}'" in text, (value, presigned, status, text)
    for query, code in [
        ("Action=DescribeRegions&DryRun=", "InvalidParameterValue"),
        ("Action=DescribeRegions&RegionName.1=us-east-1&RegionName.1=us-east-1",
         "InvalidParameterValue"),
        ("Action=DescribeRegions&X-Amz-Bogus=1", "UnknownParameter"),
        ("Action=DescribeRegions&Bogus", "UnknownParameter"),
    ]:
        status, text = get(query, presigned)
        assert status == 400 and f"<Code>{code}</Code>" in text, (query, presigned, status, text)
status, text = get("Action=DescribeRegions&X-Amz-Date=20150830T123600Z", False)
assert status == 400 and "<Code>UnknownParameter</Code>" in text, (status, text)

# Of what is signed, everything is looked at.
for body, code in [
    ("Action=DescribeRegions&Version=2016-11-15", None),
    ("Action=DescribeRegions", "MissingParameter"),
    ("Version=2016-11-15", "MissingAction"),
    ("Action=DescribeRegions&Version=2000-01-01", "NoSuchVersion"),
    ("Action=DescribeRegions&Version=2016-11-15&Bogus=1", "UnknownParameter"),
    ("Action=DescribeRegions&Version=2016-11-15&RegionName.2=x", "InvalidParameterValue"),
    ("Action=DescribeRegions&Version=2016-11-15&Version=2016-11-15", "InvalidParameterValue"),
    ("Action=DescribeRegions&Version=2016-11-15&DryRun=maybe", "InvalidParameterValue"),
    ("Action=Nonsense&Version=2016-11-15", "InvalidAction"),
    ("%ff", "InvalidRequest"),
]:
    status, text = signed(body)
    expected = f"<Code>{code}</Code>" if code else "<regionName>us-east-1</regionName>"
    assert expected in text and status == (400 if code else 200), (body, status, text)
with refused("InvalidAction", "CreateVpnGateway is not implemented by Hearth"):
    ec2.create_vpn_gateway(Type="ipsec.1")
status, text = signed("Action=Nonsense&Version=2016-11-15")
assert "not valid for this web service" in text, text
with refused("DryRunOperation"):
    ec2.describe_regions(DryRun=True)
assert ec2.describe_regions(DryRun=False)["Regions"]
with refused("DryRunOperation"):
    ec2.create_key_pair(KeyName="dry", DryRun=True)
assert ec2.describe_key_pairs()["KeyPairs"] == []

# Text that no answer could carry is refused, whatever it is for, and never altered.
for control in ["\0", "\x01", "\x1f", "\ufffe"]:
    with refused("InvalidParameterValue", "not allowed"):
        ec2.create_key_pair(KeyName=f"a{control}b", KeyType="ed25519")
    with refused("InvalidParameterValue", "not allowed"):
        ec2.create_security_group(GroupName=f"a{control}b", Description="x")
    with refused("InvalidParameterValue", "not allowed"):
        ec2.create_security_group(GroupName="a", Description=f"a{control}b")
    for tag in [{"Key": f"a{control}b", "Value": "x"}, {"Key": "a", "Value": f"a{control}b"}]:
        with refused("InvalidParameterValue", "not allowed"):
            ec2.create_tags(Resources=["vpc-0123456789abcdef0"], Tags=[tag])
# An error repeats what was sent in a form that can be read.
status, text = signed("Action=Describe%01Regions&Version=2016-11-15")
assert status == 400 and "Describe\\u{1}Regions" in text, text
