"""What is there from the beginning: networks, images, types, regions."""

import pytest

from support import refused


def test_the_default_vpc(ec2):
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    assert vpc["IsDefault"] and vpc["State"] == "available" and vpc["CidrBlock"] == "172.31.0.0/16"
    assert vpc["CidrBlockAssociationSet"][0]["CidrBlockState"] == {"State": "associated"}


def test_its_subnet(ec2, vpc):
    (subnet,) = ec2.describe_subnets(Filters=[
        {"Name": "vpc-id", "Values": [vpc]}, {"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    assert subnet["AvailableIpAddressCount"] == 4091
    assert subnet["AvailabilityZone"] == "us-east-1a"
    assert subnet["AvailabilityZoneId"] == "use1-az1"
    assert ec2.describe_subnets(Filters=[{"Name": "cidr", "Values": ["10.*"]}])["Subnets"] == []


def test_the_image(ec2):
    (image,) = ec2.describe_images(Owners=["self"])["Images"]
    assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 2
    assert image["CreationDate"] == "2026-01-02T03:04:05.000Z"
    assert image["State"] == "available" and image["Public"] is True
    assert ec2.describe_images(Owners=["amazon"])["Images"] == []
    assert ec2.describe_images(ImageIds=[image["ImageId"]], IncludeDeprecated=True)["Images"]
    assert ec2.describe_images(Filters=[{"Name": "name", "Values": ["deb*"]}])["Images"] == []


def test_instance_types(ec2):
    (micro,) = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
    assert micro["VCpuInfo"]["DefaultVCpus"] == 2 and micro["MemoryInfo"]["SizeInMiB"] == 1024
    pages = list(ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 5}))
    names = [t["InstanceType"] for page in pages for t in page["InstanceTypes"]]
    assert len(pages) > 1 and names == sorted(set(names)) and "m5.large" in names


def test_a_type_is_told_whole(ec2):
    (kind,) = ec2.describe_instance_types(InstanceTypes=["m6i.xlarge"])["InstanceTypes"]
    assert kind["Hypervisor"] == "nitro" and not kind["BurstablePerformanceSupported"]
    network = kind["NetworkInfo"]
    assert network["MaximumNetworkInterfaces"] == 4 and network["Ipv4AddressesPerInterface"] == 15
    assert network["NetworkCards"][0]["BaselineBandwidthInGbps"] == 1.562 and network["EnaSupport"] == "unsupported"
    assert kind["EbsInfo"]["NvmeSupport"] == "unsupported"


@pytest.mark.parametrize("name, value, some, other", [
    ("hypervisor", "xen", "t2.micro", "t3.micro"), ("burstable-performance-supported", "true", "t3a.nano", "c7a.medium"),
    ("network-info.maximum-network-interfaces", "8", "r7i.4xlarge", "r7i.large"),
    ("network-info.ipv4-addresses-per-interface", "10", "c5a.large", "c5a.xlarge"),
    ("memory-info.size-in-mib", "262144", "r6a.8xlarge", "m6a.8xlarge"), ("vcpu-info.default-vcpus", "32", "m7i.8xlarge", "c5.4xlarge"),
    ("instance-type", "c6*", "c6i.large", "c7i.large"), ("network-info.ena-support", "unsupported", "t2.nano", None),
])
def test_types_by_each_kind_of_filter(ec2, name, value, some, other):
    found = {t["InstanceType"] for page in ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": name, "Values": [value]}]) for t in page["InstanceTypes"]}
    assert some in found and other not in found


@pytest.mark.parametrize("kind, location", [
    (None, "us-east-1"), ("region", "us-east-1"), ("availability-zone", "us-east-1a"), ("availability-zone-id", "use1-az1")])
def test_every_type_is_offered_everywhere(ec2, kind, location):
    asked = {"LocationType": kind} if kind else {}
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(**asked, PaginationConfig={"PageSize": 50})
    offered = [o for page in pages for o in page["InstanceTypeOfferings"]]
    types = ec2.get_paginator("describe_instance_types").paginate()
    assert [o["InstanceType"] for o in offered] == [t["InstanceType"] for page in types for t in page["InstanceTypes"]]
    assert {(o["LocationType"], o["Location"]) for o in offered} == {(kind or "region", location)}
    (one,) = ec2.describe_instance_type_offerings(**asked, Filters=[
        {"Name": "instance-type", "Values": ["t3.micro"]}, {"Name": "location", "Values": [location]}])["InstanceTypeOfferings"]
    assert one["InstanceType"] == "t3.micro"


def test_no_type_is_offered_at_an_outpost(ec2):
    assert ec2.describe_instance_type_offerings(LocationType="outpost")["InstanceTypeOfferings"] == []
    with refused("InvalidParameterValue", "locationType"):
        ec2.describe_instance_type_offerings(LocationType="moon")


def test_region_and_zone(ec2):
    (region,) = ec2.describe_regions()["Regions"]
    assert region["RegionName"] == "us-east-1"
    (zone,) = ec2.describe_availability_zones()["AvailabilityZones"]
    assert zone["ZoneName"] == "us-east-1a" and zone["State"] == "available"


@pytest.mark.parametrize("code, words, call, asked", [
    ("InvalidParameterValue", "MaxResults", "describe_vpcs", {"MaxResults": 1001}),
    ("InvalidNextToken", "", "describe_vpcs", {"NextToken": "x"}),
    ("InvalidInstanceType", "t9.huge", "describe_instance_types", {"InstanceTypes": ["t9.huge"]}),
    ("InvalidParameterValue", "us-east-1z", "describe_availability_zones", {"ZoneNames": ["us-east-1z"]}),
])
def test_describe_refuses(ec2, code, words, call, asked):
    with refused(code, words):
        getattr(ec2, call)(**asked)
