"""Key pairs."""

import base64
import hashlib
import shutil
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


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_puttys_form_is_read_by_putty(ec2, tmp_path, kind):
    pair = ec2.create_key_pair(KeyName=f"putty {kind}", KeyType=kind, KeyFormat="ppk")
    public = described(ec2, pair["KeyName"], IncludePublicKey=True)["PublicKey"]
    ec2.delete_key_pair(KeyName=pair["KeyName"])
    lines = pair["KeyMaterial"].splitlines()
    assert lines[0] == f"PuTTY-User-Key-File-2: ssh-{kind}" and lines[1] == "Encryption: none"
    assert lines[2] == f"Comment: putty {kind}" and lines[-1].startswith("Private-MAC: ")
    if not shutil.which("puttygen"):
        pytest.skip("no puttygen (Debian's putty-tools)")
    file = tmp_path / "key.ppk"
    file.write_text(pair["KeyMaterial"])
    # It refuses a file whose MAC is wrong; the private half comes out as OpenSSH's, which
    # ssh-keygen in turn makes the public half of.
    private = tmp_path / "key"
    subprocess.run(["puttygen", file, "-O", "private-openssh", "-o", private], check=True)
    answer = subprocess.run(["ssh-keygen", "-y", "-f", private], check=True, capture_output=True, text=True)
    assert answer.stdout.split()[:2] == public.split()[:2]


def test_fingerprints_are_those_of_the_user_guide(ec2, made, tmp_path):
    """With the commands that it gives for them."""
    kind, pair = made
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_text(pair["KeyMaterial"])
    if kind == "rsa":
        der = subprocess.run(["openssl", "pkcs8", "-in", file, "-inform", "PEM", "-outform", "DER", "-topk8", "-nocrypt"],
                             check=True, capture_output=True).stdout
        assert pair["KeyFingerprint"].replace(":", "") == hashlib.sha1(der).hexdigest()
        return
    shown = subprocess.run(["ssh-keygen", "-l", "-f", file], check=True, capture_output=True, text=True).stdout
    assert pair["KeyFingerprint"].rstrip("=") == shown.split()[1].removeprefix("SHA256:")


@pytest.mark.parametrize("bits", [1024, 2048, 4096])
def test_import_takes_every_form_of_ec2s(ec2, tmp_path, bits):
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", str(bits), "-N", "", "-m", "PEM", "-C", 'with: a "comment"', "-f", file],
                   check=True)
    public = file.with_suffix(".pub").read_text()
    ssh2 = subprocess.run(["ssh-keygen", "-e", "-m", "RFC4716", "-f", file], check=True, capture_output=True).stdout
    long = ssh2.replace(b"\nComment:", b"\nx-more: one \\\n and two\nComment:")
    der = subprocess.run(["openssl", "rsa", "-in", file, "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout
    printed = ":".join(f"{byte:02x}" for byte in hashlib.md5(der).digest())
    forms = [public.encode(), ssh2, long, base64.b64encode(der), base64.encodebytes(der)]
    for number, material in enumerate(forms):
        imported = ec2.import_key_pair(KeyName=f"form-{number}", PublicKeyMaterial=material)
        kept = described(ec2, f"form-{number}", IncludePublicKey=True)
        ec2.delete_key_pair(KeyName=f"form-{number}")
        assert imported["KeyFingerprint"] == kept["KeyFingerprint"] == printed
        assert kept["PublicKey"].split() == [*public.split()[:2], f"form-{number}"]


def test_import_takes_an_ed25519_key_in_ssh2s_form(ec2, tmp_path):
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    ssh2 = subprocess.run(["ssh-keygen", "-e", "-m", "RFC4716", "-f", file], check=True, capture_output=True).stdout
    imported = ec2.import_key_pair(KeyName="ssh2", PublicKeyMaterial=ssh2, TagSpecifications=[
        {"ResourceType": "key-pair", "Tags": [{"Key": "k", "Value": "v"}]}])
    kept = described(ec2, "ssh2", IncludePublicKey=True)
    ec2.delete_key_pair(KeyPairId=imported["KeyPairId"])
    assert kept["PublicKey"].split()[:2] == file.with_suffix(".pub").read_text().split()[:2]
    assert kept["KeyType"] == "ed25519" and kept["Tags"] == imported["Tags"] == [{"Key": "k", "Value": "v"}]


def test_describe_finds_by_each_filter(ec2, made):
    _, pair = made
    for name, value in [("key-pair-id", pair["KeyPairId"]), ("fingerprint", pair["KeyFingerprint"]), ("key-name", pair["KeyName"])]:
        (found,) = ec2.describe_key_pairs(Filters=[{"Name": name, "Values": [value]}])["KeyPairs"]
        assert found["KeyPairId"] == pair["KeyPairId"], name


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
    ("InvalidParameterValue", "KeyFormat", {"KeyName": "n", "KeyFormat": "der"}),
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


@pytest.mark.parametrize("material", [
    b"", b"x", b"\xff", b"ssh-ed25519 AAAA", b"AAAA", b"MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A", b"ssh-rsa " + b"A" * 20_000,
    b"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----", b"---- BEGIN SSH2 PUBLIC KEY ----\n",
])
def test_import_refuses_what_is_no_key(ec2, material):
    with refused("InvalidKey.Format"):
        ec2.import_key_pair(KeyName="d", PublicKeyMaterial=material)


def test_describe_refuses_an_unknown_filter(ec2):
    with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
        ec2.describe_key_pairs(Filters=[{"Name": "bogus", "Values": ["x"]}])
