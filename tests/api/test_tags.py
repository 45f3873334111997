"""Tags of every kind of resource."""

import pytest

from support import refused


@pytest.fixture
def key(ec2, request):
    name = request.node.name[:60]
    yield ec2.create_key_pair(KeyName=name, KeyType="ed25519")["KeyPairId"]
    ec2.delete_key_pair(KeyName=name)


@pytest.fixture(autouse=True)
def afterwards_none(ec2):
    yield
    left = ec2.describe_tags()["Tags"]
    if left:
        ec2.delete_tags(Resources=list({tag["ResourceId"] for tag in left}))


def of(ec2, resource):
    found = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [resource]}])["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


def test_several_resources_of_several_kinds(ec2, vpc, image, key):
    ec2.create_tags(Resources=[vpc, image, key], Tags=[{"Key": "Name", "Value": "x"}, {"Key": "a", "Value": ""}])
    assert ec2.describe_vpcs()["Vpcs"][0]["Tags"] == [{"Key": "Name", "Value": "x"}, {"Key": "a", "Value": ""}]
    tags = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["Name"]}])["Tags"]
    assert {t["ResourceType"] for t in tags} == {"vpc", "image", "key-pair"}
    pages = list(ec2.get_paginator("describe_tags").paginate(PaginationConfig={"PageSize": 5}))
    assert sum(len(p["Tags"]) for p in pages) == 6 and len(pages) == 2
    assert len(ec2.describe_tags(Filters=[{"Name": "tag:Name", "Values": ["x"]}])["Tags"]) == 3


def test_delete_with_a_value_only_if_it_has_that_value(ec2, vpc):
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": "Name", "Value": "x"}, {"Key": "a", "Value": ""}])
    ec2.delete_tags(Resources=[vpc], Tags=[{"Key": "Name", "Value": "other"}])
    assert of(ec2, vpc) == {"Name": "x", "a": ""}
    ec2.delete_tags(Resources=[vpc], Tags=[{"Key": "Name"}, {"Key": "none"}])
    assert of(ec2, vpc) == {"a": ""}
    ec2.delete_tags(Resources=[vpc])
    assert "Tags" not in ec2.describe_vpcs()["Vpcs"][0]


def test_fifty_and_no_more(ec2, vpc):
    ec2.create_tags(Resources=[vpc], Tags=[{"Key": str(i), "Value": ""} for i in range(50)])
    with refused("TagLimitExceeded"):
        ec2.create_tags(Resources=[vpc], Tags=[{"Key": "more", "Value": ""}])


@pytest.mark.parametrize("code, words, resources, tag", [
    ("InvalidParameterValue", "aws:", [], "aws:x"),
    ("InvalidInstanceID.NotFound", "", ["i-00000000000000001"], "k"),
    ("InvalidID", "", ["nonsense"], "k"),
])
def test_create_refuses_and_then_changes_nothing(ec2, image, code, words, resources, tag):
    with refused(code, words):
        ec2.create_tags(Resources=[image, *resources], Tags=[{"Key": tag, "Value": ""}])
    assert of(ec2, image) == {}


def test_what_is_tagged_is_found_by_its_tags(ec2, vpc, image, key):
    """In each list whose items show tags."""
    (subnet,) = [s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]][:1]
    group = ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    rule = ec2.describe_security_group_rules()["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    (instance,) = ec2.run_instances(ImageId=image, InstanceType="t2.micro", MinCount=1, MaxCount=1)["Instances"]
    instance = instance["InstanceId"]
    attached = [{"Name": "attachment.instance-id", "Values": [instance]}]
    volume = ec2.describe_volumes(Filters=attached)["Volumes"][0]["VolumeId"]
    address = ec2.allocate_address()["AllocationId"]
    interface = ec2.describe_network_interfaces()["NetworkInterfaces"][0]["NetworkInterfaceId"]
    tagged = [vpc, subnet, image, key, group, rule, instance, volume, address, interface]
    ec2.create_tags(Resources=tagged, Tags=[{"Key": "found", "Value": "by it"}])

    def count(describe, items, name, value):
        found = describe(Filters=[{"Name": name, "Values": [value]}])[items]
        return sum(len(one["Instances"]) for one in found) if items == "Reservations" else len(found)

    for describe, items in [
        (ec2.describe_vpcs, "Vpcs"),
        (ec2.describe_subnets, "Subnets"),
        (ec2.describe_images, "Images"),
        (ec2.describe_key_pairs, "KeyPairs"),
        (ec2.describe_security_groups, "SecurityGroups"),
        (ec2.describe_security_group_rules, "SecurityGroupRules"),
        (ec2.describe_instances, "Reservations"),
        (ec2.describe_volumes, "Volumes"),
        (ec2.describe_addresses, "Addresses"),
        (ec2.describe_network_interfaces, "NetworkInterfaces"),
    ]:
        assert count(describe, items, "tag:found", "by it") == 1, items
        assert count(describe, items, "tag:found", "else") == 0, items
        assert count(describe, items, "tag-key", "found") == 1, items
    ec2.delete_tags(Resources=tagged)
    ec2.release_address(AllocationId=address)
    ec2.terminate_instances(InstanceIds=[instance])


def test_a_page_has_at_most_a_thousand_unasked(ec2):
    names = [f"many-{n}" for n in range(21)]
    ids = [ec2.create_key_pair(KeyName=name, KeyType="ed25519")["KeyPairId"] for name in names]
    ec2.create_tags(Resources=ids, Tags=[{"Key": f"k{n}", "Value": "v"} for n in range(50)])
    first = ec2.describe_tags()
    rest = ec2.describe_tags(NextToken=first["NextToken"])
    for name in names:
        ec2.delete_key_pair(KeyName=name)
    assert (len(first["Tags"]), len(rest["Tags"])) == (1000, 50)
    assert "NextToken" not in rest
