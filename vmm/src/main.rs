//! `hearth-vmm`: boots one virtual machine and serves its control socket.
fn main() {}
