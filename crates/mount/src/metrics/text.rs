//! The figures as text: version 0.0.4 of the format that Prometheus and its kin read.

use std::fmt::Write as _;
use std::time::Duration;

use storage::{ChunkStore, Times};

use super::Subject;
use crate::stats::Counters;

/// Stands before every name.
const PREFIX: &str = "nydusify";

/// All figures of a mount.
pub(super) fn render(subject: &Subject, counters: &Counters, store: &ChunkStore) -> String {
    let mut text = Text::new(&subject.image);
    let mountpoint = subject.mountpoint.to_string_lossy();
    let info = [("mode", subject.mode), ("mountpoint", &*mountpoint)];
    text.family("mount_info", "gauge", "What is mounted, and where.");
    text.sample("mount_info", &info, 1);
    text.gauge(
        "mount_start_time_seconds",
        "When the mount began, in seconds since 1970.",
        counters.began.value(),
    );
    let own = [
        (
            "servers_total",
            "Processes that have served the mount, one after the other.",
            &counters.servers,
        ),
        (
            "lookups_total",
            "Names that the kernel looked up.",
            &counters.lookups,
        ),
        (
            "reads_total",
            "Reads that were not answered by the kernel alone.",
            &counters.reads,
        ),
        (
            "read_bytes_total",
            "Bytes that these reads got.",
            &counters.bytes,
        ),
    ];
    for (name, help, counter) in own {
        text.counter(name, help, counter.value());
    }
    text.histogram(
        "read_seconds",
        "How long these reads took.",
        &counters.read_times.times(),
    );
    let details = store.details();
    text.family(
        "errors_total",
        "counter",
        "Requests that ended in an error, by what is to blame.",
    );
    let bootstrap = ("bootstrap", counters.bootstrap_errors.value());
    for (kind, count) in details.errors.iter().chain([&bootstrap]) {
        text.sample("errors_total", &[("kind", kind)], *count);
    }
    let stats = store.stats();
    for ((name, value), help) in stats.fields().zip(storage::Stats::descriptions()) {
        text.counter(&format!("store_{name}_total"), help, value);
    }
    text.histogram(
        "fetch_seconds",
        "How long requests to blobs took.",
        &details.fetch_times,
    );
    text.gauge(
        "fetches_in_flight",
        "Requests to blobs that wait for an answer now.",
        details.fetches_in_flight,
    );
    text.each(BLOBS, "blob", &details.blobs, |blob| &blob.id);
    if let Some(upstream) = &subject.upstream {
        text.counter(
            "retries_total",
            "Requests to the places of blobs that were sent again, by this process.",
            upstream.retries(),
        );
        let mirrors = upstream.mirrors();
        text.each(MIRRORS, "mirror", &mirrors, |mirror| &mirror.name);
    }
    text.0
}

/// Figures that each of several things has: name, kind, help, and the value.
type Families<'a, T> = &'a [(&'a str, &'a str, &'a str, fn(&T) -> u64)];

const BLOBS: Families<'static, storage::BlobDetails> = &[
    (
        "blob_size_bytes",
        "gauge",
        "Bytes of the blob's chunks that the image uses.",
        |blob| blob.size,
    ),
    (
        "blob_cached_bytes",
        "gauge",
        "How many of them are in the cache.",
        |blob| blob.cached,
    ),
    (
        "blob_fetches_total",
        "counter",
        "Requests to the blob, for chunks.",
        |blob| blob.fetches,
    ),
    (
        "blob_fetched_bytes_total",
        "counter",
        "Stored bytes that came of them.",
        |blob| blob.fetched_bytes,
    ),
    (
        "blob_fetch_errors_total",
        "counter",
        "Requests that failed, after all tries.",
        |blob| blob.fetch_errors,
    ),
];

/// These are of one process: which mirrors there are may change from one to the next.
const MIRRORS: Families<'static, storage::MirrorStats> = &[
    (
        "mirror_reads_total",
        "counter",
        "Reads that the mirror answered.",
        |mirror| mirror.reads,
    ),
    (
        "mirror_read_bytes_total",
        "counter",
        "Their bytes.",
        |mirror| mirror.bytes,
    ),
    (
        "mirror_failures_total",
        "counter",
        "Reads that it failed to answer.",
        |mirror| mirror.failures,
    ),
    (
        "mirror_missing_total",
        "counter",
        "Reads of blobs that it does not have.",
        |mirror| mirror.missing,
    ),
    (
        "mirror_lies_total",
        "counter",
        "Reads that it answered with wrong bytes.",
        |mirror| mirror.lies,
    ),
    (
        "mirror_in_use",
        "gauge",
        "Whether it is asked at the moment.",
        |mirror| u64::from(mirror.in_use),
    ),
];

/// The text, and the label that every sample has.
struct Text(String, String);

impl Text {
    fn new(image: &str) -> Self {
        Self(String::new(), format!("image=\"{}\"", escape(image)))
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', " ");
        // Writing to a string can't fail.
        let _ = writeln!(self.0, "# HELP {PREFIX}_{name} {help}");
        let _ = writeln!(self.0, "# TYPE {PREFIX}_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "{PREFIX}_{name}{{{}", self.1);
        for (label, text) in labels {
            let _ = write!(self.0, ",{label}=\"{}\"", escape(text));
        }
        let _ = writeln!(self.0, "}} {value}");
    }

    /// Figures of each of several things, which a label tells apart.
    fn each<T>(
        &mut self,
        families: Families<'_, T>,
        label: &str,
        things: &[T],
        name_of: fn(&T) -> &str,
    ) {
        for (name, kind, help, value) in families.iter().filter(|_| !things.is_empty()) {
            self.family(name, kind, help);
            for thing in things {
                self.sample(name, &[(label, name_of(thing))], value(thing));
            }
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, times: &Times) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, below) in times.cumulative() {
            let bound = bound.map(|bound| bound.as_secs_f64().to_string());
            let bound = bound.unwrap_or_else(|| "+Inf".to_owned());
            self.sample(&bucket, &[("le", &bound)], below);
            count = below;
        }
        let seconds = |time: Duration| time.as_secs_f64();
        self.sample(&format!("{name}_sum"), &[], seconds(times.sum));
        self.sample(&format!("{name}_count"), &[], count);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use storage::Words;

    use super::super::Samples;
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let words = Arc::new(Words::default());
        let histogram = words.histogram(1);
        for micros in [5, 100, 100, 5000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut text = Text::new("a \"name\"\\ of\ntwo lines");
        text.counter("reads_total", "Help.", 7);
        text.family("errors_total", "counter", "Help.");
        text.sample("errors_total", &[("kind", "fetch")], 2);
        text.sample("errors_total", &[("kind", "open")], 3);
        text.histogram("read_seconds", "Help.", &histogram.times());
        let samples = Samples::parse(&text.0);
        let all: Vec<_> = samples.of("reads_total").collect();
        assert_eq!(all[0].value, 7.0);
        assert_eq!(all[0].label("image"), "a \"name\"\\ of\ntwo lines");
        assert_eq!(samples.sum("errors_total"), 5);
        let half = samples.quantile("read_seconds", 0.5).unwrap();
        assert_eq!(half, Duration::from_micros(128));
        let most = samples.quantile("read_seconds", 0.99).unwrap();
        assert_eq!(most, Duration::from_micros(8192));
        assert_eq!(samples.quantile("fetch_seconds", 0.5), None);
    }
}
