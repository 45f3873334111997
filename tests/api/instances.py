"""The lives of instances, as boto3 sees them, with the controllers on a fake host."""

import base64

from support import ec2, refused

IMAGE = "ami-00000000000000001"
NOWHERE = "i-00000000000000001"


def run(**more):
    """One instance, as RunInstances answers it."""
    asked = {"ImageId": IMAGE, "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1, **more}
    return ec2.run_instances(**asked)["Instances"][0]


def wait(state, instance):
    ec2.get_waiter(state).wait(InstanceIds=[instance], WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})


def described(instance):
    (reservation,) = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    (found,) = reservation["Instances"]
    return found


def attribute(instance, name):
    answer = ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)
    answer.pop("ResponseMetadata")
    assert answer.pop("InstanceId") == instance
    (value,) = answer.values()
    return value


# What can't be is refused, by its name.
with refused("DryRunOperation"):
    run(DryRun=True)
for code, words, more in [
    ("InvalidAMIID.NotFound", "ami-00000000000000002", {"ImageId": "ami-00000000000000002"}),
    ("InvalidParameterValue", "t9.huge", {"InstanceType": "t9.huge"}),
    ("InvalidKeyPair.NotFound", "'none'", {"KeyName": "none"}),
    ("InvalidGroup.NotFound", "sg-", {"SecurityGroupIds": ["sg-00000000000000001"]}),
    ("InvalidSubnetID.NotFound", "subnet-", {"SubnetId": "subnet-00000000000000001"}),
    ("InvalidParameterValue", "minCount", {"MinCount": 0}),
    ("InvalidParameterValue", "16384", {"UserData": "x" * 16385}),
    ("InsufficientInstanceCapacity", "t3.micro", {"MinCount": 100, "MaxCount": 100}),
    ("UnsupportedOperation", "EbsOptimized", {"EbsOptimized": True}),
    ("UnsupportedOperation", "IamInstanceProfile", {"IamInstanceProfile": {"Name": "x"}}),
    ("UnsupportedOperation", "Placement.Tenancy", {"Placement": {"Tenancy": "dedicated"}}),
    ("UnsupportedOperation", "BlockDeviceMapping.1.Ebs.Encrypted",
     {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True}}]}),
]:
    with refused(code, words):
        run(**more)
for call in [ec2.start_instances, ec2.stop_instances, ec2.reboot_instances, ec2.terminate_instances,
             ec2.describe_instances, ec2.describe_instance_status]:
    with refused("InvalidInstanceID.NotFound", NOWHERE):
        call(InstanceIds=[NOWHERE])
    with refused("InvalidInstanceID.Malformed"):
        call(InstanceIds=["i-1"])
assert ec2.describe_instances()["Reservations"] == []
assert ec2.describe_volumes()["Volumes"] == []

# A call that is repeated is the same call.
group = ec2.create_security_group(GroupName="web", Description="d")["GroupId"]
launch = {
    "ClientToken": "once",
    "SecurityGroupIds": [group],
    "UserData": "#!/bin/sh\n",
    "TagSpecifications": [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": kind}]}
                          for kind in ["instance", "volume"]],
}
made = run(**launch)
instance = made["InstanceId"]
assert made["State"] == {"Code": 0, "Name": "pending"}, made
assert run(**launch)["InstanceId"] == instance
with refused("IdempotentParameterMismatch"):
    run(**{**launch, "UserData": "#!/bin/bash\n"})

wait("instance_running", instance)
running = described(instance)
assert running["Tags"] == [{"Key": "Name", "Value": "instance"}], running
assert running["SecurityGroups"] == [{"GroupId": group, "GroupName": "web"}], running
first = running["PublicIpAddress"]
wait("instance_status_ok", instance)
(status,) = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
assert status["InstanceStatus"]["Details"] == [{"Name": "reachability", "Status": "passed"}], status

# What can be set can be seen and undone.
assert attribute(instance, "disableApiTermination") == {"Value": False}
ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": True})
assert attribute(instance, "disableApiTermination") == {"Value": True}
with refused("OperationNotPermitted", "disableApiTermination"):
    ec2.terminate_instances(InstanceIds=[instance])
ec2.modify_instance_attribute(InstanceId=instance, Attribute="disableApiTermination", Value="false")
assert attribute(instance, "disableApiTermination") == {"Value": False}
for value in ["terminate", "stop"]:
    ec2.modify_instance_attribute(InstanceId=instance, InstanceInitiatedShutdownBehavior={"Value": value})
    assert attribute(instance, "instanceInitiatedShutdownBehavior") == {"Value": value}
for value in [False, True]:
    ec2.modify_instance_attribute(InstanceId=instance, SourceDestCheck={"Value": value})
    assert attribute(instance, "sourceDestCheck") == {"Value": value}
other = ec2.create_security_group(GroupName="other", Description="d")["GroupId"]
ec2.modify_instance_attribute(InstanceId=instance, Groups=[other, group, other])
assert sorted(g["GroupName"] for g in attribute(instance, "groupSet")) == ["other", "web"]
with refused("DependencyViolation"):
    ec2.delete_security_group(GroupId=other)
ec2.modify_instance_attribute(InstanceId=instance, Groups=[group])
ec2.delete_security_group(GroupId=other)
assert base64.b64decode(attribute(instance, "userData")["Value"]) == b"#!/bin/sh\n"
assert attribute(instance, "instanceType") == {"Value": "t3.micro"}
assert attribute(instance, "rootDeviceName") == {"Value": "/dev/xvda"}
with refused("UnsupportedOperation", "kernel"):
    attribute(instance, "kernel")
with refused("UnsupportedOperation", "InstanceType"):
    ec2.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": "t3.large"})
with refused("UnsupportedOperation", "ebsOptimized"):
    ec2.modify_instance_attribute(InstanceId=instance, Attribute="ebsOptimized", Value="true")
with refused("InvalidParameterCombination"):
    ec2.modify_instance_attribute(InstanceId=instance)
with refused("InvalidParameterCombination"):
    ec2.modify_instance_attribute(InstanceId=instance, Groups=[group],
                                  DisableApiTermination={"Value": True})
with refused("InvalidParameterValue"):
    ec2.modify_instance_attribute(InstanceId=instance, InstanceInitiatedShutdownBehavior={"Value": "x"})
with refused("InvalidInstanceID.NotFound"):
    attribute(NOWHERE, "groupSet")

# Its volume stays when it goes.
(volume,) = ec2.describe_volumes(Filters=[
    {"Name": "attachment.instance-id", "Values": [instance]}])["Volumes"]
assert volume["State"] == "in-use" and volume["Size"] == 2, volume
assert volume["Tags"] == [{"Key": "Name", "Value": "volume"}], volume
assert volume["Attachments"][0]["DeleteOnTermination"] is True, volume
disk = volume["VolumeId"]
with refused("VolumeInUse", instance):
    ec2.delete_volume(VolumeId=disk)
with refused("InvalidInstanceAttributeValue", "/dev/sdz"):
    ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[
        {"DeviceName": "/dev/sdz", "Ebs": {"DeleteOnTermination": False}}])
ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[
    {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": False}}])
(mapping,) = attribute(instance, "blockDeviceMapping")
assert mapping["Ebs"]["VolumeId"] == disk, mapping
assert mapping["Ebs"]["DeleteOnTermination"] is False, mapping

# Its life.
ec2.reboot_instances(InstanceIds=[instance])
wait("instance_status_ok", instance)
(change,) = ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"]
assert change["CurrentState"]["Name"] == "stopping", change
wait("instance_stopped", instance)
stopped = described(instance)
assert "PublicIpAddress" not in stopped, stopped
assert stopped["StateReason"]["Code"] == "Client.UserInitiatedShutdown", stopped
assert ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"] == []
with refused("IncorrectInstanceState"):
    ec2.reboot_instances(InstanceIds=[instance])
(change,) = ec2.start_instances(InstanceIds=[instance])["StartingInstances"]
assert change["CurrentState"]["Name"] == "pending", change
wait("instance_running", instance)
started = described(instance)
assert started["PrivateIpAddress"] == running["PrivateIpAddress"], started
assert started["PublicIpAddress"] != first, started
wait("instance_status_ok", instance)
(change,) = ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
assert change["CurrentState"]["Name"] == "shutting-down", change
wait("instance_terminated", instance)
gone = described(instance)
assert not {"PublicIpAddress", "PrivateIpAddress", "VpcId"} & gone.keys(), gone
assert gone["NetworkInterfaces"] == [] and gone["BlockDeviceMappings"] == [], gone
for call in [ec2.start_instances, ec2.stop_instances, ec2.reboot_instances]:
    with refused("IncorrectInstanceState", instance):
        call(InstanceIds=[instance])
with refused("IncorrectInstanceState", instance):
    ec2.modify_instance_attribute(InstanceId=instance, Groups=[group])

# And what it left.
(volume,) = ec2.describe_volumes(VolumeIds=[disk])["Volumes"]
assert volume["State"] == "available" and volume["Attachments"] == [], volume
with refused("DryRunOperation"):
    ec2.delete_volume(VolumeId=disk, DryRun=True)
ec2.delete_volume(VolumeId=disk)
ec2.get_waiter("volume_deleted").wait(VolumeIds=[disk], WaiterConfig={"Delay": 0.1, "MaxAttempts": 300})
with refused("InvalidVolume.NotFound", disk):
    ec2.delete_volume(VolumeId=disk)
ec2.delete_security_group(GroupId=group)
