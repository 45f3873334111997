//! What devices count: numbers that only grow, from the making of the device on,
//! through resets of the guest. Adding is one relaxed atomic instruction; whoever reads
//! several of them gets numbers that need not be of one moment.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts bytes.
    pub fn add_length(&self, bytes: usize) {
        self.add(bytes as u64);
    }

    /// What was counted.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All numbers of a device, by name.
pub trait Counters: Send + Sync {
    /// The names and what was counted.
    fn list(&self) -> Vec<(&'static str, u64)>;
}

/// Declares a device's counters: a structure of [`Counter`]s that lists them by the
/// names of its fields.
macro_rules! counters {
    ($(#[$about:meta])* $visibility:vis struct $name:ident { $($(#[$what:meta])* $field:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[$what])* $visibility $field: $crate::virtio::counters::Counter,)*
        }

        impl $crate::virtio::counters::Counters for $name {
            fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field.value()),)*]
            }
        }
    };
}
pub(crate) use counters;

#[cfg(test)]
mod tests {
    use super::*;

    counters! {
        /// Two of them.
        pub(super) struct Two {
            /// One.
            requests,
            /// Another.
            bytes,
        }
    }

    #[test]
    fn they_add_up_under_their_names() {
        let two = Two::default();
        two.requests.add(1);
        two.requests.add(2);
        two.bytes.add_length(512);
        assert_eq!(two.list(), [("requests", 3), ("bytes", 512)]);
    }
}
