"""The API in TLS, with boto3: it trusts the authority that it is told of, and no other."""

import os
import socket
import ssl
import sys
import urllib.parse

import boto3
from botocore.exceptions import SSLError

endpoint = os.environ["AWS_ENDPOINT_URL"]
port = urllib.parse.urlsplit(endpoint).port
assert endpoint.startswith("https://"), endpoint

try:
    boto3.client("ec2").describe_regions()
except SSLError:
    pass
else:
    raise AssertionError("a stranger's certificate was trusted")

os.environ["AWS_CA_BUNDLE"] = sys.argv[1]
for name in ["127.0.0.1", "localhost"]:
    ec2 = boto3.client("ec2", endpoint_url=f"https://{name}:{port}")
    assert [r["RegionName"] for r in ec2.describe_regions()["Regions"]] == ["us-east-1"]

context = ssl.create_default_context(cafile=sys.argv[1])
with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
    try:
        context.wrap_socket(sock, server_hostname="elsewhere.example")
    except ssl.SSLCertVerificationError:
        pass
    else:
        raise AssertionError("a certificate for another name was trusted")

# Old versions are refused; what isn't TLS is closed.
context.maximum_version = ssl.TLSVersion.TLSv1_1
context.minimum_version = ssl.TLSVersion.TLSv1
with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
    try:
        context.wrap_socket(sock, server_hostname="localhost")
    except (ssl.SSLError, ConnectionError):
        pass
    else:
        raise AssertionError("TLS 1.1 was spoken")
with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert not sock.recv(4096).startswith(b"HTTP/")
