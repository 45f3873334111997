"""Tags of every kind of resource, as boto3 sees them."""

from support import default_vpc, ec2, refused

vpc = default_vpc()
ami = "ami-00000000000000001"
key = ec2.create_key_pair(KeyName="k", KeyType="ed25519")["KeyPairId"]
ec2.create_tags(Resources=[vpc, ami, key], Tags=[{"Key": "Name", "Value": "x"}, {"Key": "a", "Value": ""}])
assert ec2.describe_vpcs()["Vpcs"][0]["Tags"] == [
    {"Key": "Name", "Value": "x"}, {"Key": "a", "Value": ""}]
tags = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["Name"]}])["Tags"]
assert {t["ResourceType"] for t in tags} == {"vpc", "image", "key-pair"}, tags
pages = list(ec2.get_paginator("describe_tags").paginate(PaginationConfig={"PageSize": 5}))
assert sum(len(p["Tags"]) for p in pages) == 6 and len(pages) == 2, pages
assert len(ec2.describe_tags(Filters=[{"Name": "tag:Name", "Values": ["x"]}])["Tags"]) == 3

# With a value only if it has that value, without one whatever it is.
ec2.delete_tags(Resources=[vpc], Tags=[{"Key": "Name", "Value": "other"}])
assert len(ec2.describe_vpcs()["Vpcs"][0]["Tags"]) == 2
ec2.delete_tags(Resources=[vpc], Tags=[{"Key": "Name"}, {"Key": "none"}])
assert ec2.describe_vpcs()["Vpcs"][0]["Tags"] == [{"Key": "a", "Value": ""}]
ec2.delete_tags(Resources=[vpc, ami, key])
assert "Tags" not in ec2.describe_vpcs()["Vpcs"][0]
assert ec2.describe_tags()["Tags"] == []

with refused("InvalidParameterValue", "aws:"):
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": "aws:x", "Value": "y"}])
ec2.create_tags(Resources=[vpc], Tags=[{"Key": str(i), "Value": ""} for i in range(50)])
with refused("TagLimitExceeded"):
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": "more", "Value": ""}])
with refused("InvalidInstanceID.NotFound"):
    ec2.create_tags(Resources=[ami, "i-00000000000000001"], Tags=[{"Key": "k", "Value": ""}])
assert "Tags" not in ec2.describe_images()["Images"][0]
with refused("InvalidID"):
    ec2.create_tags(Resources=["nonsense"], Tags=[{"Key": "k", "Value": ""}])
