"""What is there from the beginning: networks, images, types, regions."""

from support import default_vpc, ec2, refused

(vpc,) = ec2.describe_vpcs()["Vpcs"]
assert vpc["IsDefault"] and vpc["State"] == "available" and vpc["CidrBlock"] == "172.31.0.0/16", vpc
assert vpc["CidrBlockAssociationSet"][0]["CidrBlockState"] == {"State": "associated"}, vpc
with refused("InvalidVpcID.NotFound"):
    ec2.describe_vpcs(VpcIds=["vpc-00000000000000000"])
with refused("InvalidVpcID.Malformed"):
    ec2.describe_vpcs(VpcIds=["vpc"])
with refused("InvalidParameterValue", "MaxResults"):
    ec2.describe_vpcs(MaxResults=1001)
with refused("InvalidNextToken"):
    ec2.describe_vpcs(NextToken="x")

(subnet,) = ec2.describe_subnets(Filters=[
    {"Name": "vpc-id", "Values": [default_vpc()]},
    {"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
assert subnet["AvailableIpAddressCount"] == 4091, subnet
assert subnet["AvailabilityZone"] == "us-east-1a", subnet
assert subnet["AvailabilityZoneId"] == "use1-az1", subnet
assert ec2.describe_subnets(Filters=[{"Name": "cidr", "Values": ["10.*"]}])["Subnets"] == []

(image,) = ec2.describe_images(Owners=["self"])["Images"]
assert image["ImageId"] == "ami-00000000000000001", image
assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 2, image
assert image["CreationDate"] == "2026-01-02T03:04:05.000Z", image
assert image["State"] == "available" and image["Public"] is True, image
assert ec2.describe_images(Owners=["amazon"])["Images"] == []
assert ec2.describe_images(ImageIds=[image["ImageId"]], IncludeDeprecated=True)["Images"]
assert ec2.describe_images(Filters=[{"Name": "name", "Values": ["deb*"]}])["Images"] == []
with refused("InvalidAMIID.NotFound"):
    ec2.describe_images(ImageIds=["ami-00000000000000002"])
with refused("InvalidAMIID.Malformed"):
    ec2.describe_images(ImageIds=["ami-x"])

(micro,) = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
assert micro["VCpuInfo"]["DefaultVCpus"] == 2 and micro["MemoryInfo"]["SizeInMiB"] == 1024, micro
with refused("InvalidInstanceType"):
    ec2.describe_instance_types(InstanceTypes=["t9.huge"])
pages = list(ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 5}))
names = [t["InstanceType"] for page in pages for t in page["InstanceTypes"]]
assert len(pages) > 1 and names == sorted(set(names)) and "m5.large" in names, names

(region,) = ec2.describe_regions()["Regions"]
assert region["RegionName"] == "us-east-1", region
(zone,) = ec2.describe_availability_zones()["AvailabilityZones"]
assert zone["ZoneName"] == "us-east-1a" and zone["State"] == "available", zone
with refused("InvalidParameterValue"):
    ec2.describe_availability_zones(ZoneNames=["us-east-1z"])
