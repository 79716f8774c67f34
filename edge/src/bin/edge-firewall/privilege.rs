//! Gives up every right but CAP_NET_ADMIN, for good, before the first byte from outside is read.
//! Knows capabilities(7); must not know what they are for.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What is kept.
const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN;
/// Capabilities that any kernel may know; more than there are.
const MOST: u32 = 63;

/// The right that is needed is missing, or another cannot be given up.
#[derive(Debug, thiserror::Error)]
#[error(
    "rights: {step} failed: {source}; start it as root, or by systemd with AmbientCapabilities=CAP_NET_ADMIN"
)]
pub(crate) struct PrivilegeError {
    step: &'static str,
    #[source]
    source: std::io::Error,
}

/// Keeps CAP_NET_ADMIN for this process and for the `nft` it starts, and nothing else. Call it
/// before there is a second thread: rights belong to threads.
///
/// # Errors
/// See [`PrivilegeError`].
pub(crate) fn keep_net_admin_only() -> Result<(), PrivilegeError> {
    let failed = |step| move |errno: Errno| PrivilegeError { step, source: errno.into() };
    // Where this process may not (it is not root), its bounds are its supervisor's affair.
    for capability in (0..MOST).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if capability != KEPT && capability_is_in_bounding_set(capability) == Ok(true) {
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(failed("giving up a right for good")(errno)),
            }
        }
    }
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: KEPT };
    set_capabilities(None, sets).map_err(failed("keeping CAP_NET_ADMIN alone"))?;
    clear_ambient_capability_set().map_err(failed("clearing the ambient set"))?;
    configure_capability_in_ambient_set(KEPT, true).map_err(failed("handing CAP_NET_ADMIN to nft"))?;
    set_no_new_privs(true).map_err(failed("forbidding new rights"))
}
