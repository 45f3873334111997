//! The region and its availability zones: what the configuration says.

pub mod describe_availability_zones;
pub mod describe_regions;

pub(crate) use describe_availability_zones::DescribeAvailabilityZones;
pub(crate) use describe_regions::DescribeRegions;

pub use crate::model::zone_id;
