//! `DescribeTags`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeTags.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kind;
use crate::{
    api::{
        Action, ApiError, Ctx, Targets,
        shared::{Filter, Filterable, Listing, Table, TagsOf},
    },
    model::Tags,
};

/// The action.
pub(crate) struct DescribeTags;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Response {
    tag_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    resource_id: String,
    resource_type: String,
    key: String,
    value: String,
}

struct One {
    item: Item,
    tag: BTreeMap<String, String>,
}

impl Filterable for One {
    const TAGS: Option<TagsOf<Self>> = Some(|one| &one.tag);

    fn filters() -> Table<Self> {
        Table::<Self>::new()
            .on("key", |t, out| out.add(&t.item.key))
            .on("resource-id", |t, out| out.add(&t.item.resource_id))
            .on("resource-type", |t, out| out.add(&t.item.resource_type))
            .on("value", |t, out| out.add(&t.item.value))
    }
}

impl Action for DescribeTags {
    const NAME: &'static str = "DescribeTags";
    type Request = Request;
    type Response = Response;

    fn targets(_: &Request, to: &mut Targets<'_>) {
        to.any();
    }

    async fn handle(ctx: &Ctx, request: Request) -> Result<Response, ApiError> {
        let view = ctx.view();
        // Those of other services are none of EC2's.
        let all = view
            .view()
            .all::<Tags>()
            .filter_map(|of| Some((of, kind(&of.resource)?)))
            .flat_map(|(of, kind)| of.tags.iter().map(move |tag| (of, kind, tag)))
            .map(|(of, kind, (key, value))| One {
                item: Item {
                    resource_id: of.resource.clone(),
                    resource_type: kind.to_owned(),
                    key: key.clone(),
                    value: value.clone(),
                },
                tag: BTreeMap::from([(key.clone(), value.clone())]),
            });
        // Resource and key together, in the order that the view has them in.
        let key = |one: &One| format!("{}\u{0}{}", one.item.resource_id, one.item.key);
        // As on EC2 a page has at most 1,000: an account may have a million.
        let (found, next_token) = Listing::new(
            request.filters,
            request.max_results.or(Some(1000)),
            request.next_token,
        )
        .page_of(all, key, (5, 1000))?;
        Ok(Response {
            tag_set: found.into_iter().map(|one| one.item).collect(),
            next_token,
        })
    }
}
