//! `DescribeKeyPairs`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeKeyPairs.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Filter, Filtered, Filters, Row, Table, Tag, found},
        wire::{Time, quoted},
    },
    model::KeyPair,
};

/// The action.
pub(crate) struct DescribeKeyPairs;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "KeyName")]
    names: Vec<String>,
    #[serde(default, rename = "KeyPairId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    include_public_key: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    key_set: Vec<Item>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    key_pair_id: String,
    key_name: String,
    key_type: String,
    key_fingerprint: String,
    public_key: Option<String>,
    create_time: Time,
    tag_set: Option<Vec<Tag>>,
}

impl Filtered for KeyPair {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on("fingerprint", |p, out| out.add(&p.fingerprint))
            .on("key-name", |p, out| out.add(&p.name))
            .on("key-pair-id", |p, out| out.add(&p.id))
    }
}

impl Action for DescribeKeyPairs {
    const NAME: &'static str = "DescribeKeyPairs";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let filters = Filters::new(request.filters)?;
        let view = ctx.view();
        let view = view.view();
        for name in &request.names {
            if view.get::<KeyPair>(name).is_none() {
                let message = format!("The key pair '{}' does not exist", quoted(name));
                return Err(ApiError::new("InvalidKeyPair.NotFound", message));
            }
        }
        for id in &request.ids {
            found::<KeyPair>(view, id)?;
        }
        let with_key = request.include_public_key == Some(true);
        let key_set = view
            .all::<KeyPair>()
            .filter(|p| request.names.is_empty() || request.names.contains(&p.name))
            .filter(|p| request.ids.is_empty() || request.ids.iter().any(|id| id == p.id.as_str()))
            .map(|pair| Row::new(view, pair))
            .filter(|row| filters.matches(row))
            .map(|pair| Item {
                key_pair_id: pair.id.to_string(),
                key_name: pair.name.clone(),
                key_type: pair.key_type.clone(),
                key_fingerprint: pair.fingerprint.clone(),
                public_key: with_key.then(|| pair.public_key.clone()),
                create_time: pair.created.into(),
                tag_set: Tag::set(pair.tags()),
            })
            .collect();
        filters.within_budget()?;
        Ok(Response { key_set })
    }
}
