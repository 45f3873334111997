//! AWS's tables of STS.
//!
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecuritytokenservice.html>

use super::Table;

pub(super) const TABLE: Table = Table {
    no_type: &["GetCallerIdentity"],
    ..Table::empty("sts")
};
