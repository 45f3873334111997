//! `CreateTags`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateTags.html>

use serde::Deserialize;

use super::{check_resources, retag, target};
use crate::api::{
    Action, ApiError, Ctx, Done, Targets,
    shared::tag::{TagInput, checked, within_limit},
};

/// The action.
pub(crate) struct CreateTags;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "ResourceId")]
    resources: Vec<String>,
    #[serde(default, rename = "Tag")]
    tags: Vec<TagInput>,
}

impl Action for CreateTags {
    const NAME: &'static str = "CreateTags";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        request.resources.iter().for_each(|id| target(to, id));
        to.request_tags(&request.tags);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        check_resources(&request.resources)?;
        if request.tags.is_empty() {
            return Err(ApiError::missing("Tag"));
        }
        let new = checked(&request.tags)?;
        ctx.each(&request.resources, |view, change, id| {
            retag(view, change, id, &|tags| {
                let mut tags = tags.clone();
                tags.extend(new.clone());
                within_limit(&tags)?;
                Ok(tags)
            })
        })
        .await?;
        Ok(Done::OK)
    }
}
