//! Volumes.

mod delete_volume;
mod describe_volumes;

pub(super) use delete_volume::DeleteVolume;
pub(super) use describe_volumes::DescribeVolumes;
