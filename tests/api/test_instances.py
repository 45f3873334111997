"""The lives of instances, with the controllers on a fake host."""

import base64

import pytest

from support import refused, wait

NOWHERE = "i-00000000000000001"


def run(ec2, image, **more):
    """One instance, as RunInstances answers it."""
    asked = {"ImageId": image, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1, **more}
    return ec2.run_instances(**asked)["Instances"][0]


def described(ec2, instance):
    (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    (found,) = reservation["Instances"]
    return found


def attribute(ec2, instance, name):
    answer = ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)
    answer.pop("ResponseMetadata")
    assert answer.pop("InstanceId") == instance
    (value,) = answer.values()
    return value


@pytest.fixture(scope="module")
def group(ec2):
    return ec2.create_security_group(GroupName="web", Description="d")["GroupId"]


@pytest.fixture(scope="module")
def instance(ec2, image, group):
    """A running instance with tags, user data and the group `web`."""
    made = run(ec2, image, SecurityGroupIds=[group], UserData="#!/bin/sh\n", TagSpecifications=[
        {"ResourceType": kind, "Tags": [{"Key": "Name", "Value": kind}]} for kind in ["instance", "volume"]])
    assert made["State"] == {"Code": 0, "Name": "pending"}
    wait(ec2, "instance_running", InstanceIds=[made["InstanceId"]])
    return made["InstanceId"]


@pytest.mark.parametrize("code, words, more", [
    ("DryRunOperation", "", {"DryRun": True}),
    ("InvalidParameterValue", "t9.huge", {"InstanceType": "t9.huge"}),
    ("InvalidKeyPair.NotFound", "'none'", {"KeyName": "none"}),
    ("InvalidGroup.NotFound", "sg-", {"SecurityGroupIds": ["sg-00000000000000001"]}),
    ("InvalidSubnetID.NotFound", "subnet-", {"SubnetId": "subnet-00000000000000001"}),
    ("InvalidParameterValue", "minCount", {"MinCount": 0}),
    ("InvalidParameterValue", "16384", {"UserData": "x" * 16385}),
    ("InsufficientInstanceCapacity", "m5.8xlarge", {"InstanceType": "m5.8xlarge", "MinCount": 20, "MaxCount": 20}),
    ("UnsupportedOperation", "EbsOptimized", {"EbsOptimized": True}),
    ("UnsupportedOperation", "IamInstanceProfile", {"IamInstanceProfile": {"Name": "x"}}),
    ("UnsupportedOperation", "Placement.Tenancy", {"Placement": {"Tenancy": "dedicated"}}),
    ("UnsupportedOperation", "BlockDeviceMapping.1.Ebs.Encrypted",
     {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}]}),
], ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None)
def test_run_refuses_what_cant_be_and_makes_nothing(ec2, image, code, words, more):
    def there():
        return ec2.describe_instances()["Reservations"], ec2.describe_volumes()["Volumes"]
    before = there()
    with refused(code, words):
        run(ec2, image, **more)
    assert there() == before


def test_a_call_that_is_repeated_is_the_same_call(ec2, image):
    launch = {"ClientToken": "once", "UserData": "#!/bin/sh\n"}
    instance = run(ec2, image, **launch)["InstanceId"]
    assert run(ec2, image, **launch)["InstanceId"] == instance
    with refused("IdempotentParameterMismatch"):
        run(ec2, image, **{**launch, "UserData": "#!/bin/bash\n"})
    ec2.terminate_instances(InstanceIds=[instance])
    wait(ec2, "instance_terminated", InstanceIds=[instance])


def test_what_it_is_when_it_runs(ec2, group, instance):
    running = described(ec2, instance)
    assert running["Tags"] == [{"Key": "Name", "Value": "instance"}]
    assert running["SecurityGroups"] == [{"GroupId": group, "GroupName": "web"}]
    wait(ec2, "instance_status_ok", InstanceIds=[instance])
    (status,) = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
    assert status["InstanceStatus"]["Details"] == [{"Name": "reachability", "Status": "passed"}]


def test_one_that_may_hibernate_does_and_goes_on(ec2, image, instance):
    with refused("UnsupportedHibernationConfiguration", f"not configured at launch for hibernation: {instance}"):
        ec2.stop_instances(InstanceIds=[instance], Hibernate=True)
    assert described(ec2, instance)["HibernationOptions"] == {"Configured": False}
    (kind,) = ec2.describe_instance_types(InstanceTypes=["t3.micro"])["InstanceTypes"]
    assert kind["HibernationSupported"]
    made = run(ec2, image, HibernationOptions={"Configured": True})
    assert made["HibernationOptions"] == {"Configured": True}
    one = {"InstanceIds": [made["InstanceId"]]}
    wait(ec2, "instance_running", **one)
    found = ec2.describe_instances(Filters=[{"Name": "hibernation-options.configured", "Values": ["true"]}])
    assert [i["InstanceId"] for r in found["Reservations"] for i in r["Instances"]] == one["InstanceIds"]
    with refused("InvalidParameterCombination", "hibernate"):
        ec2.stop_instances(**one, Hibernate=True, Force=True)
    (change,) = ec2.stop_instances(**one, Hibernate=True)["StoppingInstances"]
    assert change["CurrentState"]["Name"] == "stopping"
    wait(ec2, "instance_stopped", **one)
    stopped = described(ec2, made["InstanceId"])
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedHibernate"
    assert "PublicIpAddress" not in stopped
    with refused("IncorrectInstanceState"):
        ec2.reboot_instances(**one)
    ec2.start_instances(**one)
    wait(ec2, "instance_running", **one)
    ec2.stop_instances(**one, Hibernate=True)
    wait(ec2, "instance_stopped", **one)
    ec2.terminate_instances(**one)
    wait(ec2, "instance_terminated", **one)


def test_termination_protection(ec2, instance):
    assert attribute(ec2, instance, "disableApiTermination") == {"Value": False}
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": True})
    assert attribute(ec2, instance, "disableApiTermination") == {"Value": True}
    with refused("OperationNotPermitted", "disableApiTermination"):
        ec2.terminate_instances(InstanceIds=[instance])
    ec2.modify_instance_attribute(InstanceId=instance, Attribute="disableApiTermination", Value="false")
    assert attribute(ec2, instance, "disableApiTermination") == {"Value": False}


@pytest.mark.parametrize("parameter, name, values", [
    ("InstanceInitiatedShutdownBehavior", "instanceInitiatedShutdownBehavior", ["terminate", "stop"]),
    ("SourceDestCheck", "sourceDestCheck", [False, True]),
])
def test_attributes_can_be_set_and_undone(ec2, instance, parameter, name, values):
    for value in values:
        ec2.modify_instance_attribute(InstanceId=instance, **{parameter: {"Value": value}})
        assert attribute(ec2, instance, name) == {"Value": value}


def test_what_a_stopped_instance_can_be_given(ec2, image):
    made = run(ec2, image, UserData="#!/bin/sh\n")["InstanceId"]
    wait(ec2, "instance_running", InstanceIds=[made])
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    ec2.modify_instance_attribute(InstanceId=made, InstanceType={"Value": "t3.large"})
    ec2.modify_instance_attribute(InstanceId=made, UserData={"Value": b"#!/bin/bash\n"})
    assert attribute(ec2, made, "instanceType") == {"Value": "t3.large"}
    assert base64.b64decode(attribute(ec2, made, "userData")["Value"]) == b"#!/bin/bash\n"
    ec2.start_instances(InstanceIds=[made])
    wait(ec2, "instance_running", InstanceIds=[made])
    assert described(ec2, made)["InstanceType"] == "t3.large"
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    ec2.modify_instance_attribute(InstanceId=made, UserData={"Value": b""})
    assert attribute(ec2, made, "userData") == {}
    # More than its host has.
    ec2.modify_instance_attribute(InstanceId=made, InstanceType={"Value": "m5.8xlarge"})
    hungry = ec2.describe_instance_types(InstanceTypes=["m5.8xlarge"])["InstanceTypes"][0]
    assert described(ec2, made)["CpuOptions"]["CoreCount"] == hungry["VCpuInfo"]["DefaultVCpus"]
    ec2.terminate_instances(InstanceIds=[made])


def test_the_type_of_one_that_may_hibernate_stays(ec2, image):
    made = run(ec2, image, HibernationOptions={"Configured": True})["InstanceId"]
    wait(ec2, "instance_running", InstanceIds=[made])
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    with refused("UnsupportedOperation", "hibernated"):
        ec2.modify_instance_attribute(InstanceId=made, InstanceType={"Value": "t3.large"})
    ec2.terminate_instances(InstanceIds=[made])


def test_protection_from_a_stop_is_one_from_termination_too(ec2, image):
    made = run(ec2, image, DisableApiStop=True)["InstanceId"]
    assert attribute(ec2, made, "disableApiStop") == {"Value": True}
    wait(ec2, "instance_running", InstanceIds=[made])
    for call in [ec2.stop_instances, ec2.terminate_instances]:
        with refused("OperationNotPermitted", "'disableApiStop'"):
            call(InstanceIds=[made])
    ec2.modify_instance_attribute(InstanceId=made, DisableApiStop={"Value": False})
    ec2.modify_instance_attribute(InstanceId=made, Attribute="disableApiStop", Value="true")
    with refused("OperationNotPermitted"):
        ec2.stop_instances(InstanceIds=[made])
    ec2.modify_instance_attribute(InstanceId=made, DisableApiStop={"Value": False})
    ec2.stop_instances(InstanceIds=[made])
    wait(ec2, "instance_stopped", InstanceIds=[made])
    ec2.terminate_instances(InstanceIds=[made])


def test_metadata_options_change_one_by_one(ec2, image):
    made = run(ec2, image)["InstanceId"]
    changed = ec2.modify_instance_metadata_options(InstanceId=made, HttpTokens="required", HttpProtocolIpv6="disabled")
    assert changed["InstanceId"] == made
    assert changed["InstanceMetadataOptions"]["HttpTokens"] == "required"
    ec2.modify_instance_metadata_options(InstanceId=made, HttpPutResponseHopLimit=7, InstanceMetadataTags="enabled")
    ec2.modify_instance_metadata_options(InstanceId=made, HttpEndpoint="disabled")
    assert described(ec2, made)["MetadataOptions"] == {
        "State": "applied", "HttpTokens": "required", "HttpPutResponseHopLimit": 7, "HttpEndpoint": "disabled",
        "HttpProtocolIpv6": "disabled", "InstanceMetadataTags": "enabled"}
    for code, asked in [
        ("InvalidParameterValue", {"HttpTokens": "x"}),
        ("InvalidParameterValue", {"HttpPutResponseHopLimit": 65}),
        ("UnsupportedOperation", {"HttpProtocolIpv6": "enabled"}),
        ("InvalidParameterCombination", {}),
    ]:
        with refused(code):
            ec2.modify_instance_metadata_options(InstanceId=made, **asked)
    ec2.terminate_instances(InstanceIds=[made])
    with refused("IncorrectInstanceState"):
        ec2.modify_instance_metadata_options(InstanceId=made, HttpTokens="optional")


def test_its_groups_can_be_changed(ec2, group, instance):
    other = ec2.create_security_group(GroupName="other", Description="d")["GroupId"]
    ec2.modify_instance_attribute(InstanceId=instance, Groups=[other, group, other])
    assert sorted(g["GroupName"] for g in attribute(ec2, instance, "groupSet")) == ["other", "web"]
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=other)
    ec2.modify_instance_attribute(InstanceId=instance, Groups=[group])
    ec2.delete_security_group(GroupId=other)


def test_attributes_that_are_only_read(ec2, instance):
    assert base64.b64decode(attribute(ec2, instance, "userData")["Value"]) == b"#!/bin/sh\n"
    assert attribute(ec2, instance, "instanceType") == {"Value": "t3.micro"}
    assert attribute(ec2, instance, "rootDeviceName") == {"Value": "/dev/xvda"}
    # An instance of this kind has none of these.
    for name in ["kernel", "ramdisk", "sriovNetSupport"]:
        assert attribute(ec2, instance, name) == {}
    assert attribute(ec2, instance, "enclaveOptions") == {"Enabled": False}
    assert attribute(ec2, instance, "productCodes") == []
    for name in ["enaSupport", "tenancy"]:
        with refused("InvalidParameterValue", name):
            attribute(ec2, instance, name)
    with refused("InvalidInstanceID.NotFound"):
        attribute(ec2, NOWHERE, "groupSet")


@pytest.mark.parametrize("code, words, asked", [
    ("IncorrectInstanceState", "instanceType", {"InstanceType": {"Value": "t3.large"}}),
    ("IncorrectInstanceState", "userData", {"UserData": {"Value": b"#!/bin/bash"}}),
    ("InvalidParameterValue", "t9.huge", {"InstanceType": {"Value": "t9.huge"}}),
    ("InvalidParameterValue", "16384", {"UserData": {"Value": b"x" * 16385}}),
    ("InvalidParameterValue", "BASE64", {"Attribute": "userData", "Value": "!"}),
    ("UnsupportedOperation", "ebsOptimized", {"EbsOptimized": {"Value": True}}),
    ("UnsupportedOperation", "enaSupport", {"EnaSupport": {"Value": True}}),
    ("UnsupportedOperation", "enclaveOptions", {"EnclaveOptions": {"Enabled": True}}),
    ("UnsupportedOperation", "SriovNetSupport", {"SriovNetSupport": {"Value": "simple"}}),
    ("UnsupportedOperation", "Kernel", {"Kernel": {"Value": "aki-1"}}),
    ("UnsupportedOperation", "kernel", {"Attribute": "kernel", "Value": "aki-1"}),
    ("UnsupportedOperation", "ebsOptimized", {"Attribute": "ebsOptimized", "Value": "true"}),
    ("InvalidParameterValue", "tenancy", {"Attribute": "tenancy", "Value": "default"}),
    ("InvalidParameterValue", "rootDeviceName", {"Attribute": "rootDeviceName", "Value": "/dev/sda1"}),
    ("InvalidParameterCombination", "groupSet", {"Attribute": "groupSet", "Value": "sg-1"}),
    ("InvalidParameterCombination", "", {}),
    ("InvalidParameterCombination", "",
     {"SourceDestCheck": {"Value": True}, "DisableApiTermination": {"Value": True}}),
    ("InvalidParameterCombination", "",
     {"SourceDestCheck": {"Value": True}, "EbsOptimized": {"Value": False}}),
    ("InvalidParameterValue", "", {"InstanceInitiatedShutdownBehavior": {"Value": "x"}}),
    ("InvalidInstanceAttributeValue", "/dev/sdz",
     {"BlockDeviceMappings": [{"DeviceName": "/dev/sdz", "Ebs": {"DeleteOnTermination": False}}]}),
])
def test_modify_refuses(ec2, instance, code, words, asked):
    with refused(code, words):
        ec2.modify_instance_attribute(InstanceId=instance, **asked)


def test_reset(ec2, instance):
    ec2.modify_instance_attribute(InstanceId=instance, SourceDestCheck={"Value": False})
    with refused("DryRunOperation"):
        ec2.reset_instance_attribute(InstanceId=instance, Attribute="sourceDestCheck", DryRun=True)
    assert attribute(ec2, instance, "sourceDestCheck") == {"Value": False}
    ec2.reset_instance_attribute(InstanceId=instance, Attribute="sourceDestCheck")
    assert attribute(ec2, instance, "sourceDestCheck") == {"Value": True}
    for name in ["kernel", "ramdisk"]:
        with refused("UnsupportedOperation", name):
            ec2.reset_instance_attribute(InstanceId=instance, Attribute=name)
    for name in ["instanceType", "groupSet", "rootDeviceName", "tenancy"]:
        with refused("InvalidParameterValue", name):
            ec2.reset_instance_attribute(InstanceId=instance, Attribute=name)


@pytest.mark.parametrize("asked", [
    {"EbsOptimized": {"Value": False}},
    {"Attribute": "ebsOptimized", "Value": "false"},
    {"DisableApiStop": {"Value": False}},
    {"EnaSupport": {"Value": False}},
    {"EnclaveOptions": {"Enabled": False}},
    {"InstanceType": {"Value": "t3.micro"}},
    {"Attribute": "instanceType", "Value": "t3.micro"},
    {"UserData": {"Value": b"#!/bin/sh\n"}},
    {"DisableApiTermination": {"Value": False}},
    {"SourceDestCheck": {"Value": True}},
    {"InstanceInitiatedShutdownBehavior": {"Value": "stop"}},
], ids=str)
def test_modify_accepts_what_changes_nothing(ec2, instance, asked):
    before = described(ec2, instance)
    ec2.modify_instance_attribute(InstanceId=instance, **asked)
    assert described(ec2, instance) == before
    with refused("DryRunOperation"):
        ec2.modify_instance_attribute(InstanceId=instance, DryRun=True, **asked)
    with refused("InvalidInstanceID.NotFound"):
        ec2.modify_instance_attribute(InstanceId=NOWHERE, **asked)


def test_a_life_from_reboot_to_the_volume_it_leaves(ec2, group, instance):
    running = described(ec2, instance)
    (volume,) = ec2.describe_volumes(Filters=[
        {"Name": "attachment.instance-id", "Values": [instance]}])["Volumes"]
    assert volume["State"] == "in-use" and volume["Size"] == 2
    assert volume["Tags"] == [{"Key": "Name", "Value": "volume"}]
    assert volume["Attachments"][0]["DeleteOnTermination"] is True
    disk = volume["VolumeId"]
    with refused("VolumeInUse", instance):
        ec2.delete_volume(VolumeId=disk)
    ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[
        {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}])
    (mapping,) = attribute(ec2, instance, "blockDeviceMapping")
    assert mapping["Ebs"]["VolumeId"] == disk
    assert mapping["Ebs"]["DeleteOnTermination"] is False

    ec2.reboot_instances(InstanceIds=[instance])
    wait(ec2, "instance_status_ok", InstanceIds=[instance])
    (change,) = ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"]
    assert change["CurrentState"]["Name"] == "stopping"
    wait(ec2, "instance_stopped", InstanceIds=[instance])
    stopped = described(ec2, instance)
    assert "PublicIpAddress" not in stopped
    assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"] == []
    with refused("IncorrectInstanceState"):
        ec2.reboot_instances(InstanceIds=[instance])
    (change,) = ec2.start_instances(InstanceIds=[instance])["StartingInstances"]
    assert change["CurrentState"]["Name"] == "pending"
    wait(ec2, "instance_running", InstanceIds=[instance])
    started = described(ec2, instance)
    assert started["PrivateIpAddress"] == running["PrivateIpAddress"]
    assert started["PublicIpAddress"] != running["PublicIpAddress"]
    wait(ec2, "instance_status_ok", InstanceIds=[instance])
    (change,) = ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
    assert change["CurrentState"]["Name"] == "shutting-down"
    wait(ec2, "instance_terminated", InstanceIds=[instance])
    gone = described(ec2, instance)
    assert not {"PublicIpAddress", "PrivateIpAddress", "VpcId"} & gone.keys()
    assert gone["NetworkInterfaces"] == [] and gone["BlockDeviceMappings"] == []
    for call in [ec2.start_instances, ec2.stop_instances, ec2.reboot_instances]:
        with refused("IncorrectInstanceState", instance):
            call(InstanceIds=[instance])
    with refused("IncorrectInstanceState", instance):
        ec2.modify_instance_attribute(InstanceId=instance, Groups=[group])

    (volume,) = ec2.describe_volumes(VolumeIds=[disk])["Volumes"]
    assert volume["State"] == "available" and volume["Attachments"] == []
    with refused("DryRunOperation"):
        ec2.delete_volume(VolumeId=disk, DryRun=True)
    ec2.delete_volume(VolumeId=disk)
    wait(ec2, "volume_deleted", VolumeIds=[disk])
    with refused("InvalidVolume.NotFound", disk):
        ec2.delete_volume(VolumeId=disk)
    ec2.delete_security_group(GroupId=group)
