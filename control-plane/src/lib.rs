//! Hearth's control plane: the EC2 API and the reconcilers that make its
//! answers true.
//!
//! Which module may use which is the table in `tests/rooms.rs`: a handler never
//! touches the host, and nobody uses `reconcile` but the programs and the simulation.
//! Host I/O (`Command`, netlink, nft, ioctl) appears only in each domain's `host`
//! module, and in `doctor`, which asks what the host has.

pub mod api;
pub mod auth;
pub mod bootstrap;
pub mod compute;
pub mod conditions;
pub mod config;
pub mod console;
pub mod descriptors;
pub mod doctor;
pub mod images;
pub mod kept;
pub mod metadata;
pub mod network;
pub mod reconcile;
pub mod records;
pub mod scheduler;
pub mod simulation;
pub mod storage;
pub mod tls;

pub use hearth_model as model;
pub use hearth_store as store;
