//! Reads that fio verifies.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::{output, run};
use testkit::tar::{Entry, Tar};
use testkit::{oracle, skip};

use crate::support::*;

/// fio writes files whose every block says what it is, and reads them back out of the image.
#[test]
fn privileged_fio_finds_every_block_where_it_was_written() {
    let name = "privileged_fio_finds_every_block_where_it_was_written";
    let Some(place) = Place::new(name) else {
        return;
    };
    if oracle::program("fio").is_none() {
        return skip(name, "no fio");
    }
    let written = place.directory("written");
    let job = |directory: &Path, more: &[&str]| {
        let directory = format!("--directory={}", directory.display());
        let fixed = [
            "--name=job",
            "--numjobs=2",
            "--size=3m",
            "--bs=4k",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=7",
            "--ioengine=psync",
            "--thread",
            "--verify_state_save=0",
            "--output-format=terse",
            &directory,
        ];
        run("fio", fixed.iter().chain(more))
    };
    job(&written, &["--rw=write", "--do_verify=0"]).ok();
    let mut tar = Tar::new();
    for entry in std::fs::read_dir(&written).unwrap().flatten() {
        let data = std::fs::read(entry.path()).unwrap();
        tar.add(Entry::file(entry.file_name().as_bytes(), data));
    }
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let image = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&image, "latest");
    let target = place.converted(
        &place.oci("source", "latest"),
        &["--fs-chunk-size", "0x10000"],
    );
    let root = place.path("root");
    for mode in modes(name, &place) {
        for reads in ["--rw=read", "--rw=randread"] {
            // The kernel's EROFS does not read past the page cache from images in files.
            let ways = if mode == "fuse" { 2 } else { 1 };
            for way in ["--direct=0", "--direct=1"].into_iter().take(ways) {
                let mut command = place.mount_command(&target);
                output(command.args(["--mode", mode, "--detach", "--no-prefetch"])).ok();
                let ran = job(&root, &[reads, way, "--readonly"]);
                run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
                assert_eq!(ran.code, 0, "{mode} {reads} {way}: {ran}");
                std::fs::remove_dir_all(place.path("cache")).unwrap();
            }
        }
    }
}
