//! Traces of mounts.

use std::path::Path;

use trace::{Report, Trace};

use crate::Target;

/// A trace: it is read, reported, and made into a list of what is needed first, which can be read.
pub const TRACE: Target = Target {
    name: "trace",
    run: read,
    samples: || {
        let header = r#"{"trace":1,"image":"oci:dir:tag","bootstrap":"00","started":1700000000000000,"blobs":["aa","bb"]}"#;
        let lines = [
            header,
            r#"{"event":"serving","at":10,"mode":"fuse","process":7}"#,
            r#"{"event":"fetch","at":20,"waited":1,"took":30,"number":0,"purpose":"first","blob":0,"offset":0,"size":100}"#,
            r#"{"event":"fetch","at":25,"waited":0,"took":30,"number":1,"purpose":"read","blob":9,"offset":50,"size":60,"failed":true}"#,
            r#"{"event":"chunk","at":52,"took":3,"fetch":0,"chunk":[0,1],"size":200,"stored":100,"file":"/a","offset":0}"#,
            r#"{"event":"read","at":15,"took":45,"file":"/a","offset":0,"size":200,"chunks":[[0,1]]}"#,
            r#"{"event":"read","at":70,"took":5,"file":"/b\n","offset":4096,"size":1,"chunks":[[0,1],[1,2]]}"#,
            r#"{"event":"dropped","at":80,"count":2}"#,
            "",
        ];
        let whole = lines.join("\n");
        let cut = whole.split_at(whole.len() - 20).0.to_owned();
        vec![whole.into(), cut.into(), format!("{header}\n").into()]
    },
    changes: 20_000,
};

fn read(input: &[u8]) {
    let Ok(trace) = Trace::read(Path::new("trace"), input) else {
        return;
    };
    let list = trace::prefetch_list([&trace]);
    builder::parse_prefetch_list(&list).expect("a list that was made can be read");
    let report = Report::new(&trace, std::slice::from_ref(&trace));
    assert_eq!(report.new_files.as_deref(), Some(&[][..]));
    let phases = &report.phases;
    let all = [
        phases.running,
        phases.network,
        phases.decoding,
        phases.memory,
        phases.serving,
    ];
    let all = all.iter().map(|time| u128::from(*time)).sum::<u128>();
    let whole = report.last_read.saturating_sub(report.first_read);
    assert_eq!(all, u128::from(whole), "every moment is counted once");
}
