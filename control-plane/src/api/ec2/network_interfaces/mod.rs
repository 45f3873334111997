//! Elastic network interfaces.

mod describe_network_interfaces;

pub(super) use describe_network_interfaces::DescribeNetworkInterfaces;
