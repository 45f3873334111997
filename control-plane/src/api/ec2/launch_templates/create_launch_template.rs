//! `CreateLaunchTemplate`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplate.html>

use serde::{Deserialize, Serialize};

use super::{
    MAX_TEMPLATES, answer::Template, check_description, create_version, find, kept, named,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        ec2::instances::launch_data::{LaunchData, launch_data_no_ops, unsupported_launch_data},
        shared::{TagSpecification, quota, tag},
    },
    model::{LaunchTemplate, LaunchTemplateId, LaunchTemplateName},
};

/// The action.
pub(crate) struct CreateLaunchTemplate;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    launch_template_name: String,
    version_description: Option<String>,
    launch_template_data: LaunchData,
    #[serde(default, rename = "TagSpecification")]
    tag_specifications: Vec<TagSpecification>,
    #[expect(dead_code, reason = "the dispatch reads it: `Ctx::once`")]
    client_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    launch_template: Template,
}

/// What a name may be.
fn check_name(name: &str) -> Result<(), ApiError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./()".contains(c);
    if (3..=128).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(ApiError::new(
        "InvalidLaunchTemplateName.MalformedException",
        "A launch template name must be between 3 and 128 characters, and may contain letters, numbers, and the following characters: - ( ) . / _.",
    ))
}

impl Action for CreateLaunchTemplate {
    const NAME: &'static str = "CreateLaunchTemplate";
    const UNSUPPORTED: &'static [&'static str] = unsupported_launch_data!(
        "LaunchTemplateData.",
        "LaunchTemplateData.InstanceRequirements",
        "LaunchTemplateData.RamDiskId",
        "Operator",
    );
    const NO_OPS: &'static [(&'static str, &'static str)] =
        launch_data_no_ops!("LaunchTemplateData.");
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        to.made::<LaunchTemplate>([], &request.tag_specifications);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let name = &request.launch_template_name;
        check_name(name)?;
        check_description(request.version_description.as_deref())?;
        let data = kept(&request.launch_template_data)?;
        let tags = tag::specified_for(&request.tag_specifications, "launch-template")?;
        let template = LaunchTemplate {
            id: ctx.fresh_id(LaunchTemplateId::from_random),
            scope: ctx.scope().clone(),
            name: name.clone(),
            created: ctx.now(),
            created_by: ctx.caller.arn.to_string(),
            default_version: 1,
            latest_version: 1,
            numbered: 1,
            deleting: false,
        };
        let description = request.version_description.as_ref();
        let once = ctx
            .once(|view, change| {
                if named(view, name).is_some() {
                    return Err(ApiError::new(
                        "InvalidLaunchTemplateName.AlreadyExistsException",
                        "Launch template name already in use.",
                    ));
                }
                quota::one_more::<LaunchTemplate>(view, change, MAX_TEMPLATES, || {
                    ApiError::new(
                        "LaunchTemplateLimitExceeded",
                        format!(
                            "The maximum number of launch templates, {MAX_TEMPLATES}, has been reached."
                        ),
                    )
                })?;
                change.create(&LaunchTemplateName {
                    name: name.clone(),
                    scope: template.scope.clone(),
                    template: template.id.clone(),
                });
                change.create(&template);
                create_version(ctx, view, change, &template.id, 1, description, data.clone())?;
                if !tags.is_empty() {
                    change.put_tags(&template, tags.clone());
                }
                Ok(template.id.to_string())
            })
            .await?;
        let view = ctx.view();
        let made = find(view.view(), Some(&once.made), None)?;
        Ok(Response {
            launch_template: Template::new(made, view.view().tags_of(made)),
        })
    }
}
