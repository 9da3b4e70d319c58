//! A mount whose registry goes away and comes back.

use std::path::Path;
use std::time::{Duration, Instant};

use testkit::fixture;
use testkit::registry::{Fault, Faults, Registry};
use testkit::run::read_uncached;

use crate::support::*;

const EIO: Option<i32> = Some(rustix::io::Errno::IO.raw_os_error());

fn converted(place: &Place, registry: &Registry) -> String {
    registry.push_layout(&fixture::busybox(), fixture::BUSYBOX_TAG, "image", "1");
    let (from, to) = (
        format!("{}/image:1", registry.host()),
        format!("{}/nydus:1", registry.host()),
    );
    let chunks = ["--fs-chunk-size", "0x10000", "--no-journal"];
    place.convert(&from, &to, &chunks).ok();
    to
}

#[test]
fn privileged_a_mount_outlives_its_registrys_absence() {
    let Some(place) = Place::new("privileged_a_mount_outlives_its_registrys_absence") else {
        return;
    };
    for mode in modes("privileged_a_mount_outlives_its_registrys_absence", &place) {
        outlives_absence(&place, mode);
    }
}

fn outlives_absence(place: &Place, mode: &str) {
    let registry = Registry::new();
    let to = converted(place, &registry);
    let mount = place.mount(&to, &["--mode", mode]);
    let path = |name: &str| mount.path().join(name);
    let words = read_uncached(&path("usr/share/words/alpha")).unwrap();

    registry.down();
    let begun = Instant::now();
    let error = read_uncached(&path("bin/busybox")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    // What is in the cache needs no registry; what is not costs no more than a few tries each.
    assert!(read_uncached(&path("usr/share/words/alpha")).unwrap() == words);
    for _ in 0..20 {
        let error = read_uncached(&path("app/main")).unwrap_err();
        assert_eq!(error.raw_os_error(), EIO, "{error}");
    }
    assert!(
        std::fs::metadata(path("app/main")).is_ok(),
        "names are there"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "{:?}",
        begun.elapsed()
    );

    registry.up();
    read_uncached(&path("app/main")).unwrap();
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

/// A registry that takes connections and says nothing.
#[test]
fn privileged_a_read_waits_no_longer_than_told_for_a_silent_registry() {
    let Some(place) =
        Place::new("privileged_a_read_waits_no_longer_than_told_for_a_silent_registry")
    else {
        return;
    };
    let name = "privileged_a_read_waits_no_longer_than_told_for_a_silent_registry";
    for mode in modes(name, &place) {
        waits_no_longer_than_told(&place, mode);
    }
}

fn waits_no_longer_than_told(place: &Place, mode: &str) {
    let registry = Registry::new();
    let to = converted(place, &registry);
    let patience = ["--registry-timeout", "500ms", "--registry-retry-count", "1"];
    let mount = place.mount(&to, &[&patience[..], &["--mode", mode]].concat());
    let silent = Faults::of(1, 1.0, &[Fault::Latency]).latency(Duration::from_secs(8));
    registry.set_faults(silent);
    let begun = Instant::now();
    let error = read_uncached(&mount.path().join("app/main")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    registry.set_faults(Faults::none());
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

/// Kills the process that serves a mount, which another process keeps.
fn kill_server(root: &Path) {
    let mut value = [0; 128];
    let len = rustix::fs::getxattr(root, "user.nydusify.server", &mut value).unwrap();
    let text = std::str::from_utf8(&value[..len]).unwrap();
    let id = text.split(' ').next().unwrap().parse().unwrap();
    let process = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn privileged_a_read_under_way_and_a_registry_away_do_not_mind_a_killed_server() {
    let Some(place) =
        Place::new("privileged_a_read_under_way_and_a_registry_away_do_not_mind_a_killed_server")
    else {
        return;
    };
    let registry = Registry::new();
    let to = converted(&place, &registry);
    let mount = place.mount(&to, &["--no-prefetch"]);
    let path = |name: &str| mount.path().join(name);
    let late = Faults::of(1, 1.0, &[Fault::Latency]).latency(Duration::from_millis(1500));
    registry.set_faults(late);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_uncached(&path("app/main")));
        std::thread::sleep(Duration::from_millis(500));
        kill_server(mount.path());
        // Linux before 6.9 does not hand out again what was under way.
        reader.join().unwrap().unwrap();
    });
    assert!(begun.elapsed() < Duration::from_secs(10));

    // A server knows the image from the one before it.
    registry.set_faults(Faults::none());
    let main = read_uncached(&path("app/main")).unwrap();
    registry.down();
    kill_server(mount.path());
    assert!(read_uncached(&path("app/main")).unwrap() == main);
    assert_eq!(
        read_uncached(&path("bin/busybox"))
            .unwrap_err()
            .raw_os_error(),
        EIO
    );
    registry.up();
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

#[test]
fn privileged_mirrors_that_lie_or_fail_cost_nothing_but_time() {
    let Some(place) = Place::new("privileged_mirrors_that_lie_or_fail_cost_nothing_but_time")
    else {
        return;
    };
    let (registry, mirror) = (Registry::new(), Registry::new());
    let to = converted(&place, &registry);
    let copy = to.replace(&registry.host(), &mirror.host());
    place
        .run(&["copy", "--source", &to, "--target", &copy], &[])
        .ok();
    let through = ["--mirror", &format!("http://{}", mirror.host())];
    let ranges = |registry: &Registry| {
        let requests = registry.requests();
        let ranged =
            |r: &&testkit::registry::Request| r.method == "GET" && r.path.contains("/blobs/");
        requests.iter().filter(ranged).count()
    };
    for (faults, lies) in [
        (Faults::none(), false),
        (Faults::of(7, 1.0, &[Fault::CorruptBody]), true),
        (
            Faults::of(
                7,
                0.5,
                &[Fault::CutBody, Fault::ServerError, Fault::NotFound],
            ),
            false,
        ),
        (Faults::of(7, 1.0, &[Fault::CutBeforeAnswer]), false),
    ] {
        let healthy = format!("{faults:?}") == format!("{:?}", Faults::none());
        mirror.set_faults(faults);
        mirror.forget_requests();
        let mount = place.mount(&to, &through);
        // What was read before is the bootstrap.
        registry.forget_requests();
        assert_equal(&fixture::busybox_expect().compare(mount.path()));
        assert!(ranges(&mirror) > 0);
        assert_eq!(ranges(&registry) == 0, healthy);
        let root = mount.path().to_str().unwrap();
        let stat = place.run(&["stat", root, "--output", "json"], &[]).ok();
        let stat: serde_json::Value = serde_json::from_str(&stat.stdout).unwrap();
        let of_mirror = &stat["mirrors"][0];
        assert_eq!(of_mirror["name"], mirror.host(), "{stat}");
        assert_eq!(of_mirror["lies"] != 0, lies, "{stat}");
        let figure = |name: &str| of_mirror[name].as_u64().unwrap();
        let passed_on = figure("failures") + figure("missing");
        assert_eq!(passed_on == 0, healthy || lies, "{stat}");
        if healthy || lies {
            assert_eq!(of_mirror["in_use"], healthy, "{stat}");
            let text = place.run(&["stat", root], &[]).ok();
            assert_eq!(text.stdout.contains("passed over now"), lies, "{text}");
        }
        let said = mount.stop().ok().stderr;
        assert_eq!(said.contains("wrong bytes"), lies, "{said}");
        assert_eq!(said.contains("fetched_again=0"), !lies, "{said}");
    }
}
