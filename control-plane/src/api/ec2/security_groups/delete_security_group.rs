//! `DeleteSecurityGroup`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSecurityGroup.html>

use serde::{Deserialize, Serialize};

use super::find;
use crate::{
    api::{Action, ApiError, Ctx},
    model::{Eni, Peer, SecurityGroup},
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
    const IAM: &'static str = "ec2:DeleteSecurityGroup";
    type Request = Request;
    type Response = Response;

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let (id, name) = (request.group_id.as_deref(), request.group_name.as_deref());
        let deleted = ctx
            .db
            .transact(|view, change| {
                let group = find(view, id, name)?;
                if group.name == "default" {
                    return Err(ApiError::new(
                        "CannotDelete",
                        format!(
                            "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                            group.id
                        ),
                    ));
                }
                let member = view.all::<Eni>().any(|eni| eni.groups.contains(&group.id));
                let peer = Peer::Group(group.id.clone());
                let named = view
                    .all::<SecurityGroup>()
                    .filter(|other| other.id != group.id)
                    .any(|other| other.rules.iter().any(|rule| rule.peer == peer));
                if member || named {
                    return Err(ApiError::new(
                        "DependencyViolation",
                        format!("resource {} has a dependent object", group.id),
                    ));
                }
                change.delete::<SecurityGroup>(&group.id);
                change.put_tags(&group.id, Default::default());
                for rule in &group.rules {
                    change.put_tags(&rule.id, Default::default());
                }
                Ok(group.id.clone())
            })
            .await?;
        Ok(Response {
            done: true,
            group_id: deleted.to_string(),
        })
    }
}
