//! Which users and groups there are in a user namespace.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{MAP_IDS, PROGRAM};

/// Maps ids: this user's to root and, where it has subordinate ids, those to all others.
pub(crate) struct Mapper {
    uid: u32,
    gid: u32,
    /// Stays behind, for the setuid programs work only from outside of the namespace.
    helper: Option<Child>,
}

impl Mapper {
    /// Call it before entering the namespace.
    pub fn start() -> Self {
        let helper = has_programs().then(|| {
            Command::new(PROGRAM)
                .arg(MAP_IDS)
                .arg(std::process::id().to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
        });
        Self {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            helper: helper.and_then(Result::ok),
        }
    }

    /// Call it within the namespace.
    pub fn map(self) -> io::Result<()> {
        if let Some(mut helper) = self.helper {
            // It waits for the end of its input.
            drop(helper.stdin.take());
            if helper.wait()?.success() {
                return Ok(());
            }
        }
        if !fs::read("/proc/self/uid_map")?.is_empty() {
            return Err(io::Error::other("newuidmap did half of it"));
        }
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {} 1", self.uid))?;
        fs::write("/proc/self/gid_map", format!("0 {} 1", self.gid))
    }
}

fn has_programs() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    has("newuidmap") && has("newgidmap")
}

/// The process that maps the ids of the process `target` once its input ends; whether it could.
///
/// # Errors
/// If this user has no subordinate ids, or the programs that may use them fail.
pub fn map_ids(target: u32) -> io::Result<()> {
    // The namespace is there once the other process lets go.
    io::stdin().read_to_end(&mut Vec::new())?;
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let name = user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), uid);
    let ranges = |file: &str| {
        let text = fs::read_to_string(Path::new(file)).unwrap_or_default();
        subordinate(&text, name.as_deref(), uid)
    };
    let (users, groups) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
    if users.is_empty() || groups.is_empty() {
        return Err(io::Error::other("no subordinate ids"));
    }
    // Groups first: a failure then leaves the map of users empty, and a map of one user is still possible.
    set("newgidmap", target, gid, &groups)?;
    set("newuidmap", target, uid, &users)
}

fn set(program: &str, target: u32, own: u32, ranges: &[(u32, u32)]) -> io::Result<()> {
    let mut arguments = vec![target, 0, own, 1];
    let mut next = 1_u32;
    for &(start, count) in ranges {
        arguments.extend([next, start, count]);
        next = next.saturating_add(count);
    }
    let output = Command::new(program)
        .args(arguments.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let mut error = io::stderr().lock();
    let _ = error.write_all(&output.stderr);
    Err(io::Error::other(format!("{program} failed")))
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&*uid)).then(|| name.to_owned())
    })
}

/// First id and count of each range that a file of subordinate ids gives to a user.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner != uid && Some(owner) != name {
            return None;
        }
        Some((
            fields.next()?.parse().ok()?,
            fields.next()?.trim().parse().ok()?,
        ))
    });
    ranges.filter(|&(_, count)| count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "root:1:5\nann:100000:65536\n1000:300000:10\nann:x:1\nann:7:0\nbob:1:1\n";
        assert_eq!(
            subordinate(text, Some("ann"), 1000),
            [(100_000, 65_536), (300_000, 10)]
        );
        assert_eq!(subordinate(text, None, 1), []);
    }

    #[test]
    fn the_name_of_a_user_is_found_by_number() {
        let passwd = "root:x:0:0::/:/bin/sh\nann:x:1000:100::/home:/bin/sh\nodd\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_name(passwd, 100), None);
    }
}
