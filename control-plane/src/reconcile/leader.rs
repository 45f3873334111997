//! Leader election: the controllers of which the cloud has one run in the process
//! that holds a key of the store.
//!
//! ```text
//!   campaign ── nobody has the key, or an earlier process of this host ──► lead
//!      ▲                                                                    │ │
//!      └── the lease can't be kept alive: the controllers have stopped ◄────┘ │
//!          another leads at once ◄── revoke ◄── shutdown ◄────────────────────┘
//! ```
//!
//! The key goes with its lease, as in etcd's elections
//! (<https://etcd.io/docs/v3.6/dev-guide/api_concurrency_reference_v3/>). By the time
//! that another can have it the controllers have stopped. A commit that is still
//! under way then does no harm: each compares what it has read.

#[cfg(test)]
mod tests;

use std::{pin::pin, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::queue::backoff;
use crate::{
    model::HostId,
    store::{Compare, Entry, LeaseId, Op, Outcome, Revision, Store, StoreError, Txn},
};

/// Who has it, leads. Its value is a [`Holder`].
const KEY: &str = "/leader/cluster";
/// How long the key outlives a leader that can't keep it alive. These are
/// Kubernetes' figures but for the second, a third of the first:
/// <https://pkg.go.dev/k8s.io/client-go/tools/leaderelection>.
const TTL: Duration = Duration::from_secs(15);
/// How often it is kept alive.
const RENEW: Duration = Duration::from_secs(5);
/// The part of the TTL that the last steps of one that can't renew it have.
const LAST_STEPS: Duration = Duration::from_secs(5);
/// How often is tried what another has, or what failed while there was time.
const RETRY: Duration = Duration::from_secs(2);

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    host: HostId,
    /// Another one at each start.
    process: String,
}

impl Holder {
    /// This process, on this host.
    pub(super) fn new(host: HostId) -> Self {
        let process = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
        Self { host, process }
    }
}

/// The key, as it was won.
struct Term {
    lease: LeaseId,
    /// The commit that wrote it.
    revision: Revision,
    /// Until when it can't be another's, unless it is kept alive.
    until: Instant,
}

/// One that leads or would.
pub(super) struct Candidate {
    store: Arc<dyn Store>,
    me: Holder,
}

impl Candidate {
    pub(super) fn new(store: Arc<dyn Store>, me: Holder) -> Self {
        Self { store, me }
    }

    /// Starts the controllers whenever this leads, and stops them when it no longer
    /// does; until `shutdown` is true or one of them has ended by itself.
    pub(super) async fn run(
        self,
        start: impl Fn(&mut JoinSet<()>, &watch::Receiver<bool>),
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut failures = 0;
        // The data folder's lock says that an earlier process of this host has ended.
        let mut first = true;
        loop {
            let pause = match self.campaign(first).await {
                Ok(won) => {
                    (first, failures) = (false, 0);
                    if let Some(term) = won
                        && self.lead(&term, &start, &mut shutdown).await
                    {
                        return;
                    }
                    RETRY
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "can't find out who leads");
                    backoff(failures).min(TTL)
                }
            };
            tokio::select! {
                _ = shutdown.wait_for(|s| *s) => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes the key if it is to be had.
    async fn campaign(&self, first: bool) -> Result<Option<Term>, StoreError> {
        let held = self.store.get(KEY).await?;
        let compare = match &held {
            None => Compare::Absent(KEY.to_owned()),
            Some(entry) if self.may_take(entry, first) => {
                Compare::Unchanged(KEY.to_owned(), entry.modified)
            }
            Some(_) => return Ok(None),
        };
        let until = Instant::now() + TTL;
        let lease = self.store.grant(TTL).await?;
        // Two strings are JSON.
        let value = serde_json::to_vec(&self.me).unwrap_or_default();
        let put = Op::Put {
            key: KEY.to_owned(),
            value,
            lease: Some(lease),
        };
        let txn = Txn {
            compares: vec![compare],
            ops: vec![put],
            makes_room: true,
            ..Txn::default()
        };
        match self.store.commit(txn).await? {
            Outcome::Committed(revision) => Ok(Some(Term {
                lease,
                revision,
                until,
            })),
            Outcome::Conflict(_) => {
                self.store.revoke(lease).await?;
                Ok(None)
            }
        }
    }

    /// Whether who holds the key has surely ended.
    fn may_take(&self, entry: &Entry, first: bool) -> bool {
        let holder = serde_json::from_slice::<Holder>(&entry.value);
        holder.is_ok_and(|holder| holder == self.me || first && holder.host == self.me.host)
    }

    /// Runs the controllers for as long as the term lasts; whether that is the end.
    async fn lead(
        &self,
        term: &Term,
        start: &impl Fn(&mut JoinSet<()>, &watch::Receiver<bool>),
        shutdown: &mut watch::Receiver<bool>,
    ) -> bool {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        start(&mut tasks, &stopped);
        let mut kept = pin!(self.keep(term));
        let mut ending = false;
        loop {
            let lost = tokio::select! {
                until = &mut kept => Some(until),
                _ = shutdown.wait_for(|s| *s), if !ending => None,
                ended = tasks.join_next() => match ended {
                    Some(_) => None,
                    None => break,
                },
            };
            ending = true;
            stop.send_replace(true);
            if let Some(until) = lost {
                tracing::warn!("another may lead the cluster's controllers from now on");
                let last = async { while tasks.join_next().await.is_some() {} };
                let _ = timeout_at(until, last).await;
                tasks.shutdown().await;
                return false;
            }
        }
        if let Err(error) = self.store.revoke(term.lease).await {
            tracing::warn!(%error, "the next leader waits until this one's lease has run out");
        }
        true
    }

    /// Keeps the lease alive until that can't be done; until when it is held.
    async fn keep(&self, term: &Term) -> Instant {
        let mut until = term.until;
        let mut next = until - TTL + RENEW;
        loop {
            sleep_until(next).await;
            let asked = Instant::now();
            match timeout_at(until - LAST_STEPS, self.renew(term)).await {
                Ok(Ok(true)) => {
                    until = asked + TTL;
                    next = asked + RENEW;
                }
                Ok(Ok(false)) => return asked,
                Ok(Err(error)) if asked + RETRY < until - LAST_STEPS => {
                    tracing::warn!(%error, "the leader's lease can't be kept alive");
                    next = asked + RETRY;
                }
                Ok(Err(_)) | Err(_) => return until,
            }
        }
    }

    /// Starts the lease's time anew; whether the key is still this term's.
    async fn renew(&self, term: &Term) -> Result<bool, StoreError> {
        match self.store.keep_alive(term.lease).await {
            Err(StoreError::NoLease(_)) => return Ok(false),
            kept => kept?,
        }
        let held = self.store.get(KEY).await?;
        Ok(held.is_some_and(|entry| entry.modified == term.revision))
    }
}
