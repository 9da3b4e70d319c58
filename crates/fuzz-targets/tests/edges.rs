//! Every number in a bootstrap at the edges of its type: an error or a right answer, in little time and memory.

use std::time::{Duration, Instant};

use fuzz_targets::Image;
use rafs_format::{Bootstrap, Nid, Version};
use rustix::process::{Resource, Rlimit, setrlimit};

/// What all of it may take in memory, in bytes, whatever a bootstrap claims.
const MEMORY: u64 = 256 << 20;
/// What may be asked of the system for: threads reserve much that they do not use.
const RESERVED: u64 = 8 << 30;
/// Zeros before and behind that make a word padding, in bytes.
const AROUND: usize = 32;
/// How long one bootstrap may take.
const TIME: Duration = Duration::from_secs(5);

/// Serves bootstraps and says how many were sound.
fn serve(image: &Image, bootstraps: impl Iterator<Item = (String, Vec<u8>)>) -> (u32, u32) {
    let (mut sound, mut all) = (0, 0);
    for (what, bootstrap) in bootstraps {
        let begun = Instant::now();
        // Shown if it fails.
        println!("{what}");
        sound += u32::from(image.serve(&bootstrap));
        all += 1;
        assert!(begun.elapsed() < TIME, "{what}: {:?}", begun.elapsed());
    }
    (sound, all)
}

/// The bootstrap with each of its words of so many bytes replaced by each edge, but for what is nothing but padding all around.
fn edges(bootstrap: &[u8], width: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let max = u64::MAX >> (64 - 8 * width);
    let places = (0..bootstrap.len() / width).map(move |word| word * width);
    let places = places.filter(|at| {
        let around = &bootstrap[at.saturating_sub(AROUND)..bootstrap.len().min(at + AROUND)];
        around.iter().any(|byte| *byte != 0)
    });
    let cases = places.flat_map(move |at| [0, 1, max - 1, max].map(|value: u64| (at, value)));
    cases.filter_map(move |(at, value)| {
        let mut damaged = bootstrap.to_vec();
        damaged[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let what = format!("{width} bytes at {at:#x} are {value:#x}");
        (damaged != bootstrap).then_some((what, damaged))
    })
}

/// Most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.expect("there is a peak") << 10
}

fn all_edges(version: Version) {
    let limit = Rlimit {
        current: Some(RESERVED),
        maximum: Some(RESERVED),
    };
    setrlimit(Resource::As, limit).expect("limits can be lowered");
    let image = Image::new(version);
    assert!(image.serve(&image.bootstrap));
    for width in [2, 4, 8] {
        let (sound, all) = serve(&image, edges(&image.bootstrap, width));
        // Times, owners, reserved fields and file data may be anything.
        println!("{sound} of {all} are sound");
        assert!(sound > 10 && all - sound > 100, "{sound} of {all}");
    }
    println!(
        "{} bytes of bootstrap, {} bytes of memory",
        image.bootstrap.len(),
        peak()
    );
    assert!(peak() < MEMORY, "{} bytes", peak());
}

#[test]
fn every_number_of_v6_at_its_edges_is_an_error_or_right() {
    all_edges(Version::V6);
}

#[test]
fn every_number_of_v5_at_its_edges_is_an_error_or_right() {
    all_edges(Version::V5);
}

/// Directories in circles, files in two places, files that are directories.
#[test]
fn names_that_lead_anywhere_are_an_error_or_right() {
    let image = Image::new(Version::V6);
    let bootstrap = Bootstrap::parse(&image.bootstrap[..]).expect("it is good");
    let nids = (0..bootstrap.data().len() as u64 / Nid::SLOT_SIZE).map(Nid);
    let nids: Vec<Nid> = nids.filter(|nid| bootstrap.inode(*nid).is_ok()).collect();
    let mut sound = 0;
    let mut all = 0;
    for at in (0..image.bootstrap.len() - 8).step_by(4) {
        let word = image.bootstrap[at..]
            .first_chunk()
            .expect("it is long enough");
        let found = Nid(u64::from_le_bytes(*word));
        if !nids.contains(&found) {
            continue;
        }
        let others = nids.iter().filter(|nid| **nid != found);
        let damaged = others.map(|nid| {
            let mut damaged = image.bootstrap.clone();
            damaged[at..at + 8].copy_from_slice(&nid.0.to_le_bytes());
            (
                format!("{:#x} at {at:#x} for {:#x}", nid.0, found.0),
                damaged,
            )
        });
        let (some, many) = serve(&image, damaged);
        (sound, all) = (sound + some, all + many);
    }
    assert!(all > 100 && sound < all, "{sound} of {all}");
}
