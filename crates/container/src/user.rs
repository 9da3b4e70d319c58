//! Whom a program runs as, by the image's own lists.

use std::path::PathBuf;

use crate::Error;

/// Numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

impl Identity {
    /// Of `USER[:GROUP]`, each a name or a number, by the content of `/etc/passwd` and `/etc/group`.
    pub fn find(user: &str, passwd: &str, group: &str) -> Result<Self, Error> {
        let unknown = || Error::NoUser {
            user: user.to_owned(),
        };
        let (name, own_group) = match user.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (user, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let found = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [login, _, uid, gid, ..] = fields[..] else {
                return None;
            };
            let home = fields.get(5).copied().unwrap_or_default();
            let entry = (login, uid.parse().ok()?, gid.parse().ok()?, home);
            (login == name || uid == name).then_some(entry)
        });
        let (login, uid, gid, home) = match found {
            Some(entry) => entry,
            None => ("", name.parse().map_err(|_| unknown())?, 0, ""),
        };
        let mut identity = Self {
            uid,
            gid,
            groups: Vec::new(),
            home: PathBuf::from(if home.is_empty() { "/" } else { home }),
        };
        match own_group.filter(|group| !group.is_empty()) {
            Some(name) => identity.gid = group_number(name, group).ok_or_else(unknown)?,
            None => identity.groups = groups_of(login, group),
        }
        Ok(identity)
    }
}

fn group_number(name: &str, group: &str) -> Option<u32> {
    let found = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        let known = fields.next()?;
        let number = fields.nth(1)?;
        (known == name).then(|| number.parse().ok())?
    });
    found.or_else(|| name.parse().ok())
}

/// The groups that list a user as a member.
fn groups_of(login: &str, group: &str) -> Vec<u32> {
    let numbers = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let number = fields.next()?.parse().ok()?;
        let mut members = fields.next()?.split(',').map(str::trim);
        members
            .any(|member| !login.is_empty() && member == login)
            .then_some(number)
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nweb:x:33:34::/srv/web:/bin/sh\nodd:x:::\n";
    const GROUP: &str = "root:x:0:\nlogs:x:4:web,other\nwww:x:34:\nteam:x:50:other, web\n";

    fn find(user: &str) -> Identity {
        Identity::find(user, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn names_and_numbers_mean_the_same_user() {
        let web = Identity {
            uid: 33,
            gid: 34,
            groups: vec![4, 50],
            home: PathBuf::from("/srv/web"),
        };
        assert_eq!(find("web"), web);
        assert_eq!(find("33"), web);
        let with_group = Identity {
            gid: 4,
            groups: vec![],
            ..web
        };
        assert_eq!(find("web:logs"), with_group);
        assert_eq!(find("33:4"), with_group);
        assert_eq!(find("").home, PathBuf::from("/root"));
    }

    #[test]
    fn a_number_needs_no_entry_and_a_name_does() {
        let nobody = find("1000");
        assert_eq!((nobody.uid, nobody.gid), (1000, 0));
        assert_eq!((nobody.groups.len(), nobody.home), (0, PathBuf::from("/")));
        assert_eq!(find("1000:2000").gid, 2000);
        for unknown in ["nobody", "web:nogroup", "odd", "-1", "99999999999"] {
            assert!(Identity::find(unknown, PASSWD, GROUP).is_err(), "{unknown}");
        }
    }
}
