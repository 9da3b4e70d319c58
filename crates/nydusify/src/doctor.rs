//! `nydusify doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use mount::Finding;
use serde_json::json;

/// Arguments of `nydusify doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Directory of the chunk cache, whose file system matters [default: that of mounts]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Prints what was found; succeeds if there is any way to mount.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let dir = match &args.cache_dir {
        Some(dir) => dir.clone(),
        None => crate::cache::of_mounts()?,
    };
    let findings = mount::examine(&dir);
    let works = |needed: fn(&Finding) -> bool| {
        let mut needed = findings.iter().filter(|finding| needed(finding));
        needed.all(|finding| finding.result.is_ok())
    };
    let (fuse, erofs) = (
        works(|finding| finding.fuse),
        works(|finding| finding.erofs),
    );
    match args.output {
        Output::Json => {
            let items = findings.iter().map(|finding| {
                json!({
                    "name": finding.name,
                    "ok": finding.result.is_ok(),
                    "error": finding.result.as_ref().err().map(ToString::to_string),
                    "advice": finding.result.is_err().then_some(finding.advice),
                })
            });
            let report =
                json!({ "fuse": fuse, "erofs": erofs, "findings": items.collect::<Vec<_>>() });
            println!("{report}");
        }
        Output::Text => {
            for finding in &findings {
                match &finding.result {
                    Ok(()) => println!("ok       {}", finding.name),
                    Err(error) => {
                        println!("missing  {}: {error}", finding.name);
                        println!("         {}", finding.advice);
                    }
                }
            }
            let word = |works| if works { "works" } else { "does not work here" };
            println!("mount --mode fuse: {}", word(fuse));
            println!("mount --mode erofs: {}", word(erofs));
        }
    }
    Ok(ExitCode::from(u8::from(!fuse && !erofs)))
}
