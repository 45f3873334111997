"""Elastic IP addresses."""

import pytest

from support import refused, wait


@pytest.fixture(scope="module")
def instances(ec2, image):
    """Two that run."""
    made = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=2, MaxCount=2)["Instances"]
    ids = [instance["InstanceId"] for instance in made]
    wait(ec2, "instance_running", InstanceIds=ids)
    yield ids
    ec2.terminate_instances(InstanceIds=ids)


@pytest.fixture
def address(ec2):
    made = ec2.allocate_address(Domain="vpc")
    yield made
    for left in ec2.describe_addresses(Filters=[{"Name": "allocation-id", "Values": [made["AllocationId"]]}])["Addresses"]:
        if "AssociationId" in left:
            ec2.disassociate_address(AssociationId=left["AssociationId"])
        ec2.release_address(AllocationId=made["AllocationId"])


def described(ec2, instance):
    (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    return reservation["Instances"][0]


def public(ec2, instance):
    return described(ec2, instance).get("PublicIpAddress")


def the(ec2, address):
    (found,) = ec2.describe_addresses(AllocationIds=[address["AllocationId"]])["Addresses"]
    return found


def test_an_allocation_and_its_release(ec2, cloud):
    tags = [{"Key": "for", "Value": "a test"}]
    made = ec2.allocate_address(Domain="vpc", PublicIpv4Pool="amazon", NetworkBorderGroup=cloud.region,
                                TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}])
    assert made["Domain"] == "vpc" and made["PublicIpv4Pool"] == "amazon" and made["NetworkBorderGroup"] == cloud.region
    (found,) = ec2.describe_addresses(PublicIps=[made["PublicIp"]])["Addresses"]
    assert found == {"AllocationId": made["AllocationId"], "PublicIp": made["PublicIp"], "Domain": "vpc", "Tags": tags,
                     "PublicIpv4Pool": "amazon", "NetworkBorderGroup": cloud.region}
    (kept,) = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [made["AllocationId"]]}])["Tags"]
    assert kept["ResourceType"] == "elastic-ip"
    ec2.release_address(AllocationId=made["AllocationId"])
    with refused("InvalidAllocationID.NotFound"):
        ec2.describe_addresses(AllocationIds=[made["AllocationId"]])
    assert not ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [made["AllocationId"]]}])["Tags"]


def test_an_address_takes_the_place_of_the_drawn_one_and_stays(ec2, instances, address):
    instance = instances[0]
    drawn = public(ec2, instance)
    association = ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instance)["AssociationId"]
    shown = described(ec2, instance)
    assert shown["PublicIpAddress"] == address["PublicIp"] != drawn
    assert address["PublicIp"].replace(".", "-") in shown["PublicDnsName"]
    (interface,) = shown["NetworkInterfaces"]
    assert interface["Association"]["IpOwnerId"] == interface["OwnerId"]
    found = the(ec2, address)
    assert found["AssociationId"] == association and found["InstanceId"] == instance
    assert found["NetworkInterfaceId"] == interface["NetworkInterfaceId"]
    assert found["NetworkInterfaceOwnerId"] == interface["OwnerId"]
    assert found["PrivateIpAddress"] == shown["PrivateIpAddress"]
    # Once more is no error, and no other association.
    assert ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instance)["AssociationId"] == association

    ec2.stop_instances(InstanceIds=[instance])
    wait(ec2, "instance_stopped", InstanceIds=[instance])
    assert public(ec2, instance) == address["PublicIp"]
    ec2.start_instances(InstanceIds=[instance])
    wait(ec2, "instance_running", InstanceIds=[instance])
    assert public(ec2, instance) == address["PublicIp"]

    ec2.disassociate_address(AssociationId=association)
    assert "AssociationId" not in the(ec2, address)
    # It has another drawn one at once.
    assert public(ec2, instance) not in [None, drawn, address["PublicIp"]]
    with refused("InvalidAssociationID.NotFound", association):
        ec2.disassociate_address(AssociationId=association)
    ec2.disassociate_address(PublicIp=address["PublicIp"])


def test_an_address_moves_between_instances(ec2, instances, address):
    one, two = instances
    first = ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=one)["AssociationId"]
    with refused("Resource.AlreadyAssociated", first):
        ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=two, AllowReassociation=False)
    assert public(ec2, one) == address["PublicIp"] != public(ec2, two)
    (interface,) = described(ec2, two)["NetworkInterfaces"]
    moved = ec2.associate_address(
        PublicIp=address["PublicIp"], NetworkInterfaceId=interface["NetworkInterfaceId"], AllowReassociation=True,
        PrivateIpAddress=interface["PrivateIpAddress"])["AssociationId"]
    assert moved != first and the(ec2, address)["InstanceId"] == two
    assert public(ec2, two) == address["PublicIp"]
    assert public(ec2, one) not in [None, address["PublicIp"]]
    # Another in its place: it stays the account's.
    other = ec2.allocate_address()
    ec2.associate_address(AllocationId=other["AllocationId"], InstanceId=two)
    assert "AssociationId" not in the(ec2, address) and public(ec2, two) == other["PublicIp"]
    # In the default VPC a release disassociates, too.
    ec2.release_address(AllocationId=other["AllocationId"])
    assert public(ec2, two) not in [None, other["PublicIp"]]


def test_a_terminated_instance_leaves_the_address(ec2, image, address):
    (made,) = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    made = made["InstanceId"]
    wait(ec2, "instance_running", InstanceIds=[made])
    ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=made)
    ec2.terminate_instances(InstanceIds=[made])
    wait(ec2, "instance_terminated", InstanceIds=[made])
    found = the(ec2, address)
    assert not {"AssociationId", "InstanceId", "NetworkInterfaceId", "PrivateIpAddress"} & found.keys()
    with refused("InvalidInstanceID", "The terminated instance"):
        ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=made)


def test_a_stopped_instance_starts_with_it(ec2, image, address):
    (made,) = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    made = made["InstanceId"]
    wait(ec2, "instance_running", InstanceIds=[made])
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=made)
    assert public(ec2, made) == address["PublicIp"]
    ec2.start_instances(InstanceIds=[made])
    wait(ec2, "instance_running", InstanceIds=[made])
    assert public(ec2, made) == address["PublicIp"]
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    ec2.disassociate_address(PublicIp=address["PublicIp"])
    assert public(ec2, made) is None
    ec2.terminate_instances(InstanceIds=[made])


def test_each_filter_finds_it(ec2, instances, address):
    association = ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instances[0])["AssociationId"]
    found = the(ec2, address)
    ec2.create_tags(Resources=[address["AllocationId"]], Tags=[{"Key": "a", "Value": "b"}])
    for name, value in [
        ("allocation-id", address["AllocationId"]), ("association-id", association), ("domain", "vpc"),
        ("instance-id", instances[0]), ("network-border-group", found["NetworkBorderGroup"]),
        ("network-interface-id", found["NetworkInterfaceId"]), ("private-ip-address", found["PrivateIpAddress"]),
        ("network-interface-owner-id", found["NetworkInterfaceOwnerId"]), ("public-ip", address["PublicIp"]),
        ("tag:a", "b"), ("tag-key", "a"),
    ]:
        (one,) = ec2.describe_addresses(Filters=[{"Name": name, "Values": [value]}])["Addresses"]
        assert one["AllocationId"] == address["AllocationId"], name
        assert not ec2.describe_addresses(Filters=[{"Name": name, "Values": ["none"]}])["Addresses"], name


def test_five_and_no_more(ec2):
    before = len(ec2.describe_addresses()["Addresses"])
    made = [ec2.allocate_address() for _ in range(5 - before)]
    with refused("AddressLimitExceeded", "The maximum number of addresses has been reached."):
        ec2.allocate_address()
    for address in made:
        ec2.release_address(PublicIp=address["PublicIp"])


def test_dry_runs_change_nothing(ec2, instances, address):
    for call in [
        lambda: ec2.allocate_address(DryRun=True),
        lambda: ec2.associate_address(AllocationId=address["AllocationId"], InstanceId=instances[0], DryRun=True),
        lambda: ec2.disassociate_address(PublicIp=address["PublicIp"], DryRun=True),
        lambda: ec2.release_address(AllocationId=address["AllocationId"], DryRun=True),
        lambda: ec2.describe_addresses(DryRun=True),
    ]:
        with refused("DryRunOperation"):
            call()
    (left,) = ec2.describe_addresses()["Addresses"]
    assert left["AllocationId"] == address["AllocationId"] and "AssociationId" not in left


@pytest.mark.parametrize("code, words, asked", [
    ("InvalidParameterValue", "domain", {"Domain": "standard"}),
    ("InvalidParameterValue", "networkBorderGroup", {"NetworkBorderGroup": "us-west-2-lax-1"}),
    ("InvalidPublicIpv4PoolID.NotFound", "ipv4pool-ec2-1", {"PublicIpv4Pool": "ipv4pool-ec2-1"}),
    ("UnsupportedOperation", "Address", {"Address": "203.0.113.9"}),
    ("UnsupportedOperation", "IpamPoolId", {"IpamPoolId": "ipam-pool-1"}),
    ("InvalidParameterValue", "instance", {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "k", "Value": ""}]}]}),
])
def test_allocate_refuses(ec2, code, words, asked):
    with refused(code, words):
        ec2.allocate_address(**asked)


def test_who_names_too_little_or_too_much_is_refused(ec2, instances, address):
    allocation, taken = address["AllocationId"], address["PublicIp"]
    (interface,) = described(ec2, instances[0])["NetworkInterfaces"]
    for code, call, asked in [
        ("MissingParameter", ec2.associate_address, {"InstanceId": instances[0]}),
        ("MissingParameter", ec2.associate_address, {"AllocationId": allocation}),
        ("InvalidParameterCombination", ec2.associate_address,
         {"AllocationId": allocation, "PublicIp": taken, "InstanceId": instances[0]}),
        ("InvalidParameterCombination", ec2.associate_address,
         {"AllocationId": allocation, "InstanceId": instances[0], "NetworkInterfaceId": interface["NetworkInterfaceId"]}),
        ("InvalidParameterValue", ec2.associate_address,
         {"AllocationId": allocation, "InstanceId": instances[0], "PrivateIpAddress": "10.9.9.9"}),
        ("AuthFailure", ec2.associate_address, {"PublicIp": "198.51.100.250", "InstanceId": instances[0]}),
        ("MissingParameter", ec2.disassociate_address, {}),
        ("AuthFailure", ec2.disassociate_address, {"PublicIp": "198.51.100.250"}),
        ("MissingParameter", ec2.release_address, {}),
        ("AuthFailure", ec2.release_address, {"PublicIp": "198.51.100.250"}),
        ("InvalidParameterValue", ec2.release_address, {"AllocationId": allocation, "NetworkBorderGroup": "else"}),
        ("InvalidAddress.NotFound", ec2.describe_addresses, {"PublicIps": ["198.51.100.250"]}),
    ]:
        with refused(code):
            call(**asked)


def test_another_account_has_nothing_of_it(cloud, address):
    other = cloud.other("ec2")
    assert other.describe_addresses()["Addresses"] == []
    with refused("InvalidAllocationID.NotFound"):
        other.release_address(AllocationId=address["AllocationId"])
    with refused("AuthFailure"):
        other.release_address(PublicIp=address["PublicIp"])
