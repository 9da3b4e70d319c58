//! `nydusify diff`: what two images share and what not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use image::{Location, Platform, PlatformChoice, nydus};
use indicatif::HumanBytes;
use inspect::{Diff, Kind, Shared};
use serde_json::{Value, json};
use storage::LoadedBootstrap;

use crate::interrupt::Interrupt;
use crate::page::{self, bar, escape, tiles};
use crate::place::{InsecureArgs, Places, RegistryArgs};

/// Arguments of `nydusify diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// A Nydus image: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(value_name = "A")]
    a: String,

    /// Another one, such as its next version
    #[arg(value_name = "B")]
    b: String,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    /// Which images of indexes to compare, as OS/ARCHITECTURE [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,

    /// Write a page to this file, for a browser: it needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Changes to list; the JSON has them all
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Compares.
pub fn run(args: &DiffArgs) -> Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let places = Places::new(&args.registry, None, interrupt.cancel());
    let load =
        |name: &str, insecure| load(name, insecure, args, &places).with_context(|| name.to_owned());
    let images = load(&args.a, args.insecure.source_insecure)
        .and_then(|a| Ok((a, load(&args.b, args.insecure.target_insecure)?)));
    let (a, b) = match images {
        Ok(images) => images,
        Err(error) => return interrupt.settle(Err(error)),
    };
    let diff = Diff::of(&a, &b);
    if let Some(path) = &args.html {
        page::write(path, &html(args, &diff))?;
    }
    let text = match args.output {
        Output::Json => format!("{}\n", document(args, &diff)),
        Output::Text => table(args, &diff, args.html.as_deref()),
    };
    let written = std::io::stdout().write_all(text.as_bytes());
    interrupt.settle(
        written
            .context("standard output")
            .map(|()| ExitCode::SUCCESS),
    )
}

/// The tree of the Nydus image.
fn load(name: &str, insecure: bool, args: &DiffArgs, places: &Places) -> Result<tree::Image> {
    let location: Location = name.parse()?;
    let source = places.source(&location, insecure)?;
    let choice = match &args.platform {
        Some(platform) => PlatformChoice::Only(vec![platform.clone()]),
        None => PlatformChoice::Host,
    };
    let (_, manifest) = source
        .manifests(&choice)?
        .into_iter()
        .find(|(_, manifest)| nydus::is_nydus(manifest))
        .ok_or_else(|| {
            anyhow!("not a Nydus image; convert it first: nydusify convert --source {name} --target oci:DIR:TAG")
        })?;
    let bytes = nydus::read_bootstrap(&source, &manifest)?;
    let loaded = LoadedBootstrap::from_bytes(bytes).context("the bootstrap")?;
    loaded.check().context("damaged bootstrap")?;
    Ok(loaded.image()?)
}

/// What is compared: the name, what is in both, in A and in B, and whether these are bytes.
fn rows(diff: &Diff) -> [(&'static str, &Shared, bool); 6] {
    [
        ("names", &diff.names, false),
        ("files", &diff.files, false),
        ("file data", &diff.bytes, true),
        ("chunks", &diff.chunks, false),
        ("stored", &diff.stored, true),
        ("blobs", &diff.blobs, false),
    ]
}

fn figure(value: u64, bytes: bool) -> String {
    match bytes {
        true => HumanBytes(value).to_string(),
        false => value.to_string(),
    }
}

/// The result for machines.
fn document(args: &DiffArgs, diff: &Diff) -> Value {
    let mut document = json!({ "schema": 1, "a_image": args.a, "b_image": args.b });
    if let (Some(document), Ok(Value::Object(diff))) =
        (document.as_object_mut(), serde_json::to_value(diff))
    {
        document.extend(diff);
    }
    document
}

const NOT_COMPARABLE: &str = "The images cut files into chunks of different sizes, or name them by different digests: no chunk is shared.";

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "added",
        Kind::Removed => "removed",
        Kind::Content => "content",
        Kind::Attributes => "attributes",
    }
}

/// The changes, those with the most new data first.
fn largest(diff: &Diff, top: usize) -> Vec<&inspect::Change> {
    let mut changes: Vec<_> = diff.changes.iter().collect();
    changes.sort_by_key(|change| std::cmp::Reverse((change.new, change.b.max(change.a))));
    changes.truncate(top);
    changes
}

fn size(size: Option<u64>) -> String {
    size.map_or_else(|| "-".to_owned(), |size| HumanBytes(size).to_string())
}

/// The result for people.
fn table(args: &DiffArgs, diff: &Diff, html: Option<&Path>) -> String {
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(out, "A          {}\nB          {}\n", args.a, args.b);
    let _ = writeln!(
        out,
        "{:<10} {:>12} {:>12} {:>12}",
        "", "in both", "in A alone", "in B alone"
    );
    for (name, shared, bytes) in rows(diff) {
        let [both, a, b] = [shared.both, shared.a, shared.b].map(|value| figure(value, bytes));
        let _ = writeln!(out, "{name:<10} {both:>12} {a:>12} {b:>12}");
    }
    if !diff.comparable {
        let _ = writeln!(out, "\n{NOT_COMPARABLE}");
    }
    let changes = largest(diff, args.top);
    if !changes.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<10} {:>12} {:>12} {:>12}  path ({} of {})",
            "change",
            "in A",
            "in B",
            "new data",
            changes.len(),
            diff.changes.len()
        );
    }
    for change in changes {
        let _ = writeln!(
            out,
            "{:<10} {:>12} {:>12} {:>12}  {}",
            kind(change.kind),
            size(change.a),
            size(change.b),
            HumanBytes(change.new).to_string(),
            change.path.escape_debug()
        );
    }
    if let Some(path) = html {
        let _ = writeln!(out, "\npage       {}", path.display());
    }
    out
}

/// The page.
fn html(args: &DiffArgs, diff: &Diff) -> String {
    const ROWS: usize = 300;
    let whole = diff.stored.both.saturating_add(diff.stored.b);
    let part = diff.stored.b as f64 * 100.0 / whole.max(1) as f64;
    let mut body = format!(
        "<h1>{} to fetch for who has the other</h1>\n<p>A: <code>{}</code></p>\n<p>B: <code>{}</code></p>\n",
        HumanBytes(diff.stored.b),
        escape(&args.a),
        escape(&args.b)
    );
    if !diff.comparable {
        let _ = writeln!(body, "<p>{NOT_COMPARABLE}</p>");
    }
    let count = |wanted: Kind| diff.changes.iter().filter(|c| c.kind == wanted).count();
    body += &tiles(&[
        (format!("{part:.1}%"), "of B's stored bytes are new"),
        (count(Kind::Added).to_string(), "names added"),
        (count(Kind::Removed).to_string(), "names removed"),
        (count(Kind::Content).to_string(), "other content"),
        (
            count(Kind::Attributes).to_string(),
            "other attributes alone",
        ),
        (diff.blobs.both.to_string(), "blobs in both"),
    ]);
    for (name, shared, bytes) in rows(diff) {
        let _ = writeln!(body, "<h2>{name}</h2>\n<div class=\"card\">");
        body += &bar(&[
            ("left", "in A alone", shared.a, figure(shared.a, bytes)),
            ("both", "in both", shared.both, figure(shared.both, bytes)),
            ("right", "in B alone", shared.b, figure(shared.b, bytes)),
        ]);
        body += "</div>\n";
    }
    let changes = largest(diff, ROWS);
    let rows: Vec<Vec<String>> = changes
        .iter()
        .map(|change| {
            vec![
                kind(change.kind).to_owned(),
                size(change.a),
                size(change.b),
                HumanBytes(change.new).to_string(),
                escape(&change.path),
            ]
        })
        .collect();
    let (shown, all) = (rows.len(), diff.changes.len());
    let _ = writeln!(body, "<h2>Changes: {shown} of {all}</h2>");
    body += &page::table(&["change", "in A", "in B", "new data", "path"], &rows);
    page::page("Two images", &body)
}
