//! A conversion from registry to registry that is killed at any moment: the same command again comes to the end.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::registry::{Fault, Faults, Options, Registry};

use crate::support::*;

/// Rounds, and those that run at once.
const ROUNDS: u64 = 100;
const AT_ONCE: usize = 4;

/// A registry that takes its time, with the small image as `image:1`.
fn slow_registry(seed: u64) -> Registry {
    let registry = Registry::start(match seed % 2 {
        0 => Options::default(),
        _ => Options::debian(),
    });
    small().put(&registry, "image", "1");
    let late = Faults::of(seed, 1.0, &[Fault::Latency]);
    registry.set_faults(late.latency(Duration::from_millis(10)));
    registry
}

/// The outcome of a round.
#[derive(Debug, Default)]
struct Round {
    killed: bool,
    reused: u64,
}

fn round(seed: u64, whole: Duration, want: &Stored) -> Round {
    let (registry, home) = (slow_registry(seed), Home::new());
    let (source, target) = (
        format!("{}/image:1", registry.host()),
        format!("{}/new:1", registry.host()),
    );
    let report = home.path("report.json");
    let args = home.convert_args(&source, &target);
    let mut command = home.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    command.arg("--output-json").arg(&report);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let permille = u32::try_from(draw(seed, 0, 1000)).unwrap();
    std::thread::sleep(whole * permille / 1000);
    child.kill().unwrap();
    let killed = !child.wait().unwrap().success();
    // Requests that were on their way come to their end before the next run.
    testkit::run::wait_until("the connections to end", || {
        registry.counters().connections == 0
    });
    if registry.digest("new", "1").is_some() {
        assert_eq!(registry.missing_from("new", "1"), [""; 0]);
    }

    let pushed = registry.blobs("new");
    let known = list(&home.path("journal")).into_iter().filter(|name| {
        let path = home.path("journal").join(name);
        let record: Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_default();
        name.ends_with(".json") && pushed.iter().any(|blob| record["blob"] == blob.as_str())
    });
    let known = known.count() as u64;
    let ran = testkit::run::output(&mut command);
    assert!(ran.code == 0, "{ran}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(
        report["ReusedLayers"], known,
        "what is known is not converted again"
    );
    let have = Stored::take(&registry, "new", "1");
    assert!(
        have.blobs == want.blobs,
        "another image than without a kill"
    );
    assert_eq!(registry.missing_from("new", "1"), [""; 0]);
    assert_well_behaved(&registry);
    for empty in ["home", "tmp", "cwd"] {
        assert_eq!(list(&home.path(empty)), [""; 0], "left in {empty}");
    }
    let records = list(&home.path("journal"));
    let records = records.iter().filter(|name| name.ends_with(".json"));
    assert_eq!(records.count(), small().layers().len());
    if seed.is_multiple_of(10) {
        registry.set_faults(Faults::none());
        home.check(&source, &target, &[]).ok();
    }
    Round {
        killed,
        reused: known,
    }
}

#[test]
fn a_conversion_that_is_killed_goes_on() {
    let (registry, home) = (slow_registry(0), Home::new());
    let (source, target) = (
        format!("{}/image:1", registry.host()),
        format!("{}/new:1", registry.host()),
    );
    let begun = Instant::now();
    home.convert(&source, &target, &["--check"]).ok();
    let whole = begun.elapsed();
    let want = Stored::take(&registry, "new", "1");

    let seeds = testkit::seeds("KILL", ROUNDS);
    let next = AtomicU64::new(seeds.start);
    let (rounds, failed) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match std::panic::catch_unwind(|| round(seed, whole, &want)) {
                Ok(round) => rounds.lock().unwrap().push(round),
                Err(_) => failed.lock().unwrap().push(seed),
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
        "NYDUS_KILL_SEED of the rounds that failed: {failed:?}"
    );
    let rounds = rounds.into_inner().unwrap();
    let (killed, reused) = (
        rounds.iter().filter(|round| round.killed).count(),
        rounds.iter().filter(|round| round.reused != 0).count(),
    );
    println!("{killed} killed, {reused} with layers to use again");
    if rounds.len() as u64 == ROUNDS {
        assert!(
            killed > 50 && reused > 2,
            "{killed} killed, {reused} reused"
        );
    }
}
