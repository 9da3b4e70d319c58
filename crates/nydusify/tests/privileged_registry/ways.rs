//! Mounts whose blobs come by other ways than from the image's own registry, and what becomes of secrets on the way.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use testkit::bucket::{self, Bucket};
use testkit::fixture;
use testkit::registry::{Auth, Bearer, Options, Registry, User};
use testkit::run::read_uncached;

use crate::support::*;

fn layout() -> String {
    let layout = fixture::busybox().display().to_string();
    format!("oci:{layout}:{}", fixture::BUSYBOX_TAG)
}

#[test]
fn privileged_the_list_of_mirrors_changes_under_a_mount() {
    let Some(place) = Place::new("privileged_the_list_of_mirrors_changes_under_a_mount") else {
        return;
    };
    let [registry, first, second] = [(); 3].map(|()| Registry::new());
    let to = format!("{}/nydus:1", registry.host());
    let chunks = ["--fs-chunk-size", "0x10000", "--no-journal"];
    place.convert(&layout(), &to, &chunks).ok();
    for mirror in [&first, &second] {
        let copy = to.replace(&registry.host(), &mirror.host());
        place
            .run(&["copy", "--source", &to, "--target", &copy], &[])
            .ok();
    }
    let own = place.path("mirrors/_default");
    std::fs::create_dir_all(&own).unwrap();
    let list = |mirror: &Registry| {
        let text = format!("[host.\"{}\"]\n", mirror.url());
        std::fs::write(own.join("hosts.toml"), text).unwrap();
    };
    list(&first);
    let dir = place.path("mirrors").display().to_string();
    let mount = place.mount(&to, &["--mirrors-dir", &dir]);
    let served = || [&registry, &first, &second].map(|one| one.take_blob_reads() > 0);
    served();
    read_uncached(&mount.path().join("app/main")).unwrap();
    assert_eq!(served(), [false, true, false]);
    list(&second);
    std::thread::sleep(Duration::from_millis(1500));
    read_uncached(&mount.path().join("bin/busybox")).unwrap();
    assert_eq!(served(), [false, false, true]);
    second.down();
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    assert!(served()[0]);
    mount.stop().ok();
    let more = ["--mirrors-dir", "/no/where"];
    let words = ["mount", "--target", &to, "--mount-path", "root"];
    place.run(&words, &more).exits(1).fails_with(&["/no/where"]);
}

#[test]
fn privileged_a_repository_is_a_backend_like_any_other() {
    let Some(place) = Place::new("privileged_a_repository_is_a_backend_like_any_other") else {
        return;
    };
    let registry = Registry::new();
    let blobs = place.path("blobs");
    let local = json!({"dir": blobs}).to_string();
    let target = format!("oci:{}:v6", place.path("image").display());
    let more = ["--backend-type", "localfs", "--backend-config", &local];
    place.convert(&layout(), &target, &more).ok();
    for blob in std::fs::read_dir(&blobs).unwrap() {
        registry.put_blob("team/app", &std::fs::read(blob.unwrap().path()).unwrap());
    }
    let config = json!({"host": registry.host(), "repo": "team/app"}).to_string();
    let backend = ["--backend-type", "registry", "--backend-config", &config];
    let mount = place.mount(&target, &backend);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
    assert!(registry.take_blob_reads() > 0);
    let side = [
        "--target-backend-type",
        "registry",
        "--target-backend-config",
        &config,
    ];
    place.check(&layout(), &target, &side).ok();
}

const PASSWORD: &str = "sesame-of-the-registry";
const HEADER: &str = "sesame-of-the-mirror";
const PROXY: &str = "sesame-of-the-proxy";

/// `me` with the first and the last of them, in base64.
const BASIC: &str = "bWU6c2VzYW1lLW9mLXRoZS1yZWdpc3RyeQ==";
const PROXY_BASIC: &str = "bWU6c2VzYW1lLW9mLXRoZS1wcm94eQ==";

/// What must be seen nowhere but on the wire.
fn secrets() -> Vec<String> {
    let tokens =
        (0..100).map(|number| testkit::sha256(format!("access token {number}").as_bytes()));
    let fixed = [PASSWORD, HEADER, PROXY, bucket::SECRET, BASIC, PROXY_BASIC];
    fixed.map(str::to_owned).into_iter().chain(tokens).collect()
}

/// Whether bytes hold a secret or a signature.
fn holds_secret(bytes: &[u8]) -> bool {
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    secrets().iter().any(|secret| has(secret.as_bytes())) || has(b"Signature=")
}

/// Files below `dir` that hold a secret.
fn tell_tales(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(tell_tales(&path));
        } else if kind.is_file() && holds_secret(&std::fs::read(&path).unwrap()) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Command lines and environments of all processes that run the program.
fn processes() -> Vec<(String, Vec<u8>)> {
    let program = std::fs::canonicalize(NYDUSIFY).unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        if std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == program) {
            for name in ["cmdline", "environ"] {
                let bytes = std::fs::read(path.join(name)).unwrap_or_default();
                found.push((path.join(name).display().to_string(), bytes));
            }
        }
    }
    found
}

#[test]
fn privileged_secrets_are_seen_nowhere() {
    let Some(place) = Place::new("privileged_secrets_are_seen_nowhere") else {
        return;
    };
    let bearer = Bearer {
        users: vec![User::new("me", PASSWORD)],
        expires_in: Some(1),
        ..Bearer::default()
    };
    let registry = Registry::start(Options {
        auth: Auth::Bearer(bearer),
        ..Options::default()
    });
    // A helper has the password; it writes down what it was started with.
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-tests");
    let seen = place.path("helper");
    let answer = json!({"Username": "me", "Secret": PASSWORD});
    let script = format!(
        "#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ >> {}\necho '{answer}'\n",
        seen.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = json!({"credsStore": "tests"}).to_string();
    std::fs::write(place.path("docker/config.json"), config).unwrap();
    // The blobs lie in a bucket behind a proxy that is not there, and the list of mirrors has a header.
    let store = Bucket::s3();
    let mut config: serde_json::Value = serde_json::from_str(&store.config("p/")).unwrap();
    config["proxy"] = json!({"url": format!("http://me:{PROXY}@127.0.0.1:9")});
    let secret = place.path("secret");
    std::fs::create_dir_all(secret.join("mirrors/_default")).unwrap();
    let file = secret.join("bucket.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let text = format!("[host.\"http://127.0.0.1:9\"]\nheader = {{ X-Key = \"{HEADER}\" }}\n");
    std::fs::write(secret.join("mirrors/_default/hosts.toml"), text).unwrap();
    let (file, mirrors) = (
        file.display().to_string(),
        secret.join("mirrors").display().to_string(),
    );

    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let to = format!("{}/nydus:1", registry.host());
    let backend = ["--backend-type", "s3", "--backend-config-file", &file];
    let source = layout();
    let mut convert = place.command(&["--log-level", "trace", "convert", "--no-journal"]);
    convert.args(["--source", &source, "--target", &to]);
    let ran = testkit::run::output(convert.args(backend).env("PATH", &path)).ok();
    assert!(!holds_secret(ran.stderr.as_bytes()), "{ran}");

    let (root, cache) = (place.path("root"), place.path("cache"));
    let mut command = place.command(&["--log-level", "trace", "mount", "--no-prefetch"]);
    command.args(["--target", &to, "--mirrors-dir", &mirrors]);
    command.arg("--mount-path").arg(&root);
    command.arg("--cache-dir").arg(&cache);
    command.args(backend).env("PATH", &path);
    let mount = testkit::run::Mount::start(&mut command, &root);
    // Tokens end meanwhile.
    registry.revoke_tokens();
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    let running = processes();
    assert!(running.len() >= 4, "the mount has two processes");
    for (name, bytes) in running {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!holds_secret(&bytes), "{name}: {text}");
    }
    let ran = mount.stop().ok();
    assert!(ran.stderr.contains("127.0.0.1:9"), "{ran}");
    assert!(!holds_secret(ran.stderr.as_bytes()), "{ran}");

    // A store and a registry that refuse are no reason to tell.
    let wrong = store.config_with("p/", "sesame-of-the-proxy");
    std::fs::write(&file, wrong).unwrap();
    std::fs::write(&helper, format!("#!/bin/sh\necho '{answer}'; exit 1\n")).unwrap();
    let mut check = place.command(&["--log-level", "trace", "check", "--target", &to]);
    let side = [
        "--target-backend-type",
        "s3",
        "--target-backend-config-file",
        &file,
    ];
    let ran = testkit::run::output(check.args(side).env("PATH", &path)).exits(1);
    assert!(!holds_secret(ran.stderr.as_bytes()), "{ran}");

    assert!(seen.exists(), "the helper was asked");
    assert!(!holds_secret(&std::fs::read(&seen).unwrap()));
    for dir in ["home", "docker", "tmp", "cwd", "cache"] {
        assert_eq!(tell_tales(&place.path(dir)), Vec::<String>::new());
    }
}
