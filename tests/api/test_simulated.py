"""What says that a cloud is simulated."""

import base64

from support import refused, wait


def test_every_answer_says_so(ec2):
    answer = ec2.describe_availability_zones()
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-hearth-simulated-hosts"] == "1"
    for zone in answer["AvailabilityZones"]:
        (message,) = zone["Messages"]
        assert "simulated" in message["Message"]


def test_a_console_says_so(ec2, image):
    made = ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance = made["Instances"][0]["InstanceId"]
    ec2.get_waiter("instance_running").wait(
        InstanceIds=[instance], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    assert "simulated" in ec2.get_console_output(InstanceId=instance)["Output"]
    seen = ec2.get_console_screenshot(InstanceId=instance, WakeUp=True)
    assert base64.b64decode(seen["ImageData"]).startswith(b"\xff\xd8\xff"), "a JPEG"
    with refused("DryRunOperation"):
        ec2.send_diagnostic_interrupt(InstanceId=instance, DryRun=True)
    ec2.send_diagnostic_interrupt(InstanceId=instance)
    ec2.stop_instances(InstanceIds=[instance])
    wait(ec2, "instance_stopped", InstanceIds=[instance])
    with refused("IncorrectInstanceState"):
        ec2.get_console_screenshot(InstanceId=instance)
    with refused("IncorrectInstanceState"):
        ec2.send_diagnostic_interrupt(InstanceId=instance)
    ec2.terminate_instances(InstanceIds=[instance])
