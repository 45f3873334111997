"""HTTP as strangers and odd clients speak it: every request is answered or refused,
and none waits for ever."""

import os
import socket
import urllib.parse

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

endpoint = os.environ["AWS_ENDPOINT_URL"]
host = urllib.parse.urlsplit(endpoint).netloc
address = (host.split(":")[0], int(host.split(":")[1]))
body = "Action=DescribeRegions&Version=2016-11-15"


def wire(request, whole=True):
    """What comes back until the server closes; a request may be left half sent."""
    with socket.create_connection(address, timeout=60) as sock:
        try:
            sock.sendall(request)
            if whole:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The answer was there before the request was out, and the end behind it:
            # reset, or not connected any more.
            pass
        answer = b""
        while True:
            try:
                part = sock.recv(65536)
            except ConnectionResetError:
                assert answer, "reset without an answer"
                return answer
            if not part:
                return answer
            answer += part


def signed_headers(data, url=endpoint + "/"):
    credentials = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    request = AWSRequest("POST", url, data=data, headers={
        "Host": host, "Content-Type": "application/x-www-form-urlencoded"})
    SigV4Auth(credentials, "ec2", "us-east-1").add_auth(request)
    return "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())


signed = signed_headers(body)
length = f"Content-Length: {len(body)}\r\n"
close = "Connection: close\r\n"
chunked = "Transfer-Encoding: chunked\r\n"
chunks = f"5\r\n{body[:5]}\r\n{len(body) - 5:x}\r\n{body[5:]}\r\n0\r\n\r\n"
OK, UNSIGNED = b"200", b"403"
for name, request, expected in [
    ("signed", f"POST / HTTP/1.1\r\n{signed}{length}{close}\r\n{body}", {OK}),
    ("absolute form", f"POST http://{host}/ HTTP/1.1\r\n{signed}{length}{close}\r\n{body}", {OK}),
    ("another host in absolute form",
     f"POST http://elsewhere.example/ HTTP/1.1\r\n{signed}{length}{close}\r\n{body}", {OK}),
    ("HTTP/1.0", f"POST / HTTP/1.0\r\n{signed}{length}\r\n{body}", {OK}),
    ("chunked", f"POST / HTTP/1.1\r\n{signed}{chunked}{close}\r\n{chunks}", {OK}),
    ("chunked, another body than signed",
     f"POST / HTTP/1.1\r\n{signed}{chunked}{close}\r\n{chunks}".replace("gion", "gino"), {b"403"}),
    ("signed PUT", f"PUT / HTTP/1.1\r\n{signed}{length}{close}\r\n{body}", {b"403"}),
    ("unsigned", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", {UNSIGNED}),
    ("unsigned HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", {UNSIGNED}),
    ("no host", "GET / HTTP/1.1\r\n\r\n", {UNSIGNED, b"400"}),
    ("an odd method", "BREW /pot HTTP/1.1\r\nHost: h\r\n\r\n", {UNSIGNED}),
    ("asterisk form", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {UNSIGNED}),
    ("authority form", "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", {UNSIGNED, b"400"}),
    ("two lengths", f"POST / HTTP/1.1\r\n{signed}{length}Content-Length: 1\r\n\r\n{body}", {b"400"}),
    ("a length of no number", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e9\r\n\r\n", {b"400"}),
    ("a negative length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", {b"400"}),
    ("chunks of no size", f"POST / HTTP/1.1\r\n{signed}{chunked}\r\nzz\r\n", {b"400", b"403"}),
    ("a body cut short", f"POST / HTTP/1.1\r\n{signed}Content-Length: 999\r\n\r\n{body}",
     {b"400", b""}),
    ("a flood of headers",
     "GET / HTTP/1.1\r\nHost: h\r\n" + "".join(f"X-{n}: x\r\n" for n in range(200)) + "\r\n",
     {b"431"}),
    ("a header without an end", "GET / HTTP/1.1\r\nHost: h\r\nX: " + "x" * (1 << 20), {b"431"}),
    ("a path without an end", "GET /" + "x" * (1 << 20), {b"414", b"431"}),
    ("a header with a NUL", "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", {b"400"}),
    ("a header folded", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", {b"400"}),
    ("a header with spaces", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", {b"400"}),
    ("another version", "GET / HTTP/3.7\r\nHost: h\r\n\r\n", {b"400", b"505"}),
    ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {b"400", b"505", b""}),
    ("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {b"400", b""}),
    ("nothing", "", {b""}),
    ("two requests at once, the first unsigned",
     f"GET / HTTP/1.1\r\nHost: h\r\n\r\nPOST / HTTP/1.1\r\n{signed}{length}\r\n{body}", {UNSIGNED}),
]:
    answer = wire(request.encode("latin-1"))
    status = answer[9:12]
    assert status in expected, (name, answer[:500])
    # One answer: whoever fails to sign has no second try on the same connection.
    assert answer.count(b"HTTP/1.") <= 1, (name, answer)
    if status == UNSIGNED:
        assert b"connection: close" in answer.lower(), (name, answer)

# Too large is said in words, however it is sent.
large = "x" * (2 << 20)
big = f"Content-Length: {len(large)}\r\n"
for name, request in [
    ("signed", f"POST / HTTP/1.1\r\n{signed_headers(large)}{big}\r\n{large}"),
    ("unsigned", f"POST / HTTP/1.1\r\nHost: h\r\n{big}\r\n{large}"),
    ("chunked", f"POST / HTTP/1.1\r\n{signed_headers(large)}{chunked}\r\n"
                f"{len(large):x}\r\n{large}\r\n0\r\n\r\n"),
    # Its body is never sent, and isn't waited for.
    ("announced", f"POST / HTTP/1.1\r\n{signed_headers(large)}{big}Expect: 100-continue\r\n\r\n"),
]:
    answer = wire(request.encode(), whole=name != "announced")
    assert answer.startswith(b"HTTP/1.1 413 "), (name, answer[:200])
    assert b"<Code>RequestEntityTooLarge</Code>" in answer, (name, answer)

# What is small enough and announced is asked for.
with socket.create_connection(address, timeout=30) as sock:
    sock.sendall(f"POST / HTTP/1.1\r\n{signed}{length}Expect: 100-continue\r\n\r\n".encode())
    assert sock.recv(4096).startswith(b"HTTP/1.1 100 Continue\r\n")
    sock.sendall(body.encode())
    assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
