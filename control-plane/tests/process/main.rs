//! `hearth` as a process of its own, over simulated hosts: what its limits, its disk
//! and its other commands do to it while it serves. The client is curl, which signs by
//! itself.

mod accounts;
mod descriptors;
mod full_disk;
mod hearth;
