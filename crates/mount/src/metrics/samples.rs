//! Reading figures back, as far as our own text goes.

use std::time::Duration;

/// One line of figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name, without the prefix of all.
    pub name: String,
    labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty if there is none.
    pub fn label(&self, name: &str) -> &str {
        let mut labels = self.labels.iter();
        let found = labels.find(|(label, _)| label == name);
        found.map_or("", |(_, text)| text)
    }
}

/// All figures of a mount.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// Those in the text; lines that are none of ours are passed over.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse).collect())
    }

    /// Those of a name.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }

    /// The whole numbers of a name, all together; 0 if there is none.
    pub fn sum(&self, name: &str) -> u64 {
        self.of(name).map(|sample| sample.value as u64).sum()
    }

    /// What a share `part` of the times of a histogram did not exceed: the bound of a bucket. `None` without any.
    pub fn quantile(&self, name: &str, part: f64) -> Option<Duration> {
        let name = format!("{name}_bucket");
        let buckets: Vec<(f64, f64)> = self
            .of(&name)
            .filter_map(|sample| Some((sample.label("le").parse().ok()?, sample.value)))
            .collect();
        let all = buckets.last().filter(|(_, count)| *count > 0.0)?.1;
        let bounded = buckets.iter().filter(|(bound, _)| bound.is_finite());
        let mut highest = None;
        for (bound, count) in bounded {
            highest = Duration::try_from_secs_f64(*bound).ok();
            if *count >= all * part {
                break;
            }
        }
        highest
    }
}

/// `nydusify_NAME{LABEL="TEXT",...} VALUE`
fn parse(line: &str) -> Option<Sample> {
    let line = line.strip_prefix("nydusify_")?;
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (label, text) = rest.split_once("=\"")?;
        let (text, after) = quoted(text)?;
        labels.push((label.to_owned(), text));
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: rest.strip_prefix("} ")?.parse().ok()?,
    })
}

/// A text up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut plain = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((plain, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => plain.push('\n'),
                other => plain.push(other),
            },
            other => plain.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_others_are_passed_over() {
        for line in [
            "",
            "# TYPE nydusify_x counter",
            "nydusify_x 1",
            "nydusify_x{a=\"b} 1",
            "nydusify_x{a=\"b\"}",
            "nydusify_x{a=\"b\\",
            "nydusify_x{a} 1",
            "process_cpu{a=\"b\"} 1",
            "nydusify_x{a=\"b\"} one",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
