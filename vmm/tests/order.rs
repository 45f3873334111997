//! The order in which the program confines itself and looks at the kernel, seen from
//! outside: what fails first is what comes first.

#![allow(clippy::disallowed_methods, reason = "a test may start programs")]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Starts the program on a kernel that is none; what it says. Nothing where there is no
/// KVM, said aloud.
fn words(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Option<String> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm");
        return None;
    }
    let folder = tempfile::tempdir().expect("folder");
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, "no kernel").expect("write");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-vmm"));
    command
        .args(["--memory", "64", "--kernel"])
        .arg(&kernel)
        .arg("--exit-file")
        .arg(folder.path().join("exit"))
        .args(arguments);
    prepare(&mut command);
    let output = command.output().expect("hearth-vmm runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let line = String::from_utf8(output.stderr).expect("text");
    assert_eq!(line.lines().count(), 1, "{line}");
    Some(line)
}

/// Has the program find a kernel that gives no filters: the last layer can't be had.
fn without_seccomp(command: &mut Command) {
    let refused = BTreeMap::from([(libc::SYS_seccomp, vec![])]);
    let filter = SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .expect("a filter that compiles");
    // SAFETY: the child makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| io::Error::last_os_error())
        })
    };
}

const JAILS: [&[&str]; 2] = [&["--jail=best-effort"], &[]];

#[test]
fn the_kernel_is_looked_at_when_the_last_layer_stands() {
    for jail in JAILS {
        let Some(line) = words(jail, without_seccomp) else {
            return;
        };
        assert!(line.contains("seccomp: "), "{line}");
    }
}

#[test]
fn a_kernel_that_is_none_is_refused_by_a_confined_process() {
    for jail in JAILS {
        let Some(line) = words(jail, |_| {}) else {
            return;
        };
        assert!(line.contains("neither a bzImage nor an ELF"), "{line}");
    }
}
