//! Instance types.

mod describe_instance_types;

pub(super) use describe_instance_types::DescribeInstanceTypes;
