//! `ModifyLaunchTemplate`: which version is the default one.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyLaunchTemplate.html>

use serde::{Deserialize, Serialize};

use super::{answer::Template, find, target, version};
use crate::{
    api::{Action, ApiError, Ctx, Targets},
    model::LaunchTemplate,
};

/// The action.
pub(crate) struct ModifyLaunchTemplate;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    set_default_version: Option<String>,
    #[expect(dead_code, reason = "the dispatch reads it: `Ctx::once`")]
    client_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    launch_template: Template,
}

impl Action for ModifyLaunchTemplate {
    const NAME: &'static str = "ModifyLaunchTemplate";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        target(to, id.as_deref(), name.as_deref());
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        let (id, name) = (id.as_deref(), name.as_deref());
        let once = ctx
            .once(|view, change| {
                let template = find(view, id, name)?;
                let wanted = request.set_default_version.as_deref();
                let wanted = wanted.ok_or_else(|| ApiError::missing("SetDefaultVersion"))?;
                let version = version(view, template, wanted)?;
                // It isn't deleted meanwhile.
                change.expect_unchanged(version);
                change.update(
                    template,
                    &LaunchTemplate {
                        default_version: version.number,
                        ..template.clone()
                    },
                );
                Ok(template.id.to_string())
            })
            .await?;
        let view = ctx.view();
        let template = find(view.view(), Some(&once.made), None)?;
        Ok(Response {
            launch_template: Template::new(template, view.view().tags_of(template)),
        })
    }
}
