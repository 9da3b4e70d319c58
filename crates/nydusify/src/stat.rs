//! `nydusify stat`.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use indicatif::HumanBytes;
use mount::{Sample, Samples, Stat};
use serde_json::{Value, json};

/// Arguments of `nydusify stat`.
#[derive(Debug, clap::Args)]
pub struct StatArgs {
    /// Directory on which an image is mounted
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,

    /// Say it again every second, or as many seconds, until the mount ends
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// How long the process that serves the mount may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Moves the cursor to the top of the terminal and clears all below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Prints the figures, once or again and again.
pub fn run(args: &StatArgs) -> Result<ExitCode> {
    let mut said = false;
    loop {
        let stat = match mount::stat(&args.mountpoint, PATIENCE) {
            Ok(stat) => stat,
            // The mount has ended.
            Err(mount::Error::NotOurs { .. } | mount::Error::MountPoint { .. }) if said => break,
            Err(error) => return Err(error.into()),
        };
        let text = match args.output {
            Output::Json => format!("{}\n", report(&stat)),
            Output::Text => table(&report(&stat)),
        };
        let mut out = std::io::stdout().lock();
        if args.watch.is_some() && out.is_terminal() {
            out.write_all(CLEAR.as_bytes())?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        said = true;
        match args.watch {
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds)),
            None => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// All that is said, under stable names.
fn report(stat: &Stat) -> Value {
    let samples = &stat.samples;
    let sum = |name: &str| samples.sum(name);
    let store = |name: &str| samples.sum(&format!("store_{name}_total"));
    let info = samples.of("mount_info").next();
    let label = |name| info.map(|info| info.label(name)).unwrap_or_default();
    let times = |name: &str| {
        let micros = |part| {
            let time = samples.quantile(name, part);
            time.map(|time| time.as_micros() as u64)
        };
        json!({ "p50_us": micros(0.5), "p99_us": micros(0.99) })
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let began = sum("mount_start_time_seconds");
    let uptime = now.unwrap_or_default().as_secs().saturating_sub(began);
    let errors = samples.of("errors_total");
    let errors = errors.map(|sample| (sample.label("kind").to_owned(), json!(sample.value as u64)));
    let processes = stat.processes.iter().map(|process| {
        json!({
            "pid": process.id,
            "role": process.role,
            "resident_bytes": process.resident,
            "resident_peak_bytes": process.resident_peak,
            "threads": process.threads,
        })
    });
    json!({
        "schema": 1,
        "image": label("image"),
        "mode": label("mode"),
        "mountpoint": stat.mountpoint.to_string_lossy(),
        "uptime_seconds": uptime,
        "servers": sum("servers_total"),
        "processes": processes.collect::<Vec<_>>(),
        "cache": {
            "bytes": sum("blob_cached_bytes"),
            "total_bytes": sum("blob_size_bytes"),
            "blobs": samples.of("blob_size_bytes").count(),
            "hits": store("hits"),
            "misses": store("misses"),
            "copied_chunks": store("chunks_copied"),
            "chunks_of_other_processes": store("chunks_of_others"),
        },
        "reads": {
            "count": sum("reads_total"),
            "bytes": sum("read_bytes_total"),
            "time": times("read_seconds"),
        },
        "fetches": {
            "count": store("fetches"),
            "bytes": store("fetched_bytes"),
            "in_flight": sum("fetches_in_flight"),
            "retries": sum("retries_total"),
            "time": times("fetch_seconds"),
        },
        "mirrors": mirrors(samples),
        "prefetch": {
            "asked": store("prefetch_asked"),
            "fetched": store("prefetch_fetched"),
            "errors": store("prefetch_errors"),
        },
        "errors": errors.collect::<serde_json::Map<_, _>>(),
        "cache_errors": store("cache_errors"),
        "verify_failures": store("verify_failures"),
    })
}

/// What each mirror has done.
fn mirrors(samples: &Samples) -> Vec<Value> {
    let names = samples.of("mirror_reads_total");
    let mirror = |sample: &Sample| {
        let name = sample.label("mirror");
        let value = |figure: &str| {
            let figure = format!("mirror_{figure}");
            let mut of_all = samples.of(&figure);
            let own = of_all.find(|other| other.label("mirror") == name);
            own.map_or(0, |own| own.value as u64)
        };
        json!({
            "name": name,
            "in_use": value("in_use") != 0,
            "reads": value("reads_total"),
            "bytes": value("read_bytes_total"),
            "failures": value("failures_total"),
            "missing": value("missing_total"),
            "lies": value("lies_total"),
        })
    };
    names.map(mirror).collect()
}

/// The report for people.
fn table(report: &Value) -> String {
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let bytes = |path: &str| HumanBytes(number(path));
    let text = |path: &str| report.pointer(path).and_then(Value::as_str).unwrap_or("");
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "{name:<10} {value}");
    };
    row("image", text("/image").to_owned());
    row("mode", text("/mode").to_owned());
    let restarts = number("/servers").saturating_sub(1);
    let uptime = indicatif::HumanDuration(Duration::from_secs(number("/uptime_seconds")));
    row(
        "uptime",
        match restarts {
            0 => uptime.to_string(),
            1 => format!("{uptime}, served by the second process"),
            _ => format!("{uptime}, {restarts} processes have died or been replaced"),
        },
    );
    row(
        "cached",
        format!(
            "{} of {} in {} blobs ({}%)",
            bytes("/cache/bytes"),
            bytes("/cache/total_bytes"),
            number("/cache/blobs"),
            percent(number("/cache/bytes"), number("/cache/total_bytes"))
        ),
    );
    let (hits, misses) = (number("/cache/hits"), number("/cache/misses"));
    row(
        "hits",
        format!(
            "{hits} of {} pieces ({}%), {} chunks from other blobs, {} from other mounts",
            hits + misses,
            percent(hits, hits + misses),
            number("/cache/copied_chunks"),
            number("/cache/chunks_of_other_processes")
        ),
    );
    row(
        "reads",
        format!(
            "{}, {}, {}",
            number("/reads/count"),
            bytes("/reads/bytes"),
            times(report, "/reads/time")
        ),
    );
    row(
        "fetches",
        format!(
            "{} ({} now, {} tried again), {}, {}",
            number("/fetches/count"),
            number("/fetches/in_flight"),
            number("/fetches/retries"),
            bytes("/fetches/bytes"),
            times(report, "/fetches/time")
        ),
    );
    let mirrors = report.pointer("/mirrors").and_then(Value::as_array);
    for mirror in mirrors.into_iter().flatten() {
        row("mirror", of_mirror(mirror));
    }
    row(
        "prefetch",
        format!(
            "{} chunks asked for, {} fetched, {} failed",
            number("/prefetch/asked"),
            number("/prefetch/fetched"),
            number("/prefetch/errors")
        ),
    );
    row("errors", errors(report));
    let processes = report.pointer("/processes").and_then(Value::as_array);
    for process in processes.into_iter().flatten() {
        let number = |name: &str| process.get(name).and_then(Value::as_u64).unwrap_or(0);
        let role = process.get("role").and_then(Value::as_str);
        row(
            role.unwrap_or(""),
            format!(
                "process {}, {} (at most {}), {} threads",
                number("pid"),
                HumanBytes(number("resident_bytes")),
                HumanBytes(number("resident_peak_bytes")),
                number("threads")
            ),
        );
    }
    out
}

fn of_mirror(mirror: &Value) -> String {
    let number = |name: &str| mirror.get(name).and_then(Value::as_u64).unwrap_or(0);
    let text = |name: &str| mirror.get(name).and_then(Value::as_str).unwrap_or("");
    let passed_over = match mirror.get("in_use").and_then(Value::as_bool) {
        Some(false) => ", passed over now",
        _ => "",
    };
    format!(
        "{}: {} reads, {}, {} failed, {} of blobs it lacks, {} wrong{passed_over}",
        text("name"),
        number("reads"),
        HumanBytes(number("bytes")),
        number("failures"),
        number("missing"),
        number("lies")
    )
}

fn errors(report: &Value) -> String {
    let kinds = report.pointer("/errors").and_then(Value::as_object);
    let kinds = kinds.into_iter().flatten();
    let mut all: Vec<(&str, u64)> = kinds
        .map(|(kind, count)| (kind.as_str(), count.as_u64().unwrap_or(0)))
        .collect();
    for (path, name) in [
        ("/cache_errors", "of the cache's disk"),
        ("/verify_failures", "wrong chunks"),
    ] {
        let count = report.pointer(path).and_then(Value::as_u64);
        all.push((name, count.unwrap_or(0)));
    }
    let some = all.into_iter().filter(|(_, count)| *count != 0);
    let some: Vec<String> = some
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    match some.is_empty() {
        true => "none".to_owned(),
        false => some.join(", "),
    }
}

fn times(report: &Value, path: &str) -> String {
    let micros = |name: &str| {
        report
            .pointer(&format!("{path}/{name}"))
            .and_then(Value::as_u64)
    };
    match (micros("p50_us"), micros("p99_us")) {
        (Some(half), Some(most)) => format!("p50 below {}, p99 below {}", time(half), time(most)),
        _ => "no times".to_owned(),
    }
}

fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 100,
        _ => u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100),
    }
}
