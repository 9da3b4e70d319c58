//! Prefetch patterns from standard input.

use std::io::{self, Read as _};

use anyhow::Context as _;

use crate::args::PrefetchPolicy;

/// Reads patterns to the end of stdin, unless there is no use for any.
pub fn read(policy: PrefetchPolicy) -> anyhow::Result<Vec<Vec<u8>>> {
    if policy == PrefetchPolicy::None {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    io::stdin()
        .read_to_end(&mut text)
        .context("cannot read prefetch patterns from standard input")?;
    Ok(parse(&text))
}

/// One absolute path per line; a path below an earlier one says nothing new.
fn parse(text: &[u8]) -> Vec<Vec<u8>> {
    let mut patterns: Vec<Vec<u8>> = Vec::new();
    for line in text
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
    {
        if !line.starts_with(b"/") {
            tracing::warn!(
                "prefetch pattern {:?} is not an absolute path: skipped",
                String::from_utf8_lossy(line)
            );
            continue;
        }
        if !patterns.iter().any(|earlier| covers(earlier, line)) {
            patterns.push(line.to_vec());
        }
    }
    patterns
}

fn covers(earlier: &[u8], path: &[u8]) -> bool {
    let earlier = earlier.strip_suffix(b"/").unwrap_or(earlier);
    path.strip_prefix(earlier)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_absolute_and_not_below_each_other() {
        let parsed = parse(
            b"/usr/bin\nrelative\n\n  /etc/hosts \r\n/usr/bin/tool\n/usr/binary\n/etc/hosts\n",
        );
        assert_eq!(parsed, [&b"/usr/bin"[..], b"/etc/hosts", b"/usr/binary"]);
        assert_eq!(parse(b"/\n/usr"), [b"/"]);
    }
}
