//! Access keys of buckets: what requests are signed with, and programs that give such keys.
//!
//! A program is run when a request first needs a key, once more in the background before that key ends, and again when the
//! store takes the key for one that has ended. However many requests wait, it is run once for all of them.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::{Answered, Fetch, Incoming, Lent, ask_helper, parse_rfc3339};
use serde_json::Value;

use crate::config::Secret;

/// How long a program may take: it may ask its user.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);
/// Another key is asked for this long before the last one ends; sooner or later if it lives for less than four times that.
const MARGIN: Duration = Duration::from_secs(300);
/// How long a program is left alone that failed while there was a key, or whose key was refused for reasons unknown.
const PATIENCE: Duration = Duration::from_secs(60);
/// What stores say of a key that they took before.
const OVER: [&str; 6] = [
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidSecurityToken",
    "InvalidToken",
    "SecurityTokenExpired",
    "TokenRefreshRequired",
];

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: Secret,
    /// What goes along with a key that lasts for some time only.
    pub(crate) token: Option<Secret>,
}

/// Where a key comes from.
#[derive(Debug, Clone)]
pub(crate) enum KeySource {
    /// Requests are not signed.
    None,
    Fixed(Arc<Key>),
    Program(Arc<Program>),
}

/// What a request is signed with.
#[derive(Default)]
pub(crate) struct Access {
    pub(crate) key: Option<Arc<Key>>,
    /// Who is told if the store does not take it.
    pub(crate) lent: Option<Arc<dyn Lent>>,
}

impl KeySource {
    /// What to sign a request with, unless it has to be fetched first.
    pub(crate) fn access(&self) -> Result<Access, Fetch> {
        Ok(match self {
            Self::None => Access::default(),
            Self::Fixed(key) => Access {
                key: Some(Arc::clone(key)),
                lent: None,
            },
            Self::Program(program) => {
                let key = Program::key(program)?;
                let loan = Loan {
                    program: Arc::clone(program),
                    key: Arc::clone(&key),
                };
                Access {
                    key: Some(key),
                    lent: Some(Arc::new(loan)),
                }
            }
        })
    }

    /// The same from any directory.
    pub(crate) fn absolute(self) -> io::Result<Self> {
        let Self::Program(program) = &self else {
            return Ok(self);
        };
        let mut command = program.command.clone();
        if let Some(first) = command.first_mut().filter(|first| first.contains('/')) {
            let path = std::path::absolute(&*first)?;
            *first = path.to_string_lossy().into_owned();
        }
        let program = Program::new(command, &program.host);
        Ok(Self::Program(Arc::new(program)))
    }
}

/// A program that gives keys, and the last one that it gave.
pub(crate) struct Program {
    /// The program and its arguments, which may be secrets.
    command: Vec<String>,
    /// Whose keys they are.
    host: String,
    within: Duration,
    state: Mutex<State>,
    /// A run has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// Whether the store has refused the key before.
    refused: bool,
    running: bool,
    /// Runs that have ended.
    runs: u64,
    /// Why the last one gave no key.
    failure: Option<String>,
}

/// A key that is used.
struct Held {
    key: Arc<Key>,
    since: Instant,
    /// When another one is asked for.
    due: Option<SystemTime>,
    until: Option<SystemTime>,
    /// Whether it came in place of one that the store had refused.
    second: bool,
}

/// A key, and when it ends.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    key: Key,
    until: Option<SystemTime>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({})", self.name())
    }
}

impl Program {
    /// The program that this command line runs, whose first word is its name or path.
    pub(crate) fn new(command: Vec<String>, host: &str) -> Self {
        Self {
            command,
            host: host.to_owned(),
            within: PROGRAM_TIMEOUT,
            state: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key, or how to get one.
    fn key(program: &Arc<Self>) -> Result<Arc<Key>, Fetch> {
        let mut state = program.state();
        let now = SystemTime::now();
        if let Some(held) = state.held.as_ref().filter(|held| held.is_good(now)) {
            let key = Arc::clone(&held.key);
            if held.due.is_some_and(|due| due <= now) && !state.running {
                let program = Arc::clone(program);
                let thread = std::thread::Builder::new().name("credentials".to_owned());
                state.running = thread.spawn(move || program.run()).is_ok();
            }
            return Ok(key);
        }
        let (program, seen) = (Arc::clone(program), state.runs);
        Err(Box::new(move || {
            let fetched = program.fetch(seen);
            fetched.map_err(|reason| registry::Error::Credentials {
                host: program.host.clone(),
                place: format!("the credential_process {}", program.name()),
                reason,
            })
        }))
    }

    /// Waits for a run that ends after the first `seen`.
    fn fetch(&self, seen: u64) -> Result<(), String> {
        let mut state = self.state();
        if state.runs == seen && !state.running {
            state.running = true;
            drop(state);
            self.run();
            state = self.state();
        }
        while state.runs == seen {
            let woken = self.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failure {
            Some(reason) if state.held.is_none() => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    /// Runs the program, as the only one to do so.
    fn run(&self) {
        let given = self.ask();
        let mut state = self.state();
        let now = SystemTime::now();
        match given {
            Ok(Given { key, until }) => {
                let due = until.map(|until| {
                    let life = until.duration_since(now).unwrap_or_default();
                    until - MARGIN.min(life / 4)
                });
                let second = std::mem::take(&mut state.refused);
                state.failure = None;
                state.held = Some(Held {
                    key: Arc::new(key),
                    since: Instant::now(),
                    due,
                    until,
                    second,
                });
            }
            Err(reason) => {
                state.held = state.held.take().filter(|held| held.is_good(now));
                if let Some(held) = &mut state.held {
                    tracing::warn!(
                        "the credential_process {} gave no new key for {}: {reason}",
                        self.name(),
                        self.host
                    );
                    held.due = Some(now + PATIENCE);
                }
                state.failure = Some(reason);
            }
        }
        state.running = false;
        state.runs += 1;
        self.ended.notify_all();
    }

    fn ask(&self) -> Result<Given, String> {
        let mut command = Command::new(self.name());
        command.args(self.command.iter().skip(1));
        let Answered { status, output } = ask_helper(&mut command, b"", self.within)?;
        if !status.success() {
            return Err(format!("it failed ({status})"));
        }
        parse(&output, SystemTime::now()).map_err(str::to_owned)
    }

    /// The store has refused a request with this key. Whether another key may do.
    fn refused(&self, key: &Arc<Key>, verdict: Verdict) -> bool {
        let mut state = self.state();
        let over = match &state.held {
            Some(held) if Arc::ptr_eq(&held.key, key) => {
                let old = held.since.elapsed() >= PATIENCE;
                match verdict {
                    Verdict::Over => old || !held.second,
                    Verdict::Unclear => old,
                    Verdict::Other => false,
                }
            }
            // There is another one by now, or soon will be.
            _ => return verdict != Verdict::Other,
        };
        if over {
            state.held = None;
            state.refused = true;
        }
        over
    }
}

impl Held {
    fn is_good(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// A key for one request.
struct Loan {
    program: Arc<Program>,
    key: Arc<Key>,
}

impl Lent for Loan {
    fn is_over(&self, refused: &Incoming) -> bool {
        self.program.refused(&self.key, Verdict::of(refused))
    }
}

/// Whether it is for the key that a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Over,
    Other,
    /// The answer does not tell: that to a HEAD has no body.
    Unclear,
}

impl Verdict {
    fn of(refused: &Incoming) -> Self {
        let header = |name: &str| refused.headers.get(name)?.to_str().ok();
        let told = code(&refused.body)
            // Where a document cannot be, Aliyun puts it into a header, and MinIO its code.
            .or_else(|| code(&STANDARD.decode(header("x-oss-err")?).ok()?))
            .or_else(|| header("x-minio-error-code").map(str::to_owned));
        match told {
            Some(code) if OVER.contains(&&*code) => Self::Over,
            Some(_) => Self::Other,
            None => Self::Unclear,
        }
    }
}

/// The code in a store's document.
fn code(document: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(document);
    let (_, rest) = text.split_once("<Code>")?;
    Some(rest.split_once("</Code>")?.0.to_owned())
}

/// Reads what a program has answered at `now`. The reason why it cannot be used repeats nothing of it.
fn parse(answer: &[u8], now: SystemTime) -> Result<Given, &'static str> {
    let Ok(Value::Object(answer)) = serde_json::from_slice(answer) else {
        return Err("its answer is no JSON object");
    };
    let text = |name: &str| answer.get(name)?.as_str().filter(|text| !text.is_empty());
    let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if answer.get("Version").and_then(Value::as_u64) != Some(1) {
        return Err("its answer has a Version that is not 1");
    }
    let id = text("AccessKeyId").filter(|id| graphic(id));
    let id = id.ok_or("its answer has no usable AccessKeyId")?;
    let secret = text("SecretAccessKey").ok_or("its answer has no SecretAccessKey")?;
    let absent = |name| matches!(answer.get(name), None | Some(Value::Null));
    let token = match text("SessionToken") {
        Some(token) if graphic(token) => Some(Secret(token.to_owned())),
        None if absent("SessionToken") => None,
        _ => return Err("the SessionToken in its answer cannot be used"),
    };
    let until = match text("Expiration").and_then(parse_rfc3339) {
        None if !absent("Expiration") => {
            return Err("the Expiration in its answer is no time as RFC 3339 has it");
        }
        until => until,
    };
    if until.is_some_and(|until| until <= now) {
        return Err("the key that it gave has ended already");
    }
    Ok(Given {
        key: Key {
            id: id.to_owned(),
            secret: Secret(secret.to_owned()),
            token,
        },
        until,
    })
}

/// The words of a command line: blanks part them, unless they stand in quotes or behind a backslash. `None` if a quote
/// does not end.
pub(crate) fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            (c, Some(end)) if c == end => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None) => word.get_or_insert_default().push(rest.next()?),
            ('\\', Some('"')) => {
                let next = rest.next()?;
                let word = word.get_or_insert_default();
                if !matches!(next, '"' | '\\') {
                    word.push('\\');
                }
                word.push(next);
            }
            (' ' | '\t' | '\n' | '\r', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Any text as a program's answer, and as a command line.
pub(crate) fn fuzz(text: &[u8]) {
    let now = SystemTime::UNIX_EPOCH;
    if let Ok(given) = parse(text, now) {
        assert!(!given.key.id.is_empty() && given.until.is_none_or(|until| until > now));
    }
    if let Ok(text) = std::str::from_utf8(text)
        && let Some(found) = words(text)
    {
        let quoted: Vec<String> = found
            .iter()
            .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
            .collect();
        assert_eq!(words(&quoted.join(" ")), Some(found));
    }
}
