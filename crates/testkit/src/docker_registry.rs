//! Debian's `docker-registry` as a judge from outside: the real program, on loopback, ended with its value.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::oracle::program;
use crate::registry::Ca;

const PROGRAM: &str = "docker-registry";

/// How the program is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// Name and password that clients have to give.
    pub basic: Option<(&'a str, &'a str)>,
    /// Whose certificate it has; plain HTTP without.
    pub tls: Option<&'a Ca>,
}

/// A running `docker-registry`.
#[derive(Debug)]
pub struct DockerRegistry {
    child: Child,
    host: String,
    directory: tempfile::TempDir,
}

/// Why `docker-registry` cannot be run; `None` if it can.
pub fn no_docker_registry() -> Option<&'static str> {
    program(PROGRAM)
        .is_none()
        .then_some("no docker-registry (apt-get install docker-registry)")
}

impl DockerRegistry {
    /// Starts it and waits until it takes connections. Its storage is empty and goes with it; deletion is allowed.
    ///
    /// # Panics
    /// Here as in all methods: when the system refuses, or the program is not there or does not start.
    pub fn start(options: Options) -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        // Another process may take the port between our look and the program's start.
        for _ in 0..5 {
            let host = free_address();
            let config = config(&host, directory.path(), options);
            let file = directory.path().join("config.yml");
            std::fs::write(&file, config).expect("write the configuration");
            let mut child = spawn(&file, directory.path());
            if is_ready(&mut child, &host) {
                return Self {
                    child,
                    host,
                    directory,
                };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("{PROGRAM} does not start:\n{log}");
    }

    /// `127.0.0.1:port`, as it stands in image references.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where it keeps what was pushed.
    pub fn storage(&self) -> std::path::PathBuf {
        self.directory.path().join("storage")
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).expect("read the log")
    }

    /// Uploads that were neither ended nor deleted.
    pub fn open_uploads(&self) -> usize {
        let mut count = 0;
        let mut next = vec![self.storage()];
        while let Some(directory) = next.pop() {
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    next.push(entry.path());
                } else if entry.file_name() == "startedat" {
                    // What else an upload has may outlive it.
                    count += 1;
                }
            }
        }
        count
    }

    /// Processor time that the program took so far, in user and kernel mode.
    pub fn cpu_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let text = text.expect("the program runs");
        // The second field is the name in parentheses and may hold blanks; utime and stime are fields 14 and 15.
        let rest = text.rsplit_once(") ").expect("a name in parentheses").1;
        let ticks: u64 = rest
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that nobody listens at now.
fn free_address() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind on loopback");
    listener.local_addr().expect("an address").to_string()
}

fn spawn(config: &Path, directory: &Path) -> Child {
    let log = std::fs::File::create(directory.join("log")).expect("make the log");
    let program = program(PROGRAM).unwrap_or_else(|| panic!("{PROGRAM} is not installed"));
    // Without our environment: neither REGISTRY_* settings nor proxies.
    Command::new(program)
        .arg("serve")
        .arg(config)
        .env_clear()
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{PROGRAM}: {error}"))
}

/// Waits until the program takes connections; `false` if it ended or never does.
fn is_ready(child: &mut Child, host: &str) -> bool {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        if TcpStream::connect(host).is_ok() {
            // It may be somebody else who listens, while the program is about to fail.
            std::thread::sleep(Duration::from_millis(20));
            return matches!(child.try_wait(), Ok(None));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// The configuration; files that it names are written.
fn config(host: &str, directory: &Path, options: Options) -> String {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("write a file");
        path.display().to_string()
    };
    let mut text = format!(
        "version: 0.1\n\
         log:\n  level: error\n  accesslog:\n    disabled: true\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n  \
         maintenance:\n    uploadpurging:\n      enabled: false\n\
         http:\n  addr: {host}\n  secret: known to nobody\n",
        directory.join("storage").display()
    );
    if let Some(ca) = options.tls {
        let pair = ca.certify();
        let certificate = write("server.pem", &pair.certificate);
        let key = write("server.key", &pair.key);
        text.push_str(&format!(
            "  tls:\n    certificate: {certificate}\n    key: {key}\n"
        ));
    }
    if let Some((name, password)) = options.basic {
        // The lowest cost that there is: tests wait for it with each request.
        let hash = bcrypt::hash_with_salt(password, 4, [7; 16]).expect("a password");
        let hash = hash.format_for_version(bcrypt::Version::TwoY);
        let path = write("htpasswd", &format!("{name}:{hash}\n"));
        text.push_str(&format!(
            "auth:\n  htpasswd:\n    realm: tests\n    path: {path}\n"
        ));
    }
    text
}
