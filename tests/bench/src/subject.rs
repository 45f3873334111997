//! The VMMs, each with its command line for the same machine: one vCPU, the
//! same memory, kernel, initrd and kernel command line, the serial console on
//! standard output.

use crate::peer::{MAC, TAP};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest's memory in MiB.
pub(crate) const MEMORY: u64 = 128;

/// What the guest is given.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) cmdline: String,
    pub(crate) disk: Option<PathBuf>,
    pub(crate) nic: bool,
    /// Where the VMM serves its control socket.
    pub(crate) socket: Option<PathBuf>,
}

/// One VMM in one configuration: a column of the table.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) binary: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Hearth,
    Microvm,
    Q35 { vhost: bool },
    Firecracker { pci: bool },
    CloudHypervisor,
}

impl Subject {
    /// `NAME:BINARY`, as the script names them.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (name, binary) = text.split_once(':').context("a subject is NAME:BINARY")?;
        let kind = match name {
            "hearth" => Kind::Hearth,
            "microvm" => Kind::Microvm,
            "q35" => Kind::Q35 { vhost: false },
            "q35-vhost" => Kind::Q35 { vhost: true },
            "firecracker" => Kind::Firecracker { pci: false },
            "firecracker-pci" => Kind::Firecracker { pci: true },
            "cloud-hypervisor" => Kind::CloudHypervisor,
            _ => bail!("no subject is called `{name}`"),
        };
        Ok(Self {
            name: name.to_owned(),
            kind,
            binary: binary.into(),
        })
    }

    /// Firecracker takes uncompressed kernels only.
    pub(crate) fn boots_bzimage(&self) -> bool {
        !matches!(self.kind, Kind::Firecracker { .. })
    }

    /// Variants of a VMM's devices boot as their plain form does.
    pub(crate) fn measures_boot(&self) -> bool {
        !matches!(self.kind, Kind::Q35 { vhost: true })
    }

    /// It can note each exit.
    pub(crate) fn traces_exits(&self) -> bool {
        self.kind == Kind::Hearth
    }

    pub(crate) fn measures_block(&self) -> bool {
        !matches!(self.kind, Kind::Q35 { vhost: true })
    }

    /// The command that starts `machine`; `scratch` takes a configuration file.
    pub(crate) fn command(&self, machine: &Machine, scratch: &Path) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Hearth => hearth(&mut command, machine),
            Kind::Microvm => {
                // ACPI, for stock kernels have no other way to find a
                // virtio-mmio device. Without its clock the kernel would
                // wait for it for more than a second.
                command.args(["-M", "microvm,acpi=on,pit=off,pic=off,rtc=on"]);
                qemu(&mut command, machine, "device", false);
            }
            Kind::Q35 { vhost } => {
                command.args(["-M", "q35"]);
                qemu(&mut command, machine, "pci", vhost);
            }
            Kind::Firecracker { pci } => {
                let file = scratch.join("firecracker.json");
                std::fs::write(&file, firecracker(machine))?;
                command.arg("--config-file").arg(&file);
                match &machine.socket {
                    Some(socket) => command.arg("--api-sock").arg(socket),
                    None => command.arg("--no-api"),
                };
                if pci {
                    command.arg("--enable-pci");
                }
            }
            Kind::CloudHypervisor => cloud_hypervisor(&mut command, machine),
        }
        Ok(command)
    }
}

fn hearth(command: &mut Command, machine: &Machine) {
    command.args([
        "--id",
        "i-0bench",
        "--vcpus",
        "1",
        "--memory",
        &MEMORY.to_string(),
    ]);
    command
        .arg("--kernel")
        .arg(&machine.kernel)
        .arg("--initrd")
        .arg(&machine.initrd);
    command.args(["--cmdline", &machine.cmdline]);
    if let Some(disk) = &machine.disk {
        command.args(["--disk", &format!("path={},id=bench", disk.display())]);
    }
    if machine.nic {
        command.args(["--nic", &format!("id=eth0,mac={MAC},tap={TAP}")]);
    }
    if let Some(socket) = &machine.socket {
        command.arg("--socket").arg(socket);
    }
}

/// As one sets it up for speed: no devices but those asked for, each disk on
/// an I/O thread with io_uring through the page cache, as the others do it.
fn qemu(command: &mut Command, machine: &Machine, bus: &str, vhost: bool) {
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args([
        "-accel", "kvm", "-cpu", "host", "-smp", "1", "-serial", "stdio",
    ]);
    command.args(["-m", &MEMORY.to_string()]);
    command
        .arg("-kernel")
        .arg(&machine.kernel)
        .arg("-initrd")
        .arg(&machine.initrd);
    command.args(["-append", &machine.cmdline]);
    if let Some(disk) = &machine.disk {
        command.args(["-object", "iothread,id=io"]);
        let drive = format!(
            "if=none,id=bench,format=raw,cache=writeback,aio=io_uring,file={}",
            disk.display()
        );
        command.args(["-drive", &drive]);
        command.args([
            "-device",
            &format!("virtio-blk-{bus},drive=bench,iothread=io"),
        ]);
    }
    if machine.nic {
        let vhost = if vhost { "on" } else { "off" };
        command.args([
            "-netdev",
            &format!("tap,id=bench,ifname={TAP},script=no,downscript=no,vhost={vhost}"),
        ]);
        let rom = if bus == "pci" { ",romfile=" } else { "" };
        command.args([
            "-device",
            &format!("virtio-net-{bus},netdev=bench,mac={MAC}{rom}"),
        ]);
    }
}

fn firecracker(machine: &Machine) -> String {
    let drives = machine.disk.as_ref().map_or(String::new(), |disk| {
        format!(
            r#"{{"drive_id":"bench","is_root_device":false,"is_read_only":false,"path_on_host":"{}"}}"#,
            disk.display()
        )
    });
    let nics = if machine.nic {
        format!(r#"{{"iface_id":"eth0","guest_mac":"{MAC}","host_dev_name":"{TAP}"}}"#)
    } else {
        String::new()
    };
    format!(
        r#"{{"boot-source":{{"kernel_image_path":"{}","initrd_path":"{}","boot_args":"{}"}},
"machine-config":{{"vcpu_count":1,"mem_size_mib":{MEMORY}}},
"drives":[{drives}],"network-interfaces":[{nics}]}}"#,
        machine.kernel.display(),
        machine.initrd.display(),
        machine.cmdline,
    )
}

fn cloud_hypervisor(command: &mut Command, machine: &Machine) {
    command.args(["--cpus", "boot=1", "--memory", &format!("size={MEMORY}M")]);
    command.args(["--serial", "tty", "--console", "off"]);
    command
        .arg("--kernel")
        .arg(&machine.kernel)
        .arg("--initramfs")
        .arg(&machine.initrd);
    command.args(["--cmdline", &machine.cmdline]);
    if let Some(disk) = &machine.disk {
        command.args(["--disk", &format!("path={},image_type=raw", disk.display())]);
    }
    if machine.nic {
        command.args(["--net", &format!("tap={TAP},mac={MAC}")]);
    }
    if let Some(socket) = &machine.socket {
        command.arg("--api-socket").arg(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_a_subject_and_gets_the_kernel() {
        let machine = Machine {
            kernel: "/k/vmlinux".into(),
            initrd: "/k/initrd".into(),
            cmdline: "quiet".into(),
            disk: Some("/d/disk".into()),
            nic: true,
            socket: None,
        };
        let scratch = std::env::temp_dir();
        for name in ["hearth", "microvm", "q35", "q35-vhost", "cloud-hypervisor"] {
            let subject = Subject::parse(&format!("{name}:/bin/vmm")).unwrap();
            let text = format!("{:?}", subject.command(&machine, &scratch).unwrap());
            for part in ["/k/vmlinux", "/k/initrd", "quiet", "/d/disk", TAP] {
                assert!(text.contains(part), "{name}: no {part} in {text}");
            }
        }
        assert!(Subject::parse("xen:/bin/xen").is_err());
    }

    #[test]
    fn firecrackers_configuration_has_what_is_asked_for_only() {
        let machine = Machine {
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "quiet".into(),
            disk: None,
            nic: false,
            socket: None,
        };
        assert!(firecracker(&machine).contains(r#""drives":[],"network-interfaces":[]"#));
    }
}
