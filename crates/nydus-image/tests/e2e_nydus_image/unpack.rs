//! Unpacking as converters run it: the tree that comes out is the one that went in.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::run::make_fifo;
use testkit::shared_or_skip;
use testkit::tar::{Entry, Tar};
use tree::InodeId;

use crate::support::*;
use crate::trees::trees;

/// Both tars must be of the same tree.
#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    let [mut left, mut right] = trees([left, right]);
    // The deployed builder knows no implied directories.
    for tree in [&mut left, &mut right] {
        for id in 1..tree.len() as u32 {
            tree.inode_mut(InodeId(id)).implied = false;
        }
    }
    assert!(left == right, "{what} differs");
}

/// Unpacks to `output`; what it holds.
#[track_caller]
pub fn unpack(output: &Path, args: &[&str]) -> Vec<u8> {
    nydus_image(["unpack", "--output", text(output)].iter().chain(args)).ok();
    std::fs::read(output).unwrap()
}

#[test]
fn images_of_the_deployed_builder_give_their_sources_back() {
    let Some(shared) = shared_or_skip("images_of_the_deployed_builder_give_their_sources_back")
    else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.tar");
    let source = |name: &str| std::fs::read(golden.join(name)).unwrap();
    for (name, tar) in [
        ("v5-lz4", "lower"),
        ("v5-zstd-aligned-sha256", "lower"),
        ("v5-upper", "upper"),
        ("v6-zstd", "lower"),
        ("v6-none", "lower"),
        ("v6-lz4-sha256", "lower"),
        ("v6-zstd-64k", "lower"),
        ("v6-batch", "lower"),
        ("v6-encrypt", "lower"),
        ("v6-upper", "upper"),
    ] {
        let blob = golden.join(format!("{name}.blob"));
        let got = unpack(&out, &["-B", text(&blob)]);
        assert_same(&got, &source(&format!("{tar}.tar")), name);
    }
    for version in ["v5", "v6"] {
        let file = |suffix: &str| golden.join(format!("{version}-separate.{suffix}"));
        let (boot, blob) = (file("boot"), file("blob"));
        let got = unpack(&out, &["-B", text(&boot), "--blob", text(&blob)]);
        assert_same(&got, &source("lower.tar"), version);
    }
}

fn tar() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("etc/"))
        .add(Entry::file("etc/config", testkit::prose(1, 3000)).xattr("user.a", "b"))
        .add(Entry::file("data", testkit::noise(1, 2_500_000)))
        .add(Entry::hard("same", "data"))
        .add(Entry::symlink("link", "etc/config"))
        .add(Entry::device("null", b'3', 1, 3))
        .add(Entry::fifo("fifo"));
    tar.finish()
}

/// A layer of ours; its bootstrap and its chunk data, cut out of the blob as converters do.
fn parts(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let source = dir.join("layer.tar");
    std::fs::write(&source, tar()).unwrap();
    let blob = create(&source, &dir.join("layer.blob"), &[]);
    let bytes = std::fs::read(&blob).unwrap();
    let (boot, data) = (dir.join("image.boot"), dir.join("image.blob"));
    std::fs::write(&boot, bootstrap(&bytes)).unwrap();
    std::fs::write(&data, section(&bytes, "image.blob").unwrap()).unwrap();
    (blob, boot, data)
}

#[test]
fn the_chunk_data_alone_or_the_whole_blob_through_a_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let (blob, boot, data) = parts(dir.path());
    let fifo = dir.path().join("oci.tar");
    make_fifo(&fifo);
    for given in [&blob, &data] {
        let child = Command::new(NYDUS_IMAGE)
            .args(["unpack", "--log-level", "warn", "--bootstrap", text(&boot)])
            .args(["--output", text(&fifo), "--blob", text(given)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let got = std::fs::read(&fifo).unwrap();
        let output = child.wait_with_output().unwrap();
        let ran = testkit::run::Ran::new("unpack".to_owned(), output).ok();
        assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
        assert_same(&got, &tar(), text(given));
    }
    let out = dir.path().join("again.tar");
    let first = unpack(&out, &["-B", text(&boot), "--blob", text(&blob)]);
    assert!(first == unpack(&out, &["-B", text(&boot), "--blob", text(&data)]));
}

/// One connection to a converter's proxy: ranges are answered with 200 and nothing that says which. The size that it
/// states is that of the whole blob, `size`, and it has the chunk data alone. While an answer has not ended (`busy`), no
/// other request may come.
fn pass_on(stream: UnixStream, data: &[u8], size: usize, busy: &AtomicBool) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(first)) = lines.next() {
        let mut range = 0..size;
        for line in lines.by_ref() {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some((from, to)) = line
                .strip_prefix("range: bytes=")
                .and_then(|range| range.split_once('-'))
            {
                range = from.parse().unwrap()..to.parse::<usize>().unwrap() + 1;
            }
        }
        if !first.starts_with("GET") {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
            continue;
        }
        if range.end > data.len() || busy.swap(true, Ordering::SeqCst) {
            write!(out, "HTTP/1.1 500 EOF\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let length = range.len();
        write!(
            out,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
        )?;
        out.write_all(&data[range])?;
        std::thread::sleep(Duration::from_millis(20));
        busy.store(false, Ordering::SeqCst);
        write!(out, "\r\n0\r\n\r\n")?;
    }
    Ok(())
}

#[test]
fn blobs_come_through_a_converters_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let (blob, boot, data) = parts(dir.path());
    let size = std::fs::read(&blob).unwrap().len();
    let bytes = std::fs::read(&data).unwrap();
    let socket = dir.path().join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let busy = Arc::new(AtomicBool::new(false));
        for stream in listener.incoming() {
            let (bytes, busy) = (bytes.clone(), Arc::clone(&busy));
            std::thread::spawn(move || pass_on(stream.unwrap(), &bytes, size, &busy));
        }
    });
    let config = format!(r#"{{"addr":"{}"}}"#, socket.display());
    let out = dir.path().join("out.tar");
    let got = unpack(
        &out,
        &[
            "-B",
            text(&boot),
            "--backend-type",
            "http-proxy",
            "--backend-config",
            &config,
        ],
    );
    assert_same(&got, &tar(), "what came through the proxy");
}

#[test]
fn what_cannot_be_unpacked_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (blob, boot, _) = parts(dir.path());
    let out = dir.path().join("out.tar");
    let run = |args: &[&str]| nydus_image(["unpack", "--output", text(&out)].iter().chain(args));
    run(&["-B", text(&boot)])
        .exits(2)
        .says(&["--blob", "--blob-dir", "--backend-type"]);
    nydus_image(["unpack", "-B", text(&boot), "--output", ""]).exits(2);
    run(&["-B", text(&boot), "--backend-type", "http-proxy"])
        .exits(2)
        .says(&["--backend-config"]);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    run(&["-B", text(&boot), "--blob", text(&blob)])
        .exits(1)
        .says(&["data", "digest"]);
    std::fs::write(&blob, &bytes[..900_000]).unwrap();
    run(&["-B", text(&boot), "--blob", text(&blob)]).exits(1);
    assert!(!out.exists());
    // No file left with another name, either.
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 4, "the tar, the blob and its two parts");
}
