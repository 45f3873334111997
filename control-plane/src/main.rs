//! `hearth`: the cloud's control plane.
fn main() {}
