"""What says that a cloud is simulated."""


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
    ec2.terminate_instances(InstanceIds=[instance])
