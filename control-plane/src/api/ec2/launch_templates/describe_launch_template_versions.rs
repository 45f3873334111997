//! `DescribeLaunchTemplateVersions`: those of one template, the newest first; or the
//! newest or default ones of all.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeLaunchTemplateVersions.html>

use std::collections::BTreeSet;

use serde_json::Value;

use super::{DEFAULT, LATEST, answer::Version, find, number, numbered, version};
use crate::{
    api::{
        ApiError,
        ec2::listing::{Filterable, Listing, Paged, Table, TagsOf, describe},
        wire::Time,
    },
    model::{LaunchTemplate, LaunchTemplateVersion},
};

describe! {
    DescribeLaunchTemplateVersions {
        set: launch_template_version_set of Version,
        unsupported: ["IncludeManagedResources", "ResolveAlias"],
        more: {
            launch_template_id: Option<String>,
            launch_template_name: Option<String>,
            #[serde(default, rename = "LaunchTemplateVersion")]
            versions: Vec<String>,
            min_version: Option<String>,
            max_version: Option<String>,
        },
        pages: 1..=200,
        page: |asked, more| page(asked, &more),
    }
}

/// A version beside its template.
#[derive(Clone, Copy)]
struct Row<'v> {
    template: &'v LaunchTemplate,
    version: &'v LaunchTemplateVersion,
}

impl Row<'_> {
    /// Its place in a list: by template, and of one the newest first.
    fn key(&self) -> String {
        format!(
            "{} {:010}",
            self.template.id,
            u32::MAX - self.version.number
        )
    }

    /// A parameter that it has, by the names of its members.
    fn has(&self, path: &[&str]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        let value = rest
            .iter()
            .try_fold(self.version.data.get(*first)?, |value, name| {
                value.get(name)
            })?;
        value.as_str()
    }
}

fn page(asked: Listing<'_>, more: &More) -> Result<Paged<Version>, ApiError> {
    let view = asked.view;
    let (id, name) = (&more.launch_template_id, &more.launch_template_name);
    if id.is_none() && name.is_none() && !more.versions.is_empty() {
        return of_all(asked, more);
    }
    let template = find(view, id.as_deref(), name.as_deref())?;
    let mut rows = Vec::new();
    if more.versions.is_empty() {
        let bound = |bound: &Option<String>| bound.as_deref().map(number).transpose();
        let least = bound(&more.min_version)?.unwrap_or(0);
        let most = bound(&more.max_version)?.unwrap_or(u32::MAX);
        let all = view.by(LaunchTemplateVersion::BY_TEMPLATE, template.id.as_str());
        let within = all.filter(|version| (least..=most).contains(&version.number));
        rows.extend(within.map(|version| Row { template, version }));
    } else {
        if more.min_version.is_some() || more.max_version.is_some() {
            return Err(ApiError::combination(
                "The parameters MinVersion and MaxVersion cannot be used with versions",
            ));
        }
        let named = more.versions.iter();
        let named = named.map(|name| Ok(version(view, template, name)?.number));
        let numbers = named.collect::<Result<BTreeSet<_>, ApiError>>()?;
        let there = numbers
            .into_iter()
            .filter_map(|n| numbered(view, template, n));
        rows.extend(there.map(|version| Row { template, version }));
    }
    rows.reverse();
    shown(asked.page_of(rows, Row::key)?)
}

/// Of all templates those versions that have one name in each.
fn of_all(asked: Listing<'_>, more: &More) -> Result<Paged<Version>, ApiError> {
    let named = |name: &&String| [LATEST, DEFAULT].contains(&name.as_str());
    if !more.versions.iter().all(|name| named(&name)) {
        return Err(ApiError::new(
            "MissingParameter",
            "The request must contain the parameter launch template ID or launch template name",
        ));
    }
    let view = asked.view;
    let has = |name: &str| more.versions.iter().any(|version| version == name);
    let (latest, default) = (has(LATEST), has(DEFAULT));
    let after = asked.after()?.unwrap_or_default();
    let after = after.split(' ').next().unwrap_or_default();
    // The template that the last page ended with may have one more.
    let begun = view.get::<LaunchTemplate>(after).into_iter();
    let templates = begun.chain(view.after::<LaunchTemplate>(after));
    let rows = templates
        .filter(|template| !template.deleting)
        .flat_map(|template| {
            let numbers = [
                latest.then_some(template.latest_version),
                default.then_some(template.default_version),
            ];
            let numbers: BTreeSet<u32> = numbers.into_iter().flatten().collect();
            let versions = numbers.into_iter().rev();
            versions.filter_map(move |n| {
                numbered(view, template, n).map(|version| Row { template, version })
            })
        });
    shown(asked.page_of(rows, Row::key)?)
}

fn shown((rows, next_token): Paged<Row<'_>>) -> Result<Paged<Version>, ApiError> {
    let items = rows
        .iter()
        .map(|row| Version::new(row.template, row.version));
    Ok((items.collect::<Result<_, _>>()?, next_token))
}

impl Filterable for Row<'_> {
    const TAGS: Option<TagsOf<Self>> = None;

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("create-time", |row, out| out.add(Time(row.version.created)))
            // What no version here can have but by default.
            .on("ebs-optimized", |_, out| out.add(false))
            .on("http-endpoint", |row, out| {
                out.extend(row.has(&["MetadataOptions", "HttpEndpoint"]));
            })
            .on("http-tokens", |row, out| {
                out.extend(row.has(&["MetadataOptions", "HttpTokens"]));
            })
            .on("iam-instance-profile", |_, _| {})
            .on("image-id", |row, out| out.extend(row.has(&["ImageId"])))
            .on("instance-type", |row, out| {
                out.extend(row.has(&["InstanceType"]));
            })
            .on("is-default-version", |row, out| {
                out.add(row.version.number == row.template.default_version);
            })
            .on("kernel-id", |_, _| {})
            .on("license-configuration-arn", |_, _| {})
            .on("network-card-index", |row, out| {
                let interfaces = row.version.data.get("NetworkInterface");
                let interfaces = interfaces.and_then(Value::as_array).into_iter();
                out.extend(interfaces.flatten().map(|_| 0));
            })
            .on("ram-disk-id", |_, _| {})
    }
}
