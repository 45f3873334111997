//! What a thread may ask of the kernel, as data: each kind of device declares its
//! profile beside its code, and the sandbox turns profiles into filters.

use libc::c_long;

/// A system call that a profile allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allow {
    pub(super) call: c_long,
    /// Allowed when any of these holds; empty: always.
    pub(super) only: &'static [Argument],
}

impl Allow {
    /// Allows a call with any arguments.
    #[must_use]
    pub const fn any(call: c_long) -> Self {
        Self { call, only: &[] }
    }

    /// Allows a call when any of `only` holds.
    #[must_use]
    pub const fn when(call: c_long, only: &'static [Argument]) -> Self {
        Self { call, only }
    }
}

/// A condition on one argument of a call, of which the lower 32 bits are compared:
/// the kernel ignores the upper half of these arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    pub(super) index: u8,
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl Argument {
    /// The argument has this value.
    #[must_use]
    pub const fn is(index: u8, value: u64) -> Self {
        Self {
            index,
            mask: 0xffff_ffff,
            value,
        }
    }

    /// The request of an ioctl(2) has this type: `_IOC_TYPE` of `asm-generic/ioctl.h`.
    #[must_use]
    pub const fn ioctl_of(kind: u8) -> Self {
        Self::masked(1, 0xff00, (kind as u64) << 8)
    }

    /// Of the bits in `mask`, those in `value` are set and no others.
    #[must_use]
    pub const fn masked(index: u8, mask: u64, value: u64) -> Self {
        Self { index, mask, value }
    }
}

/// The system calls that one kind of device costs, beyond what every thread makes.
#[derive(Debug)]
pub struct Profile {
    /// Those of its own threads.
    pub thread: &'static [Allow],
    /// Those that the main thread makes besides, when it makes and plugs one while the
    /// guest runs. What is only there from the start needs none: it is made before
    /// there are filters.
    pub plug: &'static [Allow],
}

impl Profile {
    /// Nothing that not every thread may do.
    pub const NONE: Self = Self {
        thread: &[],
        plug: &[],
    };
}

/// What the whole process asks of the kernel, beyond what every process of this program
/// does.
#[derive(Debug)]
pub struct Profiles {
    /// What running a vCPU costs the thread that does.
    pub vcpu: &'static [Allow],
    /// What making the machine, and making it anew, costs the main thread besides.
    pub main: &'static [Allow],
    /// What each kind of device costs.
    pub devices: Vec<&'static Profile>,
}

/// What a thread is there for. It decides the thread's filter.
#[derive(Debug, Clone, Copy)]
pub enum ThreadRole {
    /// The process's first thread: signals, control socket, console.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Serves a device.
    Device(&'static Profile),
}

/// Two devices are the same role only if they have the same profile, not an equal one.
impl PartialEq for ThreadRole {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Main, Self::Main) | (Self::Vcpu, Self::Vcpu) => true,
            (Self::Device(one), Self::Device(other)) => std::ptr::eq(*one, *other),
            _ => false,
        }
    }
}
