"""Identifiers that are empty, malformed or name nothing: EC2's codes and words.

The codes are those of
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
The words are what EC2 itself answered in public threads:

one instance    boto/boto3#567, aws/aws-sdk-java#911
many instances  getmoto/moto#4903
malformed       hashicorp/terraform-provider-aws#6104 and #9693: `(expecting "sg-...")`,
                with each kind's own prefix; of an empty one docker/machine, as
                quoted in gitlab-org/gitlab-runner's threads: `Invalid id: ""`
images          terraform-provider-aws and the AWS CLI: `The image id '[ami-…]'`
networks        AWS CLI: `The vpc ID 'vpc-…'`, `The subnet ID 'subnet-…'`
"""

import pytest
from botocore import xform_name

from support import refused


class Kind:
    """How EC2 speaks of the identifiers of one kind of resource."""

    def __init__(self, prefix, malformed, not_found, one, many=None):
        self.prefix, self.malformed, self.not_found, self.one, self.many = prefix, malformed, not_found, one, many

    def id(self, number):
        return f"{self.prefix}-{number:017x}"


INSTANCE = Kind("i", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound",
                "The instance ID '{}' does not exist", "The instance IDs '{}' do not exist")
IMAGE = Kind("ami", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound", "The image id '[{}]' does not exist")
VPC = Kind("vpc", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound", "The vpc ID '{}' does not exist")
SUBNET = Kind("subnet", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound", "The subnet ID '{}' does not exist")
GROUP = Kind("sg", "InvalidGroupId.Malformed", "InvalidGroup.NotFound", "The security group '{}' does not exist")
RULE = Kind("sgr", "InvalidSecurityGroupRuleId.Malformed", "InvalidSecurityGroupRuleId.NotFound",
            "The security group rule ID '{}' does not exist")
VOLUME = Kind("vol", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound", "The volume '{}' does not exist")
KEY_PAIR = Kind("key", "InvalidParameterValue", "InvalidKeyPair.NotFound", "The key pair ID '{}' does not exist")
ALLOCATION = Kind("eipalloc", "InvalidParameterValue", "InvalidAllocationID.NotFound",
                  "The allocation ID '{}' does not exist")
ASSOCIATION = Kind("eipassoc", "InvalidParameterValue", "InvalidAssociationID.NotFound",
                   "The association ID '{}' does not exist")
INTERFACE = Kind("eni", "InvalidNetworkInterfaceId.Malformed", "InvalidNetworkInterfaceID.NotFound",
                 "The networkInterface ID '{}' does not exist")
TEMPLATE = Kind("lt", "InvalidLaunchTemplateId.Malformed", "InvalidLaunchTemplateId.NotFound",
                "The specified launch template, with template ID {}, does not exist.")

RULE_OF = {"IpPermissions": [{"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}]}
# In place of the identifier of something that is there.
THE_IMAGE, AN_INSTANCE, AN_ADDRESS = object(), object(), object()

# How each action is called with identifiers. A list: many may be given.
CALLS = [
    (INSTANCE, "describe_instances", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "describe_instance_status", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "start_instances", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "stop_instances", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "reboot_instances", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "terminate_instances", lambda ids: {"InstanceIds": ids}),
    (INSTANCE, "get_console_output", lambda ids: {"InstanceId": ids[0]}),
    (INSTANCE, "send_diagnostic_interrupt", lambda ids: {"InstanceId": ids[0]}),
    (INSTANCE, "get_console_screenshot", lambda ids: {"InstanceId": ids[0]}),
    (INSTANCE, "describe_instance_attribute", lambda ids: {"InstanceId": ids[0], "Attribute": "userData"}),
    (INSTANCE, "modify_instance_attribute", lambda ids: {"InstanceId": ids[0], "SourceDestCheck": {"Value": True}}),
    (INSTANCE, "modify_instance_metadata_options", lambda ids: {"InstanceId": ids[0], "HttpTokens": "required"}),
    (INSTANCE, "reset_instance_attribute", lambda ids: {"InstanceId": ids[0], "Attribute": "sourceDestCheck"}),
    (IMAGE, "describe_images", lambda ids: {"ImageIds": ids}),
    (IMAGE, "run_instances", lambda ids: {"ImageId": ids[0], "MinCount": 1, "MaxCount": 1}),
    (GROUP, "modify_instance_attribute", lambda ids: {"InstanceId": AN_INSTANCE, "Groups": ids}),
    (SUBNET, "run_instances", lambda ids: {
        "ImageId": THE_IMAGE, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "SubnetId": ids[0]}),
    (GROUP, "run_instances", lambda ids: {
        "ImageId": THE_IMAGE, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1, "SecurityGroupIds": ids}),
    (VPC, "create_security_group", lambda ids: {"GroupName": "g", "Description": "d", "VpcId": ids[0]}),
    (VPC, "describe_vpcs", lambda ids: {"VpcIds": ids}),
    (SUBNET, "describe_subnets", lambda ids: {"SubnetIds": ids}),
    (GROUP, "describe_security_groups", lambda ids: {"GroupIds": ids}),
    (GROUP, "delete_security_group", lambda ids: {"GroupId": ids[0]}),
    (GROUP, "authorize_security_group_ingress", lambda ids: {
        "GroupId": ids[0], "IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIp": "10.0.0.0/8"}),
    (GROUP, "authorize_security_group_egress", lambda ids: {"GroupId": ids[0], **RULE_OF}),
    (GROUP, "revoke_security_group_ingress", lambda ids: {"GroupId": ids[0], **RULE_OF}),
    (GROUP, "revoke_security_group_egress", lambda ids: {"GroupId": ids[0], **RULE_OF}),
    (GROUP, "update_security_group_rule_descriptions_ingress", lambda ids: {"GroupId": ids[0], **RULE_OF}),
    (GROUP, "update_security_group_rule_descriptions_egress", lambda ids: {"GroupId": ids[0], **RULE_OF}),
    (GROUP, "modify_security_group_rules", lambda ids: {"GroupId": ids[0], "SecurityGroupRules": [
        {"SecurityGroupRuleId": RULE.id(1), "SecurityGroupRule": {"IpProtocol": "-1", "CidrIpv4": "10.0.0.0/8"}}]}),
    (GROUP, "describe_security_group_references", lambda ids: {"GroupId": ids}),
    (VPC, "describe_stale_security_groups", lambda ids: {"VpcId": ids[0]}),
    (KEY_PAIR, "describe_key_pairs", lambda ids: {"KeyPairIds": ids}),
    (ALLOCATION, "associate_address", lambda ids: {"AllocationId": ids[0], "InstanceId": AN_INSTANCE}),
    (INSTANCE, "associate_address", lambda ids: {"AllocationId": AN_ADDRESS, "InstanceId": ids[0]}),
    (INTERFACE, "associate_address", lambda ids: {"AllocationId": AN_ADDRESS, "NetworkInterfaceId": ids[0]}),
    (ALLOCATION, "describe_addresses", lambda ids: {"AllocationIds": ids}),
    (INTERFACE, "describe_network_interfaces", lambda ids: {"NetworkInterfaceIds": ids}),
    (ASSOCIATION, "disassociate_address", lambda ids: {"AssociationId": ids[0]}),
    (ALLOCATION, "release_address", lambda ids: {"AllocationId": ids[0]}),
    (RULE, "describe_security_group_rules", lambda ids: {"SecurityGroupRuleIds": ids}),
    (INSTANCE, "get_launch_template_data", lambda ids: {"InstanceId": ids[0]}),
    (TEMPLATE, "create_launch_template_version", lambda ids: {
        "LaunchTemplateId": ids[0], "LaunchTemplateData": {"InstanceType": "t3.nano"}}),
    (TEMPLATE, "delete_launch_template", lambda ids: {"LaunchTemplateId": ids[0]}),
    (TEMPLATE, "delete_launch_template_versions", lambda ids: {"LaunchTemplateId": ids[0], "Versions": ["1"]}),
    (TEMPLATE, "describe_launch_templates", lambda ids: {"LaunchTemplateIds": ids}),
    (TEMPLATE, "describe_launch_template_versions", lambda ids: {"LaunchTemplateId": ids[0]}),
    (TEMPLATE, "modify_launch_template", lambda ids: {"LaunchTemplateId": ids[0], "DefaultVersion": "1"}),
    (TEMPLATE, "run_instances", lambda ids: {
        "LaunchTemplate": {"LaunchTemplateId": ids[0]}, "MinCount": 1, "MaxCount": 1}),
    (VOLUME, "describe_volumes", lambda ids: {"VolumeIds": ids}),
    (VOLUME, "delete_volume", lambda ids: {"VolumeId": ids[0]}),
]
# Those that take many.
MANY = [(kind, call, asked) for kind, call, asked in CALLS
        if ["", ""] in asked(["", ""]).values()]
each_call = pytest.mark.parametrize("kind, call, asked", CALLS, ids=[f"{call}-{kind.prefix}" for kind, call, _ in CALLS])

# The parameters that name one by its identifier.
NAMED_BY = {"InstanceId": INSTANCE, "ImageId": IMAGE, "VpcId": VPC, "SubnetId": SUBNET, "GroupId": GROUP,
            "SecurityGroupId": GROUP, "SecurityGroupRuleId": RULE, "VolumeId": VOLUME, "KeyPairId": KEY_PAIR,
            "AllocationId": ALLOCATION, "AssociationId": ASSOCIATION, "NetworkInterfaceId": INTERFACE,
            "LaunchTemplateId": TEMPLATE}
# What has tests of its own: what isn't there is no error of theirs, or rules are named among a group's.
ELSEWHERE = {("delete_key_pair", KEY_PAIR), ("revoke_security_group_ingress", RULE),
             ("revoke_security_group_egress", RULE)}
# Parameters of this form that name nothing of an account's.
NOBODYS = {"ZoneId", "SourceSecurityGroupOwnerId", "ResourceId"}


@pytest.fixture(scope="module")
def instance(ec2, image):
    (made,) = ec2.run_instances(ImageId=image, InstanceType="t3.nano", MinCount=1, MaxCount=1)["Instances"]
    yield made["InstanceId"]
    ec2.terminate_instances(InstanceIds=[made["InstanceId"]])


@pytest.fixture(scope="module")
def address(ec2):
    made = ec2.allocate_address()["AllocationId"]
    yield made
    ec2.release_address(AllocationId=made)


@pytest.fixture
def there(request):
    """Parameters with what is there in its places."""
    names = {THE_IMAGE: "image", AN_INSTANCE: "instance", AN_ADDRESS: "address"}

    def filled(parameters):
        for name, value in parameters.items():
            if any(value is name for name in names):
                parameters[name] = request.getfixturevalue(names[value])
        return parameters
    return filled


def test_each_action_is_called_with_each_kind_that_it_names(shapes):
    called = {(call, kind) for kind, call, _ in CALLS} | ELSEWHERE
    uncalled = []
    for action in (action for service in shapes for action in service["actions"]):
        for name in (member["name"] for member in action["request"]["members"]):
            if name.endswith("Id") and name not in NOBODYS:
                assert name in NAMED_BY, f"{action['name']}: what does {name} name? Say so in NAMED_BY or NOBODYS"
                if (xform_name(action["name"]), NAMED_BY[name]) not in called:
                    uncalled.append((action["name"], name))
    assert not uncalled, f"add calls of {uncalled} to CALLS"


@each_call
@pytest.mark.parametrize("wrong, more", [
    ("{}-1", ""), ("{}-xyz", ""), ("{}-00000000000000001x", ""),
    ("{}", ' (expecting "{}-...")'), ("x-00000000000000001", ' (expecting "{}-...")'), (" ", ' (expecting "{}-...")'),
])
def test_malformed(ec2, there, kind, call, asked, wrong, more):
    wrong = wrong.format(kind.prefix)
    with refused(kind.malformed, f'Invalid id: "{wrong}"' + more.format(kind.prefix)):
        getattr(ec2, call)(**there(asked([wrong])))


@each_call
def test_unknown(ec2, there, kind, call, asked):
    with refused(kind.not_found, kind.one.format(kind.id(0xbad))):
        getattr(ec2, call)(**there(asked([kind.id(0xbad)])))


@pytest.mark.parametrize("kind, call, asked", MANY, ids=[f"{call}-{kind.prefix}" for kind, call, _ in MANY])
def test_of_several_a_malformed_one_is_told_first(ec2, there, kind, call, asked):
    with refused(kind.malformed, "-x"):
        getattr(ec2, call)(**there(asked([kind.id(0xbad), f"{kind.prefix}-x"])))


@pytest.mark.parametrize("call, asked", [(call, asked) for kind, call, asked in MANY if kind.many],
                         ids=[call for kind, call, _ in MANY if kind.many])
def test_several_unknown(ec2, call, asked):
    ids = [INSTANCE.id(0xbad), INSTANCE.id(0xbad2)]
    with refused(INSTANCE.not_found, INSTANCE.many.format(", ".join(ids))):
        getattr(ec2, call)(**asked(ids))


@pytest.mark.parametrize("call, words", [
    ("start_instances", "InstanceId"), ("terminate_instances", "InstanceId"), ("delete_volume", "VolumeId"),
    ("get_console_output", "InstanceId"), ("run_instances", "ImageId"),
])
def test_missing(cloud, call, words):
    # botocore itself would refuse it.
    from botocore.config import Config
    ec2 = cloud.client("ec2", config=Config(parameter_validation=False))
    more = {"MinCount": 1, "MaxCount": 1} if call == "run_instances" else {}
    with refused("MissingParameter", words):
        getattr(ec2, call)(**more)


@pytest.mark.parametrize("names, code", [(["none"], "InvalidKeyPair.NotFound")])
def test_unknown_names_of_key_pairs(ec2, names, code):
    with refused(code, f"The key pair '{names[0]}' does not exist"):
        ec2.describe_key_pairs(KeyNames=names)
