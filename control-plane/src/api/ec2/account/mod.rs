//! What an account is told of itself in a region.

mod describe_account_attributes;
mod id_formats;
mod serial_console_access;

pub(super) use describe_account_attributes::DescribeAccountAttributes;
pub(super) use id_formats::{
    DescribeAggregateIdFormat, DescribeIdFormat, DescribeIdentityIdFormat,
    DescribePrincipalIdFormat, ModifyIdFormat, ModifyIdentityIdFormat,
};
pub(super) use serial_console_access::{DisableSerialConsoleAccess, GetSerialConsoleAccessStatus};
