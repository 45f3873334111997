//! `DeleteSecurityGroup`: see [`records::security_group`](crate::records::security_group).
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSecurityGroup.html>

use serde::{Deserialize, Serialize};

use super::{find, target};
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{in_use, unreferred},
    },
    model::SecurityGroup,
    records::security_group::finish_deletion,
};

/// The action.
pub(crate) struct DeleteSecurityGroup;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    group_id: Option<String>,
    group_name: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    #[serde(rename = "return")]
    done: bool,
    group_id: String,
}

impl Action for DeleteSecurityGroup {
    const NAME: &'static str = "DeleteSecurityGroup";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        let (id, name) = (request.group_id.as_deref(), request.group_name.as_deref());
        target(to, id, name);
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let (id, name) = (request.group_id.as_deref(), request.group_name.as_deref());
        let marked = ctx
            .transact(|view, change| {
                let group = find(view, id, name)?;
                if group.name == SecurityGroup::DEFAULT {
                    return Err(ApiError::new(
                        "CannotDelete",
                        format!(
                            "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                            group.id
                        ),
                    ));
                }
                unreferred(view, group)?;
                change.update(group, &SecurityGroup {
                    deleting: true,
                    ..group.clone()
                });
                Ok(group.id.clone())
            })
            .await?;
        // Nothing new refers to it since; what was under way before the mark is
        // in the view now.
        ctx.transact(|view, change| {
            let Some(group) = view.get::<SecurityGroup>(&marked) else {
                return Ok(true);
            };
            Ok(finish_deletion(view, change, group))
        })
        .await?
        .then_some(())
        .ok_or_else(|| in_use::<SecurityGroup>(&marked))?;
        Ok(Response {
            done: true,
            group_id: marked.to_string(),
        })
    }
}
