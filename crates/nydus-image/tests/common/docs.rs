//! What the examples of `docs/nydus-image` find, and how they are run.

use std::path::Path;

use testkit::docs::Unmount;
use testkit::layout::{Packing, pack};
use testkit::tar::{Entry, Tar};

const NYDUS_IMAGE: &str = env!("CARGO_BIN_EXE_nydus-image");

/// Runs the examples of every page that can be run with what is there.
pub fn run(there: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let _unmount = Unmount(dir.path().to_owned());
    let pages = testkit::docs::pages(&testkit::workspace().join("docs/nydus-image"));
    testkit::docs::prepare(&pages, dir.path(), there, |_, place| {
        fill(place);
        Vec::new()
    });
    let bin = Path::new(NYDUS_IMAGE).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap();
    trycmd::TestCases::new()
        .env("PATH", format!("{bin}:{path}"))
        .register_bin("sh", Path::new("/bin/sh"))
        .case(dir.path().join("*.md"))
        .run();
}

fn lower() -> Vec<Entry> {
    vec![
        Entry::directory("bin/"),
        Entry::file("bin/app", testkit::prose(1, 300_000)).mode(0o755),
        Entry::directory("etc/"),
        Entry::file("etc/app.conf", "verbose = false\n"),
        Entry::file("etc/motd", "lower\n"),
    ]
}

fn upper() -> Vec<Entry> {
    vec![
        Entry::directory("etc/"),
        Entry::file("etc/motd", "upper\n"),
        Entry::file("etc/.wh.app.conf", ""),
    ]
}

fn tar(entries: Vec<Entry>) -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in entries {
        tar.add(entry);
    }
    tar.finish()
}

/// Layers of every kind, an image of two layers, a directory.
fn fill(dir: &Path) {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let words = |line: &str| testkit::run::run_in(dir, NYDUS_IMAGE, line).ok();
    write("layer.tar", &tar(lower()));
    write("layer.tar.gz", &pack(&tar(lower()), Packing::Gzip));
    let estargz = testkit::estargz::estargz(&lower(), 4 << 20);
    write("layer.esgz", &estargz.blob);
    write("stargz.index.json", &estargz.toc);
    write("root/etc/motd", b"of a directory\n");
    std::fs::create_dir(dir.join("blobs")).unwrap();
    for (name, entries) in [("lower", lower()), ("upper", upper())] {
        write(&format!("{name}.tar"), &tar(entries));
        words(&format!(
            "create --type tar-rafs --whiteout-spec none --bootstrap {name}.boot --blob blobs/{name} {name}.tar"
        ));
    }
    words("merge --bootstrap image.boot lower.boot upper.boot");
    for (name, boot) in [
        ("bootstraps/lower", "lower.boot"),
        ("work/app:v1/nydus_bootstrap", "lower.boot"),
        ("work/app:v2/nydus_bootstrap", "image.boot"),
    ] {
        write(name, &std::fs::read(dir.join(boot)).unwrap());
    }
}
