//! `DeleteTags`. A tag that is not there is no error.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteTags.html>

use serde::Deserialize;

use super::{check_resources, retag, target};
use crate::api::{
    Action, ApiError, Ctx, Done, Targets,
    shared::tag::{TagInput, reserved},
};

/// The action.
pub(crate) struct DeleteTags;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "ResourceId")]
    resources: Vec<String>,
    /// Those to delete: with a value only if it has that value. None at all: all.
    #[serde(default, rename = "Tag")]
    tags: Vec<TagInput>,
}

impl Action for DeleteTags {
    const NAME: &'static str = "DeleteTags";
    type Request = Request;
    type Response = Done;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        request.resources.iter().for_each(|id| target(to, id));
        to.by_tags_alone();
        to.request_tags(&request.tags);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Done, ApiError> {
        check_resources(&request.resources)?;
        if request.tags.iter().any(|tag| reserved(&tag.key)) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                "Tag keys starting with 'aws:' are reserved for internal use",
            ));
        }
        let goes = |key: &String, value: &String| {
            if request.tags.is_empty() {
                return !reserved(key);
            }
            request
                .tags
                .iter()
                .any(|tag| tag.key == *key && tag.value.as_ref().is_none_or(|v| v == value))
        };
        ctx.each(&request.resources, |view, change, id| {
            retag(view, change, id, &|tags| {
                let mut tags = tags.clone();
                tags.retain(|key, value| !goes(key, value));
                Ok(tags)
            })
        })
        .await?;
        Ok(Done::OK)
    }
}
