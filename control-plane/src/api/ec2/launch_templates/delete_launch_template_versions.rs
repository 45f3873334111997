//! `DeleteLaunchTemplateVersions`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteLaunchTemplateVersions.html>

use serde::{Deserialize, Serialize};

use super::{find, number, numbered, target};
use crate::{
    api::{Action, ApiError, Ctx, Targets},
    model::{LaunchTemplate, LaunchTemplateVersion},
    store::{Change, Scoped},
};

/// As many does one call delete.
const MOST: usize = 200;
/// As many does one transaction.
const AT_ONCE: usize = 50;

/// The action.
pub(crate) struct DeleteLaunchTemplateVersions;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    #[serde(default, rename = "LaunchTemplateVersion")]
    versions: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Response {
    #[serde(rename = "successfullyDeletedLaunchTemplateVersionSet")]
    deleted: Vec<Deleted>,
    #[serde(rename = "unsuccessfullyDeletedLaunchTemplateVersionSet")]
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    launch_template_id: String,
    launch_template_name: String,
    version_number: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failed {
    launch_template_id: String,
    launch_template_name: String,
    version_number: u32,
    response_error: Why,
}

#[derive(Debug, Serialize, Deserialize)]
struct Why {
    code: String,
    message: String,
}

/// Why one can't be deleted.
fn refusal(view: Scoped<'_>, template: &LaunchTemplate, number: u32) -> Option<Why> {
    let why = |code: &str, message: &str| {
        Some(Why {
            code: code.to_owned(),
            message: message.to_owned(),
        })
    };
    if number == template.default_version {
        return why(
            "unexpectedError",
            "The default version of a launch template can't be deleted.",
        );
    }
    match numbered(view, template, number) {
        Some(_) => None,
        None => why(
            "launchTemplateVersionDoesNotExist",
            "Could not find launch template version.",
        ),
    }
}

/// Deletes those of them that may go.
fn delete(
    view: Scoped<'_>,
    change: &mut Change<'_>,
    template: &LaunchTemplate,
    numbers: &[u32],
) -> Response {
    // None of them becomes the default one meanwhile.
    change.expect_unchanged(template);
    let mut response = Response::default();
    let mut gone = std::collections::BTreeSet::new();
    for number in numbers {
        let version = match refusal(view, template, *number) {
            None => numbered(view, template, *number).filter(|_| gone.insert(*number)),
            Some(response_error) => {
                response.failed.push(Failed {
                    launch_template_id: template.id.to_string(),
                    launch_template_name: template.name.clone(),
                    version_number: *number,
                    response_error,
                });
                None
            }
        };
        if let Some(version) = version {
            change.delete(version);
            response.deleted.push(Deleted {
                launch_template_id: template.id.to_string(),
                launch_template_name: template.name.clone(),
                version_number: *number,
            });
        }
    }
    if gone.contains(&template.latest_version) {
        let left = view.by(LaunchTemplateVersion::BY_TEMPLATE, template.id.as_str());
        let left = left.map(|version| version.number);
        let latest = left.filter(|number| !gone.contains(number)).last();
        let changed = LaunchTemplate {
            latest_version: latest.unwrap_or(template.default_version),
            ..template.clone()
        };
        change.update(template, &changed);
    }
    response
}

impl Action for DeleteLaunchTemplateVersions {
    const NAME: &'static str = "DeleteLaunchTemplateVersions";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        target(to, id.as_deref(), name.as_deref());
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        if request.versions.is_empty() {
            return Err(ApiError::missing("LaunchTemplateVersion"));
        }
        if request.versions.len() > MOST {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("At most {MOST} versions can be deleted by one call"),
            ));
        }
        let numbers = request.versions.iter().map(|version| number(version));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        let mut all = Response::default();
        for numbers in numbers.chunks(AT_ONCE) {
            let part = ctx
                .transact(|view, change| {
                    let template = find(view, id.as_deref(), name.as_deref())?;
                    Ok(delete(view, change, template, numbers))
                })
                .await?;
            all.deleted.extend(part.deleted);
            all.failed.extend(part.failed);
        }
        Ok(all)
    }
}
