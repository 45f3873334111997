"""Launch templates, their versions, and launches from them."""

import base64

import pytest

from support import refused, wait

NOWHERE = "lt-0123456789abcdef0"


@pytest.fixture(scope="module")
def data(image):
    return {"ImageId": image, "InstanceType": "t3.nano"}


@pytest.fixture
def made(ec2, data, request):
    """A template with three versions, of which the second is the default one."""
    name = request.node.name.replace("[", "(").replace("]", ")")[:100]
    template = ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data, TagSpecifications=[
        {"ResourceType": "launch-template", "Tags": [{"Key": "Team", "Value": "red"}]}])["LaunchTemplate"]
    of = {"LaunchTemplateId": template["LaunchTemplateId"]}
    ec2.create_launch_template_version(
        **of, SourceVersion="1", VersionDescription="two", LaunchTemplateData={"InstanceType": "t3.micro"})
    ec2.create_launch_template_version(
        **of, LaunchTemplateData={"ImageId": data["ImageId"], "InstanceType": "t3.small"})
    yield ec2.modify_launch_template(**of, DefaultVersion="2")["LaunchTemplate"]
    ec2.delete_launch_template(**of)


def numbers(ec2, **asked):
    return [v["VersionNumber"] for v in ec2.describe_launch_template_versions(**asked)["LaunchTemplateVersions"]]


def test_a_template_is_what_was_asked_for(ec2, sts, made):
    (found,) = ec2.describe_launch_templates(LaunchTemplateIds=[made["LaunchTemplateId"]])["LaunchTemplates"]
    assert found == made
    assert made["DefaultVersionNumber"] == 2 and made["LatestVersionNumber"] == 3
    assert made["Tags"] == [{"Key": "Team", "Value": "red"}]
    assert made["CreatedBy"] == sts.get_caller_identity()["Arn"] and made["CreateTime"].tzinfo


def test_names(ec2, made, data):
    name = made["LaunchTemplateName"]
    with refused("InvalidLaunchTemplateName.AlreadyExistsException", "already in use"):
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    for bad in ["ab", "a" * 129, "some illegal name", "ä" * 4]:
        with refused("InvalidLaunchTemplateName.MalformedException"):
            ec2.create_launch_template(LaunchTemplateName=bad, LaunchTemplateData=data)
    with refused("MissingParameter"):
        ec2.create_launch_template(LaunchTemplateName="nothing", LaunchTemplateData={})
    with refused("DryRunOperation"):
        ec2.create_launch_template(LaunchTemplateName="dry", LaunchTemplateData=data, DryRun=True)
    for call, more in [("describe_launch_template_versions", {}), ("modify_launch_template", {"DefaultVersion": "1"}),
                       ("create_launch_template_version", {"LaunchTemplateData": data}),
                       ("delete_launch_template", {}), ("delete_launch_template_versions", {"Versions": ["1"]})]:
        call = getattr(ec2, call)
        with refused("InvalidLaunchTemplateName.NotFoundException", "dry"):
            call(LaunchTemplateName="dry", **more)
        with refused("InvalidLaunchTemplateId.NotFound", NOWHERE):
            call(LaunchTemplateId=NOWHERE, **more)
        with refused("MissingParameter", "launch template ID or launch template name"):
            call(**more)
        with refused("InvalidParameterCombination"):
            call(LaunchTemplateId=made["LaunchTemplateId"], LaunchTemplateName=name, **more)
        with refused("DryRunOperation"):
            call(LaunchTemplateName=name, DryRun=True, **more)


@pytest.mark.parametrize("name, value", [
    ("EbsOptimized", True), ("IamInstanceProfile", {"Name": "r"}), ("CpuOptions", {"CoreCount": 1}),
    ("InstanceRequirements", {"VCpuCount": {"Min": 1}, "MemoryMiB": {"Min": 1}}), ("KernelId", "aki-1"),
    ("InstanceMarketOptions", {"MarketType": "spot"}),
])
def test_what_is_not_supported_is_refused_when_it_is_kept(ec2, data, name, value):
    with refused("UnsupportedOperation", f"LaunchTemplateData.{name}"):
        ec2.create_launch_template(LaunchTemplateName="bad", LaunchTemplateData={**data, name: value})


def test_wrong_data_is_refused_when_it_is_kept(ec2, data):
    def create(**more):
        ec2.create_launch_template(LaunchTemplateName="bad", LaunchTemplateData={**data, **more})
    with refused("InvalidParameterValue", "BASE64"):
        create(UserData="!")
    with refused("InvalidParameterValue", "taggable"):
        create(TagSpecifications=[{"ResourceType": "vpc", "Tags": [{"Key": "a", "Value": "b"}]}])
    with refused("InvalidParameterValue", "VersionDescription"):
        ec2.create_launch_template(LaunchTemplateName="bad", LaunchTemplateData=data, VersionDescription="x" * 256)


def test_a_version_is_no_longer_with_what_its_source_has(ec2, made):
    long = [f"sg-{n:017x}" for n in range(8000)]
    of = {"LaunchTemplateId": made["LaunchTemplateId"]}
    ec2.create_launch_template_version(**of, LaunchTemplateData={"SecurityGroupIds": long})
    with refused("InvalidParameterValue", "longer than"):
        ec2.create_launch_template_version(
            **of, SourceVersion="4", LaunchTemplateData={"SecurityGroups": long})


def test_a_repeated_call_makes_one(ec2, made, data):
    asked = {"LaunchTemplateName": "twice", "LaunchTemplateData": data, "ClientToken": "once"}
    one, two = [ec2.create_launch_template(**asked)["LaunchTemplate"] for _ in range(2)]
    assert one == two
    with refused("IdempotentParameterMismatch"):
        ec2.create_launch_template(**{**asked, "LaunchTemplateName": "thrice"})
    asked = {"LaunchTemplateName": "twice", "LaunchTemplateData": data, "ClientToken": "version"}
    one, two = [ec2.create_launch_template_version(**asked)["LaunchTemplateVersion"] for _ in range(2)]
    assert one == two and one["VersionNumber"] == 2
    ec2.delete_launch_template(LaunchTemplateName="twice")


def test_versions(ec2, made, data):
    of = {"LaunchTemplateId": made["LaunchTemplateId"]}
    three, two, one = ec2.describe_launch_template_versions(**of)["LaunchTemplateVersions"]
    assert [v["VersionNumber"] for v in (three, two, one)] == [3, 2, 1]
    assert [v["DefaultVersion"] for v in (three, two, one)] == [False, True, False]
    assert one["LaunchTemplateData"] == data and "VersionDescription" not in one
    assert two["VersionDescription"] == "two"
    # The source's, but for what the request had.
    assert two["LaunchTemplateData"] == {**data, "InstanceType": "t3.micro"}
    assert two["LaunchTemplateName"] == made["LaunchTemplateName"]

    assert numbers(ec2, **of, Versions=["1", "$Latest", "$Default"]) == [3, 2, 1]
    assert numbers(ec2, **of, Versions=["$Default", "2"]) == [2]
    assert numbers(ec2, **of, MinVersion="2") == [3, 2]
    assert numbers(ec2, **of, MaxVersion="2") == [2, 1]
    assert numbers(ec2, **of, MinVersion="2", MaxVersion="2") == [2]
    for filters, found in [
        ([{"Name": "is-default-version", "Values": ["true"]}], [2]),
        ([{"Name": "instance-type", "Values": ["t3.small", "t3.nano"]}], [3, 1]),
        ([{"Name": "image-id", "Values": [data["ImageId"]]}], [3, 2, 1]),
        ([{"Name": "http-tokens", "Values": ["required"]}], []),
    ]:
        assert numbers(ec2, **of, Filters=filters) == found
    pages = ec2.get_paginator("describe_launch_template_versions").paginate(**of, PaginationConfig={"PageSize": 1})
    assert [v["VersionNumber"] for page in pages for v in page["LaunchTemplateVersions"]] == [3, 2, 1]
    for version, code in [("4", "InvalidLaunchTemplateId.VersionNotFound"), ("x", "InvalidParameterValue"),
                          ("99999999999999999999", "InvalidLaunchTemplateId.VersionNotFound")]:
        with refused(code, version):
            numbers(ec2, **of, Versions=[version])
        with refused(code, version):
            ec2.modify_launch_template(**of, DefaultVersion=version)
        with refused(code, version):
            ec2.create_launch_template_version(**of, SourceVersion=version, LaunchTemplateData=data)
    with refused("InvalidParameterCombination"):
        numbers(ec2, **of, Versions=["1"], MinVersion="1")


def test_versions_of_all_templates(ec2, made, data):
    other = ec2.create_launch_template(LaunchTemplateName="other", LaunchTemplateData=data)["LaunchTemplate"]
    ours = {made["LaunchTemplateId"], other["LaunchTemplateId"]}

    def found(*versions):
        pages = ec2.get_paginator("describe_launch_template_versions").paginate(
            Versions=list(versions), PaginationConfig={"PageSize": 1})
        return sorted(v["VersionNumber"] for page in pages for v in page["LaunchTemplateVersions"]
                      if v["LaunchTemplateId"] in ours)
    assert found("$Latest") == [1, 3]
    assert found("$Default") == [1, 2]
    assert found("$Latest", "$Default") == [1, 2, 3]
    with refused("MissingParameter"):
        found("1")
    ec2.delete_launch_template(LaunchTemplateName="other")


def test_lists(ec2, made, data):
    names = [f"listed-{n}" for n in range(3)]
    for name in names:
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)

    def found(**asked):
        pages = ec2.get_paginator("describe_launch_templates").paginate(**asked)
        return sorted(t["LaunchTemplateName"] for page in pages for t in page["LaunchTemplates"])
    assert found(LaunchTemplateNames=names) == names
    assert found(Filters=[{"Name": "launch-template-name", "Values": ["listed-*"]}]) == names
    assert found(Filters=[{"Name": "tag:Team", "Values": ["red"]}]) == [made["LaunchTemplateName"]]
    assert set(found(PaginationConfig={"PageSize": 1})) >= {*names, made["LaunchTemplateName"]}
    with refused("InvalidLaunchTemplateName.NotFoundException", "At least one"):
        found(LaunchTemplateNames=[names[0], "unlisted"])
    with refused("InvalidLaunchTemplateId.NotFound"):
        found(LaunchTemplateIds=[NOWHERE])
    for name in names:
        ec2.delete_launch_template(LaunchTemplateName=name)


def test_tags_and_deletion(ec2, made, data):
    gone = ec2.create_launch_template(LaunchTemplateName="gone", LaunchTemplateData=data)["LaunchTemplate"]
    ec2.create_tags(Resources=[gone["LaunchTemplateId"]], Tags=[{"Key": "a", "Value": "b"}])
    (tag,) = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [gone["LaunchTemplateId"]]}])["Tags"]
    assert tag["ResourceType"] == "launch-template"
    deleted = ec2.delete_launch_template(LaunchTemplateName="gone")["LaunchTemplate"]
    assert deleted == {**gone, "Tags": [{"Key": "a", "Value": "b"}]}
    with refused("InvalidLaunchTemplateId.NotFound"):
        ec2.delete_launch_template(LaunchTemplateId=gone["LaunchTemplateId"])
    assert not ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [gone["LaunchTemplateId"]]}])["Tags"]
    again = ec2.create_launch_template(LaunchTemplateName="gone", LaunchTemplateData=data)["LaunchTemplate"]
    assert again["LaunchTemplateId"] != gone["LaunchTemplateId"]
    # More versions than one transaction deletes.
    for _ in range(120):
        ec2.create_launch_template_version(LaunchTemplateName="gone", LaunchTemplateData=data)
    assert len(numbers(ec2, LaunchTemplateName="gone")) == 121
    ec2.delete_launch_template(LaunchTemplateName="gone")
    with refused("InvalidLaunchTemplateId.NotFound"):
        numbers(ec2, LaunchTemplateId=again["LaunchTemplateId"])


def test_versions_are_deleted_each_by_itself(ec2, made, data):
    of = {"LaunchTemplateId": made["LaunchTemplateId"]}
    answer = ec2.delete_launch_template_versions(**of, Versions=["2", "3", "7"])
    (deleted,) = answer["SuccessfullyDeletedLaunchTemplateVersions"]
    assert deleted == {**of, "LaunchTemplateName": made["LaunchTemplateName"], "VersionNumber": 3}
    default, unknown = answer["UnsuccessfullyDeletedLaunchTemplateVersions"]
    assert default["VersionNumber"] == 2 and default["ResponseError"]["Code"] == "unexpectedError"
    assert unknown["VersionNumber"] == 7
    assert unknown["ResponseError"]["Code"] == "launchTemplateVersionDoesNotExist"
    (found,) = ec2.describe_launch_templates(LaunchTemplateIds=[made["LaunchTemplateId"]])["LaunchTemplates"]
    assert found["LatestVersionNumber"] == 2 and numbers(ec2, **of) == [2, 1]
    # A number isn't given again.
    new = ec2.create_launch_template_version(**of, LaunchTemplateData=data)["LaunchTemplateVersion"]
    assert new["VersionNumber"] == 4
    with refused("InvalidParameterValue", "$Latest"):
        ec2.delete_launch_template_versions(**of, Versions=["$Latest"])
    with refused("InvalidParameterValue", "200"):
        ec2.delete_launch_template_versions(**of, Versions=["1"] * 201)


def launch(ec2, **asked):
    (instance,) = ec2.run_instances(MinCount=1, MaxCount=1, **asked)["Instances"]
    return instance


def tags(described):
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}


def test_launches(ec2, made):
    template = made["LaunchTemplateId"]
    for asked, kind, version in [
        ({"LaunchTemplateId": template}, "t3.micro", "2"),
        ({"LaunchTemplateName": made["LaunchTemplateName"], "Version": "$Latest"}, "t3.small", "3"),
        ({"LaunchTemplateId": template, "Version": "1"}, "t3.nano", "1"),
    ]:
        instance = launch(ec2, LaunchTemplate=asked)
        assert instance["InstanceType"] == kind
        assert tags(instance) == {"aws:ec2launchtemplate:id": template, "aws:ec2launchtemplate:version": version}
        (found,) = ec2.describe_instances(Filters=[
            {"Name": "tag:aws:ec2launchtemplate:id", "Values": [template]},
            {"Name": "tag:aws:ec2launchtemplate:version", "Values": [version]}])["Reservations"]
        assert found["Instances"][0]["InstanceId"] == instance["InstanceId"]
        with refused("InvalidParameterValue", "aws:"):
            ec2.delete_tags(Resources=[instance["InstanceId"]], Tags=[{"Key": "aws:ec2launchtemplate:id"}])
        ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])


def test_a_launch_overrides_and_merges(ec2, image):
    ec2.create_security_group(GroupName="of-template", Description="d")
    name = "whole"
    ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData={
        "ImageId": image, "InstanceType": "t3.nano", "SecurityGroups": ["of-template"],
        "UserData": base64.b64encode(b"#!/bin/sh\n").decode(), "DisableApiTermination": False,
        "InstanceInitiatedShutdownBehavior": "terminate", "EbsOptimized": False, "Monitoring": {"Enabled": False},
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "VolumeType": "gp2"}}],
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "t"}, {"Key": "Team", "Value": "red"}]},
            {"ResourceType": "volume", "Tags": [{"Key": "Of", "Value": "t"}]},
        ],
    })
    by = {"LaunchTemplate": {"LaunchTemplateName": name}}
    instance = launch(
        ec2, **by, InstanceType="t3.micro", SecurityGroups=["default"], MetadataOptions={"HttpPutResponseHopLimit": 3},
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 5}}],
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "r"}]}])
    assert instance["InstanceType"] == "t3.micro"
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["default"]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 3
    told = tags(instance)
    assert told.pop("aws:ec2launchtemplate:version") == "1" and told.pop("aws:ec2launchtemplate:id")
    assert told == {"Name": "r", "Team": "red"}
    wait(ec2, "instance_running", InstanceIds=[instance["InstanceId"]])
    (volume,) = ec2.describe_volumes(Filters=[
        {"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}])["Volumes"]
    assert volume["Size"] == 5 and volume["VolumeType"] == "gp2" and tags(volume) == {"Of": "t"}

    def attribute(name):
        answer = ec2.describe_instance_attribute(InstanceId=instance["InstanceId"], Attribute=name)
        return answer[name[0].upper() + name[1:]]["Value"]
    assert attribute("instanceInitiatedShutdownBehavior") == "terminate"
    assert attribute("userData") == base64.b64encode(b"#!/bin/sh\n").decode()

    plain = launch(ec2, **by)
    assert [group["GroupName"] for group in plain["SecurityGroups"]] == ["of-template"]
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"], plain["InstanceId"]])
    ec2.delete_launch_template(LaunchTemplateName=name)


def test_launches_that_are_refused(ec2, made, image):
    def refuses(code, words="", **asked):
        with refused(code, words):
            ec2.run_instances(MinCount=1, MaxCount=1, **asked)
    template = {"LaunchTemplateId": made["LaunchTemplateId"]}
    refuses("InvalidLaunchTemplateId.NotFound", NOWHERE, LaunchTemplate={"LaunchTemplateId": NOWHERE})
    refuses("InvalidLaunchTemplateName.NotFoundException", "none", LaunchTemplate={"LaunchTemplateName": "none"})
    refuses("InvalidLaunchTemplateId.VersionNotFound", "9", LaunchTemplate={**template, "Version": "9"})
    refuses("MissingParameter", "launch template ID", LaunchTemplate={"Version": "1"})
    refuses("InvalidParameterCombination", LaunchTemplate={**template, "LaunchTemplateName": "x"})
    refuses("DryRunOperation", LaunchTemplate=template, DryRun=True)
    # Of a template without an image.
    ec2.create_launch_template(LaunchTemplateName="lacking", LaunchTemplateData={"InstanceType": "t3.nano"})
    refuses("MissingParameter", "ImageId", LaunchTemplate={"LaunchTemplateName": "lacking"})
    refuses("DryRunOperation", LaunchTemplate={"LaunchTemplateName": "lacking"}, ImageId=image, DryRun=True)
    ec2.delete_launch_template(LaunchTemplateName="lacking")


def test_data_of_an_instance_launches_another(ec2, image, vpc):
    one = launch(ec2, ImageId=image, InstanceType="t3.nano", DisableApiStop=True, UserData="x", TagSpecifications=[
        {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "one"}]}])
    data = ec2.get_launch_template_data(InstanceId=one["InstanceId"])["LaunchTemplateData"]
    assert data["ImageId"] == image and data["DisableApiStop"] is True
    assert data["TagSpecifications"] == [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "one"}]}]
    (interface,) = data["NetworkInterfaces"]
    assert interface["Groups"] == [one["SecurityGroups"][0]["GroupId"]]
    assert interface["SubnetId"] == one["SubnetId"]
    with refused("InvalidInstanceID.NotFound"):
        ec2.get_launch_template_data(InstanceId="i-0123456789abcdef0")
    ec2.create_launch_template(LaunchTemplateName="like-one", LaunchTemplateData=data)
    (version,) = ec2.describe_launch_template_versions(LaunchTemplateName="like-one")["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"] == data
    two = launch(ec2, LaunchTemplate={"LaunchTemplateName": "like-one"})
    for name in ["SubnetId", "SecurityGroups", "MetadataOptions", "Placement", "InstanceType"]:
        assert two[name] == one[name], name
    assert tags(two)["Name"] == "one"
    again = ec2.get_launch_template_data(InstanceId=two["InstanceId"])["LaunchTemplateData"]
    assert again == data
    for instance in (one, two):
        ec2.modify_instance_attribute(InstanceId=instance["InstanceId"], DisableApiStop={"Value": False})
    ec2.terminate_instances(InstanceIds=[one["InstanceId"], two["InstanceId"]])
    ec2.delete_launch_template(LaunchTemplateName="like-one")
