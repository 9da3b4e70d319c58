//! The kernel reads a layer out of the cache files that `create --blob-cache-dir` writes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use testkit::oracle;
use testkit::run::run;
use testkit::tar::{Entry, Tar};

#[test]
fn privileged_the_kernel_reads_files_from_cache_files() {
    let name = "privileged_the_kernel_reads_files_from_cache_files";
    if let Some(why) = oracle::no_erofs() {
        return testkit::skip(name, why);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    for number in 0..200_usize {
        tar.add(Entry::file(
            format!("{number}"),
            testkit::noise(number as u64, 31 * number),
        ));
    }
    tar.add(Entry::file("large", testkit::prose(1, 3_000_001)));
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("layer.tar"), tar.finish()).unwrap();
    std::fs::create_dir(path("cache")).unwrap();
    for more in [&[][..], &["--batch-size", "0x4000"]] {
        let (boot, cache, source) = (path("boot"), path("cache"), path("layer.tar"));
        let usual = [
            "create",
            "--type",
            "tar-rafs",
            "--bootstrap",
            &boot,
            "--blob-cache-dir",
            &cache,
            &source,
        ];
        run(env!("CARGO_BIN_EXE_nydus-image"), usual.iter().chain(more)).ok();
        let slots = oracle::device_slots(&std::fs::read(&boot).unwrap());
        let [(id, _)] = &slots[..] else {
            panic!("{slots:?}")
        };
        let data = dir.path().join(format!("cache/{id}.blob.data"));
        let at = tempfile::tempdir().unwrap();
        let mount = oracle::kernel_mount(dir.path().join("boot").as_ref(), &[data], at.path());
        let mount = mount.unwrap();
        let read = |path: &str| std::fs::read(mount.path().join(path)).unwrap();
        assert!(read("large") == testkit::prose(1, 3_000_001));
        for number in 0..200_usize {
            let expected = testkit::noise(number as u64, 31 * number);
            assert!(read(&number.to_string()) == expected, "{number}");
        }
    }
}
