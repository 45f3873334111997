//! `DescribeTags`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeTags.html>

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::kind;
use crate::{
    api::ec2::listing::{Filter, Filterable, Table, TagsOf, describe},
    model::Tags,
    store::Scoped,
};

describe! {
    DescribeTags {
        set: tag_set of Item,
        pages: 5..=1000,
        page: |mut asked, _| {
            // As on EC2 a page has at most 1,000: an account may have a million.
            asked.max_results.get_or_insert(1000);
            let after = asked.after()?.unwrap_or_default();
            let by_id = asked.filters.iter().filter(|f| f.name == "resource-id");
            let named = by_id.filter_map(Filter::exact).next();
            // Those of other services are none of EC2's.
            let all = tagged(asked.view, &after, named)
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

/// The tags of each resource that may have some on the page, in the order of their ids:
/// from the resource that the last page ended in, and of those that are named, if any
/// are.
fn tagged<'v>(
    view: Scoped<'v>,
    after: &str,
    named: Option<&[String]>,
) -> Box<dyn Iterator<Item = &'v Tags> + 'v> {
    let first = after.split('\0').next().unwrap_or_default();
    let Some(named) = named else {
        let begun = view.get::<Tags>(first);
        return Box::new(begun.into_iter().chain(view.after(first)));
    };
    let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    let named = named.range(first..).filter_map(|id| view.get(id));
    Box::new(named.collect::<Vec<_>>().into_iter())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Scope, samples},
        store::View,
    };

    fn tags(scope: &Scope, resource: &str) -> Tags {
        Tags {
            scope: scope.clone(),
            resource: resource.into(),
            tags: [("k".into(), "v".into())].into(),
        }
    }

    #[test]
    fn a_page_looks_at_nothing_before_it_and_at_what_is_named_alone() {
        let (scope, other) = (samples::scope(), Scope::new("222222222222", "us-east-1"));
        let ids = ["i-1", "i-2", "i-3", "vol-1"];
        let view = ids.iter().fold(View::default(), |view, id| {
            view.with(tags(&scope, id)).with(tags(&other, id))
        });
        let looked_at = |after: &str, named: Option<&[&str]>| -> Vec<String> {
            let named = named.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
            let tagged = tagged(view.at(&scope), after, named.as_deref());
            let looked_at = tagged.inspect(|tags| assert_eq!(tags.scope, scope));
            looked_at.map(|tags| tags.resource.clone()).collect()
        };
        assert_eq!(looked_at("", None), ids);
        // The resource that the page before ended in may have more.
        assert_eq!(looked_at("i-2\0k", None), ids[1..]);
        assert_eq!(looked_at("i-25\0k", None), ids[2..]);
        let named = ["vol-1", "i-1", "i-9", "i-1"];
        assert_eq!(looked_at("", Some(&named)), ["i-1", "vol-1"]);
        assert_eq!(looked_at("i-2\0k", Some(&named)), ["vol-1"]);
    }
}
