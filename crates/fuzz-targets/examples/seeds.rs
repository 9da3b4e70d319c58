//! Writes the samples of all targets to `fuzz/seeds`, named by their digests.

fn main() -> std::io::Result<()> {
    for target in fuzz_targets::TARGETS {
        let dir = testkit::workspace().join("fuzz/seeds").join(target.name);
        std::fs::create_dir_all(&dir)?;
        for sample in (target.samples)() {
            let name = &testkit::sha256(&sample)[..16];
            std::fs::write(dir.join(name), sample)?;
        }
    }
    Ok(())
}
