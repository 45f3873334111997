//! Machine images.

mod describe_images;

pub(super) use describe_images::DescribeImages;
