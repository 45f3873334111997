"""Key pairs, as boto3 sees them."""

import hashlib
import subprocess
import tempfile

from support import ec2, refused

made = ec2.create_key_pair(KeyName="a", KeyType="ed25519", TagSpecifications=[
    {"ResourceType": "key-pair", "Tags": [{"Key": "Team", "Value": "<web> & co"}]}])
assert made["KeyMaterial"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----"), made
assert made["Tags"] == [{"Key": "Team", "Value": "<web> & co"}], made
rsa = ec2.create_key_pair(KeyName="b")
assert rsa["KeyMaterial"].startswith("-----BEGIN RSA PRIVATE KEY-----"), rsa

with refused("InvalidKeyPair.Duplicate"):
    ec2.create_key_pair(KeyName="a")
with refused("InvalidParameterValue", "KeyType"):
    ec2.create_key_pair(KeyName="c", KeyType="dsa")
with refused("UnsupportedOperation", "ppk"):
    ec2.create_key_pair(KeyName="c", KeyFormat="ppk")
with refused("InvalidParameterValue"):
    ec2.create_key_pair(KeyName=" ")

pairs = ec2.describe_key_pairs(IncludePublicKey=True)["KeyPairs"]
assert [p["KeyName"] for p in pairs] == ["a", "b"], pairs
assert pairs[0]["PublicKey"].startswith("ssh-ed25519 "), pairs
assert pairs[0]["KeyType"] == "ed25519" and pairs[0]["CreateTime"].tzinfo, pairs
assert "Tags" not in pairs[1], pairs
assert "PublicKey" not in ec2.describe_key_pairs()["KeyPairs"][0]
(found,) = ec2.describe_key_pairs(Filters=[{"Name": "tag:Team", "Values": ["<web>*"]}])["KeyPairs"]
assert found["KeyPairId"] == made["KeyPairId"], found

# The private key that was given fits the public one that is kept.
for material, pair in [(made["KeyMaterial"], pairs[0]), (rsa["KeyMaterial"], pairs[1])]:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(material)
        file.flush()
        try:
            answer = subprocess.run(["ssh-keygen", "-y", "-f", file.name], check=True,
                                    capture_output=True, text=True)
        except FileNotFoundError:
            continue
    assert answer.stdout.split()[:2] == pair["PublicKey"].split()[:2]

imported = ec2.import_key_pair(KeyName="c", PublicKeyMaterial=pairs[1]["PublicKey"].encode())
assert len(imported["KeyFingerprint"]) == hashlib.md5().digest_size * 3 - 1, imported
for bad in [b"", b"x", b"\xff"]:
    with refused("InvalidKey.Format"):
        ec2.import_key_pair(KeyName="d", PublicKeyMaterial=bad)

with refused("InvalidKeyPair.NotFound", "'none'"):
    ec2.describe_key_pairs(KeyNames=["none"])
with refused("InvalidParameterValue", "The filter 'bogus' is invalid"):
    ec2.describe_key_pairs(Filters=[{"Name": "bogus", "Values": ["x"]}])

assert ec2.delete_key_pair(KeyName="a")["KeyPairId"] == made["KeyPairId"]
assert ec2.delete_key_pair(KeyName="a")["Return"] is True
ec2.delete_key_pair(KeyPairId=rsa["KeyPairId"])
assert [p["KeyName"] for p in ec2.describe_key_pairs()["KeyPairs"]] == ["c"]
assert ec2.describe_tags()["Tags"] == []
