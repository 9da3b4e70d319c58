//! Programs that are asked for secrets.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 1 << 16;
/// How often it is looked whether the program has ended.
const POLL: Duration = Duration::from_millis(10);

/// What a program came to. Not to be shown: its output may be a secret.
pub struct Answered {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output, as far as an answer may go.
    pub output: Vec<u8>,
}

/// Runs a program that gets `input`, and answers on its standard output `within` this time. What it says to its standard
/// error goes nowhere.
///
/// # Errors
/// Why there is no answer. The reason does not name the program, unless it cannot be run, and repeats nothing of what it wrote.
pub fn ask_helper(
    command: &mut Command,
    input: &[u8],
    within: Duration,
) -> Result<Answered, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let deadline = Instant::now() + within;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read is judged by what it answers.
        let _ = stdin.write_all(input);
    }
    let (sender, outputs) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        // On its own: a program that the helper has started may hold the pipe open for ever.
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout.take(ANSWER_MAX).read_to_end(&mut output);
            let _ = sender.send(read.map(|_| output));
        });
    }
    let late = || format!("no answer within {} s", within.as_secs_f64());
    let Some(status) = end(&mut child, deadline)? else {
        return Err(late());
    };
    let output = outputs
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .map_err(|_| late())?
        .map_err(|error| error.to_string())?;
    Ok(Answered { status, output })
}

/// How a program ends; `None` if it had to be made to.
fn end(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>, String> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(Some(status)),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, within: Duration) -> Result<Answered, String> {
        let mut command = Command::new("sh");
        ask_helper(command.args(["-c", script]), b"who", within)
    }

    #[test]
    fn a_program_gets_its_input_and_gives_an_answer() {
        let answered = shell("cat; echo loud >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!(answered.output, b"who");
        assert_eq!(answered.status.code(), Some(3));
        let error = ask_helper(&mut Command::new("no-such-helper"), b"", Duration::ZERO);
        assert!(error.err().unwrap().contains("no-such-helper"));
    }

    #[test]
    fn who_is_late_is_not_waited_for() {
        let begin = Instant::now();
        let error = shell("echo geheim; exec sleep 60", Duration::from_millis(300));
        assert_eq!(error.err().unwrap(), "no answer within 0.3 s");
        // It has ended, but what it has started has its output still open.
        let error = shell("sleep 60 & echo geheim", Duration::from_millis(300));
        assert_eq!(error.err().unwrap(), "no answer within 0.3 s");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
