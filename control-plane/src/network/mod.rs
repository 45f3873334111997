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

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use async_trait::async_trait;

use crate::model::{Eni, EniId};

pub mod dhcp;
pub mod dns;
pub mod fake;
pub mod host;
pub mod names;
pub mod plan;

pub use plan::{Group, HostPort, Interface, Limits, Topology, VpcNet};

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
    /// The interface's tap is not there: [`NetworkHost::apply`] has not made it yet.
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

/// What the reconciler asks of the host's network.
#[async_trait]
pub trait NetworkHost: Send + Sync {
    /// Brings the host to `desired`: makes what is missing, leaves alone what is
    /// right and removes what of Hearth's is not desired. Idempotent.
    ///
    /// # Errors
    /// The first step that failed, after everything independent of it was tried;
    /// what was done stays, and a later call goes on from there.
    async fn apply(&self, desired: &Topology) -> Result<()>;

    /// Opens the interface's tap in its VPC's namespace, for a VMM to inherit.
    /// The descriptor is set to offer `virtio_net_hdr` frames.
    ///
    /// # Errors
    /// [`Error::NoTap`] when [`apply`](Self::apply) has not made it, or a
    /// host's error, such as a tap that another VMM still holds.
    async fn open_tap(&self, eni: &Eni) -> Result<OwnedFd>;

    /// Which of the interfaces here answer an ARP request for their address.
    ///
    /// # Errors
    /// When nobody can be asked.
    async fn answering(&self) -> Result<BTreeSet<EniId>>;

    /// Removes everything of Hearth's from the host's network.
    ///
    /// # Errors
    /// The first step that failed, after all were tried.
    async fn purge(&self) -> Result<()>;
}
