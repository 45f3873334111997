//! Every action of every service, called by one account with what another has, and by
//! an account in one region with what it has in another: it sees nothing of that and changes nothing. An action is in here by being in the
//! registry: its requests are made of its shape.

mod reference;
mod two;

use std::collections::BTreeMap;

use self::two::{Parameters, RULE_OUT, STRANGERS, Two, parameters};
use super::{
    ApiError, ec2,
    registry::{Registered, Service, services},
    wire::{Protocol, Shape, shape_of},
};

/// Names of parameters that look like those of identifiers, and name nothing that an
/// account has.
const NOBODYS: [&str; 10] = [
    "AttributeName",
    "DeviceName",
    "ImageId",
    "Name",
    "PrincipalArn",
    "RegionName",
    "SourceSecurityGroupOwnerId",
    "UserId",
    "ZoneId",
    "ZoneName",
];

/// Who makes a name, of which each account has its own.
const MAKING: [(&str, &str); 4] = [
    ("CreateKeyPair", "KeyName"),
    ("CreateLaunchTemplate", "LaunchTemplateName"),
    ("CreateSecurityGroup", "GroupName"),
    ("ImportKeyPair", "KeyName"),
];

/// Who answers of what isn't there that it is gone.
const ENDING: [(&str, &str); 2] = [("DeleteKeyPair", "KeyName"), ("DeleteKeyPair", "KeyPairId")];

/// Filters that identifiers may be values of. A list that shows something
/// by an identifier must do so by a filter for it as well: [`unfiltered`].
const FILTERS: [(&str, &str); 17] = [
    ("allocation-id", "AllocationId"),
    ("association-id", "AssociationId"),
    ("attachment.instance-id", "InstanceId"),
    ("group-id", "GroupId"),
    ("group-name", "GroupName"),
    ("instance-id", "InstanceId"),
    ("key-name", "KeyName"),
    ("key-pair-id", "KeyPairId"),
    ("network-interface-id", "NetworkInterfaceId"),
    ("public-ip", "PublicIp"),
    ("launch-template-name", "LaunchTemplateName"),
    ("resource-id", "ResourceId"),
    ("security-group-rule-id", "SecurityGroupRuleId"),
    ("subnet-id", "SubnetId"),
    ("tag:whose", "Tag"),
    ("volume-id", "VolumeId"),
    ("vpc-id", "VpcId"),
];

/// What EC2's lists show by an identifier that they have no filter for, or by that alone.
const UNFILTERED: [(&str, &str); 4] = [
    ("DescribeLaunchTemplateVersions", ""),
    ("DescribeLaunchTemplateVersions", "LaunchTemplateId"),
    ("DescribeLaunchTemplateVersions", "LaunchTemplateName"),
    ("DescribeLaunchTemplates", "LaunchTemplateId"),
];

/// Before what is kept as it comes: what it names is looked for when it is launched.
const KEPT: &str = "LaunchTemplateData.";

/// The paths of the texts of a request, each list with one item.
fn texts(shape: &Shape, path: &str, protocol: Protocol, out: &mut Vec<String>) {
    match shape {
        Shape::Structure { members } => {
            for member in members {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{}", member.name);
                texts(&member.shape, &path, protocol, out);
            }
        }
        Shape::List { item } => texts(item, &protocol.element(path, 1), protocol, out),
        Shape::String => out.push(path.to_owned()),
        Shape::Boolean | Shape::Integer | Shape::Float => {}
    }
}

fn name_of(path: &str) -> &str {
    let mut parts = path.rsplit('.');
    let name = parts.find(|part| !["1", "member"].contains(part));
    name.unwrap_or_default()
}

/// The requests of an action that name something of the owner's, each with that
/// parameter alone; the first has none.
fn requests(
    service: &Service,
    action: &Registered,
    owners: &BTreeMap<&'static str, String>,
) -> Vec<Parameters> {
    let (protocol, mut paths) = (service.protocol, Vec::new());
    texts(&(action.request)().unwrap(), "", protocol, &mut paths);
    let filter = protocol.element("Filter", 1);
    let [filter_name, filter_values] = ["Name", "Value"].map(|part| format!("{filter}.{part}"));
    let filter_value = protocol.element(&filter_values, 1);
    let mut requests = vec![Parameters::new()];
    for path in paths {
        let name = match name_of(&path) {
            "SecurityGroupRuleId" if action.name.ends_with("Egress") => RULE_OUT,
            name => name,
        };
        if path == filter_value {
            let filters = FILTERS.iter();
            requests.extend(filters.map(|(filter, of)| {
                parameters(&[(&filter_name, filter), (&filter_value, &owners[of])])
            }));
        } else if let Some(value) = owners.get(name) {
            requests.push([(path, value.clone())].into());
        } else {
            let identifies = ["Id", "Name", "Arn"].iter().any(|end| name.ends_with(end));
            assert!(
                !identifies || NOBODYS.contains(&name),
                "{}: what does {path} name? Say so in Two::has() or in NOBODYS",
                action.name
            );
        }
    }
    requests
}

/// What is wrong with [`FILTERS`] as to a list, of the requests that the owner was `shown`
/// something by: by which identifiers it was that no filter there shows it anything by;
/// or that the whole list shows something, and no filter does.
fn unfiltered(shape: &Shape, shown: &[Parameters]) -> Vec<String> {
    if !shape.has("Filter") {
        return Vec::new();
    }
    let by_filter: Vec<_> = shown
        .iter()
        .flat_map(|request| request.values())
        .filter_map(|value| FILTERS.iter().find(|(filter, _)| filter == value))
        .map(|(_, of)| *of)
        .collect();
    let by_id = shown.iter().filter_map(|request| request.keys().next());
    let by_id = by_id
        .filter(|path| !path.starts_with("Filter"))
        .map(|path| name_of(path));
    let mut lacking: Vec<_> = by_id
        .filter(|id| !by_filter.contains(id))
        .map(|id| format!("no row of FILTERS finds what it lists by {id}"))
        .collect();
    if by_filter.is_empty() && shown.iter().any(Parameters::is_empty) {
        lacking.push("no row of FILTERS finds what it lists".to_owned());
    }
    lacking
}

/// An answer, or an error, by its code.
fn outcome(answer: &Result<String, ApiError>) -> &str {
    match answer {
        Ok(_) => "OK",
        Err(error) => &error.code,
    }
}

/// What is wrong with the answers to one request, and whether the owner was shown
/// something by it that the stranger wasn't.
async fn faults_of(
    service: &Service,
    action: &Registered,
    two: &Two,
    request: &Parameters,
) -> (Vec<String>, bool) {
    let mut faults = Vec::new();
    let before = two.records().await;
    let revision = two.db.view().revision();
    let answer = two.call_with(service, action, &two.stranger, request).await;
    let code = outcome(&answer);
    let said = match &answer {
        Ok(body) => body,
        Err(error) => &error.message,
    };
    let unchanged = two.db.view().revision() == revision;
    if two.records().await != before {
        faults.push("the owner's records change".into());
    }
    // A quota's guard has the name of a kind, which is nobody's.
    let keys = before
        .keys()
        .filter(|key| !key.starts_with("/quota-guards/"));
    let ids = keys.filter_map(|key| key.rsplit('/').next());
    let ids = ids.filter(|id| id.contains('-')).map(str::to_owned);
    let all = ids.chain(two.owners.values().cloned());
    let all: Vec<String> = all
        .chain([two.owner.account.clone()])
        .filter(|known| *known != two.stranger.account)
        .collect();
    let shown = |said: &str| all.iter().filter(|known| said.contains(*known)).collect();
    let to_stranger: Vec<&String> = shown(said);
    let asked = |known: &&&String| request.values().any(|value| value == **known);
    if let Some(known) = to_stranger.iter().find(|known| !asked(known)) {
        faults.push(format!("it shows {known}: {said}"));
    }
    let owners = two.call_with(service, action, &two.owner, request).await;
    let is_shown = owners.as_ref().is_ok_and(|body| !shown(body).is_empty());
    let Some(path) = request.keys().next() else {
        return (faults, is_shown);
    };
    let filtered = path.starts_with("Filter");
    let may_be = if filtered {
        // A filter of this name is not every action's.
        ["OK", "InvalidParameterValue"].contains(&code)
    } else if MAKING.contains(&(action.name, path.as_str())) || path.starts_with(KEPT) {
        // Another's name is free.
        code == "OK"
    } else if ENDING.contains(&(action.name, path.as_str())) {
        code == "OK" && unchanged
    } else if path == "PublicIp" && action.name != "DescribeAddresses" {
        // EC2 says whose it isn't.
        code == "AuthFailure" && unchanged
    } else {
        ["NotFound", "NotFoundException"]
            .iter()
            .any(|end| code.ends_with(end))
            && unchanged
    };
    if !may_be {
        faults.push(format!("{code}: {said}"));
    }

    // The request is a good one: it is about what the owner has.
    let bad = [
        "MissingParameter",
        "UnknownParameter",
        "UnsupportedOperation",
        "InternalError",
    ];
    let heard = outcome(&owners);
    let is_bad = heard.starts_with("InvalidParameter") || bad.contains(&heard);
    if !filtered && (is_bad || heard == code && code != "OK") {
        faults.push(format!("no good request, even of the owner's: {owners:?}"));
    }
    (faults, is_shown)
}

#[tokio::test]
async fn no_action_shows_or_touches_what_another_account_or_region_has() {
    for stranger in STRANGERS {
        let mut two = Two::new(stranger).await;
        let (mut faults, mut shown) = (Vec::new(), 0);
        for service in services() {
            for action in &service.actions {
                let mut shown_by = Vec::new();
                for n in 0.. {
                    let requests = requests(&service, action, &two.owners);
                    let Some(request) = requests.into_iter().nth(n) else {
                        break;
                    };
                    let revision = two.db.view().revision();
                    let (found, is_shown) = faults_of(&service, action, &two, &request).await;
                    let found = found
                        .iter()
                        .map(|fault| format!("{} {request:?}: {fault}", action.name));
                    faults.extend(found);
                    shown += u32::from(is_shown);
                    shown_by.extend(is_shown.then_some(request));
                    if two.db.view().revision() != revision {
                        two = Two::new(stranger).await;
                    }
                }
                let by_filter = |request: &Parameters| {
                    let path = request.keys().next();
                    let name = path.map(|path| name_of(path)).unwrap_or_default();
                    !UNFILTERED.contains(&(action.name, name))
                };
                shown_by.retain(by_filter);
                let lacking = unfiltered(&(action.request)().unwrap(), &shown_by);
                let lacking = lacking.iter().map(|why| format!("{}: {why}", action.name));
                faults.extend(lacking);
            }
        }
        assert!(faults.is_empty(), "{stranger:?}:\n{}", faults.join("\n"));
        // Or all of this would show nothing.
        assert!(shown > 40, "{shown}");
    }
}

#[test]
fn a_list_that_no_filter_is_tried_on_is_a_fault() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    #[expect(dead_code, reason = "only its shape is asked for")]
    struct List {
        filter: Vec<String>,
    }
    let list = shape_of::<List>().unwrap();
    let all = Parameters::new();
    let id = parameters(&[("VolumeId.1", "vol-1")]);
    let by = |filter| parameters(&[("Filter.1.Name", filter), ("Filter.1.Value.1", "vol-1")]);
    let faults = |shown: &[&Parameters]| {
        let shown: Vec<_> = shown.iter().map(|request| (*request).clone()).collect();
        unfiltered(&list, &shown).len()
    };
    assert_eq!(faults(&[&all, &id, &by("volume-id")]), 0);
    assert_eq!(faults(&[&all, &id, &by("vpc-id")]), 1);
    assert_eq!(faults(&[&all, &id]), 2);
    // A list that takes no identifiers; and one that shows nothing of anybody's.
    assert_eq!(faults(&[&all, &by("vpc-id")]), 0);
    assert_eq!(faults(&[&all]), 1);
    assert_eq!(faults(&[]), 0);
    assert!(unfiltered(&Shape::String, &[all, id]).is_empty());
}

#[test]
fn requests_are_written_as_their_service_reads_them() {
    let query = Service {
        protocol: Protocol::Query,
        ..ec2::service()
    };
    let has = FILTERS.iter().map(|(_, of)| (*of, "vpc-1".to_owned()));
    let action = query.find("DescribeVpcs").unwrap();
    let all = requests(&query, action, &has.collect());
    let ids = parameters(&[("VpcId.member.1", "vpc-1")]);
    let filtered = parameters(&[
        ("Filter.member.1.Name", "vpc-id"),
        ("Filter.member.1.Value.member.1", "vpc-1"),
    ]);
    assert!(all.contains(&ids) && all.contains(&filtered), "{all:?}");
    assert_eq!(name_of("Filter.member.1.Value.member.1"), "Value");
}
