//! Sets of rows of a chunk table.

/// Rows as runs, in ascending order and none touching another: the first one and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows(Vec<(u32, u32)>);

impl Rows {
    /// The rows of an ascending list.
    pub fn of(rows: impl IntoIterator<Item = u32>) -> Self {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for row in rows {
            match runs.last_mut() {
                Some((first, count)) if first.checked_add(*count) == Some(row) => *count += 1,
                _ => runs.push((row, 1)),
            }
        }
        Self(runs)
    }

    /// The rows of these runs; `None` if they are not in order.
    pub fn from_runs(runs: Vec<(u32, u32)>) -> Option<Self> {
        let end = |&(first, count): &(u32, u32)| u64::from(first) + u64::from(count);
        let sound = runs.iter().all(|run| run.1 > 0 && end(run) <= 1 << 32)
            && runs
                .windows(2)
                .all(|pair| end(&pair[0]) < u64::from(pair[1].0));
        sound.then_some(Self(runs))
    }

    pub fn runs(&self) -> &[(u32, u32)] {
        &self.0
    }

    pub fn contains(&self, row: u32) -> bool {
        let behind = self.0.partition_point(|run| run.0 <= row);
        let run = behind.checked_sub(1).and_then(|at| self.0.get(at));
        run.is_some_and(|(first, count)| row - first < *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_was_put_in() {
        let all = [0, 1, 2, 7, 9, 10, u32::MAX];
        let rows = Rows::of(all);
        assert_eq!(rows.runs(), [(0, 3), (7, 1), (9, 2), (u32::MAX, 1)]);
        for row in (0..20).chain([u32::MAX - 1, u32::MAX]) {
            assert_eq!(rows.contains(row), all.contains(&row), "{row}");
        }
        assert_eq!(Rows::from_runs(rows.runs().to_vec()), Some(rows));
        for bad in [
            vec![(0, 0)],
            vec![(0, 2), (2, 1)],
            vec![(5, 1), (1, 1)],
            vec![(u32::MAX, 2)],
        ] {
            assert_eq!(Rows::from_runs(bad), None);
        }
    }
}
