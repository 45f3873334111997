//! Firmware instead of a kernel: its code as flash that the guest can't write, its
//! variables as flash whose writes are exits, and what it finds about the machine. The first vCPU
//! begins where a PC's does, 16 bytes below 4 GiB in real mode.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::bus::Bus;
use super::variables::VariablesFile;
use super::{Error, context, kvm_error, vm};
use crate::acpi;
use crate::arch;
use crate::arch::boot::{BootError, Payload};
use crate::arch::layout::firmware::{HOLE, MAX_FLASH};
use crate::arch::layout::{ABOVE_4G, GENERATION};
use crate::board::Window;
use crate::board::cmos::Cmos;
use crate::board::fw_cfg::{self, FwCfg};
use crate::memory::Ram;
use crate::smbios;

/// Flash comes in blocks of so many bytes.
const BLOCK: u64 = crate::board::flash::BLOCK as u64;
/// KVM's number for the code: far behind those of guest memory, and among the 509 that
/// every KVM has.
const SLOT: u32 = 508;
/// Bytes of the entry point at the beginning of the SMBIOS tables, and where the
/// structures begin behind it.
const SMBIOS_ANCHOR: usize = 24;
const SMBIOS_STRUCTURES: usize = 32;

/// What the first vCPU runs first.
#[derive(Debug)]
pub enum Software {
    /// A kernel, entered as its boot protocol says.
    Kernel(Payload),
    /// Firmware, entered at the reset vector.
    Firmware(Firmware),
}

impl From<Payload> for Software {
    fn from(payload: Payload) -> Self {
        Self::Kernel(payload)
    }
}

impl Software {
    /// Where RAM below 4 GiB ends at the latest.
    pub(super) fn hole(&self) -> u64 {
        match self {
            Self::Kernel(_) => arch::layout::HOLE,
            Self::Firmware(_) => HOLE,
        }
    }

    /// Its files, for another process: a kernel's, and its initial RAM disk's.
    pub(super) fn files(&self) -> io::Result<Vec<OwnedFd>> {
        let Self::Kernel(payload) = self else {
            return Ok(Vec::new());
        };
        let files = std::iter::once(&payload.kernel).chain(&payload.initrd);
        files
            .map(|file| file.as_fd().try_clone_to_owned())
            .collect()
    }

    /// Whether it is firmware, which needs a board that it knows.
    pub(super) fn is_firmware(&self) -> bool {
        matches!(self, Self::Firmware(_))
    }
}

/// Firmware, with its files open: not a byte of them was read.
#[derive(Debug)]
pub struct Firmware {
    code: File,
    code_size: u64,
    /// Up to 4 GiB: what the guest reads of variables, and code behind them.
    flash: Flash,
    /// What its variables are kept in, until the board has it.
    variables: Option<File>,
}

/// Not shown: what is in it is the guest's.
struct Flash(Arc<Ram>);

/// The part with variables.
struct VariablesWindow {
    flash: Arc<Ram>,
    start: u64,
}

impl Window for VariablesWindow {
    fn show(&self, offset: usize, bytes: &[u8]) {
        let at = GuestAddress(self.start.saturating_add(offset as u64));
        // Variables are within it.
        let _ = self.flash.write_slice(bytes, at);
    }
}

impl std::fmt::Debug for Flash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("flash")
    }
}

impl Firmware {
    /// Firmware whose code is in one file, and whose variables are in another, if it can
    /// keep any.
    ///
    /// # Errors
    /// One line: which file is no flash and why, or that another machine keeps its
    /// variables there.
    pub fn open(code: File, variables: Option<(File, &Path)>) -> Result<Self, String> {
        let code_size = size(&code).map_err(|why| format!("--firmware: {why}"))?;
        let mut variables_size = 0;
        let variables = match variables {
            None => None,
            Some((file, path)) => {
                let fail = |why| format!("--firmware: vars={}: {why}", path.display());
                variables_size = size(&file).map_err(fail)?;
                context::lock(&file, false, "file").map_err(|error| fail(error.to_string()))?;
                Some(file)
            }
        };
        let size = code_size.saturating_add(variables_size);
        if size > MAX_FLASH {
            let most = MAX_FLASH >> 20;
            return Err(format!(
                "--firmware: code and variables have {size} bytes, at most {most} MiB are allowed"
            ));
        }
        let flash = Ram::private(&[(ABOVE_4G - size, size)]);
        let flash = flash.map_err(|error| format!("--firmware: memory for it: {error}"))?;
        Ok(Self {
            code,
            code_size,
            flash: Flash(Arc::new(flash)),
            variables,
        })
    }

    /// Whether this host's KVM can have flash.
    pub(super) fn check(kvm: &Kvm) -> Result<(), Error> {
        match kvm.check_extension(Cap::ReadonlyMem) {
            true => Ok(()),
            false => Err(Error::Capability("KVM_CAP_READONLY_MEM")),
        }
    }

    /// Puts code and variables at their places, and on the board what they find there.
    pub(super) fn load(
        &mut self,
        vm: &VmFd,
        bus: &Bus,
        memory: &Ram,
        hardware: acpi::Hardware,
        identity: &smbios::Identity,
        generation: &acpi::Generation,
    ) -> Result<(), Error> {
        let fail = |what: &str| {
            let what = format!("--firmware: {what}");
            move |error: io::Error| Error::Device(format!("{what}: {error}"))
        };
        let flash = &self.flash.0;
        self.code
            .seek(SeekFrom::Start(0))
            .map_err(fail("read the code"))?;
        let start = GuestAddress(ABOVE_4G - self.code_size);
        #[expect(clippy::cast_possible_truncation, reason = "it is mapped here")]
        let size = self.code_size as usize;
        flash
            .read_exact_volatile_from(start, &mut self.code, size)
            .map_err(|error| fail("read the code")(io::Error::other(error)))?;
        for region in flash.regions() {
            vm::map_read_only(vm, SLOT, region).map_err(kvm_error("give the VM its flash"))?;
        }
        let Some(board) = bus.board() else {
            return Ok(());
        };
        if let Some(mut file) = self.variables.take() {
            let (size, mut content) = (flash.size() - self.code_size, Vec::new());
            let read = (&mut file).take(size).read_to_end(&mut content);
            let count = read.map_err(fail("read the variables"))? as u64;
            if count != size {
                let shorter = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(fail("read the variables")(shorter));
            }
            let start = ABOVE_4G - flash.size();
            let window = Box::new(VariablesWindow {
                flash: Arc::clone(flash),
                start,
            });
            let file = VariablesFile::new(file).map_err(fail("a thread for the variables"))?;
            board.keep(start, content, file, Some(window));
        }
        let written = memory.write_slice(generation.bytes(), GuestAddress(GENERATION));
        written.map_err(|error| BootError::Write(error.to_string()))?;
        let regions = memory.regions();
        let regions: Vec<_> = regions.map(|one| (one.start(), one.size())).collect();
        let above = regions.iter().filter(|(start, _)| *start >= ABOVE_4G);
        let above: u64 = above.map(|(_, size)| size).sum();
        let below = memory.size() - above;
        let smbios = smbios::build(identity, hardware.vcpus, memory.size())?;
        let files = files(hardware, &regions, &smbios);
        board.configure(FwCfg::new(hardware.vcpus, files), Cmos::new(below, above));
        Ok(())
    }
}

/// The files that OVMF looks for: edk2, `OvmfPkg`.
fn files(hardware: acpi::Hardware, memory: &[(u64, u64)], smbios: &[u8]) -> Vec<fw_cfg::File> {
    let end = memory.iter().map(|(start, size)| start + size).max();
    let acpi = acpi::for_firmware(hardware, end.unwrap_or(0));
    // e820 entries (ACPI 6.5, table 15.5): RAM is all that it asks for.
    let mut map = Vec::new();
    for (start, size) in memory {
        map.extend([*start, *size].map(u64::to_le_bytes).concat());
        map.extend(1u32.to_le_bytes());
    }
    let part = |range: std::ops::Range<usize>| smbios.get(range).unwrap_or_default().to_vec();
    let anchor = part(0..SMBIOS_ANCHOR);
    let structures = part(SMBIOS_STRUCTURES..smbios.len());
    let files = [
        (acpi.tables.0, acpi.tables.1),
        (acpi.loader.0, acpi.loader.1),
        ("etc/e820", map),
        ("etc/smbios/smbios-anchor", anchor),
        ("etc/smbios/smbios-tables", structures),
        // In milliseconds: nobody is there to press a key.
        ("etc/boot-menu-wait", vec![0, 0]),
    ];
    let file = |(name, bytes)| fw_cfg::File { name, bytes };
    files.into_iter().map(file).collect()
}

/// The size of a file that is to be flash.
fn size(file: &File) -> Result<u64, String> {
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    match size > 0 && size.is_multiple_of(BLOCK) {
        true => Ok(size),
        false => Err(format!(
            "it has {size} bytes; flash has whole blocks of {BLOCK}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::GIB;

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().expect("file");
        file.set_len(size).expect("sized");
        file
    }

    #[test]
    fn what_is_no_flash_is_refused() {
        let path = Path::new("/v");
        let open = |code, vars: Option<u64>| {
            Firmware::open(file(code), vars.map(|size| (file(size), path)))
        };
        for (code, vars, says) in [
            (0, None, "--firmware: it has 0 bytes"),
            (
                4095,
                None,
                "it has 4095 bytes; flash has whole blocks of 4096",
            ),
            (4096, Some(1), "vars=/v: it has 1 bytes"),
            (MAX_FLASH, Some(4096), "at most 16 MiB"),
        ] {
            let error = open(code, vars).expect_err("is refused");
            assert!(error.contains(says), "{error}");
        }
        assert!(open(MAX_FLASH - 4096, Some(4096)).is_ok());
    }

    #[test]
    fn variables_have_one_machine() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("vars");
        let open = || {
            let mut options = File::options();
            let vars = options.read(true).write(true).create(true).truncate(false);
            let vars = vars.open(&path).expect("opens");
            vars.set_len(4096).expect("sized");
            Firmware::open(file(4096), Some((vars, &path)))
        };
        let first = open().expect("is free");
        let error = open().expect_err("is taken");
        assert!(error.contains("another machine uses this file"), "{error}");
        drop(first);
        assert!(open().is_ok());
    }

    #[test]
    fn firmware_finds_the_memory() {
        let memory = [(0, 2 * GIB), (4 * GIB, GIB)];
        let files = files(acpi::Hardware::default(), &memory, &[0; 100]);
        let sizes: Vec<_> = files
            .iter()
            .map(|file| (file.name, file.bytes.len()))
            .collect();
        assert_eq!(
            sizes[2..5],
            [
                ("etc/e820", 40),
                ("etc/smbios/smbios-anchor", 24),
                ("etc/smbios/smbios-tables", 68),
            ]
        );
        assert_eq!(files[2].bytes[20..28], (4 * GIB).to_le_bytes());
        assert_eq!(files[2].bytes[36..], [1, 0, 0, 0]);
    }
}
