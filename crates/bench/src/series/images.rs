//! The images of the series: one Python service, frozen on eight days with the packages of that day, from public wheels.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::tar::{Entry, Tar};

use crate::tools::run;

/// Wheels of this Python and these systems.
const PLATFORM: [&str; 8] = [
    "--platform",
    "manylinux2014_x86_64",
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
    "--only-binary=:all:",
    "--no-deps",
];

/// Packages that stay as they are.
const FIXED: &str = "pycparser==2.21 six==1.16.0 click==8.1.7 itsdangerous==2.1.2 jmespath==1.0.1";

/// The days, and what was installed. From one to the next, what had a release by then is upgraded.
const VERSIONS: [(&str, &str); 8] = [
    (
        "2023-09-04",
        "numpy==1.25.2 pandas==2.1.0 requests==2.31.0 boto3==1.28.40 botocore==1.31.40 s3transfer==0.6.2 \
         urllib3==1.26.16 certifi==2023.7.22 charset-normalizer==3.2.0 idna==3.4 flask==2.3.3 werkzeug==2.3.7 \
         jinja2==3.1.2 cryptography==41.0.3 cffi==1.15.1 sqlalchemy==2.0.20 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.3 markupsafe==2.1.3 blinker==1.6.2 greenlet==2.0.2 \
         typing-extensions==4.7.1",
    ),
    (
        "2023-10-02",
        "numpy==1.26.0 pandas==2.1.1 requests==2.31.0 boto3==1.28.57 botocore==1.31.57 s3transfer==0.7.0 \
         urllib3==1.26.17 certifi==2023.7.22 charset-normalizer==3.3.0 idna==3.4 flask==3.0.0 werkzeug==3.0.0 \
         jinja2==3.1.2 cryptography==41.0.4 cffi==1.16.0 sqlalchemy==2.0.21 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.3 markupsafe==2.1.3 blinker==1.6.2 greenlet==3.0.0 \
         typing-extensions==4.8.0",
    ),
    (
        "2023-11-13",
        "numpy==1.26.1 pandas==2.1.3 requests==2.31.0 boto3==1.28.84 botocore==1.31.84 s3transfer==0.7.0 \
         urllib3==2.0.7 certifi==2023.7.22 charset-normalizer==3.3.2 idna==3.4 flask==3.0.0 werkzeug==3.0.1 \
         jinja2==3.1.2 cryptography==41.0.5 cffi==1.16.0 sqlalchemy==2.0.23 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.3 markupsafe==2.1.3 blinker==1.7.0 greenlet==3.0.1 \
         typing-extensions==4.8.0",
    ),
    (
        "2023-11-20",
        "numpy==1.26.2 pandas==2.1.3 requests==2.31.0 boto3==1.29.3 botocore==1.32.3 s3transfer==0.7.0 \
         urllib3==2.0.7 certifi==2023.11.17 charset-normalizer==3.3.2 idna==3.4 flask==3.0.0 werkzeug==3.0.1 \
         jinja2==3.1.2 cryptography==41.0.5 cffi==1.16.0 sqlalchemy==2.0.23 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.3 markupsafe==2.1.3 blinker==1.7.0 greenlet==3.0.1 \
         typing-extensions==4.8.0",
    ),
    (
        "2023-12-11",
        "numpy==1.26.2 pandas==2.1.4 requests==2.31.0 boto3==1.33.11 botocore==1.33.11 s3transfer==0.8.2 \
         urllib3==2.0.7 certifi==2023.11.17 charset-normalizer==3.3.2 idna==3.6 flask==3.0.0 werkzeug==3.0.1 \
         jinja2==3.1.2 cryptography==41.0.7 cffi==1.16.0 sqlalchemy==2.0.23 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.3 markupsafe==2.1.3 blinker==1.7.0 greenlet==3.0.2 \
         typing-extensions==4.9.0",
    ),
    (
        "2024-01-22",
        "numpy==1.26.3 pandas==2.2.0 requests==2.31.0 boto3==1.34.23 botocore==1.34.23 s3transfer==0.10.0 \
         urllib3==2.0.7 certifi==2023.11.17 charset-normalizer==3.3.2 idna==3.6 flask==3.0.1 werkzeug==3.0.1 \
         jinja2==3.1.3 cryptography==41.0.7 cffi==1.16.0 sqlalchemy==2.0.25 python-dateutil==2.8.2 \
         pytz==2023.3.post1 tzdata==2023.4 markupsafe==2.1.4 blinker==1.7.0 greenlet==3.0.3 \
         typing-extensions==4.9.0",
    ),
    (
        "2024-01-29",
        "numpy==1.26.3 pandas==2.2.0 requests==2.31.0 boto3==1.34.29 botocore==1.34.29 s3transfer==0.10.0 \
         urllib3==2.0.7 certifi==2023.11.17 charset-normalizer==3.3.2 idna==3.6 flask==3.0.1 werkzeug==3.0.1 \
         jinja2==3.1.3 cryptography==42.0.1 cffi==1.16.0 sqlalchemy==2.0.25 python-dateutil==2.8.2 \
         pytz==2023.4 tzdata==2023.4 markupsafe==2.1.4 blinker==1.7.0 greenlet==3.0.3 \
         typing-extensions==4.9.0",
    ),
    (
        "2024-02-26",
        "numpy==1.26.4 pandas==2.2.1 requests==2.31.0 boto3==1.34.49 botocore==1.34.49 s3transfer==0.10.0 \
         urllib3==2.0.7 certifi==2024.2.2 charset-normalizer==3.3.2 idna==3.6 flask==3.0.2 werkzeug==3.0.1 \
         jinja2==3.1.3 cryptography==42.0.5 cffi==1.16.0 sqlalchemy==2.0.27 python-dateutil==2.8.2 \
         pytz==2024.1 tzdata==2024.1 markupsafe==2.1.5 blinker==1.7.0 greenlet==3.0.3 \
         typing-extensions==4.9.0",
    ),
];

/// An image of the series.
#[derive(Debug, Clone)]
pub struct Version {
    /// The day, which is its tag.
    pub day: &'static str,
    /// The layout's directory.
    pub layout: PathBuf,
    /// Size of its layer in bytes.
    pub size: u64,
}

/// Makes the images below `work`, those that are not there yet, oldest first. Wheels come from where pip takes them.
///
/// # Errors
/// If python3 or pip fail, or the directory cannot be written.
pub fn make(work: &Path) -> Result<Vec<Version>> {
    let wheels = work.join("wheels");
    std::fs::create_dir_all(&wheels)?;
    VERSIONS
        .iter()
        .map(|&(day, packages)| {
            let layout = work.join(day);
            if !layout.join("index.json").exists() {
                eprintln!("making the image of {day}");
                image(&wheels, packages, &layout)?;
            }
            let layers = testkit::layout::layer_files(&layout, "latest");
            let layer = layers.first().context("an image without layer")?;
            let size = layer.metadata()?.len();
            Ok(Version { day, layout, size })
        })
        .collect()
}

/// Writes a layout whose layer is what `pip install --target` would make of the packages, without what depends on the
/// machine.
fn image(wheels: &Path, packages: &str, layout: &Path) -> Result<()> {
    let chosen = tempfile::tempdir_in(wheels)?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--find-links"])
        .arg(wheels)
        .arg("--dest")
        .arg(chosen.path())
        .args(PLATFORM)
        .args(packages.split_whitespace().chain(FIXED.split_whitespace())))?;
    let site = tempfile::tempdir()?;
    for wheel in sorted(chosen.path())? {
        run(Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(site.path()))?;
        let name = wheel.file_name().context("a wheel without a name")?;
        std::fs::rename(&wheel, wheels.join(name))?;
    }
    let mut tar = Tar::new();
    add(&mut tar, site.path(), "usr/lib/python3/site-packages")?;
    let layer = Layer::new(&tar.finish(), Packing::Gzip);
    let mut layout = Layout::create(layout);
    let image = layout.manifest(&[layer], Flavour::Oci);
    layout.tag(&image, "latest");
    Ok(())
}

/// Adds what is below a directory, in order of the names.
fn add(tar: &mut Tar, directory: &Path, name: &str) -> Result<()> {
    tar.add(Entry::directory(format!("{name}/")).mode(0o755));
    for path in sorted(directory)? {
        let own = path.file_name().context("an entry without a name")?;
        let name = format!("{name}/{}", own.to_str().context("a name that is no text")?);
        if path.is_dir() {
            add(tar, &path, &name)?;
        } else {
            tar.add(Entry::file(name, std::fs::read(&path)?).mode(0o644));
        }
    }
    Ok(())
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
