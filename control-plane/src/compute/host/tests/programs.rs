//! How a program is started in its control group.

use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::{bench::hierarchy, *};

#[tokio::test]
async fn a_program_begins_in_its_group_and_how_it_ends_is_known() {
    let Some(root) = hierarchy() else { return };
    let path = root.join(format!("hearth-clone-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let group = fs::File::open(&path).unwrap();
    let mut log = tempfile::tempfile().unwrap();
    let spawn = async |program: &str, script: &str| {
        let arguments = ["-c", script].map(Into::into);
        let program = clone::Program {
            path: Path::new(program),
            arguments: &arguments,
            log: &log,
            inherited: &[],
        };
        clone::spawn(&program, group.as_fd()).await
    };
    let script = "env >&2; pwd >&2; cat /proc/self/cgroup >&2; exit 3";
    let status = spawn("/bin/sh", script)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(status.code(), Some(3));
    let mut killed = spawn("/bin/sh", "kill -9 $$").await.unwrap();
    assert_eq!(killed.wait().await.unwrap().code(), None);
    let missing = spawn("/none/such", "").await.err().map(|e| e.kind());
    assert_eq!(missing, Some(io::ErrorKind::NotFound));
    // One that nobody waits for any more is ended: its group can go.
    drop(spawn("/bin/sh", "exec sleep 1000").await.unwrap());
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = fs::remove_dir(&path) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut said = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut said).unwrap();
    assert!(said.lines().any(|line| line == "/"), "{said}");
    assert!(said.contains("/hearth-clone-"), "{said}");
    assert!(!said.contains("CARGO"), "{said}");
}

#[tokio::test]
async fn a_program_that_its_disk_withholds_holds_up_nobody() {
    let Some(root) = hierarchy() else { return };
    let path = root.join(format!("hearth-withheld-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let group = fs::File::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    fs::copy("/bin/true", &program).unwrap();
    // Whoever opens a file with a lease waits until it is given back, or broken by
    // the kernel after 45 s, of which the holder is told by a signal.
    // <https://man7.org/linux/man-pages/man2/F_GETLEASE.2const.html>
    const F_SETSIG: i32 = 10;
    let held = fs::File::open(&program).unwrap();
    let lease = |request, value: i32| {
        // SAFETY: a descriptor that is open, and plain numbers.
        let done = unsafe { libc::fcntl(held.as_raw_fd(), request, value) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    lease(F_SETSIG, libc::SIGURG);
    lease(libc::F_SETLEASE, libc::F_WRLCK);
    let log = tempfile::tempfile().unwrap();
    let program = clone::Program {
        path: &program,
        arguments: &[],
        log: &log,
        inherited: &[],
    };
    let mut started = std::pin::pin!(clone::spawn(&program, group.as_fd()));
    // On the one thread that this test has.
    assert!(futures_util::poll!(&mut started).is_pending());
    lease(libc::F_SETLEASE, libc::F_UNLCK);
    assert!(started.await.unwrap().wait().await.unwrap().success());
    fs::remove_dir(&path).unwrap();
}
