"""Security groups and their rules."""

import itertools

import pytest

from support import refused

NUMBER = itertools.count()


def rule(port, cidr="0.0.0.0/0", protocol="tcp"):
    return {"IpProtocol": protocol, "FromPort": port, "ToPort": port,
            "IpRanges": [{"CidrIp": cidr, "Description": "why"}]}


@pytest.fixture
def web(ec2):
    """A new group's id."""
    name = f"web-{next(NUMBER)}"
    made = ec2.create_security_group(GroupName=name, Description="the web", TagSpecifications=[
        {"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": name}]}])
    assert made["SecurityGroupArn"].endswith(f":security-group/{made['GroupId']}")
    return made["GroupId"]


def group(ec2, group_id):
    (found,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    return found


def rules(ec2, group_id):
    wanted = [{"Name": "group-id", "Values": [group_id]}]
    return ec2.describe_security_group_rules(Filters=wanted)["SecurityGroupRules"]


def test_the_default_group_lets_its_own_in(ec2, vpc):
    (default,) = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    assert default["VpcId"] == vpc
    (own,) = default["IpPermissions"]
    assert own["UserIdGroupPairs"][0]["GroupId"] == default["GroupId"]
    with refused("CannotDelete"):
        ec2.delete_security_group(GroupName="default")


def test_a_new_group_lets_all_out_and_nothing_in(ec2, vpc, web):
    found = group(ec2, web)
    assert found["VpcId"] == vpc and found["Description"] == "the web"
    assert found["IpPermissions"] == []
    (out,) = found["IpPermissionsEgress"]
    assert out["IpProtocol"] == "-1" and out["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    ec2.revoke_security_group_egress(GroupId=web, IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
    assert group(ec2, web)["IpPermissionsEgress"] == []


@pytest.mark.parametrize("code, asked", [
    ("InvalidGroup.Reserved", {"GroupName": "default", "Description": "d"}),
    ("InvalidParameterValue", {"GroupName": "sg-x", "Description": "d"}),
    ("InvalidVpcID.NotFound", {"GroupName": "x", "Description": "d", "VpcId": "vpc-00000000000000000"}),
])
def test_create_refuses(ec2, code, asked):
    with refused(code):
        ec2.create_security_group(**asked)


def test_a_name_is_taken_once_in_a_vpc(ec2, web):
    with refused("InvalidGroup.Duplicate"):
        ec2.create_security_group(GroupName=group(ec2, web)["GroupName"], Description="again")


def test_authorize_normalizes_and_tags(ec2, web):
    added = ec2.authorize_security_group_ingress(
        GroupId=web, IpPermissions=[rule(22, "198.51.100.7/24"), rule(80)],
        TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": [{"Key": "k", "Value": "v"}]}])
    first, second = added["SecurityGroupRules"]
    assert first["CidrIpv4"] == "198.51.100.0/24" and first["IsEgress"] is False
    assert second["FromPort"] == 80 and second["Tags"] == [{"Key": "k", "Value": "v"}]
    with refused("InvalidPermission.Duplicate", "0.0.0.0/0, TCP, from port: 80"):
        ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(80)])
    assert len(group(ec2, web)["IpPermissions"]) == 2
    (match,) = ec2.describe_security_groups(Filters=[
        {"Name": "ip-permission.cidr", "Values": ["198.51.*"]},
        {"Name": "ip-permission.to-port", "Values": ["22"]}])["SecurityGroups"]
    assert match["GroupId"] == web


def test_the_flat_form_and_a_group_as_the_peer(ec2, web):
    name = group(ec2, web)["GroupName"]
    ec2.authorize_security_group_ingress(GroupName=name, IpProtocol="udp", FromPort=53, ToPort=53,
                                         CidrIp="10.0.0.0/8")
    ec2.authorize_security_group_ingress(GroupId=web, SourceSecurityGroupName="default")
    peers = [p for p in group(ec2, web)["IpPermissions"] if p["UserIdGroupPairs"]]
    assert {p["IpProtocol"] for p in peers} == {"tcp", "udp", "icmp"}
    with refused("InvalidParameterCombination"):
        ec2.authorize_security_group_ingress(GroupId=web, CidrIp="1.2.3.4/32",
                                             SourceSecurityGroupName="default")


def test_egress_takes_ipv6(ec2, web):
    ec2.authorize_security_group_egress(GroupId=web, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}])
    assert len(group(ec2, web)["IpPermissionsEgress"]) == 2


@pytest.mark.parametrize("code, words, permission", [
    ("InvalidParameterValue", "", rule(70000)),
    ("InvalidParameterValue", "", rule(1, "1.2.3.4/33")),
    ("InvalidParameterValue", "", rule(1, "x")),
    ("InvalidParameterValue", "", rule(1, protocol="x")),
    ("InvalidParameterValue", "", {"IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}),
    ("UnsupportedOperation", "IpPermissions.1.PrefixListIds",
     {"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": "pl-1"}]}),
])
def test_authorize_refuses(ec2, web, code, words, permission):
    with refused(code, words):
        ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission])
    assert group(ec2, web)["IpPermissions"] == []


def test_egress_has_no_flat_form(ec2, web):
    with refused("UnsupportedOperation", "CidrIp"):
        ec2.authorize_security_group_egress(GroupId=web, CidrIp="1.2.3.4/32")


def test_sixty_rules_and_no_more(ec2, web):
    with refused("RulesPerSecurityGroupLimitExceeded"):
        ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(p) for p in range(1000, 1061)])
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(p) for p in range(1000, 1060)])


def test_rules_come_in_pages(ec2, web):
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(p) for p in range(10, 17)])
    assert len(rules(ec2, web)) == 8
    wanted = {"Filters": [{"Name": "group-id", "Values": [web]}], "MaxResults": 5}
    page = ec2.describe_security_group_rules(**wanted)
    rest = ec2.describe_security_group_rules(**wanted, NextToken=page["NextToken"])
    assert (len(page["SecurityGroupRules"]), len(rest["SecurityGroupRules"])) == (5, 3)


def test_revoke_by_id_and_by_what_it_says(ec2, web):
    added = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(22, "198.51.100.0/24"), rule(80)])
    first = added["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    gone = ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=[first])
    assert gone["RevokedSecurityGroupRules"][0]["CidrIpv4"] == "198.51.100.0/24"
    ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[rule(80)])
    with refused("InvalidPermission.NotFound"):
        ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[rule(80)])
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=[first])


def test_what_others_name_stays(ec2, vpc, web):
    database = ec2.create_security_group(GroupName="db", Description="d", VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=database, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": [{"GroupId": web}]}])
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=web)
    assert ec2.delete_security_group(GroupId=database)["GroupId"] == database
    ec2.delete_security_group(GroupName=group(ec2, web)["GroupName"])
    with refused("InvalidGroup.NotFound"):
        group(ec2, web)
    gone = [{"Name": "resource-id", "Values": [web]}]
    assert ec2.describe_tags(Filters=gone)["Tags"] == []


def test_rules_are_modified_and_keep_their_ids(ec2, web):
    added = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(22, "198.51.100.0/24"), rule(80)])
    ssh, http = (r["SecurityGroupRuleId"] for r in added["SecurityGroupRules"])

    def says(port, cidr="0.0.0.0/0", **more):
        return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIpv4": cidr, **more}

    def modify(*updates):
        ec2.modify_security_group_rules(GroupId=web, SecurityGroupRules=[
            {"SecurityGroupRuleId": i, "SecurityGroupRule": r} for i, r in updates])

    modify((ssh, says(2222, "203.0.113.9/24", Description="moved")))
    found = {r["SecurityGroupRuleId"]: r for r in rules(ec2, web)}[ssh]
    assert (found["FromPort"], found["CidrIpv4"], found["Description"]) == (2222, "203.0.113.0/24", "moved")
    # Two may change places, and what is left out is not kept.
    modify((ssh, says(80)), (http, says(2222, "203.0.113.0/24")))
    found = {r["SecurityGroupRuleId"]: r for r in rules(ec2, web)}
    assert (found[ssh]["FromPort"], found[http]["FromPort"]) == (80, 2222)
    assert "Description" not in found[ssh]
    before = rules(ec2, web)
    nobodys = "sgr-00000000000000000"
    for code, updates in [
        ("InvalidPermission.Duplicate", [(http, says(80))]),
        ("InvalidSecurityGroupRuleId.NotFound", [(ssh, says(1)), (nobodys, says(2))]),
        ("InvalidParameterValue", [(ssh, says(1)), (ssh, says(2))]),
        ("InvalidParameterValue", [(ssh, {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1, "CidrIpv6": "::/0"})]),
        ("InvalidParameterValue", [(ssh, says(1, "1.2.3.4/33"))]),
        ("InvalidParameterCombination", [(ssh, says(1, CidrIpv6="::/0"))]),
        ("MissingParameter", [(ssh, {"CidrIpv4": "0.0.0.0/0"})]),
        ("MissingParameter", [(ssh, {"IpProtocol": "-1"})]),
        ("UnsupportedOperation", [(ssh, {"IpProtocol": "-1", "PrefixListId": "pl-1"})]),
    ]:
        with refused(code):
            modify(*updates)
    with refused("InvalidGroup.NotFound"):
        ec2.modify_security_group_rules(GroupId="sg-00000000000000000", SecurityGroupRules=[
            {"SecurityGroupRuleId": ssh, "SecurityGroupRule": says(1)}])
    assert rules(ec2, web) == before


def test_a_modified_rule_holds_the_group_that_it_names(ec2, web):
    peers = [ec2.create_security_group(GroupName=f"peer-{next(NUMBER)}", Description="d")["GroupId"] for _ in range(2)]
    permission = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": peers[0]}]}
    added = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[permission])
    (made,) = added["SecurityGroupRules"]
    ec2.modify_security_group_rules(GroupId=web, SecurityGroupRules=[
        {"SecurityGroupRuleId": made["SecurityGroupRuleId"],
         "SecurityGroupRule": {"IpProtocol": "-1", "ReferencedGroupId": peers[1]}}])
    ec2.delete_security_group(GroupId=peers[0])
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=peers[1])


def test_descriptions_of_rules(ec2, web):
    added = ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(80)])
    (made,) = (r["SecurityGroupRuleId"] for r in added["SecurityGroupRules"])
    (out,) = (r["SecurityGroupRuleId"] for r in rules(ec2, web) if r["IsEgress"])

    def described():
        return {r["SecurityGroupRuleId"]: r.get("Description") for r in rules(ec2, web)}

    new = rule(80)
    new["IpRanges"][0]["Description"] = "the web"
    assert ec2.update_security_group_rule_descriptions_ingress(GroupId=web, IpPermissions=[new])["Return"]
    assert described()[made] == "the web"
    ec2.update_security_group_rule_descriptions_ingress(GroupName=group(ec2, web)["GroupName"], SecurityGroupRuleDescriptions=[
        {"SecurityGroupRuleId": made}])
    ec2.update_security_group_rule_descriptions_egress(GroupId=web, SecurityGroupRuleDescriptions=[
        {"SecurityGroupRuleId": out, "Description": "all"}])
    assert described() == {made: None, out: "all"}
    with refused("InvalidPermission.NotFound"):
        ec2.update_security_group_rule_descriptions_ingress(GroupId=web, IpPermissions=[rule(81)])
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        ec2.update_security_group_rule_descriptions_egress(GroupId=web, SecurityGroupRuleDescriptions=[
            {"SecurityGroupRuleId": made, "Description": "of the other direction"}])
    with refused("InvalidParameterValue"):
        ec2.update_security_group_rule_descriptions_egress(GroupId=web, SecurityGroupRuleDescriptions=[
            {"SecurityGroupRuleId": out, "Description": "x" * 256}])
    with refused("MissingParameter"):
        ec2.update_security_group_rule_descriptions_ingress(GroupId=web)
    with refused("InvalidParameterCombination"):
        ec2.update_security_group_rule_descriptions_ingress(
            GroupId=web, IpPermissions=[rule(80)],
            SecurityGroupRuleDescriptions=[{"SecurityGroupRuleId": made}])


def test_without_peering_nothing_is_referenced_or_stale(ec2, vpc, web):
    assert ec2.describe_security_group_references(GroupId=[web])["SecurityGroupReferenceSet"] == []
    with refused("InvalidGroup.NotFound"):
        ec2.describe_security_group_references(GroupId=["sg-00000000000000000"])
    assert ec2.describe_stale_security_groups(VpcId=vpc)["StaleSecurityGroupSet"] == []
    with refused("InvalidVpcID.NotFound"):
        ec2.describe_stale_security_groups(VpcId="vpc-00000000000000000")
