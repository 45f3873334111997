//! Launch templates: parameters of RunInstances that are kept under a name, in versions.
//!
//! A version is a record of its own, and never changes. Its template says which numbers
//! were given, which version is the newest and which the default one.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-launch-templates.html>

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Authority, ConditionKey, Described as _, Index, Scope,
    resource::{regional, resource},
};

/// A launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplate {
    /// Its id.
    pub id: LaunchTemplateId,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its name, unique in its scope: [`LaunchTemplateName`].
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The ARN of who made it.
    pub created_by: String,
    /// `$Default`: the version that a launch has which names none.
    pub default_version: u32,
    /// `$Latest`: the highest number of a version that is there.
    pub latest_version: u32,
    /// The highest number that a version had: none is given twice.
    pub numbered: u32,
    /// Whether it is about to be deleted, with its versions: the API shows it no more.
    #[serde(default)]
    pub deleting: bool,
}

resource! {
    LaunchTemplate {
        /// A launch template's identifier.
        id: LaunchTemplateId = "lt",
        kind: "launch-templates",
        key: id,
        service: "ec2",
        arn: "launch-template",
        malformed: "InvalidLaunchTemplateId.Malformed",
        not_found: "InvalidLaunchTemplateId.NotFound",
        noun: "launch template ID",
        absent: [
            "The specified launch template, with template ID {ids}, does not exist.",
            "At least one of the launch templates specified in the request does not exist.",
        ],
        indexes: [BY_NAME, DELETING],
        conditions: conditions,
    }
}

impl LaunchTemplate {
    /// By its name, unless it is about to be deleted.
    pub const BY_NAME: Index<Self> = Index {
        name: "name",
        keys: |this, key| {
            if !this.deleting {
                key(&this.name);
            }
        },
    };
    /// Those that are about to be deleted, under the empty key.
    pub const DELETING: Index<Self> = Index {
        name: "deleting",
        keys: |this, key| {
            if this.deleting {
                key("");
            }
        },
    };

    // What AWS's table has of one beside its tags.
    #[allow(clippy::unused_self)]
    fn conditions(&self) -> Vec<(ConditionKey, String)> {
        Vec::new()
    }
}

/// A launch template's name, taken: a record of its own, so that of two calls that take
/// the same name only one commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplateName {
    /// The name.
    pub name: String,
    /// The account and region that it is in.
    pub scope: Scope,
    /// The template that has it.
    pub template: LaunchTemplateId,
}

regional! {
    LaunchTemplateName {
        kind: "launch-template-names",
        key: name,
        indexes: [],
        authority: |this| {
            Authority::Of(LaunchTemplate::arn_at(&this.scope, this.template.as_str()))
        },
    }
}

/// A version of a launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplateVersion {
    /// [`LaunchTemplateVersion::key_of`].
    pub key: String,
    /// The account and region that it is in.
    pub scope: Scope,
    /// Its template.
    pub template: LaunchTemplateId,
    /// Its number, from 1.
    pub number: u32,
    /// In words.
    pub description: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// The ARN of who made it.
    pub created_by: String,
    /// `LaunchTemplateData` as the request had it, by EC2's own names: they don't change.
    pub data: Map<String, Value>,
}

regional! {
    LaunchTemplateVersion {
        kind: "launch-template-versions",
        key: key,
        indexes: [BY_TEMPLATE],
        authority: |this| {
            Authority::Of(LaunchTemplate::arn_at(&this.scope, this.template.as_str()))
        },
    }
}

impl LaunchTemplateVersion {
    /// By its template, in the order of their numbers.
    pub const BY_TEMPLATE: Index<Self> = Index {
        name: "template",
        keys: |this, key| key(this.template.as_str()),
    };

    /// The key of this version.
    pub fn key_of(template: &LaunchTemplateId, number: u32) -> String {
        format!("{template} {number:010}")
    }
}
