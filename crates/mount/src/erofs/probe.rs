//! What this machine can do for a mount, tried and not guessed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use sys::fanotify::{Answer, EVENT_WORDS, Group};

/// How long the kernel may take to tell of a read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that a kind of mount needs.
#[derive(Debug)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// What was missing, if it was.
    pub result: Result<(), io::Error>,
    /// What can be done about it.
    pub advice: &'static str,
    /// Whether FUSE mounts need it.
    pub fuse: bool,
    /// Whether EROFS mounts need it.
    pub erofs: bool,
}

/// Tries all that mounts need, with files in `cache_dir` where it depends on the file system.
pub fn examine(cache_dir: &Path) -> Vec<Finding> {
    let finding = |name, result, advice| Finding {
        name,
        result,
        advice,
        fuse: false,
        erofs: true,
    };
    vec![
        Finding {
            fuse: true,
            erofs: false,
            ..finding(
                "/dev/fuse",
                File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/fuse")
                    .map(drop),
                "load the module (modprobe fuse), or pass the device into the container",
            )
        },
        finding(
            "root",
            if crate::device::privileged() {
                Ok(())
            } else {
                Err(io::ErrorKind::PermissionDenied.into())
            },
            "EROFS mounts and pre-content events need CAP_SYS_ADMIN; FUSE does without, through fusermount3",
        ),
        finding(
            "EROFS",
            knows_erofs(),
            "load the module (modprobe erofs), or use a kernel with CONFIG_EROFS_FS",
        ),
        finding(
            "EROFS from files",
            linux_since(6, 12),
            "needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE",
        ),
        finding(
            "pre-content events",
            events(cache_dir),
            "needs Linux 6.15 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and the cache on ext4, xfs or btrfs (--cache-dir)",
        ),
        finding(
            "leases",
            leases(cache_dir),
            "needs CONFIG_FILE_LOCKING, and the cache on a local file system",
        ),
        Finding {
            erofs: false,
            ..finding(
                "fs-verity",
                sealed(cache_dir),
                "mounts do without; for --verify-cache to seal what it has verified: CONFIG_FS_VERITY, and the cache on ext4 (tune2fs -O verity), btrfs or f2fs",
            )
        },
    ]
}

fn knows_erofs() -> io::Result<()> {
    let known = std::fs::read_to_string("/proc/filesystems")?;
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("erofs"))
    {
        return Ok(());
    }
    // Asking for it loads the module.
    let flags = rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC;
    rustix::mount::fsopen("erofs", flags)?;
    Ok(())
}

fn linux_since(major: u32, minor: u32) -> io::Result<()> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(a)), Some(Ok(b))) if (a, b) >= (major, minor) => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this is Linux {release}"),
        )),
    }
}

/// A marked file is read, and the read is refused: does the reader get that error?
fn events(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".probe-{}", std::process::id()));
    std::fs::create_dir_all(dir)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    let outcome = refuse_a_read(&file, &path);
    std::fs::remove_file(&path)?;
    outcome
}

fn refuse_a_read(file: &File, path: &Path) -> io::Result<()> {
    file.set_len(8192)?;
    let group = Group::new()?;
    group.mark(file)?;
    let path = path.to_owned();
    let reader = std::thread::spawn(move || File::open(path)?.read_exact_at(&mut [0], 4096));
    let words = <[_; EVENT_WORDS]>::default();
    let start = Instant::now();
    let (event, _descriptor) = loop {
        match group.read_event(&words) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => break other?,
        }
    };
    group.answer(event.number, Answer::IoError)?;
    let read = reader.join().map_err(|_| io::ErrorKind::Other)?;
    let refused =
        read.is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()));
    match event.range {
        Some(range) if refused && range.contains(&4096) => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel does not say which bytes are read",
        )),
    }
}

fn sealed(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".seal-{}", std::process::id()));
    std::fs::create_dir_all(dir)?;
    std::fs::write(&path, b"sealed")?;
    let outcome = File::open(&path).and_then(|file| sys::seal(&file));
    std::fs::remove_file(&path)?;
    outcome
}

fn leases(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".lease-{}", std::process::id()));
    std::fs::create_dir_all(dir)?;
    File::create(&path)?;
    let outcome = File::open(&path).and_then(|file| sys::is_open_elsewhere(&file));
    std::fs::remove_file(&path)?;
    match outcome? {
        false => Ok(()),
        true => Err(io::ErrorKind::Unsupported.into()),
    }
}
