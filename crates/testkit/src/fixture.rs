//! The committed fixtures: where they lie and how the image of Debian's busybox is made.

use std::path::{Path, PathBuf};

use crate::expect::Expect;
use crate::layout::{Flavour, Layer, Layout, Packing};
use crate::maker::Maker;
use crate::prose;
use crate::tar::Entry;

/// The applets that get a name of their own in `/bin`.
const APPLETS: [&str; 24] = [
    "cat", "chmod", "cp", "date", "df", "du", "echo", "env", "find", "grep", "head", "id", "ls",
    "md5sum", "mkdir", "mv", "ps", "rm", "sed", "sh", "sleep", "tail", "touch", "uname",
];

/// Directory of the committed fixtures.
pub fn directory() -> PathBuf {
    crate::workspace().join("tests/fixtures")
}

/// The OCI layout of the busybox image; its tag is [`BUSYBOX_TAG`].
pub fn busybox() -> PathBuf {
    directory().join("busybox")
}

/// The only tag in [`busybox`].
pub const BUSYBOX_TAG: &str = "latest";

/// The bootstraps in `tests/fixtures/bootstraps` by name (`v6-zstd`), decompressed, in order of the names.
///
/// # Panics
/// When they cannot be read.
pub fn bootstraps() -> Vec<(String, Vec<u8>)> {
    let directory = directory().join("bootstraps");
    let entries = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut out: Vec<_> = entries
        .map(|entry| entry.expect("list the fixtures").path())
        .filter_map(|path| {
            let name = path
                .file_name()?
                .to_str()?
                .strip_suffix(".boot.zst")?
                .to_owned();
            let stored = std::fs::read(&path).expect("read a fixture");
            Some((
                name,
                zstd::decode_all(stored.as_slice()).expect("fixtures are sound"),
            ))
        })
        .collect();
    out.sort();
    out
}

/// The layers (uncompressed, lowest first) of the busybox image, and the tree they make.
pub fn busybox_layers(busybox: &[u8]) -> (Vec<Vec<u8>>, Expect) {
    let mut maker = Maker::new();
    base(&mut maker, busybox);
    let base = maker.next_layer();
    tools(&mut maker);
    let tools = maker.next_layer();
    application(&mut maker);
    let application = maker.next_layer();
    (vec![base, tools, application], maker.expect)
}

fn base(maker: &mut Maker, busybox: &[u8]) {
    for name in [
        "bin/",
        "etc/",
        "root/",
        "usr/",
        "usr/share/",
        "usr/share/words/",
        "var/",
        "var/cache/",
    ] {
        maker.add(Entry::directory(name));
    }
    maker.add(Entry::directory("tmp/").mode(0o1777));
    maker.add(Entry::file("bin/busybox", busybox).mode(0o755));
    maker.hard(
        "bin/ash",
        "bin/busybox",
        Entry::hard("bin/ash", "bin/busybox").mode(0o755),
    );
    for applet in APPLETS {
        maker.add(Entry::symlink(format!("bin/{applet}"), "busybox"));
    }
    maker.add(Entry::file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    ));
    maker.add(Entry::file("etc/group", "root:x:0:\nnogroup:x:65534:\n"));
    maker.add(Entry::file("etc/motd", "the motd of the lowest layer\n"));
    maker.add(Entry::file("etc/obsolete", "removed by the second layer\n"));
    for (seed, name) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
        maker.add(Entry::file(
            format!("usr/share/words/{name}"),
            prose(seed as u64, 200_000),
        ));
    }
    for name in ["index", "list"] {
        maker.add(Entry::file(format!("var/cache/{name}"), prose(9, 5000)));
    }
}

fn tools(maker: &mut Maker) {
    // cap_net_raw, permitted and effective, version 2.
    let capability = hex::decode("0100000200200000000000000000000000000000").expect("hex");
    maker.tar.add(Entry::file("etc/.wh.obsolete", b""));
    maker.gone("etc/obsolete");
    maker.add(Entry::directory("usr/bin/"));
    let script = "#!/bin/sh\n# May open raw sockets, by its file capability.\nexec /bin/busybox ping \"$@\"\n";
    maker.add(
        Entry::file("usr/bin/ping", script)
            .mode(0o755)
            .xattr("security.capability", capability),
    );
    maker.gone("var/cache");
    maker.add(Entry::directory("var/cache/"));
    maker.tar.add(Entry::file("var/cache/.wh..wh..opq", b""));
    maker.add(Entry::file(
        "var/cache/fresh",
        "the layer below is hidden by an opaque directory\n",
    ));
    maker.add(Entry::file("usr/share/words/delta", prose(2, 200_000)));
}

fn application(maker: &mut Maker) {
    maker.add(Entry::directory("app/").owner(1000, 1000));
    let main = "#!/bin/sh\ncat /etc/motd\ngrep -c layer /usr/share/words/alpha\n";
    maker.add(Entry::file("app/main", main).mode(0o755).owner(1000, 1000));
    maker.add(Entry::file("app/settings.json", "{\"greeting\":\"hello\"}\n").owner(1000, 1000));
    maker.add(Entry::symlink("app/words", "../usr/share/words"));
    maker.add(Entry::file("etc/motd", "the motd of the topmost layer\n"));
    maker.add(Entry::file(
        "etc/os-release",
        "NAME=\"busybox fixture\"\nID=fixture\nVERSION_ID=1\n",
    ));
}

/// Writes the busybox image as an OCI layout with three gzip layers.
///
/// # Panics
/// When it cannot be written.
pub fn write_busybox(root: &Path, busybox: &[u8]) {
    let (tars, _) = busybox_layers(busybox);
    let layers: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let mut layout = Layout::create(root);
    let manifest = layout.manifest_with(&layers, Flavour::Oci, |_, config| {
        config["config"] = serde_json::json!({
            "Env": ["PATH=/usr/bin:/bin"],
            "Cmd": ["/app/main"],
            "WorkingDir": "/app",
            "Labels": { "purpose": "fixture" },
        });
    });
    layout.tag(&manifest, BUSYBOX_TAG);
}

/// The tree of the committed busybox image.
///
/// # Panics
/// When the fixture is damaged.
pub fn busybox_expect() -> Expect {
    busybox_layers(&busybox_binary()).1
}

/// The binary inside the committed image.
fn busybox_binary() -> Vec<u8> {
    let read = |name: &str| {
        let path = busybox().join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let json = |bytes: &[u8]| -> serde_json::Value {
        serde_json::from_slice(bytes).expect("fixtures are JSON")
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"]
            .as_str()
            .expect("a descriptor has a digest");
        read(&format!("blobs/{}", digest.replace(':', "/")))
    };
    let manifest = json(&blob(&json(&read("index.json"))["manifests"][0]));
    let layer = blob(&manifest["layers"][0]);
    let mut tar = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(layer.as_slice()),
        &mut tar,
    )
    .expect("sound gzip");
    // The generator writes plain ustar headers for short names.
    let at = tar
        .chunks_exact(512)
        .position(|block| block.starts_with(b"bin/busybox\0") && block[156] == b'0')
        .expect("the binary is in the lowest layer");
    let header = &tar[at * 512..][..512];
    let digits = std::str::from_utf8(&header[124..135]).expect("octal digits");
    let size = usize::from_str_radix(digits, 8).expect("octal digits");
    tar[(at + 1) * 512..][..size].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes the generator has to make the fixture anew: `cargo xtask fixtures`.
    #[test]
    fn the_committed_image_is_what_the_generator_makes() {
        let dir = tempfile::tempdir().unwrap();
        write_busybox(dir.path(), &busybox_binary());
        for name in ["index.json", "oci-layout"] {
            assert_eq!(
                std::fs::read(dir.path().join(name)).unwrap(),
                std::fs::read(busybox().join(name)).unwrap()
            );
        }
    }

    #[test]
    fn fixtures_stay_small() {
        let size = |dir: PathBuf| -> u64 {
            crate::scan::scan(&dir)
                .unwrap()
                .values()
                .map(|file| file.size)
                .sum()
        };
        assert!(size(busybox()) <= 3 << 20);
        assert!(size(directory()) <= 4 << 20);
    }
}
