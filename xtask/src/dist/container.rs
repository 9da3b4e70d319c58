//! A container image of the static binaries, for all architectures, in an OCI archive.

use std::process::Command;

use anyhow::Result;
use serde_json::json;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::tar::{Entry, Tar};

use super::{ARCHITECTURES, Architecture, Place, Release, build, pack};
use crate::system;

/// Writes the archive: our own program makes it from a layout, and verifies what it reads.
pub fn archive(place: &Place, release: &Release) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let layout = scratch.path().join("layout");
    write_layout(place, release, &layout)?;
    let archive = place.dist().join(format!("{}-image.tar", release.name()));
    let nydusify = place.tree(build::native()?).join("bin/nydusify");
    let source = format!("oci:{}:{}", layout.display(), release.version);
    let target = format!("oci-archive:{}:{}", archive.display(), release.version);
    system::output(
        Command::new(nydusify)
            .args(["copy", "--all-platforms", "--source", &source])
            .args(["--target", &target]),
    )?;
    Ok(())
}

fn write_layout(place: &Place, release: &Release, directory: &std::path::Path) -> Result<()> {
    let mut layout = Layout::create(directory);
    let date = release.date()?;
    let mut manifests = Vec::new();
    for architecture in &ARCHITECTURES {
        let layer = Layer::new(&tar(place, release, architecture)?, Packing::Gzip);
        let manifest = layout.manifest_with(&[layer], Flavour::Oci, |_, config| {
            config["architecture"] = architecture.name.into();
            config["created"] = date.as_str().into();
            config["config"] = json!({
                "Entrypoint": ["/usr/bin/nydusify"],
                "Env": ["PATH=/usr/bin"],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": "nydus-tools",
                    "org.opencontainers.image.version": release.version,
                    "org.opencontainers.image.licenses": "Apache-2.0",
                },
            });
            config["history"] = json!([{ "created": date, "created_by": "cargo xtask dist" }]);
        });
        let platform = json!({ "os": "linux", "architecture": architecture.name });
        manifests.push((manifest, platform));
    }
    let index = layout.index(&manifests);
    layout.tag(&index, &release.version);
    Ok(())
}

/// The only layer: the binaries, what they are made of, and a place for temporary files.
fn tar(place: &Place, release: &Release, architecture: &Architecture) -> Result<Vec<u8>> {
    let (tree, time) = (place.tree(architecture), release.time);
    let mut tar = Tar::new();
    let mut directory = |name: &str, mode| {
        tar.add(Entry::directory(name).mode(mode).mtime(time));
    };
    directory("tmp/", 0o1777);
    for name in ["usr/", "usr/bin/", "usr/share/", "usr/share/doc/"] {
        directory(name, 0o755);
    }
    directory("usr/share/doc/nydus-tools/", 0o755);
    for name in ["bin", "share/doc/nydus-tools"] {
        pack::add(&mut tar, &tree.join(name), &format!("usr/{name}"), time)?;
    }
    Ok(tar.finish())
}
