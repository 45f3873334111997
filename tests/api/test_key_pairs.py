"""Key pairs."""

import hashlib
import subprocess

import pytest

from support import refused


@pytest.fixture(scope="module", params=["ed25519", "rsa"])
def made(request, ec2):
    """A key pair of each type, as CreateKeyPair answered it."""
    kind = request.param
    pair = ec2.create_key_pair(KeyName=f"made-{kind}", KeyType=kind, TagSpecifications=[
        {"ResourceType": "key-pair", "Tags": [{"Key": "Team", "Value": f"<{kind}> & co"}]}])
    return kind, pair


def described(ec2, name, **more):
    (found,) = ec2.describe_key_pairs(KeyNames=[name], **more)["KeyPairs"]
    return found


def names(ec2):
    return {pair["KeyName"] for pair in ec2.describe_key_pairs()["KeyPairs"]}


def test_create_gives_the_private_key_once(ec2, made):
    kind, pair = made
    header = {"ed25519": "OPENSSH", "rsa": "RSA"}[kind]
    assert pair["KeyMaterial"].startswith(f"-----BEGIN {header} PRIVATE KEY-----")
    assert pair["Tags"] == [{"Key": "Team", "Value": f"<{kind}> & co"}]
    found = described(ec2, pair["KeyName"], IncludePublicKey=True)
    assert found["KeyType"] == kind and found["CreateTime"].tzinfo
    assert found["PublicKey"].startswith({"ed25519": "ssh-ed25519 ", "rsa": "ssh-rsa "}[kind])
    assert "PublicKey" not in described(ec2, pair["KeyName"])


def test_the_private_key_fits_the_public_one(ec2, made, tmp_path):
    _, pair = made
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text(pair["KeyMaterial"])
    answer = subprocess.run(["ssh-keygen", "-y", "-f", file], check=True, capture_output=True, text=True)
    public = described(ec2, pair["KeyName"], IncludePublicKey=True)["PublicKey"]
    assert answer.stdout.split()[:2] == public.split()[:2]


def test_describe_finds_by_tag(ec2, made):
    kind, pair = made
    wanted = [{"Name": "tag:Team", "Values": [f"<{kind}>*"]}]
    (found,) = ec2.describe_key_pairs(Filters=wanted)["KeyPairs"]
    assert found["KeyPairId"] == pair["KeyPairId"]


def test_import_keeps_the_public_key(ec2, made):
    kind, pair = made
    public = described(ec2, pair["KeyName"], IncludePublicKey=True)["PublicKey"]
    imported = ec2.import_key_pair(KeyName=f"imported-{kind}", PublicKeyMaterial=public.encode())
    if kind == "rsa":
        assert len(imported["KeyFingerprint"]) == hashlib.md5().digest_size * 3 - 1
    kept = described(ec2, f"imported-{kind}", IncludePublicKey=True)
    assert kept["PublicKey"].split()[:2] == public.split()[:2]


def test_delete_is_by_name_or_id_and_twice_is_harmless(ec2):
    ids = {name: ec2.create_key_pair(KeyName=name, KeyType="ed25519", TagSpecifications=[
        {"ResourceType": "key-pair", "Tags": [{"Key": "k", "Value": "v"}]}])["KeyPairId"] for name in ["x", "y"]}
    assert ec2.delete_key_pair(KeyName="x")["KeyPairId"] == ids["x"]
    assert ec2.delete_key_pair(KeyName="x")["Return"] is True
    ec2.delete_key_pair(KeyPairId=ids["y"])
    assert not {"x", "y"} & names(ec2)
    gone = [{"Name": "resource-id", "Values": list(ids.values())}]
    assert ec2.describe_tags(Filters=gone)["Tags"] == []


@pytest.mark.parametrize("code, words, asked", [
    ("InvalidParameterValue", "KeyType", {"KeyName": "n", "KeyType": "dsa"}),
    ("UnsupportedOperation", "ppk", {"KeyName": "n", "KeyFormat": "ppk"}),
    ("InvalidParameterValue", "", {"KeyName": " "}),
    ("DryRunOperation", "", {"KeyName": "n", "DryRun": True}),
])
def test_create_refuses(ec2, code, words, asked):
    with refused(code, words):
        ec2.create_key_pair(**asked)
    assert "n" not in names(ec2)


def test_a_name_is_taken_once(ec2, made):
    with refused("InvalidKeyPair.Duplicate"):
        ec2.create_key_pair(KeyName=made[1]["KeyName"])


@pytest.mark.parametrize("material", [b"", b"x", b"\xff", b"ssh-ed25519 AAAA"])
def test_import_refuses_what_is_no_key(ec2, material):
    with refused("InvalidKey.Format"):
        ec2.import_key_pair(KeyName="d", PublicKeyMaterial=material)


def test_describe_refuses_an_unknown_filter(ec2):
    with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
        ec2.describe_key_pairs(Filters=[{"Name": "bogus", "Values": ["x"]}])
