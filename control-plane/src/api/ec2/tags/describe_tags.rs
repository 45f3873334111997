//! `DescribeTags`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeTags.html>

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kind;
use crate::{
    api::shared::{Filterable, Table, TagsOf, describe},
    model::Tags,
};

describe! {
    DescribeTags {
        set: tag_set of Item,
        pages: 5..=1000,
        page: |mut asked, _| {
            // As on EC2 a page has at most 1,000: an account may have a million.
            asked.max_results.get_or_insert(1000);
            // Those of other services are none of EC2's.
            let all = asked.view.all::<Tags>();
            let all = all
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
            let (found, next_token) = asked.page_of(all, One::key)?;
            Ok((found.into_iter().map(|one| one.item).collect(), next_token))
        },
    }
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

impl One {
    /// Resource and key together, in the order that the view has them in.
    fn key(&self) -> String {
        format!("{}\u{0}{}", self.item.resource_id, self.item.key)
    }
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
