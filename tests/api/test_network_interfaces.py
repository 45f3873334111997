"""The interfaces of instances."""

import pytest

from support import refused, wait


@pytest.fixture(scope="module")
def instance(ec2, image):
    """One that runs, as DescribeInstances shows it, with a tag at its interface."""
    (made,) = ec2.run_instances(
        ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v"}]}])["Instances"]
    one = {"InstanceIds": [made["InstanceId"]]}
    wait(ec2, "instance_running", **one)
    yield ec2.describe_instances(**one)["Reservations"][0]["Instances"][0]
    ec2.terminate_instances(**one)
    wait(ec2, "instance_terminated", **one)
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def the(ec2, instance):
    named = [instance["NetworkInterfaces"][0]["NetworkInterfaceId"]]
    (found,) = ec2.describe_network_interfaces(NetworkInterfaceIds=named)["NetworkInterfaces"]
    return found


def test_it_is_what_its_instance_says(ec2, instance):
    (said,) = instance["NetworkInterfaces"]
    found = the(ec2, instance)
    for same in ["NetworkInterfaceId", "SubnetId", "VpcId", "MacAddress", "PrivateIpAddress", "PrivateDnsName", "Status",
                 "OwnerId", "Groups", "SourceDestCheck", "InterfaceType", "Association", "PrivateIpAddresses", "Description"]:
        assert found[same] == said[same], same
    assert {**said["Attachment"], "InstanceId": instance["InstanceId"], "InstanceOwnerId": said["OwnerId"]} == found["Attachment"]
    assert found["AvailabilityZone"] == instance["Placement"]["AvailabilityZone"]
    assert found["TagSet"] == [{"Key": "k", "Value": "v"}] and found["RequesterManaged"] is False
    assert found["Association"]["IpOwnerId"] == "amazon"


def test_an_elastic_address_is_seen_there(ec2, instance):
    address = ec2.allocate_address()
    association = ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instance["InstanceId"])
    found = the(ec2, instance)
    assert found["Association"] == found["PrivateIpAddresses"][0]["Association"]
    assert found["Association"] == {
        "PublicIp": address["PublicIp"], "IpOwnerId": found["OwnerId"], "AllocationId": address["AllocationId"],
        "AssociationId": association["AssociationId"], "PublicDnsName": found["Association"]["PublicDnsName"]}
    for name, value in [("association.allocation-id", address["AllocationId"]), ("association.public-ip", address["PublicIp"]),
                        ("association.association-id", association["AssociationId"]),
                        ("association.ip-owner-id", found["OwnerId"])]:
        assert ec2.describe_network_interfaces(Filters=[{"Name": name, "Values": [value]}])["NetworkInterfaces"] == [found], name
    ec2.release_address(AllocationId=address["AllocationId"])
    assert "AllocationId" not in the(ec2, instance)["Association"]


def test_each_filter_finds_it(ec2, instance):
    found = the(ec2, instance)
    at = found["Attachment"]
    for name, value in [
        ("addresses.association.owner-id", "amazon"), ("addresses.association.public-ip", found["Association"]["PublicIp"]),
        ("addresses.primary", "true"), ("addresses.private-ip-address", found["PrivateIpAddress"]),
        ("association.ip-owner-id", "amazon"), ("association.public-dns-name", found["Association"]["PublicDnsName"]),
        ("association.public-ip", found["Association"]["PublicIp"]), ("attachment.attachment-id", at["AttachmentId"]),
        ("attachment.attach-time", at["AttachTime"].strftime("%Y-%m-%dT%H:%M:%S") + "*"),
        ("attachment.delete-on-termination", "true"), ("attachment.device-index", "0"),
        ("attachment.instance-id", instance["InstanceId"]), ("attachment.instance-owner-id", found["OwnerId"]),
        ("attachment.status", "attached"), ("availability-zone", found["AvailabilityZone"]),
        ("availability-zone-id", found["AvailabilityZoneId"]), ("group-id", found["Groups"][0]["GroupId"]),
        ("group-name", found["Groups"][0]["GroupName"]), ("interface-type", "interface"), ("mac-address", found["MacAddress"]),
        ("network-interface-id", found["NetworkInterfaceId"]), ("owner-id", found["OwnerId"]),
        ("private-dns-name", found["PrivateDnsName"]), ("private-ip-address", found["PrivateIpAddress"]),
        ("requester-managed", "false"), ("source-dest-check", "true"), ("status", "in-use"), ("subnet-id", found["SubnetId"]),
        ("vpc-id", found["VpcId"]), ("tag:k", "v"), ("tag-key", "k"),
    ]:
        assert ec2.describe_network_interfaces(Filters=[{"Name": name, "Values": [value]}])["NetworkInterfaces"] == [found], name
        assert not ec2.describe_network_interfaces(Filters=[{"Name": name, "Values": ["none"]}])["NetworkInterfaces"], name


def test_pages(ec2, image, instance):
    made = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=6, MaxCount=6)["Instances"]
    pages = list(ec2.get_paginator("describe_network_interfaces").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["NetworkInterfaces"]) for page in pages] == [5, 2]
    ids = [one["InstanceId"] for one in made]
    ec2.terminate_instances(InstanceIds=ids)
    wait(ec2, "instance_terminated", InstanceIds=ids)


@pytest.mark.parametrize("code, asked", [
    ("InvalidParameterCombination", {"NetworkInterfaceIds": ["eni-00000000000000001"], "MaxResults": 5}),
    ("InvalidParameterValue", {"MaxResults": 1001}),
    ("InvalidParameterValue", {"Filters": [{"Name": "bogus", "Values": ["x"]}]}),
    ("DryRunOperation", {"DryRun": True}),
])
def test_describe_refuses(ec2, code, asked):
    with refused(code):
        ec2.describe_network_interfaces(**asked)
