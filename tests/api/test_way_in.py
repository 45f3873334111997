"""Signatures, versions, unknown actions and parameters, dry runs, limits."""

import http.client
import urllib.parse

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support import refused


def raw(cloud, body, headers=None, method="POST", path="/"):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(cloud.endpoint).netloc, timeout=30)
    headers = headers or {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def signed(cloud, body, service="ec2", region="us-east-1"):
    request = AWSRequest("POST", cloud.endpoint + "/", data=body, headers={
        "Content-Type": "application/x-www-form-urlencoded"})
    SigV4Auth(Credentials(cloud.key, cloud.secret), service, region).add_auth(request)
    return raw(cloud, body, dict(request.headers.items()))


@pytest.mark.parametrize("body", ["Action=DescribeRegions&Version=2016-11-15", "", "x" * 1000, "\0%ff"])
def test_nothing_unsigned_gets_in(cloud, body):
    status, text = raw(cloud, body)
    assert status == 403 and "<Code>MissingAuthenticationToken</Code>" in text, text


def test_a_body_has_a_limit(cloud):
    status, text = raw(cloud, "x" * (2 << 20))
    assert status == 413, (status, text)


def test_each_key_is_its_own_accounts(cloud, sts):
    for client, account in [(sts, "000000000000"), (cloud.other("sts"), "111122223333")]:
        identity = client.get_caller_identity()
        assert identity["Account"] == account and identity["Arn"] == f"arn:aws:iam::{account}:root"


@pytest.mark.parametrize("code, words, service, changed", [
    ("AuthFailure", "", "ec2", {"aws_access_key_id": "AKIANOBODY", "aws_secret_access_key": "x"}),
    ("InvalidClientTokenId", "", "sts", {"aws_access_key_id": "AKIANOBODY", "aws_secret_access_key": "x"}),
    ("SignatureDoesNotMatch", "", "ec2", {"aws_secret_access_key": "wrong"}),
    ("InvalidClientTokenId", "Session tokens", "ec2", {"aws_session_token": "t"}),
    ("SignatureDoesNotMatch", "eu-west-1", "ec2", {"region_name": "eu-west-1"}),
])
def test_who_is_not_who_they_say_is_refused(cloud, code, words, service, changed):
    client = cloud.client(service, **changed)
    with refused(code, words):
        {"ec2": lambda: client.describe_regions(), "sts": lambda: client.get_caller_identity()}[service]()


def test_a_presigned_url_is_as_good_until_it_is_touched(cloud, ec2):
    url = ec2.generate_presigned_url("describe_regions", ExpiresIn=60, HttpMethod="GET")
    path = url[url.index("/", 8):]
    status, text = raw(cloud, None, method="GET", path=path)
    assert status == 200 and "us-east-1" in text, text
    status, text = raw(cloud, None, method="GET", path=path.replace("DescribeRegions", "DescribeVpcs"))
    assert status == 403 and "SignatureDoesNotMatch" in text, text


@pytest.mark.parametrize("body, code", [
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
])
def test_of_what_is_signed_everything_is_looked_at(cloud, body, code):
    status, text = signed(cloud, body)
    expected = f"<Code>{code}</Code>" if code else "<regionName>us-east-1</regionName>"
    assert expected in text and status == (400 if code else 200), (body, status, text)


def get(cloud, query, presigned):
    request = AWSRequest("GET", f"{cloud.endpoint}/?Version=2016-11-15&{query}")
    if presigned:
        SigV4QueryAuth(Credentials(cloud.key, cloud.secret), "ec2", "us-east-1", expires=60).add_auth(request)
    else:
        SigV4Auth(Credentials(cloud.key, cloud.secret), "ec2", "us-east-1").add_auth(request)
    parts = urllib.parse.urlsplit(request.url)
    return raw(cloud, None, dict(request.headers.items()), "GET", f"/?{parts.query}")


each_get = pytest.mark.parametrize("presigned", [False, True], ids=["header", "presigned"])


@each_get
@pytest.mark.parametrize("value, encoded", [
    ("a b", "a%20b"), ("a+b", "a%2Bb"), ("a%20b", "a%2520b"), ("é+ü", "%C3%A9%2B%C3%BC"),
    ("日本", "%E6%97%A5%E6%9C%AC"), ("a&b=c", "a%26b%3Dc"), ("~-._", "~-._")])
def test_a_get_has_one_meaning(cloud, value, encoded, presigned):
    # What reaches the action is what was signed: a plus is a plus, a space is %20. A
    # name that isn't there is repeated in the error, letter by letter.
    status, text = get(cloud, f"Action=DescribeKeyPairs&KeyName.1={encoded}", presigned)
    shown = value.replace("&", "&amp;")
    assert status == 400 and f"'{shown}'" in text, (status, text)


@each_get
@pytest.mark.parametrize("query, code", [
    ("Action=DescribeRegions&DryRun=", "InvalidParameterValue"),
    ("Action=DescribeRegions&X-Amz-Bogus=1", "UnknownParameter"),
    ("Action=DescribeRegions&Bogus", "UnknownParameter"),
])
def test_a_get_is_looked_at_as_closely(cloud, query, code, presigned):
    status, text = get(cloud, query, presigned)
    assert status == 400 and f"<Code>{code}</Code>" in text, (status, text)


def test_a_get_names_each_parameter_once(cloud):
    # (A presigned URL of botocore's has each name once.)
    status, text = get(cloud, "Action=DescribeRegions&RegionName.1=us-east-1&RegionName.1=a", False)
    assert status == 400 and "given more than once" in text, (status, text)


def test_a_signatures_parameter_beside_a_signed_header_is_unknown(cloud):
    status, text = get(cloud, "Action=DescribeRegions&X-Amz-Date=20150830T123600Z", False)
    assert status == 400 and "<Code>UnknownParameter</Code>" in text, (status, text)


@pytest.mark.parametrize("control", ["\0", "\x01", "\x1f", "\ufffe"], ids=ascii)
@pytest.mark.parametrize("call, asked", [
    ("create_key_pair", lambda text: {"KeyName": text, "KeyType": "ed25519"}),
    ("create_security_group", lambda text: {"GroupName": text, "Description": "x"}),
    ("create_security_group", lambda text: {"GroupName": "a", "Description": text}),
    ("create_tags", lambda text: {"Resources": ["vpc-0123456789abcdef0"], "Tags": [{"Key": text, "Value": "x"}]}),
    ("create_tags", lambda text: {"Resources": ["vpc-0123456789abcdef0"], "Tags": [{"Key": "a", "Value": text}]}),
])
def test_text_that_no_answer_could_carry_is_refused(ec2, call, asked, control):
    with refused("InvalidParameterValue", "not allowed"):
        getattr(ec2, call)(**asked(f"a{control}b"))


def test_an_error_repeats_what_was_sent_so_that_it_can_be_read(cloud):
    status, text = signed(cloud, "Action=Describe%01Regions&Version=2016-11-15")
    assert status == 400 and "Describe\\u{1}Regions" in text, text


def test_actions_that_are_not_there(cloud, ec2):
    with refused("InvalidAction", "CreateVpnGateway is not implemented by Hearth"):
        ec2.create_vpn_gateway(Type="ipsec.1")
    _, text = signed(cloud, "Action=Nonsense&Version=2016-11-15")
    assert "not valid for this web service" in text, text


def test_a_dry_run_says_so_and_does_nothing(ec2):
    with refused("DryRunOperation"):
        ec2.describe_regions(DryRun=True)
    assert ec2.describe_regions(DryRun=False)["Regions"]
    with refused("DryRunOperation"):
        ec2.create_key_pair(KeyName="dry", DryRun=True)
    assert ec2.describe_key_pairs()["KeyPairs"] == []


@pytest.mark.parametrize("service, call", [
    ("sqs", "list_queues"), ("cloudwatch", "list_metrics"), ("iam", "list_users")])
def test_a_service_that_is_not_there_says_so_in_its_own_protocol(cloud, service, call):
    with refused("SignatureDoesNotMatch", "a service that Hearth has: ec2, sts"):
        getattr(cloud.client(service), call)()
