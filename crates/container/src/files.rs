//! Files of the host that a program looks for.

use std::fs;
use std::io;
use std::path::Path;

/// Names of the files, each the host's or what stands for it.
pub(crate) const NAMES: [&str; 2] = ["resolv.conf", "hosts"];

/// Writes both into a directory, for a machine of that name.
pub(crate) fn write(directory: &Path, hostname: &str) -> io::Result<()> {
    for name in NAMES {
        let host = fs::read(Path::new("/etc").join(name)).unwrap_or_default();
        let content = match name {
            "hosts" => hosts(host, hostname),
            _ => host,
        };
        fs::write(directory.join(name), content)?;
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(directory.join(name), everyone)?;
    }
    Ok(())
}

/// The host's list, with the name that the machine has in here.
fn hosts(mut host: Vec<u8>, hostname: &str) -> Vec<u8> {
    if host.is_empty() {
        host.extend_from_slice(b"127.0.0.1 localhost\n::1 localhost\n");
    }
    if !host.ends_with(b"\n") {
        host.push(b'\n');
    }
    host.extend_from_slice(format!("127.0.1.1 {hostname}\n").as_bytes());
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_finds_itself() {
        let hosts =
            |text: &[u8]| String::from_utf8_lossy(&hosts(text.to_vec(), "box")).into_owned();
        assert_eq!(hosts(b"1.2.3.4 a"), "1.2.3.4 a\n127.0.1.1 box\n");
        assert!(hosts(b"").starts_with("127.0.0.1 localhost\n"));
    }
}
