//! The descriptors that this process may have open, and how many of them guests
//! may make it open.
//!
//! A guest's question takes a socket here. Each guest has a share, and all of
//! them together half of what the process may have, so that the other half is
//! there for the API, the store and the instances' own.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Raises the soft limit to the hard one: the soft one, 1024 by default, is for
/// programs that call `select`. What is started from here inherits it.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// What guests may hold in all.
#[derive(Debug, Clone)]
pub struct Guests(Arc<Semaphore>);

impl Guests {
    /// Half of what this process may open by now.
    ///
    /// # Errors
    /// When the kernel doesn't say how much that is.
    pub fn of_this_process() -> io::Result<Self> {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self::new(usize::try_from(soft / 2).unwrap_or(usize::MAX)))
    }

    /// So many.
    pub fn new(all: usize) -> Self {
        Self(Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS))))
    }

    /// A use of them of which each guest has at most this many.
    pub fn each(&self, each: u32) -> PerGuest {
        PerGuest {
            each,
            all: self.clone(),
            by_address: Mutex::default(),
        }
    }
}

/// What each guest of a VPC may hold for one use.
#[derive(Debug)]
pub struct PerGuest {
    each: u32,
    all: Guests,
    by_address: Mutex<HashMap<Ipv4Addr, Arc<Semaphore>>>,
}

/// Descriptors that a guest holds, until this is dropped.
#[derive(Debug)]
pub struct Held {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl PerGuest {
    /// So many for the guest with this address, or `None` when its share or that
    /// of all is used up. Guests that hold none take no memory.
    pub fn take(&self, address: Ipv4Addr, count: u32) -> Option<Held> {
        let mut map = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let each = self.each as usize;
        if map.len() > 1024 {
            map.retain(|_, own| own.available_permits() < each);
        }
        let own = map
            .entry(address)
            .or_insert_with(|| Arc::new(Semaphore::new(each)));
        let own = Arc::clone(own).try_acquire_many_owned(count).ok()?;
        let of_all = Arc::clone(&self.all.0).try_acquire_many_owned(count).ok()?;
        Some(Held {
            _own: own,
            _of_all: of_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_share_and_all_have_theirs() {
        let all = Guests::new(5);
        let (imds, dns) = (all.each(3), all.each(2));
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let held: Vec<Held> = (0..3).filter_map(|_| imds.take(a, 1)).collect();
        assert_eq!(held.len(), 3);
        assert!(imds.take(a, 1).is_none(), "its share is used up");
        let question = dns.take(b, 2).unwrap();
        assert!(dns.take(b, 2).is_none());
        assert!(imds.take(b, 1).is_none(), "that of all is used up");
        drop(question);
        assert!(imds.take(b, 1).is_some());
        drop(held);
        assert!(imds.take(a, 1).is_some());
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let hard = raise_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
