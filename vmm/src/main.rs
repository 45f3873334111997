//! `hearth-vmm`: boots one virtual machine and serves its control socket.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_vmm::run::main()
}
