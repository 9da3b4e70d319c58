//! What a program may do.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::Error;
use crate::user::Identity;

/// What root may do in here: what container engines leave to it, without making device nodes, for here no other rule keeps
/// it from the machine's disks.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Makes this thread, and what it starts from now on, the user `identity`.
pub(crate) fn become_user(identity: &Identity) -> Result<(), Error> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if !KEPT.contains(capability)
            && let Err(errno) = remove_capability_from_bounding_set(capability)
        {
            // There are no more.
            if errno == rustix::io::Errno::INVAL {
                break;
            }
            return Err(Error::system("give up privileges")(errno));
        }
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let not_mapped = |errno: rustix::io::Errno| Error::UserNotMapped {
        uid: identity.uid,
        gid: identity.gid,
        source: errno.into(),
    };
    // With one user alone in the namespace, nobody may change groups, and all further ones are out of reach.
    let may_set = std::fs::read_to_string("/proc/self/setgroups");
    if may_set.map_or(true, |text| text.trim() != "deny") {
        set_thread_groups(&groups).map_err(not_mapped)?;
    }
    set_thread_res_gid(gid, gid, gid).map_err(not_mapped)?;
    set_thread_res_uid(uid, uid, uid).map_err(not_mapped)
}
