//! `DescribeInstances`.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>

use super::answer::{self, Reservation};
use crate::{api::ec2::listing::describe, model::Instance};

describe! {
    DescribeInstances {
        ids: "InstanceId",
        set: pub(super) reservation_set of Reservation,
        unsupported: ["IncludeManagedResources"],
        pages: 5..=1000,
        page: |asked, _| {
            asked.ids_or_pages("instancesSet")?;
            let (found, next_token) = asked.rows(|_: &Instance| true)?;
            Ok((answer::reservations(&found), next_token))
        },
    }
}
