"""Security groups and rules, as boto3 sees them."""

from support import default_vpc, ec2, refused

vpc = default_vpc()


def rule(port, cidr, protocol="tcp"):
    return {"IpProtocol": protocol, "FromPort": port, "ToPort": port,
            "IpRanges": [{"CidrIp": cidr, "Description": "why"}]}


def group(group_id):
    (found,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    return found


(default,) = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
assert default["VpcId"] == vpc
(own,) = default["IpPermissions"]
assert own["UserIdGroupPairs"][0]["GroupId"] == default["GroupId"], own

made = ec2.create_security_group(GroupName="web", Description="the web", TagSpecifications=[
    {"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": "web"}]}])
web = made["GroupId"]
assert made["SecurityGroupArn"].endswith(f":security-group/{web}"), made
found = group(web)
assert found["VpcId"] == vpc and found["Description"] == "the web", found
assert found["IpPermissions"] == [], found
(out,) = found["IpPermissionsEgress"]
assert out["IpProtocol"] == "-1" and out["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}], out
with refused("InvalidGroup.Duplicate"):
    ec2.create_security_group(GroupName="web", Description="again")
with refused("InvalidGroup.Reserved"):
    ec2.create_security_group(GroupName="default", Description="d")
with refused("InvalidParameterValue"):
    ec2.create_security_group(GroupName="sg-x", Description="d")
with refused("InvalidVpcID.NotFound"):
    ec2.create_security_group(GroupName="x", Description="d", VpcId="vpc-00000000000000000")

added = ec2.authorize_security_group_ingress(
    GroupId=web, IpPermissions=[rule(22, "198.51.100.7/24"), rule(80, "0.0.0.0/0")],
    TagSpecifications=[{"ResourceType": "security-group-rule", "Tags": [{"Key": "k", "Value": "v"}]}])
first, second = added["SecurityGroupRules"]
assert first["CidrIpv4"] == "198.51.100.0/24" and first["IsEgress"] is False, first
assert second["FromPort"] == 80 and second["Tags"] == [{"Key": "k", "Value": "v"}], second
with refused("InvalidPermission.Duplicate", "0.0.0.0/0, TCP, from port: 80"):
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[rule(80, "0.0.0.0/0")])
assert len(group(web)["IpPermissions"]) == 2

# The flat form, and a group as the peer.
ec2.authorize_security_group_ingress(GroupName="web", IpProtocol="udp", FromPort=53, ToPort=53,
                                     CidrIp="10.0.0.0/8")
ec2.authorize_security_group_ingress(GroupId=web, SourceSecurityGroupName="default")
peers = [p for p in group(web)["IpPermissions"] if p["UserIdGroupPairs"]]
assert {p["IpProtocol"] for p in peers} == {"tcp", "udp", "icmp"}, peers
with refused("InvalidParameterCombination"):
    ec2.authorize_security_group_ingress(GroupId=web, CidrIp="1.2.3.4/32",
                                         SourceSecurityGroupName="default")
ec2.authorize_security_group_egress(GroupId=web, IpPermissions=[
    {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}])
assert len(group(web)["IpPermissionsEgress"]) == 2
with refused("UnsupportedOperation", "IpPermissions.1.PrefixListIds"):
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[
        {"IpProtocol": "-1", "PrefixListIds": [{"PrefixListId": "pl-1"}]}])
with refused("UnsupportedOperation", "CidrIp"):
    ec2.authorize_security_group_egress(GroupId=web, CidrIp="1.2.3.4/32")
for bad in [rule(70000, "0.0.0.0/0"), rule(1, "1.2.3.4/33"), rule(1, "x"), rule(1, "0.0.0.0/0", "x"),
            {"IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]:
    with refused("InvalidParameterValue"):
        ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[bad])
with refused("RulesPerSecurityGroupLimitExceeded"):
    ec2.authorize_security_group_ingress(GroupId=web, IpPermissions=[
        rule(port, "0.0.0.0/0") for port in range(1000, 1061)])

rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [web]}])
assert len(rules["SecurityGroupRules"]) == 8, rules
page = ec2.describe_security_group_rules(MaxResults=5)
rest = ec2.describe_security_group_rules(MaxResults=5, NextToken=page["NextToken"])
assert len(page["SecurityGroupRules"]) == 5 and rest["SecurityGroupRules"], rest
(match,) = ec2.describe_security_groups(Filters=[
    {"Name": "ip-permission.cidr", "Values": ["198.51.*"]},
    {"Name": "ip-permission.to-port", "Values": ["22"]}])["SecurityGroups"]
assert match["GroupId"] == web

gone = ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=[
    first["SecurityGroupRuleId"]])
assert gone["RevokedSecurityGroupRules"][0]["CidrIpv4"] == "198.51.100.0/24", gone
ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[rule(80, "0.0.0.0/0")])
with refused("InvalidPermission.NotFound"):
    ec2.revoke_security_group_ingress(GroupId=web, IpPermissions=[rule(80, "0.0.0.0/0")])
with refused("InvalidSecurityGroupRuleId.NotFound"):
    ec2.revoke_security_group_ingress(GroupId=web, SecurityGroupRuleIds=[
        first["SecurityGroupRuleId"]])
ec2.revoke_security_group_egress(GroupId=web, IpPermissions=[
    {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
assert len(group(web)["IpPermissionsEgress"]) == 1

# What is named by others stays.
db = ec2.create_security_group(GroupName="db", Description="d", VpcId=vpc)["GroupId"]
ec2.authorize_security_group_ingress(GroupId=db, IpPermissions=[
    {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": [{"GroupId": web}]}])
with refused("DependencyViolation"):
    ec2.delete_security_group(GroupId=web)
with refused("CannotDelete"):
    ec2.delete_security_group(GroupName="default")
assert ec2.delete_security_group(GroupId=db)["GroupId"] == db
ec2.delete_security_group(GroupName="web")
assert ec2.describe_tags()["Tags"] == []
with refused("InvalidGroup.NotFound"):
    ec2.describe_security_groups(GroupIds=[web])
with refused("InvalidGroupId.Malformed"):
    ec2.describe_security_groups(GroupIds=["i-00000000000000001"])
