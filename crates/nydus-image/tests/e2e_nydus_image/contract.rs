//! What consumers may rely on whatever they run: defaults, what goes with what, exit codes, and who writes where.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use testkit::run::{Ran, make_fifo, run_in};
use testkit::scan::names;
use testkit::tar::{Entry, Tar};

use crate::stack::json;
use crate::support::*;

/// A directory with the source `layer.tar`, the bootstrap `boot` of it and, in `blobs`, its blob.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    tar.add(Entry::directory("etc").mode(0o755))
        .add(Entry::file("etc/config", testkit::prose(1, 300_000)));
    fs::write(dir.path().join("layer.tar"), tar.finish()).unwrap();
    fs::create_dir(dir.path().join("blobs")).unwrap();
    run(&dir, "create -t tar-rafs -D blobs -B boot layer.tar").ok();
    dir
}

#[track_caller]
fn run(dir: &tempfile::TempDir, words: &str) -> Ran {
    run_in(dir.path(), NYDUS_IMAGE, words)
}

/// Runs a command that reads `input` from standard input.
#[track_caller]
fn run_with(dir: &Path, words: &str, input: &[u8]) -> Ran {
    let mut child = Command::new(NYDUS_IMAGE)
        .args(words.split_whitespace())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Who does not read it may be gone before it is written.
    let writer = thread::spawn(move || stdin.write_all(&input).ok());
    let ran = Ran::new(words.to_owned(), child.wait_with_output().unwrap());
    writer.join().unwrap();
    ran
}

/// Command lines that are wrong as such. The status is that of layers that do not fit together: consumers cannot tell.
#[test]
fn bad_command_lines_end_with_2_before_anything_is_done() {
    let dir = workplace();
    fs::write(dir.path().join("dict"), "no bootstrap").unwrap();
    let before = names(dir.path());
    let mut lines: Vec<String> = [
        "merge",
        "merge boot",
        "merge -B out",
        "merge -B out boot --blob-sizes many",
        "merge -B out boot --blob-toc-sizes -1",
        "merge -B out boot --blob-toc-digests abc",
        "merge -B out boot --blob-digests a,b",
        "merge -B out boot --chunk-dict blob=dict",
        "merge -B out boot --prefetch-policy all",
        "merge -B out boot -J out",
        "check",
        "check boot -B boot",
        "check boot -C dict -D blobs",
        "inspect",
        "inspect boot -B boot",
        "stat",
        "stat -B boot --digester md5",
        "compact -B boot",
        "compact -D blobs",
        "compact -B boot -D blobs --min-used-ratio 101",
        "compact -B boot -D blobs --layers-to-compact few",
        "compact -B boot -D blobs --backend-type oss --backend-config {} --backend-config-file dict",
        "compact -B boot -D blobs --backend-config {}",
        "optimize -B boot -p dict",
        "optimize -B boot --output-blob-dir blobs",
        "optimize -p dict --output-blob-dir blobs",
        "optimize -B boot -p dict --output-blob-dir blobs -D blobs --backend-type oss --backend-config {}",
        "export -B boot -D blobs",
        "export --block -B boot -O out",
        "export --block -D blobs -O out",
        "export --block -B boot -D blobs -O out --threads 0",
        "export --block -B boot -D blobs -O out --threads 33",
        "unpack -B boot -D blobs",
        "unpack -B boot -D blobs --output=",
        "unpack boot -B boot -D blobs --output out",
        "unpack -B boot --output out",
        "unpack -B boot -D blobs --blob x --output out",
        "chunkdict generate -B out",
        "chunkdict generate x:1/boot",
        "transcode --to 7 -B boot -O out",
        "transcode --to 5 -B boot -O out -J out",
        "compact -B boot -D blobs -O out -J out",
        "optimize -B boot -p dict --output-blob-dir blobs -O out -J out",
        "create",
        "no-such-command",
        "--log-level loud check boot",
    ]
    .map(str::to_owned)
    .to_vec();
    for wrong in [
        "-t tar-rafs -b out",
        "-t zip -b out -B x",
        "-t tar-rafs -b out -B x --no-such-flag",
        "-t tar-rafs -b out -B out",
        "-t tar-rafs -b out --blob-inline-meta -J out",
        "-t tar-rafs -b out -B x --blob-inline-meta",
        "-t tar-rafs -b out --blob-inline-meta --blob-id x",
        "-t tar-rafs -b out -B x --compressor gzip",
        "-t tar-rafs -b out -B x --digester md5",
        "-t tar-rafs -b out -B x --fs-version 7",
        "-t tar-rafs -b out -B x --features blob-toc,more",
        "-t tar-rafs -b out -B x --whiteout-spec aufs",
        "-t tar-rafs -b out -B x --prefetch-policy all",
        "-t tar-rafs -b out -B x --chunk-size 0x800",
        "-t tar-rafs -b out -B x --chunk-size 0x2000000",
        "-t tar-rafs -b out -B x --chunk-size 5000",
        "-t tar-rafs -b out -B x --batch-size 0x800",
        "-t tar-rafs -b out -B x --batch-size 5000",
        "-t tar-rafs -b out -B x --batch-size 0x200000",
        "-t tar-rafs -b out -B x --fs-version 5 --batch-size 0x1000",
        "-t tar-rafs -b out -B x --fs-version 5 --encrypt",
        "-t tar-rafs -b out -B x --fs-version 5 --features blob-toc",
        "-t tar-rafs -b out -B x --chunk-dict blob=dict",
        "-t tar-rafs -b out -B x --blob-data-size 10",
        "-t tar-rafs -b out -B x --blob-meta y",
        "-t tar-rafs -b out -B x --attributes dict",
        "-t tar-rafs -B x --blob-cache-dir blobs --compressor none",
        "-t tar-rafs -B x --blob-cache-dir blobs -D blobs",
        "-t tar-rafs -B x --blob-cache-dir blobs -b out",
        "-t tar-rafs --blob-cache-dir blobs --blob-inline-meta",
        "-t estargz-rafs -B x --blob-cache-dir blobs",
        "-t tar-tarfs -B x --blob-cache-dir blobs",
        "-t tar-tarfs -D blobs --blob-inline-meta",
        "-t tar-tarfs -B x --features blob-toc",
        "-t estargztoc-ref -B x",
        "-t stargz_index -B x --blob-id y --blob-data-size 12g",
    ] {
        lines.push(format!("create {wrong} layer.tar"));
    }
    for kind in ["targz-ref -b out", "estargz-ref -b out", "tar-tarfs"] {
        for wrong in [
            "--fs-version 5",
            "--encrypt",
            "--batch-size 0x1000",
            "--prefetch-policy blob",
            "--chunk-dict dict",
            "--parent-bootstrap boot",
        ] {
            lines.push(format!("create -t {kind} -B x {wrong} layer.tar"));
        }
    }
    lines.push("create -t targz-ref -b out -B x --blob-id y layer.tar".to_owned());
    for line in &lines {
        let ran = run(&dir, line).exits(2);
        assert_eq!(ran.stdout, "", "{line}");
        assert!(ran.stderr.len() > 20, "{ran}");
        assert_eq!(names(dir.path()), before, "{line}");
        assert_eq!(names(&dir.path().join("blobs")).len(), 1, "{line}");
    }
}

#[test]
fn versions_are_told_line_by_line() {
    for flag in ["-V", "--version"] {
        let ran = nydus_image([flag]).ok();
        let lines: Vec<&str> = ran.stdout.split('\n').collect();
        let starts = [
            "nydus-image \rVersion: \tv",
            "Git Commit: \t",
            "Build Time: \t",
            "Profile: \t",
            "Rustc: \t\t",
        ];
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start) && line.len() > start.len(), "{ran}");
        }
        assert_eq!(ran.stderr, "");
    }
}

/// What nobody says is that: these never change.
#[test]
fn defaults_are_those_of_the_deployed_builder() {
    let dir = workplace();
    let flags = |bootstrap: &str| {
        let answer = run_with(
            dir.path(),
            &format!("inspect {bootstrap}"),
            b"stats\nblobs\n",
        )
        .ok();
        answer.stdout
    };
    for word in [
        "Version:                    6\n",
        "Chunk Size:                 1024KB\n",
        "HASH_BLAKE3",
        "EXPLICIT_UID_GID",
        "COMPRESSION_ZSTD",
        "Cipher:                     none\n",
    ] {
        assert!(flags("boot").contains(word), "{word}: {}", flags("boot"));
    }
    // The default source is a directory, whose whiteouts are OCI's and hide nothing in it.
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join(".wh.gone"), "").unwrap();
    fs::write(source.join("kept"), "kept").unwrap();
    run(&dir, "create -D blobs -B root source").ok();
    let listed = run(&dir, "inspect root -R ls").ok().stdout;
    assert!(
        listed.contains("\"kept\"") && !listed.contains("gone"),
        "{listed}"
    );
    run(&dir, "create -D blobs -B root --whiteout-spec none source").ok();
    run(&dir, "inspect root -R ls").ok().says(&[".wh.gone"]);
    // An eStargz layer's chunks are of 4 MiB.
    let star = testkit::estargz::estargz(&[Entry::file("f", "data")], 1 << 22);
    fs::write(dir.path().join("toc"), star.toc).unwrap();
    run(&dir, "create -t stargz_index --blob-id id -B star toc").ok();
    let star = flags("star");
    assert!(
        star.contains("Chunk Size:                 4096KB\n"),
        "{star}"
    );
    assert!(
        star.contains("HASH_SHA256") && star.contains("COMPRESSION_GZIP"),
        "{star}"
    );
}

/// The words of `check` for what a blob is.
#[test]
fn features_of_blobs_have_their_words() {
    let dir = workplace();
    for (options, words) in [
        ("-t tar-rafs -D blobs", "aligned cap_toc"),
        (
            "-t tar-rafs -b x --blob-inline-meta",
            "aligned cap_toc fs-meta tar-header",
        ),
        (
            "-t tar-rafs -b x --blob-inline-meta --features blob-toc",
            "aligned cap_toc chunk-digest fs-meta tar-header toc",
        ),
        (
            "-t tar-rafs -D blobs --batch-size 0x1000",
            "aligned batch cap_toc chunk-v2",
        ),
        (
            "-t tar-rafs -D blobs --encrypt",
            "aligned cap_toc chunk-v2 encrypted",
        ),
        ("-t targz-ref -b x", "aligned cap_toc chunk-v2 separate"),
        ("-t tar-tarfs", "cap_toc"),
    ] {
        let (place, boot) = match options.contains("inline") {
            true => ("", "x"),
            false => ("-B other", "other"),
        };
        run(&dir, &format!("create {options} {place} layer.tar")).ok();
        let line = run(&dir, &format!("check {boot}")).ok().stdout;
        let (_, found) = line.trim_end().split_once("features: ").unwrap();
        assert_eq!(found, words, "{options}");
    }
}

/// `check`, `inspect`, `stat` and `export --verity` have results; all else is for whoever reads the log.
#[test]
fn results_alone_are_on_standard_output() {
    let dir = workplace();
    fs::write(
        dir.path().join("list"),
        r#"{"version":"v1","files":[{"path":"/etc/config"}]}"#,
    )
    .unwrap();
    fs::create_dir(dir.path().join("app:1")).unwrap();
    fs::copy(dir.path().join("boot"), dir.path().join("app:1/boot")).unwrap();
    for words in [
        "create -t tar-rafs -b blob -B boot2 -J json layer.tar",
        "create -t targz-ref --blob-inline-meta -b ref layer.tar",
        "create -t tar-tarfs -B tarfs layer.tar",
        "merge -B merged -J json boot",
        "stat -B boot -J json",
        "compact -B boot -D blobs --layers-to-compact 0 --compact-blob-size 0 -J json",
        "optimize -B boot -p list -D blobs --output-blob-dir blobs -O optimized -J json",
        "export --block -B boot -D blobs -O disk",
        "unpack -B boot -D blobs --output tar",
        "chunkdict generate -v -B dictionary -J json app:1/boot",
        "transcode --to 5 -B boot -O v5",
    ] {
        let ran = run(&dir, &format!("--log-level trace {words}")).ok();
        assert_eq!(ran.stdout, "", "{words}");
    }
    // Where there are results, they are nothing else.
    let ran = run(&dir, "--log-level trace check boot -J json").ok();
    assert!(ran.stdout.starts_with("RAFS metadata is valid"), "{ran}");
    assert_eq!(ran.stdout.lines().count(), 2, "{ran}");
    assert!(
        run(&dir, "stat -B boot")
            .ok()
            .stdout
            .starts_with("Base image")
    );
    // A report about what is wrong is not one about an image.
    fs::remove_file(dir.path().join("json")).unwrap();
    fs::write(dir.path().join("bad"), [0; 8192]).unwrap();
    assert_eq!(run(&dir, "check bad -J json").exits(1).stdout, "");
    assert!(!dir.path().join("json").exists());
}

#[test]
fn the_log_is_appended_and_has_places_but_for_information() {
    let dir = workplace();
    let words = "-l info -L out.txt create -t targz-ref --compressor none -b x --blob-inline-meta layer.tar";
    for runs in 1..=2 {
        assert_eq!(run(&dir, words).ok().stderr, "");
        let log = fs::read_to_string(dir.path().join("out.txt")).unwrap();
        assert_eq!(log.lines().count(), runs, "{log}");
        for line in log.lines() {
            let (time, text) = line.split_once("] ").unwrap();
            assert_eq!(
                time.len(),
                "[2026-01-02 03:04:05.123456 +00:00".len(),
                "{line}"
            );
            assert!(
                text.starts_with("INFO --compressor none has no effect"),
                "{line}"
            );
        }
    }
    assert_eq!(
        run(&dir, &words.replace("-l info", "-l warn")).ok().stderr,
        ""
    );
    // Elsewhere it is on standard error, and so are warnings, which say where they come from.
    let ran = run_with(
        dir.path(),
        "merge -B merged --prefetch-policy fs boot",
        b"relative\n",
    );
    let line = ran.ok().stderr;
    assert!(line.contains(" WARN [") && line.contains(".rs:"), "{line}");
}

#[test]
fn a_blob_of_its_own_goes_before_a_directory() {
    let dir = workplace();
    fs::create_dir(dir.path().join("out")).unwrap();
    run(&dir, "create -t tar-rafs -b blob -D out -J json layer.tar").ok();
    let report = json(&dir.path().join("json"));
    let [bootstrap] = &names(&dir.path().join("out"))[..] else {
        panic!("{report}")
    };
    assert_eq!(report["bootstrap"], format!("out/{bootstrap}"));
    let digest = |path: &str| testkit::sha256(&fs::read(dir.path().join(path)).unwrap());
    assert_eq!(digest(&format!("out/{bootstrap}")), *bootstrap);
    assert_eq!(report["blobs"][0], digest("blob"));
}

/// Runs a command while somebody reads the FIFO `fifo`; what came out of it.
#[track_caller]
fn through_fifo(dir: &tempfile::TempDir, words: &str) -> Vec<u8> {
    let fifo = dir.path().join("fifo");
    make_fifo(&fifo);
    let reader = thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    run(dir, words).ok();
    assert!(names(dir.path()).contains(&"fifo".to_owned()), "{words}");
    fs::remove_file(fifo).unwrap();
    reader.join().unwrap()
}

#[test]
fn a_report_knows_the_digest_of_what_went_through_a_fifo() {
    let dir = workplace();
    let words = "create -t tar-rafs --blob-inline-meta -b fifo -J json layer.tar";
    let blob = through_fifo(&dir, words);
    let report = json(&dir.path().join("json"));
    assert_eq!(report["blobs"][0], testkit::sha256(&blob));
    assert_eq!(report["bootstrap"], "");
    let keys: Vec<_> = report.as_object().unwrap().keys().collect();
    let all =
        "version bootstrap blobs external_bootstrap external_blobs trace fs_version compressor";
    let mut all: Vec<_> = all.split(' ').collect();
    let mut keys: Vec<_> = keys.into_iter().map(String::as_str).collect();
    all.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, all);
    let version = report["version"].as_str().unwrap();
    assert!(
        version.starts_with('v') && version.contains('-'),
        "{version}"
    );
    assert_eq!(report["fs_version"], "6");
    // Nothing is in a blob without data, and the FIFO stays.
    fs::write(
        dir.path().join("layer.tar"),
        Tar::new().add(Entry::directory("d")).finish(),
    )
    .unwrap();
    let blob = through_fifo(&dir, "create -t tar-rafs -b fifo -B boot layer.tar");
    assert_eq!(blob, b"");
}

#[test]
fn all_types_of_tars_find_gzip_by_themselves() {
    let dir = workplace();
    let tar = fs::read(dir.path().join("layer.tar")).unwrap();
    let gzip = testkit::layout::pack(&tar, testkit::layout::Packing::GzipMembers);
    let mut blobs = Vec::new();
    for kind in ["tar-rafs", "targz-rafs", "estargz-rafs"] {
        for bytes in [&tar, &gzip] {
            fs::write(dir.path().join("layer.tar"), bytes).unwrap();
            let words = format!("create -t {kind} --blob-inline-meta -b blob layer.tar");
            run(&dir, &words).ok();
            blobs.push(fs::read(dir.path().join("blob")).unwrap());
        }
    }
    blobs.dedup();
    assert_eq!(blobs.len(), 1);
}

#[test]
fn a_source_may_be_standard_input_if_nothing_else_is() {
    let dir = workplace();
    let tar = fs::read(dir.path().join("layer.tar")).unwrap();
    let words = "create -t tar-rafs -D blobs -B other /dev/stdin";
    run_with(dir.path(), words, &tar).ok();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(read("other") == read("boot"));
    // The patterns would be all that comes of it.
    fs::remove_file(dir.path().join("other")).unwrap();
    run_with(dir.path(), &format!("{words} --prefetch-policy fs"), &tar)
        .exits(2)
        .fails_with(&["/dev/stdin", "--prefetch-policy"]);
    assert!(!dir.path().join("other").exists());
}

#[test]
fn patterns_of_a_merge_become_the_prefetch_table() {
    let dir = workplace();
    for (policy, files) in [("fs", 1), ("blob", 0), ("none", 0)] {
        let words = format!("merge -B merged --prefetch-policy {policy} boot");
        run_with(dir.path(), &words, b"/etc/config\n/absent\n").ok();
        let answer = run(&dir, "inspect merged -R prefetch").ok().stdout;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer.as_array().unwrap().len(), files, "{policy}");
        if files == 1 {
            assert_eq!(answer[0]["path"], serde_json::json!(["/etc/config"]));
        }
    }
}

#[test]
fn layers_that_do_not_fit_together_are_told_by_status_and_message() {
    let dir = workplace();
    let merge = |options: &[&str]| {
        let mut words = "merge -B merged".to_owned();
        for (number, options) in options.iter().enumerate() {
            let name = format!("{number}.boot");
            run(&dir, &format!("create -B {name} {options} layer.tar")).ok();
            words = format!("{words} {name}");
        }
        let ran = run(&dir, &words);
        let written = dir.path().join("merged");
        assert_eq!(written.exists(), ran.code == 0, "{ran}");
        if ran.code == 0 {
            fs::remove_file(written).unwrap();
        }
        ran
    };
    let plain = "-t tar-rafs -D blobs";
    let v5 = format!("{plain} -v 5");
    for [one, other] in [
        [plain, &format!("{plain} --chunk-size 0x10000")],
        [plain, &format!("{plain} --repeatable")],
        [plain, &v5],
        [plain, "-t tar-tarfs"],
        [v5.as_str(), &format!("{v5} --digester sha256")],
    ] {
        let ran = merge(&[one, other]).exits(2);
        let told = |line: &str| line.contains(" ERROR [") && line.contains("] message:");
        assert!(ran.stderr.lines().any(told), "{ran}");
        assert_eq!(ran.stdout, "");
    }
    // Blobs say themselves how they are compressed.
    merge(&[plain, &format!("{plain} --compressor lz4_block")]).ok();
    merge(&[plain, &format!("{plain} --compressor none")]).ok();
}

#[test]
fn a_dictionary_that_knows_all_leaves_no_blob() {
    let dir = workplace();
    fs::write(dir.path().join("blob"), "old").unwrap();
    let words = "create -t tar-rafs -b blob -B new --chunk-dict bootstrap=boot -J json layer.tar";
    run(&dir, words).ok();
    assert!(!dir.path().join("blob").exists());
    let report = json(&dir.path().join("json"));
    assert_eq!(
        report["blobs"][0],
        names(&dir.path().join("blobs"))[0].as_str()
    );
}

/// The report is written last, and no more than a report is needed to know that all was in vain.
#[test]
fn a_report_that_cannot_be_written_leaves_nothing_else() {
    let dir = workplace();
    fs::write(
        dir.path().join("list"),
        r#"{"version":"v1","files":[{"path":"/etc/config"}]}"#,
    )
    .unwrap();
    fs::create_dir_all(dir.path().join("app:1")).unwrap();
    fs::copy(dir.path().join("boot"), dir.path().join("app:1/boot")).unwrap();
    let before = names(dir.path());
    // Its name is fit for a file, but there is no room in it for that of an unfinished one.
    let report = "r".repeat(250);
    for words in [
        "create -t tar-rafs -b blob --blob-inline-meta layer.tar",
        "create -t tar-rafs -D blobs -B new --chunk-size 0x1000 layer.tar",
        "merge -B merged boot",
        "optimize -B boot -p list -D blobs --output-blob-dir blobs -O optimized",
        "transcode --to 5 -B boot -O v5",
        "chunkdict generate -B dictionary app:1/boot",
    ] {
        run(&dir, &format!("{words} -J {report}"))
            .exits(1)
            .fails_with(&[&report]);
        assert_eq!(names(dir.path()), before, "{words}");
        assert_eq!(names(&dir.path().join("blobs")).len(), 1, "{words}");
    }
}
