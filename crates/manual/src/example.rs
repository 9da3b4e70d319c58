//! Examples out of `docs/`, where they are tested.

use std::path::Path;

use anyhow::Context;

/// The first `console` block of the documentation of the command with the page `page`; none without documentation.
pub fn example(page: &str) -> anyhow::Result<Option<Vec<String>>> {
    let Some((program, command)) = ["nydus-image", "nydusify"].iter().find_map(|program| {
        let command = page.strip_prefix(program)?.strip_prefix('-')?;
        Some((program, command))
    }) else {
        return Ok(None);
    };
    // One page documents a command with one below it, such as `chunkdict generate`.
    let command = command.split('-').next().unwrap_or(command);
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(program)
        .join(format!("{command}.md"));
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(first_block(&text))
}

fn first_block(text: &str) -> Option<Vec<String>> {
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with("```console"));
    lines.next()?;
    Some(
        lines
            .take_while(|line| !line.starts_with("```"))
            .map(str::to_owned)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_the_example() {
        let text = "# x\n\n```console\n$ a\n$ b\n```\n\n```console\n$ c\n```\n";
        assert_eq!(
            first_block(text),
            Some(vec!["$ a".to_owned(), "$ b".to_owned()])
        );
        assert_eq!(first_block("# x\n"), None);
    }

    #[test]
    fn pages_of_programs_and_of_commands_without_documentation_have_none() {
        assert_eq!(example("nydusify").unwrap(), None);
        assert_eq!(example("nydusify-umount").unwrap(), None);
        assert!(example("nydus-image-create").unwrap().is_some());
        assert!(example("nydus-image-chunkdict-generate").unwrap().is_some());
    }
}
