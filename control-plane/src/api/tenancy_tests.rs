//! Every action of every service, called by one account with what another has, and by
//! an account in one region with what it has in another: it sees nothing of that and changes nothing. An action is in here by being in the
//! registry: its requests are made of its shape.

mod reference;
mod two;

use std::collections::BTreeMap;

use self::two::{Parameters, RULE_OUT, STRANGERS, Two, parameters};
use super::{
    ApiError,
    registry::{Registered, Service, services},
    wire::Shape,
};

/// Names of parameters that look like those of identifiers, and name nothing that an
/// account has.
const NOBODYS: [&str; 8] = [
    "DeviceName",
    "ImageId",
    "Name",
    "RegionName",
    "SourceSecurityGroupOwnerId",
    "UserId",
    "ZoneId",
    "ZoneName",
];

/// Who makes a name, of which each account has its own.
const MAKING: [(&str, &str); 3] = [
    ("CreateKeyPair", "KeyName"),
    ("CreateSecurityGroup", "GroupName"),
    ("ImportKeyPair", "KeyName"),
];

/// Who answers of what isn't there that it is gone.
const ENDING: [(&str, &str); 2] = [("DeleteKeyPair", "KeyName"), ("DeleteKeyPair", "KeyPairId")];

/// Filters that identifiers may be values of.
const FILTERS: [(&str, &str); 10] = [
    ("attachment.instance-id", "InstanceId"),
    ("group-id", "GroupId"),
    ("group-name", "GroupName"),
    ("instance-id", "InstanceId"),
    ("key-name", "KeyName"),
    ("resource-id", "ResourceId"),
    ("subnet-id", "SubnetId"),
    ("tag:whose", "Tag"),
    ("volume-id", "VolumeId"),
    ("vpc-id", "VpcId"),
];

/// The paths of the texts of a request, each list with one item.
fn texts(shape: &Shape, path: &str, out: &mut Vec<String>) {
    match shape {
        Shape::Structure { members } => {
            for member in members {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{}", member.name);
                texts(&member.shape, &path, out);
            }
        }
        Shape::List { item } => texts(item, &format!("{path}.1"), out),
        Shape::String => out.push(path.to_owned()),
        Shape::Boolean | Shape::Integer | Shape::Float => {}
    }
}

fn name_of(path: &str) -> &str {
    let mut parts = path.rsplit('.');
    parts.find(|part| *part != "1").unwrap_or_default()
}

/// The requests of an action that name something of the owner's, each with that
/// parameter alone.
fn requests(action: &Registered, owners: &BTreeMap<&'static str, String>) -> Vec<Parameters> {
    let mut paths = Vec::new();
    texts(&(action.request)().unwrap(), "", &mut paths);
    let mut requests = vec![Parameters::new()];
    for path in paths {
        let name = match name_of(&path) {
            "SecurityGroupRuleId" if action.name.ends_with("Egress") => RULE_OUT,
            name => name,
        };
        if path == "Filter.1.Value.1" {
            let filters = FILTERS.iter();
            requests.extend(filters.map(|(filter, of)| {
                parameters(&[("Filter.1.Name", filter), ("Filter.1.Value.1", &owners[of])])
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
    let ids = before.keys().filter_map(|key| key.rsplit('/').next());
    let ids = ids.filter(|id| id.contains('-')).map(str::to_owned);
    let all = ids.chain(two.owners.values().cloned());
    let all: Vec<String> = all
        .chain([two.owner.account.clone()])
        .filter(|known| *known != two.stranger.account)
        .filter(|known| !request.values().any(|value| value == known))
        .collect();
    let shown = |said: &str| all.iter().find(|known| said.contains(*known)).cloned();
    if let Some(known) = shown(said) {
        faults.push(format!("it shows {known}: {said}"));
    }
    let owners = two.call_with(service, action, &two.owner, request).await;
    let is_shown = owners.as_ref().is_ok_and(|body| shown(body).is_some());
    let Some(path) = request.keys().next() else {
        return (faults, is_shown);
    };
    let filtered = path.starts_with("Filter");
    let may_be = if filtered {
        // A filter of this name is not every action's.
        ["OK", "InvalidParameterValue"].contains(&code)
    } else if MAKING.contains(&(action.name, path.as_str())) {
        // Another's name is free.
        code == "OK"
    } else if ENDING.contains(&(action.name, path.as_str())) {
        code == "OK" && unchanged
    } else {
        code.ends_with("NotFound") && unchanged
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
                for n in 0.. {
                    let Some(request) = requests(action, &two.owners).into_iter().nth(n) else {
                        break;
                    };
                    let revision = two.db.view().revision();
                    let (found, is_shown) = faults_of(&service, action, &two, &request).await;
                    let found = found
                        .iter()
                        .map(|fault| format!("{} {request:?}: {fault}", action.name));
                    faults.extend(found);
                    shown += u32::from(is_shown);
                    if two.db.view().revision() != revision {
                        two = Two::new(stranger).await;
                    }
                }
            }
        }
        assert!(faults.is_empty(), "{stranger:?}:\n{}", faults.join("\n"));
        // Or all of this would show nothing.
        assert!(shown > 40, "{shown}");
    }
}
