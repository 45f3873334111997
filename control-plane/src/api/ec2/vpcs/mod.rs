//! VPCs and their subnets.

mod describe_subnets;
mod describe_vpcs;

pub(super) use describe_subnets::DescribeSubnets;
pub(super) use describe_vpcs::DescribeVpcs;
