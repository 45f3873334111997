//! The machine that the instances run on.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// This machine, or the lab that `scripts/up` started on it.
#[derive(Debug, Clone)]
pub struct Host {
    lab: Option<PathBuf>,
    /// Shell definitions that every script begins with.
    prelude: String,
}

/// What a script on the host may lean on. Other clouds may run on the same machine:
/// nothing is looked for by its program's name alone.
const PRELUDE: &str = r#"
hearth_pid() {
    local p
    for p in $(pgrep -x hearth); do
        tr '\0' ' ' < /proc/$p/cmdline | grep -qF -- " serve --data-dir $data " && echo $p && return
    done
    return 1
}
hearth_vmms() {
    local p
    for p in $(pgrep -x hearth-vmm); do
        grep -q "/$label/${1:-}i-" /proc/$p/cgroup && echo $p
    done
    true
}
"#;

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; -1 when a signal ended it.
    pub status: i32,
    /// What it wrote to standard output, without the last newline.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Its standard output.
    ///
    /// # Errors
    /// When it failed: its status and what it said.
    pub fn ok(self) -> Result<String, String> {
        if self.status == 0 {
            Ok(self.stdout)
        } else {
            Err(format!(
                "exit status {}: {} {}",
                self.status, self.stdout, self.stderr
            ))
        }
    }
}

impl Host {
    /// The host of the cloud that runs: the lab if `HEARTH_LAB` says so.
    pub fn of_the_cloud() -> Self {
        let lab = std::env::var_os("HEARTH_LAB").is_some_and(|v| v == "1");
        let label = match std::env::var("HEARTH_NAME") {
            Ok(name) if !name.is_empty() => format!("hearth-{name}"),
            _ => "hearth".to_owned(),
        };
        let data =
            std::env::var("HEARTH_CLOUD_DATA").unwrap_or_else(|_| format!("/var/lib/{label}"));
        Self {
            lab: lab.then(|| repository().join("scripts/lab")),
            prelude: format!("label={label} data={data}\n{PRELUDE}"),
        }
    }

    /// Runs a shell script there, as root, and waits for it. In it, `$label` is what
    /// the cloud names its own things by (`hearth`), `$data` its data folder,
    /// `hearth_pid` its control plane, `hearth_vmms` its instances' processes,
    /// `hearth_vmms templates/` that of the template which is being made.
    pub fn try_run(&self, script: &str) -> Output {
        // The script goes in by standard input: no quoting on the way.
        let mut command = match &self.lab {
            Some(lab) => Command::new(lab),
            None => Command::new("env"),
        };
        let mut child = command
            .args(["bash", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("can't run {}: {e}", command.get_program().display()));
        child
            .stdin
            .take()
            .expect("piped")
            .write_all([&self.prelude, script].concat().as_bytes())
            .ok();
        let done = child.wait_with_output().expect("a child can be waited for");
        Output {
            status: done.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&done.stdout).trim_end().to_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// Runs a shell script there and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, script: &str) -> String {
        self.try_run(script)
            .ok()
            .unwrap_or_else(|e| panic!("`{script}` on the host: {e}"))
    }
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
}
