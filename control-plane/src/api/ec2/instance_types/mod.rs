//! Instance types.

mod describe_instance_type_offerings;
mod describe_instance_types;

pub(super) use describe_instance_type_offerings::DescribeInstanceTypeOfferings;
pub(super) use describe_instance_types::DescribeInstanceTypes;
