//! `DescribeVpcs`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeVpcs.html>

use serde::{Deserialize, Serialize};

use crate::{
    api::{
        ec2::listing::{Filtered, Row, Table, describe},
        shared::Tag,
    },
    model::Vpc,
};

describe! {
    DescribeVpcs {
        ids: "VpcId",
        set: vpc_set of Item,
        pages: 5..=1000,
        page: |asked, _| asked.show(Item::new),
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    vpc_id: String,
    owner_id: String,
    state: String,
    cidr_block: String,
    cidr_block_association_set: Vec<Association>,
    dhcp_options_id: String,
    instance_tenancy: String,
    is_default: bool,
    tag_set: Option<Vec<Tag>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    association_id: String,
    cidr_block: String,
    cidr_block_state: AssociationState,
}

#[derive(Debug, Serialize, Deserialize)]
struct AssociationState {
    state: String,
}

/// A VPC has the one block it was made with, so the association needs no
/// identity beyond the VPC's.
fn association(vpc: &Vpc) -> String {
    vpc.id.as_str().replacen("vpc-", "vpc-cidr-assoc-", 1)
}

impl Filtered for Vpc {
    fn filters<'v>() -> Table<Row<'v, Self>> {
        Table::<Row<'v, Self>>::new()
            .on_each(["cidr", "cidr-block-association.cidr-block"], |v, out| {
                out.add(v.cidr);
            })
            .on("cidr-block-association.association-id", |v, out| {
                out.add(association(v));
            })
            .on("cidr-block-association.state", |_, out| {
                out.add("associated");
            })
            .on("dhcp-options-id", |v, out| out.add(&v.dhcp_options))
            .on_each(["is-default", "isDefault"], |v, out| {
                out.add(v.is_default);
            })
            .on("owner-id", |v, out| out.add(&v.scope.account))
            .on("state", |_, out| out.add("available"))
            .on("vpc-id", |v, out| out.add(&v.id))
    }
}

impl Item {
    fn new(vpc: &Row<'_, Vpc>) -> Self {
        Self {
            vpc_id: vpc.id.to_string(),
            owner_id: vpc.scope.account.clone(),
            state: "available".into(),
            cidr_block: vpc.cidr.to_string(),
            cidr_block_association_set: vec![Association {
                association_id: association(vpc),
                cidr_block: vpc.cidr.to_string(),
                cidr_block_state: AssociationState {
                    state: "associated".into(),
                },
            }],
            dhcp_options_id: vpc.dhcp_options.to_string(),
            instance_tenancy: "default".into(),
            is_default: vpc.is_default,
            tag_set: Tag::set(vpc.tags()),
        }
    }
}
