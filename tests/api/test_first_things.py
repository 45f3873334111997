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
