//! `DeleteKeyPair`. As with EC2, a key pair that is not there is no error.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteKeyPair.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{parse_id, unreferred},
    },
    model::{KeyPair, KeyPairId},
};

/// The action.
pub(crate) struct DeleteKeyPair;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    key_name: Option<String>,
    key_pair_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    #[serde(rename = "return")]
    done: bool,
    key_pair_id: Option<String>,
}

impl Action for DeleteKeyPair {
    const NAME: &'static str = "DeleteKeyPair";
    type Request = Request;
    type Response = Response;

    fn targets(request: &Request, to: &mut Targets<'_>) {
        match (&request.key_pair_id, &request.key_name) {
            (Some(id), _) => to.named::<KeyPair>([id]),
            (None, Some(name)) => match to.view().get::<KeyPair>(name) {
                Some(pair) => to.existing(pair),
                None => to.absent::<KeyPair>(name),
            },
            (None, None) => {}
        }
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let id: Option<KeyPairId> = request.key_pair_id.as_deref().map(parse_id).transpose()?;
        if id.is_none() && request.key_name.is_none() {
            return Err(ApiError::missing("KeyName"));
        }
        let deleted = ctx
            .transact(|view, change| {
                let found = view.all::<KeyPair>().find(|pair| {
                    id.as_ref().is_none_or(|id| pair.id == *id)
                        && request.key_name.as_ref().is_none_or(|n| pair.name == *n)
                });
                if let Some(pair) = found {
                    unreferred(view, pair)?;
                    change.delete_tagged(pair);
                }
                Ok::<_, ApiError>(found.map(|pair| pair.id.to_string()))
            })
            .await?;
        Ok(Response {
            done: true,
            key_pair_id: deleted,
        })
    }
}
