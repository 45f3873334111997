"""What old and new tools ask of the account itself."""

import pytest

from support import refused


def test_attributes(ec2, vpc):
    def told(**asked):
        found = ec2.describe_account_attributes(**asked)["AccountAttributes"]
        return {one["AttributeName"]: [value["AttributeValue"] for value in one["AttributeValues"]] for one in found}
    assert told() == {
        "supported-platforms": ["VPC"], "default-vpc": [vpc], "max-instances": ["20"], "max-elastic-ips": ["5"],
        "vpc-max-elastic-ips": ["5"], "vpc-max-security-groups-per-interface": ["16"]}
    assert told(AttributeNames=["default-vpc"]) == {"default-vpc": [vpc]}
    with refused("InvalidParameterValue", "max-fun"):
        told(AttributeNames=["max-fun"])
    with refused("DryRunOperation"):
        told(DryRun=True)


def test_all_ids_are_long(ec2, sts):
    root = sts.get_caller_identity()["Arn"]
    every = ec2.describe_id_format()["Statuses"]
    assert len(every) == 31 and all(status["UseLongIds"] for status in every)
    one = [{"Resource": "instance", "UseLongIds": True}]
    assert ec2.describe_id_format(Resource="instance")["Statuses"] == one
    assert ec2.describe_identity_id_format(PrincipalArn=root, Resource="instance")["Statuses"] == one
    assert ec2.describe_identity_id_format(PrincipalArn=root)["Statuses"] == every
    aggregate = ec2.describe_aggregate_id_format()
    assert aggregate["UseLongIdsAggregated"] is True and aggregate["Statuses"] == every
    principals = ec2.describe_principal_id_format(Resources=["instance"], MaxResults=10)
    assert principals["Principals"] == [{"Arn": root, "Statuses": one}] and "NextToken" not in principals
    assert ec2.describe_principal_id_format()["Principals"] == [{"Arn": root, "Statuses": every}]
    ec2.modify_id_format(Resource="instance", UseLongIds=True)
    ec2.modify_identity_id_format(PrincipalArn="all", Resource="all-current", UseLongIds=True)


@pytest.mark.parametrize("call, asked", [
    ("describe_id_format", {"Resource": "soup"}),
    ("describe_identity_id_format", {"PrincipalArn": "arn:aws:iam::000000000000:user/nobody"}),
    ("describe_principal_id_format", {"Resources": ["soup"]}),
    ("describe_principal_id_format", {"MaxResults": 1001}),
    ("modify_id_format", {"Resource": "instance", "UseLongIds": False}),
    ("modify_id_format", {"Resource": "soup", "UseLongIds": True}),
    ("modify_identity_id_format", {"PrincipalArn": "all", "Resource": "instance", "UseLongIds": False}),
])
def test_what_is_refused_of_ids(ec2, call, asked):
    with refused("InvalidParameterValue"):
        getattr(ec2, call)(**asked)


def test_nobody_types_at_serial_consoles(ec2):
    status = ec2.get_serial_console_access_status()
    assert status["SerialConsoleAccessEnabled"] is False and status["ManagedBy"] == "account"
    assert ec2.disable_serial_console_access()["SerialConsoleAccessEnabled"] is False
    with refused("DryRunOperation"):
        ec2.disable_serial_console_access(DryRun=True)
