//! `DeleteLaunchTemplate`: with all of its versions, see
//! [`records::launch_template`](crate::records::launch_template).
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteLaunchTemplate.html>

use serde::{Deserialize, Serialize};

use super::{answer::Template, find, target};
use crate::{
    api::{Action, ApiError, Ctx, Targets, shared::unreferred},
    model::LaunchTemplate,
    records::launch_template::{begin_deletion, go_on_deleting},
};

/// The action.
pub(crate) struct DeleteLaunchTemplate;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    launch_template: Template,
}

impl Action for DeleteLaunchTemplate {
    const NAME: &'static str = "DeleteLaunchTemplate";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        target(to, id.as_deref(), name.as_deref());
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let (id, name) = (&request.launch_template_id, &request.launch_template_name);
        let (id, launch_template) = ctx
            .transact(|view, change| {
                let template = find(view, id.as_deref(), name.as_deref())?;
                unreferred(view, template)?;
                begin_deletion(view, change, template);
                let shown = Template::new(template, view.tags_of(template));
                Ok((template.id.clone(), shown))
            })
            .await?;
        let rest = async || {
            ctx.transact(|view, change| {
                let template = view.get::<LaunchTemplate>(&id);
                Ok(template.is_none_or(|template| go_on_deleting(view, change, template)))
            })
            .await
        };
        while !rest().await? {}
        Ok(Response { launch_template })
    }
}
