//! Where a user's running mounts have their sockets.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The user's directory for what lives as long as a process: `nydusify` below `$XDG_RUNTIME_DIR`, for root without one
/// below `/run`, else `nydusify-UID` in the directory for temporary files. It is made if absent, and nobody else may
/// enter it.
///
/// # Errors
/// When there is none that belongs to the user alone.
pub fn runtime_dir() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let variable = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let variable = variable.filter(|dir| dir.is_absolute() && dir.is_dir());
    let system = uid.is_root().then(|| PathBuf::from("/run"));
    let own = [variable, system].into_iter().flatten();
    let own = own.map(|dir| dir.join("nydusify"));
    let temporary = std::env::temp_dir().join(format!("nydusify-{}", uid.as_raw()));
    let mut last = None;
    for dir in own.chain([temporary]) {
        match make(&dir, uid.as_raw()) {
            Ok(()) => return Ok(dir),
            Err(error) => {
                last = Some(io::Error::new(
                    error.kind(),
                    format!("{}: {error}", dir.display()),
                ))
            }
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

fn make(dir: &Path, uid: u32) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(dir)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not a directory that only this user can write to",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_directory_is_the_users_alone() {
        let place = tempfile::tempdir().unwrap();
        let uid = place.path().metadata().unwrap().uid();
        let dir = place.path().join("dir");
        make(&dir, uid).unwrap();
        assert_eq!(dir.metadata().unwrap().mode() & 0o777, 0o700);
        make(&dir, uid).unwrap();
        assert!(make(&dir, uid + 1).is_err());
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o770)).unwrap();
        assert!(make(&dir, uid).is_err());
        symlink(place.path(), place.path().join("link")).unwrap();
        assert!(make(&place.path().join("link"), uid).is_err());
    }
}
