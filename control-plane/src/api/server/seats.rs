//! Who may have a connection: the table of all there are, and whom a newcomer
//! takes the place of.
//!
//! A connection is *unverified* until a request on it bears a good signature, then
//! *busy* while such a request is carried out, then *idle*. When a peer has its
//! share, or all places are taken, the oldest unverified connection goes, or else
//! the one that has been idle longest; never a busy one. Verified connections leave
//! a part of the places free, so that there is always one for a newcomer.
//!
//! Pure but for the lock: nothing here waits.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// How much there is to hand out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections in all.
    pub total: usize,
    /// Connections of one peer.
    pub peer: usize,
    /// Connections of this machine's own loopback addresses together.
    pub loopback: usize,
    /// Large bodies that are being received, in all; a peer may have half.
    pub bodies: usize,
}

impl Limits {
    fn of(&self, peer: Peer) -> usize {
        match peer {
            Peer::Loopback => self.loopback,
            Peer::V4(_) | Peer::V6(_) => self.peer,
        }
    }

    /// How many of `places` verified connections may have.
    fn verified(places: usize) -> usize {
        places - places.div_ceil(8)
    }
}

/// Whose share a connection is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    Loopback,
    V4(Ipv4Addr),
    /// The /64, which is what one subscriber has.
    V6(u64),
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::Loopback,
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                let parts = [a, b, c, d].map(u64::from);
                Self::V6(parts.iter().fold(0, |prefix, part| prefix << 16 | part))
            }
        }
    }
}

/// In the order in which they make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Unverified,
    Idle,
    Busy,
}

type Number = u64;

struct Entry {
    peer: Peer,
    standing: Standing,
    /// Since when, on the table's own clock.
    since: u64,
    evicted: Arc<Notify>,
}

#[derive(Default)]
struct Share {
    /// All of this peer's, the first to go first.
    order: BTreeSet<(Standing, u64, Number)>,
    verified: usize,
    bodies: usize,
}

struct Table {
    limits: Limits,
    clock: u64,
    entries: HashMap<Number, Entry>,
    shares: HashMap<Peer, Share>,
    verified: usize,
    bodies: usize,
}

/// All places. Clones are the same.
#[derive(Clone)]
pub(super) struct Seats(Arc<Mutex<Table>>);

/// One connection's place; it is free again when this is dropped.
pub(super) struct Seat {
    seats: Seats,
    number: Number,
    evicted: Arc<Notify>,
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Table {
            limits,
            clock: 0,
            entries: HashMap::new(),
            shares: HashMap::new(),
            verified: 0,
            bodies: 0,
        })))
    }

    /// A place for a newcomer; `None` when every one is busy.
    pub(super) fn take(&self, peer: Peer) -> Option<Seat> {
        let mut table = self.table();
        let share = table.shares.get(&peer).map_or(0, |s| s.order.len());
        if share >= table.limits.of(peer) {
            let victim = table.first_of(peer)?;
            table.evict(victim);
        } else if table.entries.len() >= table.limits.total {
            let victim = table.first_of_all()?;
            table.evict(victim);
        }
        let evicted = Arc::new(Notify::new());
        let number = table.tick();
        let entry = Entry {
            peer,
            standing: Standing::Unverified,
            since: number,
            evicted: evicted.clone(),
        };
        table.insert(number, entry);
        Some(Seat {
            seats: self.clone(),
            number,
            evicted,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn insert(&mut self, number: Number, entry: Entry) {
        let share = self.shares.entry(entry.peer).or_default();
        share.order.insert((entry.standing, entry.since, number));
        if entry.standing != Standing::Unverified {
            share.verified += 1;
            self.verified += 1;
        }
        self.entries.insert(number, entry);
    }

    fn remove(&mut self, number: Number) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        if let Some(share) = self.shares.get_mut(&entry.peer) {
            share.order.remove(&(entry.standing, entry.since, number));
            if entry.standing != Standing::Unverified {
                share.verified -= 1;
                self.verified -= 1;
            }
            if share.order.is_empty() && share.bodies == 0 {
                self.shares.remove(&entry.peer);
            }
        }
        Some(entry)
    }

    fn evict(&mut self, number: Number) {
        if let Some(entry) = self.remove(number) {
            entry.evicted.notify_one();
        }
    }

    /// Which of a peer's connections makes room.
    fn first_of(&self, peer: Peer) -> Option<Number> {
        let (standing, _, number) = self.shares.get(&peer)?.order.first()?;
        (*standing != Standing::Busy).then_some(*number)
    }

    /// Which of all does: the unverified before the idle, and of those one of the
    /// peer that has most.
    fn first_of_all(&self) -> Option<Number> {
        let firsts = self.shares.values().filter_map(|share| {
            let (standing, since, number) = *share.order.first()?;
            let rank = (standing, std::cmp::Reverse(share.order.len()), since);
            (standing != Standing::Busy).then_some((rank, number))
        });
        firsts.min().map(|(_, number)| number)
    }

    /// The longest idle of a peer, or of all.
    fn first_idle(&self, peer: Option<Peer>) -> Option<Number> {
        let idle = |share: &Share| {
            let from = (Standing::Idle, 0, 0);
            let (standing, since, number) = *share.order.range(from..).next()?;
            (standing == Standing::Idle).then_some((since, number))
        };
        let found = match peer {
            Some(peer) => self.shares.get(&peer).and_then(idle),
            None => self.shares.values().filter_map(idle).min(),
        };
        found.map(|(_, number)| number)
    }

    fn stand(&mut self, number: Number, standing: Standing) -> bool {
        let Some(mut entry) = self.remove(number) else {
            return false;
        };
        entry.standing = standing;
        entry.since = self.tick();
        self.insert(number, entry);
        true
    }
}

impl Seat {
    /// Ends when the connection has to: its place is given to somebody else, or the
    /// memory that its answer is in.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// What ends [`evicted`](Self::evicted) when it is notified.
    pub(super) fn eviction(&self) -> &Arc<Notify> {
        &self.evicted
    }

    /// A request with a good signature begins. False when the place is lost, or
    /// when verified connections have all that they may have: the request must not
    /// be carried out then.
    pub(super) fn busy(&self) -> bool {
        let mut table = self.seats.table();
        let Some(entry) = table.entries.get(&self.number) else {
            return false;
        };
        let (peer, known) = (entry.peer, entry.standing != Standing::Unverified);
        if !known {
            let share = table.shares.get(&peer).map_or(0, |s| s.verified);
            if share >= Limits::verified(table.limits.of(peer)) {
                let Some(victim) = table.first_idle(Some(peer)) else {
                    return false;
                };
                table.evict(victim);
            } else if table.verified >= Limits::verified(table.limits.total) {
                let Some(victim) = table.first_idle(None) else {
                    return false;
                };
                table.evict(victim);
            }
        }
        table.stand(self.number, Standing::Busy)
    }

    /// The request has been answered.
    pub(super) fn idle(&self) {
        let mut table = self.seats.table();
        let entry = table.entries.get(&self.number);
        if entry.is_some_and(|e| e.standing == Standing::Busy) {
            table.stand(self.number, Standing::Idle);
        }
    }

    /// Room for a large body; `None` when there is none left.
    pub(super) fn large_body(&self) -> Option<LargeBody> {
        let mut table = self.seats.table();
        let peer = table.entries.get(&self.number)?.peer;
        let (all, most) = (table.bodies, table.limits.bodies);
        let share = table.shares.entry(peer).or_default();
        if all >= most || share.bodies >= most.div_ceil(2) {
            return None;
        }
        share.bodies += 1;
        table.bodies += 1;
        Some(LargeBody {
            seats: self.seats.clone(),
            peer,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table().remove(self.number);
    }
}

/// Room for one large body, free again when this is dropped.
pub(super) struct LargeBody {
    seats: Seats,
    peer: Peer,
}

impl Drop for LargeBody {
    fn drop(&mut self) {
        let mut table = self.seats.table();
        table.bodies -= 1;
        if let Some(share) = table.shares.get_mut(&self.peer) {
            share.bodies -= 1;
            if share.order.is_empty() && share.bodies == 0 {
                table.shares.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        total: 16,
        peer: 4,
        loopback: 12,
        bodies: 2,
    };

    fn peer(n: u8) -> Peer {
        Peer::V4(Ipv4Addr::new(192, 0, 2, n))
    }

    async fn gone(seat: &Seat) -> bool {
        let limit = Duration::from_millis(1);
        tokio::time::timeout(limit, seat.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_with_its_share_makes_room_itself() {
        let seats = Seats::new(LIMITS);
        let other = seats.take(peer(2)).unwrap();
        let mine: Vec<_> = (0..4).map(|_| seats.take(peer(1)).unwrap()).collect();
        // A busy one and an idle one stay as long as there are unverified ones.
        assert!(mine[0].busy() && mine[1].busy());
        mine[1].idle();
        let fifth = seats.take(peer(1)).unwrap();
        assert!(gone(&mine[2]).await);
        let _sixth = seats.take(peer(1)).unwrap();
        assert!(gone(&mine[3]).await);
        assert!(!gone(&mine[0]).await && !gone(&mine[1]).await && !gone(&other).await);
        // Whoever lost its place carries out nothing.
        assert!(!mine[2].busy());
        assert!(fifth.busy());
        let _seventh = seats.take(peer(1)).unwrap();
        let eighth = seats.take(peer(1)).unwrap();
        // The last of four stays for newcomers: an idle one makes room for it.
        assert!(eighth.busy());
        assert!(gone(&mine[1]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_is_full_the_largest_peer_makes_room() {
        let seats = Seats::new(LIMITS);
        let lone = seats.take(peer(9)).unwrap();
        let many: Vec<_> = (0..4).map(|_| seats.take(peer(1)).unwrap()).collect();
        let local: Vec<_> = (0..11)
            .map(|_| seats.take(Peer::Loopback).unwrap())
            .collect();
        assert!(local.iter().all(|_| true) && !gone(&lone).await);
        let _new = seats.take(peer(3)).unwrap();
        assert!(gone(&local[0]).await);
        assert!(!gone(&lone).await && !gone(&many[0]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_busy_leave_places_for_newcomers() {
        let seats = Seats::new(LIMITS);
        let busy: Vec<_> = (0..14)
            .map(|n| seats.take(peer(n / 3)).unwrap())
            .filter(Seat::busy)
            .collect();
        // 16 places, less an eighth.
        assert_eq!(busy.len(), 14);
        let more = seats.take(peer(9)).unwrap();
        assert!(!more.busy());
        let last = seats.take(peer(9)).unwrap();
        // Newcomers share what is left, and none of the busy goes.
        let _newer = seats.take(peer(8)).unwrap();
        assert!(gone(&more).await && !gone(&last).await);
        drop(busy);
        assert!(last.busy());
    }

    #[test]
    fn no_share_is_left_behind() {
        let seats = Seats::new(LIMITS);
        let seat = seats.take(peer(1)).unwrap();
        let body = seat.large_body().unwrap();
        // Half of all is a peer's share.
        assert!(seat.large_body().is_none());
        assert!(seat.busy());
        drop(seat);
        drop(body);
        let table = seats.table();
        assert!(table.entries.is_empty() && table.shares.is_empty());
        assert_eq!((table.verified, table.bodies), (0, 0));
    }

    #[test]
    fn peers_are_what_one_subscriber_has() {
        let peer = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(peer("127.0.0.1"), peer("127.8.8.8"));
        assert_eq!(peer("::1"), peer("::ffff:127.0.0.1"));
        assert_eq!(peer("192.0.2.1"), peer("::ffff:192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    }
}
