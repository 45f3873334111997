//! EC2, in folders by resource, one file an action.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/>

pub mod regions;
pub mod shared;

use super::{
    registry::{Registered, Service, action},
    wire::Dialect,
};

/// The service.
pub fn service() -> Service {
    Service {
        name: "ec2",
        dialect: Dialect::Ec2,
        version: "2016-11-15",
        namespace: "http://ec2.amazonaws.com/doc/2016-11-15/",
        known: include_str!("operations.txt"),
        actions: actions(),
    }
}

/// The registry: one line an action.
fn actions() -> Vec<Registered> {
    vec![
        action::<regions::DescribeAvailabilityZones>(),
        action::<regions::DescribeRegions>(),
    ]
}
