//! Faults on seeded schedules: a conversion, a check or a read of a lazy mount gives what is right or says what went
//! wrong, within a time; whatever it leaves is complete.
//!
//! `NYDUS_FAULT_SEED=17 cargo test -p nydusify --test e2e_registry schedules` does one schedule again; with
//! `NYDUS_FAULT_COUNT=5000` there are more of them.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use convert::{ConvertOptions, ConvertReport};
use image::nydus::{self, ImageBlobs};
use image::{PlatformChoice, Source, Target};
use progress::{Cancel, Silent};
use rafs_format::{Bootstrap, ChunkPointer};
use registry::{Client, Credentials, Secret, Settings};
use storage::{ChunkStore, StoreOptions};
use testkit::registry::{Auth, Fault, Faults, Options, Registry};

use crate::support::*;

/// Schedules of each kind.
const COUNT: u64 = 300;
/// Schedules that run at once: most of their time they wait.
const AT_ONCE: usize = 6;
/// No schedule may take longer: all pauses in it are short.
const DEADLINE: Duration = Duration::from_secs(90);

/// Runs all schedules of a kind, each with its seed. What `one` returns is counted.
fn run_all(one: fn(u64) -> &'static str) -> BTreeMap<&'static str, u64> {
    let seeds = testkit::seeds("FAULT", COUNT);
    let next = AtomicU64::new(seeds.start);
    let (counts, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.lock().unwrap().len() >= 5 {
                return;
            }
            let (sender, ended) = sync_channel(1);
            // Not joined: one that hangs must not make the test hang.
            std::thread::spawn(move || sender.send(one(seed)));
            match ended.recv_timeout(DEADLINE) {
                Ok(how) => *counts.lock().unwrap().entry(how).or_default() += 1,
                Err(RecvTimeoutError::Timeout) => failed.lock().unwrap().push((seed, "hangs")),
                Err(RecvTimeoutError::Disconnected) => {
                    failed.lock().unwrap().push((seed, "failed, as said above"));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "NYDUS_FAULT_SEED of the schedules that failed: {failed:?}"
    );
    let counts = counts.into_inner().unwrap();
    println!("{counts:?}");
    counts
}

/// Insists on schedules of every outcome, unless one alone was asked for.
#[track_caller]
fn assert_all_happened(counts: &BTreeMap<&str, u64>, names: &[&str]) {
    if counts.values().sum::<u64>() >= COUNT {
        for name in names {
            assert!(counts.contains_key(name), "never {name}: {counts:?}");
        }
    }
}

/// A registry as one of those that there are.
fn some_registry(seed: u64) -> Registry {
    let yes = |what| draw(seed, what, 2) == 0;
    let base = match draw(seed, 0, 3) {
        0 => Options::debian(),
        1 => Options::default(),
        _ => Options {
            append_twice: true,
            ..Options::default()
        },
    };
    let auth = match draw(seed, 1, 3) {
        0 => short_lived_tokens(),
        1 => Auth::Basic(vec![me()]),
        _ => Auth::None,
    };
    Registry::start(Options {
        auth,
        redirect: yes(2).then_some(Duration::from_secs(60)),
        relative_locations: yes(3),
        mounts: yes(4),
        ranges: draw(seed, 5, 5) != 0,
        ..base
    })
}

/// What goes wrong: now and then or often, everything or one kind of thing alone.
fn some_faults(seed: u64) -> Faults {
    let rate = [0.02, 0.05, 0.1, 0.25, 0.5][draw(seed, 10, 5) as usize];
    let kinds = match draw(seed, 11, 3) {
        0 => vec![Fault::ALL[draw(seed, 12, Fault::ALL.len() as u64) as usize]],
        _ => Fault::ALL.to_vec(),
    };
    Faults::of(seed, rate, &kinds)
        .latency(Duration::from_millis(5))
        .retry_after(0)
}

fn client(seed: u64) -> Client {
    let settings = Settings {
        plain_http: true,
        retries: 4,
        retry_delay: Duration::from_millis(3),
        credentials: Credentials::Fixed {
            username: "me".to_owned(),
            password: Secret::new("secret"),
        },
        segment_size: 32 << 10,
        connect_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        seed: Some(seed),
        ..Settings::default()
    };
    Client::new(settings).unwrap()
}

fn source(registry: &Registry, client: &Client, name: &str) -> anyhow::Result<Source> {
    Ok(client.source(&format!("{}/{name}", registry.host()).parse()?)?)
}

fn target(registry: &Registry, client: &Client, name: &str) -> Target {
    client.target(&format!("{}/{name}", registry.host()).parse().unwrap())
}

fn options() -> ConvertOptions {
    ConvertOptions {
        platform: PlatformChoice::All,
        chunk_size: 32 << 10,
        // The same for every registry.
        source_name: Some("the source".to_owned()),
        ..ConvertOptions::new(NonZeroUsize::new(2).unwrap())
    }
}

/// Converts `image:1` to `new:1`.
fn convert(
    registry: &Registry,
    seed: u64,
    options: &ConvertOptions,
) -> anyhow::Result<ConvertReport> {
    let client = client(seed);
    let source = source(registry, &client, "image:1")?;
    let target = target(registry, &client, "new:1");
    let cancel = Cancel::default();
    Ok(convert::convert_image(
        &source, target, None, options, &Silent, &cancel,
    )?)
}

/// The small image, converted where nothing goes wrong, and proven equal.
fn converted() -> &'static Stored {
    static CONVERTED: OnceLock<Stored> = OnceLock::new();
    CONVERTED.get_or_init(|| {
        let registry = Registry::new();
        small().put(&registry, "image", "1");
        convert(&registry, 0, &options()).unwrap();
        assert!(check(&registry, &client(0)).unwrap().verified);
        Stored::take(&registry, "new", "1")
    })
}

/// Checks `new:1` against `image:1`.
fn check(registry: &Registry, client: &Client) -> anyhow::Result<verify::Report> {
    let old = Arc::new(source(registry, client, "image:1")?);
    let new = Arc::new(source(registry, client, "new:1")?);
    let pairs = verify::images(Some((&old, "old")), (&new, "new"), &PlatformChoice::All)?;
    let [(old, new)] = &pairs[..] else {
        panic!("{} images", pairs.len());
    };
    let options = verify::Options {
        threads: NonZeroUsize::new(2).unwrap(),
        layers: layer::Options::default(),
        cancel: &Cancel::default(),
        progress: &Silent,
    };
    Ok(verify::check(old.as_ref(), new, &options)?)
}

/// An error says what it is about, and is no surprise to the program itself.
#[track_caller]
fn assert_clear(error: &anyhow::Error) {
    let text = format!("{error:#}");
    assert!(
        text.contains("sha256:") || text.contains("127.0.0.1"),
        "names nothing: {text}"
    );
    for word in ["bug", "panic", "before this one", "without a reason"] {
        assert!(!text.contains(word), "{word:?} in: {text}");
    }
}

/// Whether anything went wrong that can be seen.
fn is_disturbed(registry: &Registry) -> bool {
    let requests = registry.requests();
    let mut faults = requests.iter().filter_map(|request| request.fault);
    faults.any(|fault| fault != Fault::Latency)
}

/// Uploads whose end the client could not bring about: it never learnt of them; their address was out of date, since
/// the answer with the next one was lost, and the registry does not know them by it; it refused in earnest; or faults
/// met several attempts.
fn excused_uploads(registry: &Registry) -> usize {
    let (mut unknown, mut tried) = (0, BTreeMap::<String, (bool, usize)>::new());
    for request in registry.requests() {
        let Some((_, upload)) = request.path.split_once("/blobs/uploads/") else {
            continue;
        };
        match request.method.as_str() {
            "POST" if request.fault == Some(Fault::AnswerLost) => unknown += 1,
            "DELETE" => {
                let id = upload.split('?').next().unwrap_or_default();
                let (refused, tries) = tried.entry(id.to_owned()).or_default();
                *refused |= matches!(request.status, 401 | 404);
                *tries += 1;
            }
            _ => {}
        }
    }
    let excused = |&&(refused, tries): &&(bool, usize)| refused || tries > 1;
    unknown + tried.values().filter(excused).count()
}

fn convert_under_faults(seed: u64) -> &'static str {
    let want = converted();
    let registry = some_registry(seed);
    small().put(&registry, "image", "1");
    registry.set_faults(some_faults(seed));
    let journal = tempfile::tempdir().unwrap();
    let options = ConvertOptions {
        check: draw(seed, 20, 4) == 0,
        journal: (draw(seed, 21, 2) == 0).then(|| journal.path().to_owned()),
        ..options()
    };
    let result = convert(&registry, seed, &options);
    registry.set_faults(Faults::none());
    assert_well_behaved(&registry);
    if let Err(error) = &result {
        assert!(is_disturbed(&registry), "{error:#}");
        assert_clear(error);
    }
    // A tag may be there although its answer was lost; then it is complete all the same.
    match registry.digest("new", "1") {
        Some(digest) => {
            assert_eq!(digest, want.digest);
            assert_eq!(registry.missing_from("new", "1"), [""; 0]);
        }
        None => assert!(result.is_err(), "there is no tag"),
    }
    let open = registry.counters().open_uploads as usize;
    let excused = excused_uploads(&registry);
    assert!(
        open <= excused,
        "{open} uploads are open, {excused} excused"
    );
    // Nothing that is left stands in the way of the next.
    convert(&registry, seed, &options).unwrap();
    assert_eq!(registry.digest("new", "1").as_ref(), Some(&want.digest));
    assert_eq!(registry.missing_from("new", "1"), [""; 0]);
    if result.is_ok() {
        "converted"
    } else {
        "refused"
    }
}

#[test]
fn conversions_are_right_or_say_why_not() {
    let counts = run_all(convert_under_faults);
    assert_all_happened(&counts, &["converted", "refused"]);
}

fn check_under_faults(seed: u64) -> &'static str {
    let registry = some_registry(seed);
    small().put(&registry, "image", "1");
    converted().put(&registry, "new", "1");
    // Some images are not equal to their source, or not whole.
    let damaged = draw(seed, 30, 3) == 0;
    if damaged {
        let blobs = match draw(seed, 31, 2) {
            0 => &converted().blobs,
            _ => &small().blobs,
        };
        let (digest, bytes) = &blobs[draw(seed, 32, blobs.len() as u64) as usize];
        let mut bytes = bytes.clone();
        let at = draw(seed, 33, bytes.len() as u64) as usize;
        bytes[at] ^= 1 << draw(seed, 34, 8);
        registry.overwrite_blob(digest, &bytes);
    }
    registry.set_faults(some_faults(seed));
    let result = check(&registry, &client(seed));
    assert_well_behaved(&registry);
    let disturbed = is_disturbed(&registry);
    match result {
        Ok(report) if report.verified => {
            assert!(!damaged, "a damaged image was verified");
            "verified"
        }
        Ok(report) => {
            assert!(damaged || disturbed, "{report}");
            let text = report.to_string();
            assert!(
                text.contains("sha256:") || text.contains("127.0.0.1") || text.contains("blob "),
                "names nothing: {text}"
            );
            if damaged { "damaged" } else { "not verified" }
        }
        Err(error) => {
            assert!(damaged || disturbed, "{error:#}");
            assert_clear(&error);
            "refused"
        }
    }
}

#[test]
fn checks_verify_what_is_right_and_nothing_else() {
    let counts = run_all(check_under_faults);
    assert_all_happened(&counts, &["verified", "damaged", "not verified", "refused"]);
}

/// A regular file of the image, as a mount reads it.
struct File {
    chunks: Vec<ChunkPointer>,
    content: Vec<u8>,
}

fn opened(
    registry: &Registry,
    client: &Client,
) -> anyhow::Result<(Bootstrap<Vec<u8>>, ImageBlobs)> {
    let source = source(registry, client, "new:1")?;
    let (_, manifest) = source.manifests(&PlatformChoice::All)?.remove(0);
    let bootstrap = Bootstrap::parse(nydus::read_bootstrap(&source, &manifest)?)?;
    Ok((bootstrap, ImageBlobs::new(source, &manifest)))
}

fn find(bootstrap: &Bootstrap<Vec<u8>>) -> Vec<File> {
    let find = |(path, content): (&str, Vec<u8>)| {
        let mut inode = bootstrap.inode(bootstrap.root()).unwrap();
        for name in path.split('/') {
            let entry = bootstrap.lookup(&inode, name.as_bytes()).unwrap();
            inode = bootstrap.inode(entry.unwrap().nid).unwrap();
        }
        assert_eq!(inode.size, content.len() as u64);
        let chunks = bootstrap.chunks(&inode).unwrap();
        File {
            chunks: chunks.map(Result::unwrap).collect(),
            content,
        }
    };
    files().into_iter().map(find).collect()
}

/// Reads; an error is given back, wrong bytes are the end.
fn read(store: &ChunkStore, file: &File, start: usize, length: usize) -> anyhow::Result<()> {
    let mut bytes = vec![0; length];
    store.read_file_range(&file.chunks, 32 << 10, start as u64, &mut bytes)?;
    assert!(bytes == file.content[start..start + length], "wrong bytes");
    Ok(())
}

fn mount_under_faults(seed: u64) -> &'static str {
    let registry = some_registry(seed);
    converted().put(&registry, "new", "1");
    registry.set_faults(some_faults(seed));
    let client = client(seed);
    let (bootstrap, blobs) = match opened(&registry, &client) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(is_disturbed(&registry), "{error:#}");
            assert_clear(&error);
            return "not mounted";
        }
    };
    let cache = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cache_dir: (draw(seed, 40, 2) == 0).then(|| cache.path().to_owned()),
        threads: 1,
        request_max: 1 << (15 + draw(seed, 41, 6)),
        ..StoreOptions::default()
    };
    let cached = options.cache_dir.is_some();
    let blobs = Arc::new(blobs);
    let store = ChunkStore::open(&bootstrap, blobs.clone(), options.clone()).unwrap();
    let files = find(&bootstrap);
    let some_reads = |reader: u64| {
        let mut errors = 0;
        for number in 0..25 {
            let draw = |what, below| draw(seed, 1000 * (reader + 1) + 10 * number + what, below);
            let file = &files[draw(0, files.len() as u64) as usize];
            let start = draw(1, file.content.len() as u64) as usize;
            let length = draw(2, 130_000).min((file.content.len() - start) as u64) as usize;
            if let Err(error) = read(&store, file, start, length) {
                assert!(is_disturbed(&registry), "{error:#}");
                let text = format!("{error:#}");
                assert!(text.contains("blob "), "names nothing: {text}");
                errors += 1;
            }
        }
        errors
    };
    let errors: u64 = std::thread::scope(|scope| {
        let readers = [0, 1].map(|reader| scope.spawn(move || some_reads(reader)));
        readers
            .map(|reader| reader.join().unwrap())
            .into_iter()
            .sum()
    });
    // When all is well again, all can be read.
    registry.set_faults(Faults::none());
    // What was asked for before then may still fail.
    store.wait_prefetch();
    for file in &files {
        read(&store, file, 0, file.content.len()).unwrap();
    }
    drop(store);
    assert_well_behaved(&registry);
    // What was cached is right, and needs no registry.
    registry.down();
    if cached {
        let store = ChunkStore::open(&bootstrap, blobs, options).unwrap();
        for file in &files {
            read(&store, file, 0, file.content.len()).unwrap();
        }
    }
    if errors == 0 { "read" } else { "some errors" }
}

#[test]
fn reads_of_a_mount_are_right_or_errors() {
    let counts = run_all(mount_under_faults);
    assert_all_happened(&counts, &["read", "some errors", "not mounted"]);
}
