//! `nydusify umount`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

/// Arguments of `nydusify umount`.
#[derive(Debug, clap::Args)]
pub struct UmountArgs {
    /// Directory on which an image is mounted
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,

    /// Detach it even if it is in use, and wait for nobody
    #[arg(long)]
    lazy: bool,

    /// Seconds to wait for the serving process to end
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    timeout: u64,
}

/// Unmounts and waits until the process that served the image is gone.
pub fn run(args: &UmountArgs) -> Result<ExitCode> {
    let options = mount::Unmount {
        lazy: args.lazy,
        patience: Duration::from_secs(args.timeout),
    };
    mount::unmount(&args.mountpoint, &options)?;
    Ok(ExitCode::SUCCESS)
}
