//! The network: a VPC is a network namespace, an interface is a tap in it,
//! and nftables in the namespace's forward path is the security groups.
//!
//! ```text
//!    guest ── tap-… ─┐                                    (host's namespace)
//!    guest ── tap-… ─┤  hearth-vpc-…: routes, nftables,
//!    guest ── tap-… ─┘  DHCP, DNS, IMDS ── igw0 ═══ igw-… ── host ── uplink
//!                                         1:1 NAT      203.0.113.1  masquerade
//! ```
//!
//! Every interface has a `/32` route to its tap and every tap answers ARP for
//! the others, so that all traffic between two instances, of the same subnet or
//! not, is routed and thus filtered. [`plan`] is pure: it makes the
//! [`Topology`] from the view and the nft rules from that. [`host`] makes it so.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use async_trait::async_trait;

use crate::model::{Eni, EniId, VpcId};

pub mod dhcp;
pub mod dns;
pub mod host;
pub mod names;
pub mod plan;
pub mod simulated;

pub use plan::{Group, HostNet, HostPort, Interface, Limits, Topology, VpcNet};

/// Why the host's network could not be brought to what is desired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step on the host failed.
    #[error("{step}")]
    Host {
        /// What was tried.
        step: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The interface's tap is not there: [`NetworkHost::apply_vpc`] has not made it yet.
    #[error("interface {0} has no tap on this host")]
    NoTap(String),
}

impl Error {
    /// An error of this step with its cause.
    pub fn host(
        step: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Host {
            step: step.into(),
            source: source.into(),
        }
    }
}

/// The network's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed for single interfaces of a VPC; the others are as they should be.
pub type Failed = BTreeMap<EniId, Error>;

/// Which interfaces answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answering {
    /// All that there are.
    All,
    /// These.
    Only(BTreeSet<EniId>),
}

impl Answering {
    /// Whether this one does.
    pub fn has(&self, eni: &EniId) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(eni),
        }
    }
}

/// What the reconciler asks of the host's network. A VPC that is broken or
/// hangs keeps no other one back.
#[async_trait]
pub trait NetworkHost: Send + Sync {
    /// Whether it is made of rules and links at all: where no packet ever goes, none
    /// are planned, and only [`open_tap`](Self::open_tap) is called.
    fn has_packets(&self) -> bool {
        true
    }

    /// The VPCs of which there is a trace, whoever made it.
    ///
    /// # Errors
    /// When that can't be told.
    async fn known(&self) -> Result<BTreeSet<VpcId>>;

    /// Brings one VPC to `desired`, or removes it from the host: makes what is
    /// missing, leaves alone what is right and removes what is not desired.
    /// Prepares the host for VPCs first, if nobody has. Idempotent.
    ///
    /// # Errors
    /// The first step that failed for the VPC as a whole; what was done stays,
    /// and a later call goes on from there.
    async fn apply_vpc(&self, id: &VpcId, desired: Option<&VpcNet>) -> Result<Failed>;

    /// Brings the host's own part to `desired`: removes VPCs that nobody knows
    /// of, and ends its connections over public addresses that have left their
    /// owners. Comes after the VPCs that have them.
    ///
    /// # Errors
    /// The first step that failed, after everything independent of it was tried.
    async fn apply_host(&self, desired: &HostNet) -> Result<()>;

    /// Brings the whole network to `desired`, what there is beside it removed.
    ///
    /// # Errors
    /// The first step that failed, after everything independent of it was tried.
    async fn apply(&self, desired: &Topology) -> Result<()>;

    /// Opens the interface's tap in its VPC's namespace, for a VMM to inherit.
    /// The descriptor is set to offer `virtio_net_hdr` frames.
    ///
    /// # Errors
    /// [`Error::NoTap`] when [`apply_vpc`](Self::apply_vpc) has not made it, or a
    /// host's error, such as a tap that another VMM still holds.
    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd>;

    /// Which of the VPC's interfaces here answer an ARP request for their
    /// address.
    ///
    /// # Errors
    /// When nobody can be asked.
    async fn answering(&self, vpc: &VpcId) -> Result<Answering>;

    /// Removes everything of Hearth's from the host's network.
    ///
    /// # Errors
    /// The first step that failed, after all were tried.
    async fn purge(&self) -> Result<()>;
}
