//! How each VMM saves a machine, and goes on from what it saved.
//!
//! | VMM | saved | goes on |
//! |---|---|---|
//! | hearth | `PUT /v1/snapshot` | `--restore` |
//! | Firecracker | `PUT /snapshot/create` | `PUT /snapshot/load`: no flag says it |
//! | Cloud Hypervisor | `PUT /api/v1/vm.snapshot` | `--restore`, pages as they are touched |
//!
//! All three read a page of memory when it is first touched.

use crate::socket::{Asked, ask, call};
use crate::subject::{Kind, Machine, Subject};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

impl Subject {
    pub(crate) fn restores(&self) -> bool {
        matches!(
            self.kind,
            Kind::Hearth | Kind::Firecracker { .. } | Kind::CloudHypervisor
        )
    }

    /// Holds the machine behind `socket` and saves it into the empty `folder`.
    pub(crate) fn save(&self, socket: &Path, folder: &Path, stall: Duration) -> Result<()> {
        let put = |path: &str, body: Value| call(socket, "PUT", path, &body.to_string());
        match self.kind {
            Kind::Hearth => {
                call(socket, "PUT", "/v1/pause", "")?;
                until_paused(socket, stall)?;
                put("/v1/snapshot", json!({ "path": folder }))?;
                until_paused(socket, stall)?;
            }
            Kind::Firecracker { .. } => {
                let state = json!({ "state": "Paused" }).to_string();
                call(socket, "PATCH", "/vm", &state)?;
                let (state, memory) = (folder.join("state"), folder.join("memory"));
                let body = json!({ "snapshot_path": state, "mem_file_path": memory });
                put("/snapshot/create", body)?;
            }
            Kind::CloudHypervisor => {
                call(socket, "PUT", "/api/v1/vm.pause", "")?;
                let url = format!("file://{}", folder.display());
                put("/api/v1/vm.snapshot", json!({ "destination_url": url }))?;
            }
            Kind::Microvm | Kind::Q35 { .. } => bail!("no way to save it is known here"),
        }
        Ok(())
    }

    /// The command that goes on from what `machine` was saved as in `folder`. It has a
    /// control socket.
    pub(crate) fn restoring(
        &self,
        machine: &Machine,
        folder: &Path,
        scratch: &Path,
    ) -> Result<Command> {
        let Some(socket) = &machine.socket else {
            bail!("no control socket");
        };
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Hearth => {
                command = self.command(machine, scratch)?;
                command.arg("--restore").arg(folder);
            }
            Kind::Firecracker { pci } => {
                command.arg("--api-sock").arg(socket);
                if pci {
                    command.arg("--enable-pci");
                }
            }
            Kind::CloudHypervisor => {
                let restore = format!(
                    "source_url=file://{},memory_restore_mode=ondemand,resume=true",
                    folder.display()
                );
                command.arg("--api-socket").arg(socket);
                command.args(["--restore", &restore]);
            }
            Kind::Microvm | Kind::Q35 { .. } => bail!("no way to go on from it is known here"),
        }
        Ok(command)
    }

    /// Whether it must be asked to go on, by [`Self::load`].
    pub(crate) fn is_asked_to_load(&self) -> bool {
        matches!(self.kind, Kind::Firecracker { .. })
    }

    /// Asks the VMM behind `stream` to go on from `folder`.
    pub(crate) fn load(&self, stream: UnixStream, folder: &Path) -> Result<Asked> {
        let body = json!({
            "snapshot_path": folder.join("state"),
            "mem_backend": { "backend_type": "File", "backend_path": folder.join("memory") },
            "resume_vm": true,
        });
        ask(stream, "PUT", "/snapshot/load", &body.to_string())
    }
}

fn until_paused(socket: &Path, stall: Duration) -> Result<()> {
    let deadline = Instant::now() + stall;
    loop {
        let text = call(socket, "GET", "/v1/machine", "")?;
        let machine: Value = serde_json::from_str(&text)?;
        if machine["state"] == "paused" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("never paused: {}", machine["state"]);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_asked_to_load_is_told_where_from() {
        let machine = Machine {
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initrd".into(),
            cmdline: "quiet".into(),
            disk: None,
            nic: true,
            socket: Some("/s/api.sock".into()),
        };
        let scratch = std::env::temp_dir();
        for name in ["hearth", "firecracker", "cloud-hypervisor"] {
            let subject = Subject::parse(&format!("{name}:/bin/vmm")).unwrap();
            let command = subject.restoring(&machine, Path::new("/saved"), &scratch);
            let text = format!("{:?}", command.unwrap());
            assert!(text.contains("/s/api.sock"), "{text}");
            assert!(
                text.contains("/saved") != subject.is_asked_to_load(),
                "{text}"
            );
        }
    }
}
