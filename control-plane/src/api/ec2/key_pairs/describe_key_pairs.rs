//! `DescribeKeyPairs`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeKeyPairs.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ApiError,
        ec2::listing::{Filtered, Row, Table, describe},
        shared::Tag,
        wire::{Time, quoted},
    },
    model::KeyPair,
};

describe! {
    DescribeKeyPairs {
        ids: "KeyPairId",
        set: key_set of Item,
        more: {
            #[serde(default, rename = "KeyName")]
            names: Vec<String>,
            include_public_key: Option<bool>,
        },
        pages: none,
        page: |asked, more| {
            let names = &more.names;
            let unknown = names.iter().find(|name| asked.view.get::<KeyPair>(name).is_none());
            if let Some(name) = unknown {
                let message = format!("The key pair '{}' does not exist", quoted(name));
                return Err(ApiError::new("InvalidKeyPair.NotFound", message));
            }
            let named = |pair: &KeyPair| names.is_empty() || names.contains(&pair.name);
            let (pairs, next_token) = asked.rows(named)?;
            let with_key = more.include_public_key == Some(true);
            let items = pairs.iter().map(|pair| Item::new(pair, with_key));
            Ok((items.collect(), next_token))
        },
    }
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

impl Item {
    fn new(pair: &Row<'_, KeyPair>, with_key: bool) -> Self {
        Self {
            key_pair_id: pair.id.to_string(),
            key_name: pair.name.clone(),
            key_type: pair.key_type.clone(),
            key_fingerprint: pair.fingerprint.clone(),
            public_key: with_key.then(|| pair.public_key.clone()),
            create_time: pair.created.into(),
            tag_set: Tag::set(pair.tags()),
        }
    }
}
