//! The tree of documents below a version's folder.
//!
//! A request is for one document. So the tree is made of what would make its
//! parts, and only those on the path that is asked for are made.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::json;

use super::facts::{Facts, Nic};
use super::identity::{Identity, Signatures};
use crate::model::{
    dns_names::{private_name, public_name},
    zone_id,
};

/// The versions that EC2 knows; all show the same tree here.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
pub const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-08-24",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "latest",
];

/// A document or a folder, yet to be made.
enum Node<'a> {
    Document(Box<dyn Fn() -> Vec<u8> + 'a>),
    Folder(Box<dyn Fn() -> Folder<'a> + 'a>),
}

/// A folder's entries, and how it lists them where that is not by their names.
#[derive(Default)]
pub struct Folder<'a> {
    entries: BTreeMap<Cow<'a, str>, Node<'a>>,
    listing: Option<String>,
}

impl<'a> Folder<'a> {
    /// Adds a document that says what `text` returns.
    fn put<T: ToString>(&mut self, name: impl Into<Cow<'a, str>>, text: impl Fn() -> T + 'a) {
        let document = Node::Document(Box::new(move || text().to_string().into_bytes()));
        self.entries.insert(name.into(), document);
    }

    /// Adds a folder with what `fill` puts into it.
    fn folder(&mut self, name: impl Into<Cow<'a, str>>, fill: impl Fn(&mut Folder<'a>) + 'a) {
        let folder = Node::Folder(Box::new(move || {
            let mut folder = Folder::default();
            fill(&mut folder);
            folder
        }));
        self.entries.insert(name.into(), folder);
    }

    /// The listing: a line for each entry, folders with a slash.
    fn list(&self, slashes: bool) -> String {
        if let Some(listing) = &self.listing {
            return listing.clone();
        }
        let lines = self.entries.iter().map(|(name, node)| match node {
            Node::Folder(_) if slashes => format!("{name}/"),
            _ => name.clone().into_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// What a path below a version's folder shows: `""` is that folder itself. A
/// folder answers with and without its slash, a document only without, as far
/// as anybody relies on it.
pub fn lookup(facts: &Facts, identity: Option<&Identity>, path: &str) -> Option<Vec<u8>> {
    let mut folder = tree(facts, identity);
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    let mut depth = 0;
    while let Some(part) = parts.next() {
        depth += 1;
        folder = match folder.entries.get(part)? {
            Node::Document(make) => return parts.peek().is_none().then(make),
            Node::Folder(make) => make(),
        };
    }
    Some(folder.list(depth > 0).into_bytes())
}

/// The tree of an instance, its identity signed with this.
fn tree<'a>(facts: &'a Facts, identity: Option<&'a Identity>) -> Folder<'a> {
    let mut root = Folder::default();
    if facts.user_data.is_some() {
        let document = Node::Document(Box::new(|| facts.user_data().unwrap_or_default()));
        root.entries.insert("user-data".into(), document);
    }
    root.folder("dynamic", move |dynamic| {
        dynamic.folder("fws", |fws| fws.put("instance-monitoring", || "disabled"));
        dynamic.folder("instance-identity", move |folder| {
            folder.put("document", || identity_document(facts));
            if let Some(identity) = identity {
                let signed = |of: fn(&Signatures) -> &String| {
                    move || match identity.sign(&identity_document(facts)) {
                        Ok(signatures) => of(&signatures).clone(),
                        Err(error) => {
                            tracing::error!(%error, "an identity document can't be signed");
                            String::new()
                        }
                    }
                };
                folder.put("pkcs7", signed(|s| &s.pkcs7));
                folder.put("rsa2048", signed(|s| &s.pkcs7));
                folder.put("signature", signed(|s| &s.signature));
            }
        });
    });
    root.folder("meta-data", |meta| meta_data(meta, facts));
    root
}

fn meta_data<'a>(meta: &mut Folder<'a>, facts: &'a Facts) {
    let instance = &facts.instance;
    meta.put("ami-id", || instance.image.as_str());
    meta.put("ami-launch-index", || instance.launch_index);
    meta.put("ami-manifest-path", || "(unknown)");
    meta.put("instance-action", || "none");
    meta.put("instance-id", || instance.id.as_str());
    meta.put("instance-life-cycle", || "on-demand");
    meta.put("instance-type", || instance.instance_type.as_str());
    meta.put("reservation-id", || instance.reservation.as_str());
    meta.put("profile", || "default-hvm");
    meta.put("system", || "nitro");
    // What lies ahead of it, and did: nothing, as of most instances of EC2's.
    meta.folder("events", |events| {
        events.folder("maintenance", |maintenance| {
            maintenance.put("history", || "[]");
            maintenance.put("scheduled", || "[]");
        });
    });
    meta.folder("block-device-mapping", |devices| {
        devices.put("ami", || instance.root_device_name.as_str());
        devices.put("root", || instance.root_device_name.as_str());
        for (i, device) in facts.disks.values().enumerate() {
            devices.put(format!("ebs{}", i + 1), || device.as_str());
        }
    });
    meta.folder("placement", |placement| {
        placement.put("availability-zone", || instance.zone.as_str());
        placement.put("availability-zone-id", || zone_id(&instance.zone));
        placement.put("region", || facts.region.as_str());
    });
    meta.folder("services", |services| {
        services.put("domain", || "amazonaws.com");
        services.put("partition", || "aws");
    });
    if let (Some(name), Some(key)) = (&instance.key_name, &instance.public_key) {
        meta.folder("public-keys", move |keys| {
            keys.listing = Some(format!("0={name}"));
            keys.folder("0", move |folder| {
                folder.put("openssh-key", || format!("{}\n", key.trim_end()));
            });
        });
    }
    if instance.settings.metadata.tags_enabled {
        meta.folder("tags", |tags| {
            tags.folder("instance", |tags| {
                for (key, value) in &facts.tags {
                    tags.put(key.as_str(), || value.as_str());
                }
            });
        });
    }
    if let Some(nic) = facts.nics.first() {
        addresses(meta, nic, &facts.region);
        if let Some(public) = nic.eni.public_ip {
            meta.put("public-ipv4", move || public);
        }
        meta.put("hostname", || {
            private_name(&facts.region, nic.eni.private_ip)
        });
        meta.put("local-ipv4", || nic.eni.private_ip);
        meta.put("security-groups", || nic.group_names.join("\n"));
        meta.folder("network", |network| {
            network.folder("interfaces", |interfaces| {
                interfaces.folder("macs", |macs| {
                    for nic in &facts.nics {
                        macs.folder(nic.eni.mac_string(), |folder| {
                            interface(folder, nic, &facts.region);
                        });
                    }
                });
            });
        });
    }
}

/// What stands both at the top and at an interface.
fn addresses<'a>(folder: &mut Folder<'a>, nic: &'a Nic, region: &'a str) {
    let eni = &nic.eni;
    folder.put("local-hostname", || private_name(region, eni.private_ip));
    folder.put("mac", || eni.mac_string());
    if let Some(public) = eni.public_ip {
        folder.put("public-hostname", move || public_name(region, public));
    }
}

fn interface<'a>(folder: &mut Folder<'a>, nic: &'a Nic, region: &'a str) {
    let eni = &nic.eni;
    addresses(folder, nic, region);
    if let Some(public) = eni.public_ip {
        folder.put("public-ipv4s", move || public);
        folder.folder("ipv4-associations", move |associations| {
            associations.put(public.to_string(), || eni.private_ip);
        });
    }
    folder.put("device-number", || eni.device_index);
    folder.put("interface-id", || eni.id.as_str());
    folder.put("local-ipv4s", || eni.private_ip);
    folder.put("owner-id", || eni.scope.account.as_str());
    folder.put("security-group-ids", || {
        let groups: Vec<&str> = eni.groups.iter().map(|g| g.as_str()).collect();
        groups.join("\n")
    });
    folder.put("security-groups", || nic.group_names.join("\n"));
    folder.put("subnet-id", || eni.subnet.as_str());
    folder.put("subnet-ipv4-cidr-block", || nic.subnet.cidr);
    folder.put("vpc-id", || eni.vpc.as_str());
    folder.put("vpc-ipv4-cidr-block", || nic.vpc.cidr);
    folder.put("vpc-ipv4-cidr-blocks", || nic.vpc.cidr);
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html>
fn identity_document(facts: &Facts) -> String {
    let instance = &facts.instance;
    let private = facts.nics.first().map(|nic| nic.eni.private_ip.to_string());
    let pending = instance
        .launched_at
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let document = json!({
        "accountId": instance.scope.account,
        "architecture": "x86_64",
        "availabilityZone": instance.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": instance.image,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "kernelId": null,
        "pendingTime": pending,
        "privateIp": private,
        "ramdiskId": null,
        "region": facts.region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::metadata::identity::tests::identity;
    use crate::model::{InstanceState, Reservation, ReservationId, Tags};
    use crate::network::plan::testing;
    use crate::store::View;

    fn view(edit: impl FnOnce(&mut crate::model::Instance)) -> View {
        let (mut instance, mut eni) = testing::instance(4, &[1, 2], InstanceState::Running);
        eni.public_ip = Some(Ipv4Addr::new(203, 0, 113, 7));
        edit(&mut instance);
        testing::view()
            .with(Reservation {
                id: ReservationId::from_random(4),
                scope: instance.scope.clone(),
                created: instance.launched_at,
                user_data: Some("/wAK".into()),
                pending: None,
            })
            .with(testing::group(1, vec![]))
            .with(testing::group(2, vec![]))
            .with(Tags {
                scope: instance.scope.clone(),
                resource: instance.id.to_string(),
                tags: [("Name".to_owned(), "web".to_owned())].into(),
            })
            .with(instance)
            .with(eni)
    }

    fn root(edit: impl FnOnce(&mut crate::model::Instance)) -> Facts {
        let id = crate::model::InstanceId::from_random(4);
        Facts::read(&view(edit), &id, "us-east-1").unwrap()
    }

    fn text(root: &Facts, path: &str) -> Option<String> {
        let found = lookup(root, Some(&identity()), path);
        found.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// What cloud-init (`cloudinit/sources/helpers/ec2.py`) does: a name with a
    /// slash is a folder, `0=name` is a key, all else is fetched.
    fn crawl(root: &Facts, path: &str, found: &mut Vec<String>) {
        for line in text(root, path).unwrap().lines() {
            if let Some((index, _)) = line.split_once('=') {
                let key = format!("{path}{index}/openssh-key");
                assert!(text(root, &key).is_some(), "{key}");
                found.push(key);
            } else if line.ends_with('/') {
                crawl(root, &format!("{path}{line}"), found);
            } else {
                let leaf = format!("{path}{line}");
                assert!(text(root, &leaf).is_some(), "{leaf}");
                found.push(leaf);
            }
        }
    }

    #[test]
    fn cloud_init_finds_its_way() {
        let mut found = Vec::new();
        crawl(&root(|_| ()), "meta-data/", &mut found);
        insta::assert_snapshot!(found.join("\n"));
    }

    #[test]
    fn what_is_asked_for_is_there() {
        let root = root(|_| ());
        let mac = "network/interfaces/macs/02:00:00:00:00:04";
        for (path, expected) in [
            ("meta-data/instance-id", "i-00000000000000004"),
            ("meta-data/ami-id", "ami-00000000000000001"),
            ("meta-data/hostname", "ip-172-31-0-4.ec2.internal"),
            ("meta-data/local-ipv4", "172.31.0.4"),
            ("meta-data/public-ipv4", "203.0.113.7"),
            (
                "meta-data/public-hostname",
                "ec2-203-0-113-7.compute-1.amazonaws.com",
            ),
            ("meta-data/placement/availability-zone", "us-east-1a"),
            ("meta-data/placement/region", "us-east-1"),
            ("meta-data/public-keys/", "0=my-key"),
            ("meta-data/public-keys/0/", "openssh-key"),
            (
                "meta-data/public-keys/0/openssh-key",
                "ssh-ed25519 AAAA my-key\n",
            ),
            ("meta-data/security-groups", "group-1\ngroup-2"),
            ("meta-data/block-device-mapping/root", "/dev/xvda"),
            (&format!("meta-data/{mac}/device-number"), "0"),
            (
                &format!("meta-data/{mac}/subnet-ipv4-cidr-block"),
                "172.31.0.0/20",
            ),
            (&format!("meta-data/{mac}/public-ipv4s"), "203.0.113.7"),
            (
                &format!("meta-data/{mac}/ipv4-associations/203.0.113.7"),
                "172.31.0.4",
            ),
            ("", "dynamic\nmeta-data\nuser-data"),
            (
                "dynamic/instance-identity/",
                "document\npkcs7\nrsa2048\nsignature",
            ),
            (
                "dynamic/instance-identity",
                "document\npkcs7\nrsa2048\nsignature",
            ),
            ("dynamic/fws/instance-monitoring", "disabled"),
            ("meta-data/events/maintenance/scheduled", "[]"),
            ("meta-data/placement/availability-zone-id", "use1-az1"),
        ] {
            assert_eq!(text(&root, path).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(lookup(&root, None, "user-data"), Some(vec![0xff, 0, 10]));
        for path in [
            "meta-data/tags/instance/Name",
            "meta-data/iam/info",
            "meta-data/instance-id/x",
            "meta-data/spot/instance-action",
            "meta-data/events/recommendations/rebalance",
        ] {
            assert_eq!(text(&root, path), None, "{path}");
        }
        let document = text(&root, "dynamic/instance-identity/document").unwrap();
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["region"], "us-east-1");
        // No signature without a key.
        let path = "dynamic/instance-identity/";
        assert_eq!(lookup(&root, None, path), Some(b"document".to_vec()));
        assert_eq!(document["pendingTime"], "2027-01-15T08:00:00Z");
    }

    #[test]
    fn what_an_instance_has_not_is_not_listed() {
        let root = root(|i| {
            i.reservation = ReservationId::from_random(5);
            i.key_name = None;
            i.settings.metadata.tags_enabled = true;
        });
        assert_eq!(text(&root, "").as_deref(), Some("dynamic\nmeta-data"));
        assert_eq!(text(&root, "user-data"), None);
        assert!(!text(&root, "meta-data/").unwrap().contains("public-keys"));
        assert_eq!(
            text(&root, "meta-data/tags/instance/Name").as_deref(),
            Some("web")
        );
    }
}
