//! What to launch, rendered as `hearth-vmm`'s command line. Pure.
//!
//! The values that can hold a comma or come from an image's manifest are each
//! an argument of their own or refused: nothing is quoted, no shell sees this.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use hearth_vmm_api::SandboxLayer;

use super::{LaunchSpec, smbios_uuid};
use crate::model::BootMethod;

/// How many devices more than it starts with an instance may get while it runs: nothing
/// attaches any today, and each slot makes its boot longer by 0.3 million instructions.
const HOTPLUG_SLOTS: u8 = 4;

/// Where the files of one VMM lie.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The kernel, as read from the root disk; none: the one of the VMM that it takes over
    /// from.
    pub kernel: Option<&'a Path>,
    /// The initrd, as read from the root disk.
    pub initrd: Option<&'a Path>,
    /// The folder with the memory that it goes on from.
    pub restore: Option<&'a Path>,
    /// The control socket of the VMM whose machine it takes over.
    pub take_over: Option<&'a Path>,
    /// The slots that it leaves free, where it becomes a template of machines with so many
    /// disks and interfaces.
    pub template: Option<u8>,
    /// The control socket to be made.
    pub socket: &'a Path,
    /// The bounded log of the serial console.
    pub serial_log: &'a Path,
    /// Where the VMM says why it ended.
    pub exit_file: &'a Path,
    /// Where the VMM says which process it is.
    pub pid_file: &'a Path,
}

/// The user and group that the VMM drops to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// Why a command line can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgvError {
    /// A path that the comma-separated form can't carry.
    #[error("the path {0:?} holds a comma or is not UTF-8")]
    Path(std::path::PathBuf),
    /// There must be one tap for each interface.
    #[error("{taps} taps for {nics} interfaces")]
    Taps {
        /// How many taps there are.
        taps: usize,
        /// How many interfaces there are.
        nics: usize,
    },
    /// A machine without a disk has no root.
    #[error("no disk")]
    NoDisk,
}

/// The arguments, without the program's name. `taps` are the numbers under
/// which the VMM inherits the taps, in the order of the interfaces; `optional` the
/// sandbox layers that it may go on without.
///
/// # Errors
/// When the parts don't fit together or can't be written down.
pub fn render(
    spec: &LaunchSpec,
    places: &Places<'_>,
    taps: &[RawFd],
    owner: Option<Owner>,
    optional: &[SandboxLayer],
) -> Result<Vec<OsString>, ArgvError> {
    if taps.len() != spec.nics.len() {
        return Err(ArgvError::Taps {
            taps: taps.len(),
            nics: spec.nics.len(),
        });
    }
    if spec.disks.is_empty() && places.template.is_none() {
        return Err(ArgvError::NoDisk);
    }
    let BootMethod::Linux { cmdline, .. } = &spec.boot_method;

    let mut argv: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| {
        argv.push(name.into());
        argv.push(value);
    };
    flag("--id", spec.instance.as_str().into());
    if let Some(kernel) = places.kernel {
        flag("--kernel", kernel.into());
    }
    if let Some(initrd) = places.initrd {
        flag("--initrd", initrd.into());
    }
    flag("--cmdline", cmdline.into());
    if let Some(restore) = places.restore {
        flag("--restore", restore.into());
    }
    if let Some(socket) = places.take_over {
        flag("--take-over", socket.into());
    }
    if let Some(slots) = places.template {
        flag("--template", slots.to_string().into());
    }
    flag("--vcpus", spec.vcpus.to_string().into());
    flag("--memory", spec.memory_mib.to_string().into());
    for (n, disk) in spec.disks.iter().enumerate() {
        let path = disk
            .path
            .to_str()
            .filter(|p| !p.contains(','))
            .ok_or_else(|| ArgvError::Path(disk.path.clone()))?;
        let name = if n == 0 {
            "root".to_owned()
        } else {
            format!("disk{n}")
        };
        let mut value = format!(
            "path={path},id={name},serial={}",
            serial(disk.volume.as_str())
        );
        if disk.read_only {
            value.push_str(",readonly");
        }
        flag("--disk", value.into());
    }
    for (n, (nic, tap)) in spec.nics.iter().zip(taps).enumerate() {
        let mac = nic.mac.map(|b| format!("{b:02x}")).join(":");
        let value = format!("id=eth{n},mac={mac},mtu={},tap-fd={tap}", nic.mtu);
        flag("--nic", value.into());
    }
    if places.restore.is_none() && places.take_over.is_none() {
        flag("--hotplug-slots", HOTPLUG_SLOTS.to_string().into());
    }
    flag("--socket", places.socket.into());
    flag("--serial-log", places.serial_log.into());
    flag("--exit-file", places.exit_file.into());
    let smbios = format!(
        "product={},uuid={},asset-tag={}",
        spec.instance_type,
        smbios_uuid(&spec.instance),
        spec.instance
    );
    flag("--smbios", smbios.into());
    flag("--pid-file", places.pid_file.into());
    if let Some(Owner { uid, gid }) = owner {
        flag("--uid", uid.to_string().into());
        flag("--gid", gid.to_string().into());
    }
    if !optional.is_empty() {
        flag(
            "--jail-optional",
            optional
                .iter()
                .map(|layer| layer.name())
                .collect::<Vec<_>>()
                .join(",")
                .into(),
        );
    }
    argv.push("--jail=require".into());
    argv.push("--daemonize".into());
    Ok(argv)
}

/// A volume's id without its dash is what EC2's disks have for a serial, and
/// just fits virtio's 20 bytes: `vol0123456789abcdef0`.
///
/// <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-using-volumes.html>
fn serial(volume: &str) -> String {
    volume.replacen('-', "", 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{DiskSpec, NicSpec};
    use crate::model::{EniId, InstanceId, VolumeId};

    fn spec() -> LaunchSpec {
        LaunchSpec {
            instance: InstanceId::from_random(0xabc),
            boot: 1,
            instance_type: "t3.micro".into(),
            vcpus: 2,
            memory_mib: 1024,
            boot_method: BootMethod::Linux {
                partition: 1,
                kernel: "/vmlinuz".into(),
                initrd: Some("/initrd.img".into()),
                cmdline: "root=LABEL=root console=ttyS0 a=\"b, c\"".into(),
            },
            disks: vec![DiskSpec {
                volume: VolumeId::from_random(0x1),
                path: "/data/vol.raw".into(),
                read_only: false,
            }],
            nics: vec![NicSpec {
                eni: EniId::from_random(2),
                mac: [2, 0, 0, 0xab, 0xcd, 0xef],
                mtu: 1500,
            }],
            clone_of: None,
            resume: None,
            trace: Default::default(),
        }
    }

    fn places() -> Places<'static> {
        Places {
            kernel: Some(Path::new("/i/kernel")),
            initrd: Some(Path::new("/i/initrd")),
            restore: None,
            take_over: None,
            template: None,
            socket: Path::new("/i/vmm/vmm.sock"),
            serial_log: Path::new("/i/vmm/console.log"),
            exit_file: Path::new("/i/vmm/exit.json"),
            pid_file: Path::new("/i/vmm/vmm.pid"),
        }
    }

    #[test]
    fn a_whole_machine() {
        let argv = render(
            &spec(),
            &places(),
            &[7],
            Some(Owner { uid: 5, gid: 6 }),
            &[],
        )
        .unwrap();
        let uuid = smbios_uuid(&spec().instance);
        let smbios = format!("product=t3.micro,uuid={uuid},asset-tag=i-00000000000000abc");
        let expected = [
            "--id",
            "i-00000000000000abc",
            "--kernel",
            "/i/kernel",
            "--initrd",
            "/i/initrd",
            "--cmdline",
            "root=LABEL=root console=ttyS0 a=\"b, c\"",
            "--vcpus",
            "2",
            "--memory",
            "1024",
            "--disk",
            "path=/data/vol.raw,id=root,serial=vol00000000000000001",
            "--nic",
            "id=eth0,mac=02:00:00:ab:cd:ef,mtu=1500,tap-fd=7",
            "--hotplug-slots",
            "4",
            "--socket",
            "/i/vmm/vmm.sock",
            "--serial-log",
            "/i/vmm/console.log",
            "--exit-file",
            "/i/vmm/exit.json",
            "--smbios",
            &smbios,
            "--pid-file",
            "/i/vmm/vmm.pid",
            "--uid",
            "5",
            "--gid",
            "6",
            "--jail=require",
            "--daemonize",
        ];
        assert_eq!(argv, expected.map(OsString::from));
    }

    #[test]
    fn more_disks_and_no_initrd() {
        let mut spec = spec();
        spec.disks.push(DiskSpec {
            volume: VolumeId::from_random(0x2),
            path: "/data/two.raw".into(),
            read_only: true,
        });
        let bare = Places {
            initrd: None,
            restore: Some(Path::new("/i/memory.used")),
            ..places()
        };
        let argv = render(
            &spec,
            &bare,
            &[7],
            None,
            &[SandboxLayer::Landlock, SandboxLayer::User],
        )
        .unwrap();
        let second = "path=/data/two.raw,id=disk1,serial=vol00000000000000002,readonly";
        assert!(argv.contains(&OsString::from(second)), "{argv:?}");
        let restore = ["--restore", "/i/memory.used"].map(OsString::from);
        assert!(argv.windows(2).any(|pair| pair == restore), "{argv:?}");
        // It has as many as it had.
        let slots = OsString::from("--hotplug-slots");
        assert!(!argv.contains(&slots), "{argv:?}");
        let optional = ["--jail-optional", "landlock,user"].map(OsString::from);
        assert!(argv.windows(2).any(|pair| pair == optional), "{argv:?}");
        for absent in ["--initrd", "--uid", "--gid"] {
            assert!(!argv.contains(&OsString::from(absent)), "{absent}");
        }
    }

    #[test]
    fn who_takes_over_has_the_kernel_and_the_slots_that_are_there() {
        let places = Places {
            kernel: None,
            initrd: None,
            take_over: Some(Path::new("/i/vmm/vmm.sock")),
            ..places()
        };
        let argv = render(&spec(), &places, &[3], None, &[]).unwrap();
        let from = ["--take-over", "/i/vmm/vmm.sock"].map(OsString::from);
        assert!(argv.windows(2).any(|pair| pair == from), "{argv:?}");
        for absent in ["--kernel", "--initrd", "--hotplug-slots"] {
            assert!(!argv.contains(&OsString::from(absent)), "{absent}");
        }
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        assert_eq!(
            render(&spec(), &places(), &[], None, &[]),
            Err(ArgvError::Taps { taps: 0, nics: 1 })
        );
        let mut bad = spec();
        bad.disks[0].path = "/data/a,readonly".into();
        assert_eq!(
            render(&bad, &places(), &[7], None, &[]),
            Err(ArgvError::Path("/data/a,readonly".into()))
        );
        bad.disks.clear();
        assert_eq!(
            render(&bad, &places(), &[7], None, &[]),
            Err(ArgvError::NoDisk)
        );
    }

    #[test]
    fn serials_fit_virtio() {
        assert_eq!(serial(VolumeId::from_random(u128::MAX).as_str()).len(), 20);
    }
}
