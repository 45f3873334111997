//! Launch templates and their versions.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-launch-templates.html>

mod answer;
mod create_launch_template;
mod create_launch_template_version;
mod delete_launch_template;
mod delete_launch_template_versions;
mod describe_launch_template_versions;
mod describe_launch_templates;
mod get_launch_template_data;
mod modify_launch_template;

pub(super) use create_launch_template::CreateLaunchTemplate;
pub(super) use create_launch_template_version::CreateLaunchTemplateVersion;
pub(super) use delete_launch_template::DeleteLaunchTemplate;
pub(super) use delete_launch_template_versions::DeleteLaunchTemplateVersions;
pub(super) use describe_launch_template_versions::DescribeLaunchTemplateVersions;
pub(super) use describe_launch_templates::DescribeLaunchTemplates;
pub(super) use get_launch_template_data::GetLaunchTemplateData;
pub(super) use modify_launch_template::ModifyLaunchTemplate;

use anyhow::anyhow;
use serde_json::{Map, Value};

use super::instances::{input, launch_data::LaunchData, run_instances::TAGGED};
use crate::{
    api::{
        ApiError, Ctx, Targets,
        shared::{found, not_found, quota, tag},
        wire::quoted,
    },
    model::{LaunchTemplate, LaunchTemplateId, LaunchTemplateVersion},
    store::{Change, Scoped},
};

/// The name of a template's default version.
pub(super) const DEFAULT: &str = "$Default";
/// The name of its newest one.
const LATEST: &str = "$Latest";
/// EC2's quota of templates in a region.
const MAX_TEMPLATES: usize = 5000;
/// The most versions of all templates in a region: EC2's quota is as many of each.
const MAX_VERSIONS: usize = 10_000;
/// The longest description of a version, in characters.
const MAX_DESCRIPTION: usize = 255;
/// As much may a version take, in bytes as it is kept: user data as long as it may be,
/// and 50 tags on each thing that is made.
const MAX_DATA: usize = 256 << 10;

/// The template with this id or name.
///
/// # Errors
/// When there is neither or both, or no such template.
pub(super) fn find<'v>(
    view: Scoped<'v>,
    id: Option<&str>,
    name: Option<&str>,
) -> Result<&'v LaunchTemplate, ApiError> {
    match (id, name) {
        (Some(id), None) => {
            let template = found::<LaunchTemplate>(view, id)?;
            match template.deleting {
                true => Err(not_found::<LaunchTemplateId>(id)),
                false => Ok(template),
            }
        }
        (None, Some(name)) => named(view, name).ok_or_else(|| {
            ApiError::new(
                "InvalidLaunchTemplateName.NotFoundException",
                format!(
                    "The specified launch template, with template name {}, does not exist.",
                    quoted(name)
                ),
            )
        }),
        (None, None) => Err(ApiError::new(
            "MissingParameter",
            "The request must contain the parameter launch template ID or launch template name",
        )),
        (Some(_), Some(_)) => Err(ApiError::combination(
            "Either provide launch template ID or launch template name, not both.",
        )),
    }
}

fn named<'v>(view: Scoped<'v>, name: &str) -> Option<&'v LaunchTemplate> {
    view.by(LaunchTemplate::BY_NAME, name).next()
}

/// Asks policies about the template with this id or name.
pub(super) fn target(to: &mut Targets<'_>, id: Option<&str>, name: Option<&str>) {
    match (id, name) {
        (Some(id), _) => to.named::<LaunchTemplate>([id]),
        (None, Some(name)) => match named(to.view(), name) {
            Some(template) => to.existing(template),
            None => to.absent::<LaunchTemplate>(name),
        },
        (None, None) => {}
    }
}

/// The number that a request has for a version.
///
/// # Errors
/// When it is none, and neither `$Latest` nor `$Default`.
fn number_of(template: &LaunchTemplate, version: &str) -> Result<u32, ApiError> {
    match version {
        LATEST => Ok(template.latest_version),
        DEFAULT => Ok(template.default_version),
        _ => number(version),
    }
}

fn number(version: &str) -> Result<u32, ApiError> {
    let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        let why = "It must be a number, $Latest or $Default.";
        return Err(ApiError::invalid_value(
            "launchTemplateVersion",
            version,
            why,
        ));
    }
    // What is out of all bounds is no version that there is.
    Ok(version.parse().unwrap_or(0))
}

/// A version of a template, by its number or one of those two names.
///
/// # Errors
/// When there is none.
pub(super) fn version<'v>(
    view: Scoped<'v>,
    template: &LaunchTemplate,
    version: &str,
) -> Result<&'v LaunchTemplateVersion, ApiError> {
    let number = number_of(template, version)?;
    numbered(view, template, number).ok_or_else(|| {
        ApiError::new(
            "InvalidLaunchTemplateId.VersionNotFound",
            format!(
                "Could not find the specified version {} for the launch template with ID {}.",
                quoted(version),
                template.id
            ),
        )
    })
}

fn numbered<'v>(
    view: Scoped<'v>,
    template: &LaunchTemplate,
    number: u32,
) -> Option<&'v LaunchTemplateVersion> {
    view.get(LaunchTemplateVersion::key_of(&template.id, number))
}

/// The parameters that a version has.
///
/// # Errors
/// When they are none of ours, which is our fault.
pub(super) fn data_of(version: &LaunchTemplateVersion) -> Result<LaunchData, ApiError> {
    let data = Value::Object(version.data.clone());
    serde_json::from_value(data).map_err(|error| {
        let key = &version.key;
        ApiError::internal(anyhow!(error).context(format!("launch template version {key}")))
    })
}

/// How the parameters of a request are kept: what it doesn't have is left out. What can
/// be wrong by itself is refused here, the rest when it is launched, as on EC2.
///
/// # Errors
/// For tags and user data as RunInstances; when it is too much.
fn kept(data: &LaunchData) -> Result<Map<String, Value>, ApiError> {
    tag::specified(&data.tag_specifications, &TAGGED)?;
    input::user_data(data.user_data.as_deref())?;
    let value = serde_json::to_value(data).map_err(ApiError::internal)?;
    let Some(Value::Object(kept)) = without_nothing(value) else {
        return Err(ApiError::missing("LaunchTemplateData"));
    };
    Ok(kept)
}

/// A value without its members that say nothing.
fn without_nothing(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Array(items) => {
            let items: Vec<Value> = items.into_iter().filter_map(without_nothing).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(members) => {
            let members = members.into_iter();
            let members: Map<String, Value> = members
                .filter_map(|(name, value)| Some((name, without_nothing(value)?)))
                .collect();
            (!members.is_empty()).then_some(Value::Object(members))
        }
        other => Some(other),
    }
}

fn check_description(description: Option<&str>) -> Result<(), ApiError> {
    match description {
        Some(text) if text.chars().count() > MAX_DESCRIPTION => {
            let why = format!("It must be up to {MAX_DESCRIPTION} characters long.");
            Err(ApiError::invalid_value("VersionDescription", text, &why))
        }
        _ => Ok(()),
    }
}

/// Writes a version of a template.
///
/// # Errors
/// When there are too many.
fn create_version(
    ctx: &Ctx,
    view: Scoped<'_>,
    change: &mut Change<'_>,
    template: &LaunchTemplateId,
    number: u32,
    description: Option<&String>,
    data: Map<String, Value>,
) -> Result<(), ApiError> {
    quota::one_more::<LaunchTemplateVersion>(view, change, MAX_VERSIONS, || {
        ApiError::new(
            "VersionLimitExceeded",
            format!(
                "The maximum number of launch template versions, {MAX_VERSIONS}, has been reached."
            ),
        )
    })?;
    // With what it has of its source.
    let bytes = serde_json::to_vec(&data).map_err(ApiError::internal)?;
    if bytes.len() > MAX_DATA {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("LaunchTemplateData is longer than {MAX_DATA} bytes"),
        ));
    }
    change.create(&LaunchTemplateVersion {
        key: LaunchTemplateVersion::key_of(template, number),
        scope: ctx.scope().clone(),
        template: template.clone(),
        number,
        description: description.cloned(),
        created: ctx.now(),
        created_by: ctx.caller.arn.to_string(),
        data,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parameters of a version are kept by the names that they have in a request: one
    /// that changes its name makes every version that has it unreadable.
    #[test]
    fn every_parameter_is_read_by_the_name_it_was_kept_by() {
        let stored = include_str!("../../../../store/stored/launch-template-versions/001.json");
        let mut stored: Value = serde_json::from_str(stored).unwrap();
        let kept = stored["record"]["data"].take();
        let data: LaunchData = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!(serde_json::to_value(&data).unwrap(), kept);
    }
}
