//! `CreateLaunchTemplateVersion`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplateVersion.html>

use serde::{Deserialize, Serialize};

use super::{
    answer::Version, check_description, create_version, find, kept, target,
    version as found_version,
};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        ec2::instances::launch_data::{LaunchData, launch_data_no_ops, unsupported_launch_data},
    },
    model::LaunchTemplate,
};

/// The action.
pub(crate) struct CreateLaunchTemplateVersion;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    /// What the new version has where the request says nothing.
    source_version: Option<String>,
    version_description: Option<String>,
    launch_template_data: LaunchData,
    #[expect(dead_code, reason = "the dispatch reads it: `Ctx::once`")]
    client_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    launch_template_version: Version,
}

impl Action for CreateLaunchTemplateVersion {
    const NAME: &'static str = "CreateLaunchTemplateVersion";
    const UNSUPPORTED: &'static [&'static str] = unsupported_launch_data!(
        "LaunchTemplateData.",
        "LaunchTemplateData.InstanceRequirements",
        "LaunchTemplateData.RamDiskId",
        "ResolveAlias",
    );
    const NO_OPS: &'static [(&'static str, &'static str)] =
        launch_data_no_ops!("LaunchTemplateData.", ("ResolveAlias", "false"));
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        target(to, id.as_deref(), name.as_deref());
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        let (id, name) = (id.as_deref(), name.as_deref());
        check_description(request.version_description.as_deref())?;
        let own = kept(&request.launch_template_data)?;
        let once = ctx
            .once(|view, change| {
                let template = find(view, id, name)?;
                // What the request has replaces what the source has of the same name.
                let mut data = match request.source_version.as_deref() {
                    Some(source) => found_version(view, template, source)?.data.clone(),
                    None => serde_json::Map::new(),
                };
                data.extend(own.clone());
                let number = template.numbered + 1;
                let description = request.version_description.as_ref();
                create_version(ctx, view, change, &template.id, number, description, data)?;
                change.update(
                    template,
                    &LaunchTemplate {
                        latest_version: number,
                        numbered: number,
                        ..template.clone()
                    },
                );
                Ok(format!("{} {number}", template.id))
            })
            .await?;
        let view = ctx.view();
        let (id, number) = once.made.split_once(' ').unwrap_or_default();
        let template = find(view.view(), Some(id), None)?;
        let version = found_version(view.view(), template, number)?;
        Ok(Response {
            launch_template_version: Version::new(template, version)?,
        })
    }
}
