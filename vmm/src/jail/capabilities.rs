//! Capabilities: all given up, and none to be had again.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Has no program that is ever executed gain a capability. While we are still root:
/// it takes CAP_SETPCAP. Without that one there is nothing to bound, since
/// no_new_privs will be set.
pub(super) fn bound() {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(one) {
            Ok(true) => {
                let _ = remove_capability_from_bounding_set(one);
            }
            Ok(false) => {}
            // Past the last one that this kernel knows.
            Err(_) => break,
        }
    }
}

/// Gives up every capability of this thread, for good. Before any other thread is
/// made: capabilities belong to a thread.
///
/// # Errors
/// When the kernel refuses; the caller must not go on.
pub(super) fn drop_all() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}
