use std::fs;
use std::path::Path;
use std::thread;

use registry::{Client, Settings};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use tempfile::TempDir;
use testkit::bucket::{Bucket as Store, Fault, KEY_ID, SECRET};

use super::*;
use crate::bucket::{Ask, Bucket};
use crate::config::{Config, Place};

/// A program that notes each run, and then does what `script` says.
struct Helper {
    dir: TempDir,
}

impl Helper {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let text = format!("echo run >> '{}'\n{script}\n", runs.display());
        fs::write(dir.path().join("helper"), text).unwrap();
        Self { dir }
    }

    /// One that gives the key of the test's stores, for ever or until then.
    fn good(until: &str) -> Self {
        let until = match until {
            "" => String::new(),
            until => format!(r#","Expiration":"{until}""#),
        };
        Self::new(&format!(
            r#"echo '{{"Version":1,"AccessKeyId":"{KEY_ID}","SecretAccessKey":"{SECRET}","SessionToken":"pass/word=="{until}}}'"#
        ))
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self) -> Vec<String> {
        let helper = self.path().join("helper").display().to_string();
        vec!["sh".to_owned(), helper]
    }

    fn program(&self, within: Duration) -> Arc<Program> {
        Arc::new(Program {
            within,
            ..Program::new(self.command(), "store.example")
        })
    }

    fn runs(&self) -> usize {
        let runs = fs::read_to_string(self.path().join("runs"));
        runs.unwrap_or_default().lines().count()
    }
}

const PATIENT: Duration = Duration::from_secs(60);

/// The key, fetched if need be, as a request does it.
fn fetched(program: &Arc<Program>) -> Result<Arc<Key>, String> {
    loop {
        match Program::key(program) {
            Ok(key) => return Ok(key),
            Err(fetch) => fetch().map_err(|error| error.to_string())?,
        }
    }
}

fn wait_for(mut what: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if what() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not come");
}

/// A bucket of `store` whose key `program` gives.
fn bucket(store: &Store, program: &Arc<Program>) -> Arc<Bucket> {
    let config = Config::parse(store.kind().parse().unwrap(), &store.config("")).unwrap();
    let Place::Bucket(mut config) = config.place else {
        panic!("a bucket was asked for");
    };
    config.key = KeySource::Program(Arc::clone(program));
    let settings = Settings {
        retry_delay: Duration::from_millis(5),
        ..Settings::default()
    };
    Arc::new(Bucket::new(&config, &Client::new(settings).unwrap(), None).unwrap())
}

fn fault(request: &'static str, status: u16, body: &'static str, times: usize) -> Fault {
    Fault {
        request,
        status,
        body,
        times,
    }
}

const EXPIRED: &str = "<Error><Code>ExpiredToken</Code><Message>too late</Message></Error>";
const DENIED: &str = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";

#[test]
fn command_lines_fall_into_words() {
    for (text, expected) in [
        ("", &[][..]),
        ("sts", &["sts"]),
        ("  sts --get\tall ", &["sts", "--get", "all"]),
        (
            r#""/opt/my tools/sts" a"b c"d """#,
            &["/opt/my tools/sts", "ab cd", ""],
        ),
        (
            r#"a\ b 'c\d "e"' "f\"g\\h\i""#,
            &["a b", r#"c\d "e""#, r#"f"g\h\i"#],
        ),
        ("$HOME ~ * > x", &["$HOME", "~", "*", ">", "x"]),
    ] {
        assert_eq!(words(text).unwrap(), expected, "{text}");
    }
    for bad in ["\"a", "a 'b", "a\\", "\"a\\"] {
        assert_eq!(words(bad), None, "{bad}");
    }
}

#[test]
fn answers_are_read_strictly() {
    let now = parse_rfc3339("2026-11-26T01:02:03Z").unwrap();
    let key = |token: Option<&str>| Key {
        id: "i".to_owned(),
        secret: Secret("s".to_owned()),
        token: token.map(|token| Secret(token.to_owned())),
    };
    for (json, expected, lives) in [
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s"}"#,
            key(None),
            None,
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","SessionToken":null,"Expiration":null,"X":2}"#,
            key(None),
            None,
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","SessionToken":"t/+=","Expiration":"2026-11-26T02:02:04+01:00"}"#,
            key(Some("t/+=")),
            Some(Duration::from_secs(1)),
        ),
    ] {
        let until = lives.map(|lives| now + lives);
        let given = Given {
            key: expected,
            until,
        };
        assert_eq!(parse(json.as_bytes(), now), Ok(given), "{json}");
    }
    for (json, word) in [
        ("", "JSON"),
        ("[1]", "JSON"),
        (r#"{"AccessKeyId":"i","SecretAccessKey":"s"}"#, "Version"),
        (
            r#"{"Version":2,"AccessKeyId":"i","SecretAccessKey":"s"}"#,
            "Version",
        ),
        (r#"{"Version":1,"SecretAccessKey":"s"}"#, "AccessKeyId"),
        (
            r#"{"Version":1,"AccessKeyId":"a b","SecretAccessKey":"s"}"#,
            "AccessKeyId",
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":7}"#,
            "SecretAccessKey",
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","SessionToken":"a\nb"}"#,
            "SessionToken",
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","SessionToken":""}"#,
            "SessionToken",
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","Expiration":"tomorrow"}"#,
            "Expiration",
        ),
        (
            r#"{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","Expiration":"2026-11-26T01:02:03Z"}"#,
            "ended",
        ),
    ] {
        let reason = parse(json.as_bytes(), now).unwrap_err();
        assert!(reason.contains(word), "{json}: {reason}");
    }
}

#[test]
fn however_many_wait_the_program_runs_once() {
    let helper = Helper::good("");
    let slow = fs::read_to_string(helper.path().join("helper")).unwrap();
    fs::write(helper.path().join("helper"), format!("sleep 0.3\n{slow}")).unwrap();
    let program = helper.program(PATIENT);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(fetched(&program).unwrap().id, KEY_ID));
        }
    });
    assert_eq!(helper.runs(), 1);
    // It does not end, and so it is not asked for again.
    assert!(Program::key(&program).is_ok());
}

#[test]
fn a_failure_names_the_program_and_nothing_that_it_said() {
    for (script, word) in [
        ("echo sesame; echo sesame >&2; exit 7", "exit status: 7"),
        (
            r#"echo '{"Version":1,"SecretAccessKey":"sesame"}'"#,
            "AccessKeyId",
        ),
        ("echo sesame", "JSON"),
        ("echo sesame; exec sleep 60", "no answer within 0.5 s"),
    ] {
        let helper = Helper::new(script);
        let program = helper.program(Duration::from_millis(500));
        let errors: Vec<String> = thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| fetched(&program).unwrap_err()));
            threads.map(|thread| thread.join().unwrap()).to_vec()
        });
        for error in errors {
            for part in ["credential_process sh", "store.example", word] {
                assert!(error.contains(part), "{error}");
            }
            assert!(!error.contains("sesame"), "{error}");
        }
    }
    let program = Arc::new(Program::new(vec!["no-such-program".to_owned()], "h"));
    let error = fetched(&program).unwrap_err();
    assert!(error.contains("cannot run no-such-program"), "{error}");
}

#[test]
fn those_who_wait_for_a_program_share_its_failure() {
    let helper = Helper::new("exec sleep 60");
    let program = helper.program(Duration::from_millis(700));
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(fetched(&program).is_err()));
        }
    });
    // One may have come late, but not each of them after the other.
    assert!(helper.runs() <= 2 && begin.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_key_is_renewed_before_it_ends_while_it_is_used() {
    let helper = Helper::good("2999-01-01T00:00:00Z");
    let program = helper.program(PATIENT);
    let first = fetched(&program).unwrap();
    let now = SystemTime::now();
    {
        let state = program.state();
        let held = state.held.as_ref().unwrap();
        let (due, until) = (held.due.unwrap(), held.until.unwrap());
        assert_eq!(until.duration_since(due).unwrap(), MARGIN);
    }
    program.state().held.as_mut().unwrap().due = Some(now);
    let second = Program::key(&program).ok().unwrap();
    assert!(
        Arc::ptr_eq(&first, &second),
        "the old one will do meanwhile"
    );
    wait_for(|| program.state().runs == 2);
    assert!(!Arc::ptr_eq(&first, &fetched(&program).unwrap()));

    // A program that fails is no reason to do without a key that is good for some time.
    fs::write(helper.path().join("helper"), "exit 1").unwrap();
    program.state().held.as_mut().unwrap().due = Some(now);
    assert!(Program::key(&program).is_ok());
    wait_for(|| program.state().runs == 3);
    assert!(Program::key(&program).is_ok());
    assert!(!program.state().running, "it is left alone for a while");
    program.state().held.as_mut().unwrap().until = Some(now);
    assert!(fetched(&program).unwrap_err().contains("exit status: 1"));
}

#[test]
fn a_key_that_lives_for_a_short_time_is_not_asked_for_all_the_time() {
    let helper = Helper::good("$(date -u -d '+2 minutes' +%Y-%m-%dT%H:%M:%SZ)");
    // The date is for the shell to find out.
    let path = helper.path().join("helper");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"$(", "\"'$(").replace(")\"", ")'\"");
    fs::write(&path, text).unwrap();
    let program = helper.program(PATIENT);
    for _ in 0..3 {
        fetched(&program).unwrap();
    }
    assert_eq!(program.state().runs, 1);
    let state = program.state();
    let held = state.held.as_ref().unwrap();
    let left = held.until.unwrap().duration_since(held.due.unwrap());
    assert!(left.unwrap() <= Duration::from_secs(30));
}

#[test]
fn requests_are_signed_with_the_key_of_the_moment() {
    for store in [Store::s3(), Store::oss()] {
        let helper = Helper::good("2999-01-01T00:00:00Z");
        let program = helper.program(PATIENT);
        let bucket = bucket(&store, &program);
        assert_eq!(helper.runs(), 0, "nobody has asked for anything yet");
        bucket.put("x", b"bytes"[..].into()).unwrap();
        assert_eq!(bucket.size("x").unwrap(), Some(5));
        assert_eq!(helper.runs(), 1);

        // It ends by the clock.
        program.state().held.as_mut().unwrap().until = Some(SystemTime::now());
        let mut buf = [0; 5];
        let exchange = bucket.exchange("read", Ask::new(Method::GET, "x"));
        bucket.client.read_object(&exchange, 0, &mut buf).unwrap();
        assert_eq!((&buf, helper.runs()), (b"bytes", 2));

        // It ends by what the store says.
        store.fail(fault("GET ", 400, EXPIRED, 1));
        bucket.client.read_object(&exchange, 0, &mut buf).unwrap();
        assert_eq!(helper.runs(), 3, "{store:?}");
        // Another one will not do either, and the last one was got for that very reason.
        store.fail(fault("GET ", 403, EXPIRED, 1));
        let error = bucket.client.read_object(&exchange, 0, &mut buf);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("403 ExpiredToken: too late"), "{error}");
        assert_eq!(helper.runs(), 3);
    }
}

#[test]
fn however_many_are_refused_the_program_runs_once() {
    let helper = Helper::good("");
    let program = helper.program(PATIENT);
    let key = fetched(&program).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert!(program.refused(&key, Verdict::Over));
                fetched(&program).unwrap();
            });
        }
    });
    assert_eq!(helper.runs(), 2);
    assert!(!program.refused(&key, Verdict::Other));
}

#[test]
fn a_refusal_for_other_reasons_is_the_last_word() {
    for store in [Store::s3(), Store::oss()] {
        let helper = Helper::good("");
        let program = helper.program(PATIENT);
        let bucket = bucket(&store, &program);
        bucket.put("x", b"bytes"[..].into()).unwrap();
        let age = || {
            let mut state = program.state();
            let held = state.held.as_mut().unwrap();
            held.since = held.since.checked_sub(PATIENCE).unwrap();
        };
        age();
        store.fail(fault("PUT ", 403, DENIED, 1));
        let error = bucket.put("y", b"bytes"[..].into()).unwrap_err();
        assert!(error.to_string().contains("AccessDenied"), "{error}");
        assert_eq!(helper.runs(), 1);
        // What passes by itself is tried again as ever, with the same key.
        let busy = "<Error><Code>RequestTimeout</Code></Error>";
        store.fail(fault("PUT ", 400, busy, 2));
        bucket.put("y", b"bytes"[..].into()).unwrap();
        assert_eq!(helper.runs(), 1);
        // An answer that does not tell is a reason to look once in a while.
        store.fail(fault("HEAD ", 403, "", 1));
        assert_eq!(bucket.size("x").unwrap(), Some(5));
        assert_eq!(helper.runs(), 2);
        store.fail(fault("HEAD ", 403, "", 1));
        assert!(bucket.size("x").is_err());
        assert!(!bucket.has("absent", 5).unwrap());
        assert_eq!(helper.runs(), 2);
    }
}

#[test]
fn a_program_that_fails_fails_the_request() {
    let store = Store::s3();
    let helper = Helper::new("echo sesame; exit 1");
    let bucket = bucket(&store, &helper.program(PATIENT));
    let error = bucket.put("x", b"bytes"[..].into()).unwrap_err();
    let error = format!("{error} {error:?}");
    assert!(error.contains("credential_process sh"), "{error}");
    assert!(!error.contains("sesame"), "{error}");
    assert!(store.requests().is_empty(), "nothing goes out unsigned");
    assert_eq!(helper.runs(), 1);
}

#[test]
fn refusals_tell_by_body_and_by_header() {
    let incoming = |body: &str, header: Option<(&'static str, &str)>| {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, HeaderValue::try_from(value).unwrap());
        }
        Incoming {
            status: StatusCode::FORBIDDEN,
            headers,
            body: body.as_bytes().to_vec(),
        }
    };
    let (over, other) = (STANDARD.encode(EXPIRED), STANDARD.encode(DENIED));
    for (body, header, verdict) in [
        (EXPIRED, None, Verdict::Over),
        (DENIED, None, Verdict::Other),
        (
            DENIED,
            Some(("x-minio-error-code", "ExpiredToken")),
            Verdict::Other,
        ),
        ("", Some(("x-oss-err", &*over)), Verdict::Over),
        ("", Some(("x-oss-err", &*other)), Verdict::Other),
        ("", Some(("x-oss-err", "?")), Verdict::Unclear),
        (
            "",
            Some(("x-minio-error-code", "InvalidAccessKeyId")),
            Verdict::Over,
        ),
        (
            "",
            Some(("x-minio-error-code", "AccessDenied")),
            Verdict::Other,
        ),
        ("<html>", None, Verdict::Unclear),
        ("", None, Verdict::Unclear),
    ] {
        assert_eq!(
            Verdict::of(&incoming(body, header)),
            verdict,
            "{body} {header:?}"
        );
    }
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let helper = Helper::good("");
    let mut command = helper.command();
    command.push("pass/word".to_owned());
    let program = Arc::new(Program::new(command, "h"));
    let key = fetched(&program).unwrap();
    let shown = format!(
        "{program:?} {key:?} {:?}",
        KeySource::Program(program.clone())
    );
    assert!(shown.contains(KEY_ID), "{shown}");
    assert!(
        !shown.contains("pass/word") && !shown.contains(SECRET),
        "{shown}"
    );
}
