//! The counts that were found before, what they were counted with, and whether others are worse.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::process::Command;

use crate::RENEW;

/// Where the baseline is, in the project.
pub(crate) const FILE: &str = "benches/instructions.txt";

/// How much more than the baseline a piece may need.
const GROWTH_MAX: f64 = 0.05;

/// What a small piece may need more, in instructions: a reordered branch isn't a regression.
const GROWTH_FREE: f64 = 4.0;

/// What decides the counts beside the code, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions(BTreeMap<String, String>);

impl Conditions {
    /// Those of this machine; `None` without valgrind.
    ///
    /// # Errors
    /// When the compiler doesn't say what it is.
    pub(crate) fn here() -> io::Result<Option<Self>> {
        let Some(valgrind) = said("valgrind", &["--version"]) else {
            return Ok(None);
        };
        let rustc = said("rustc", &["--version"])
            .ok_or_else(|| io::Error::other("rustc --version says nothing"))?;
        // It has routines for each processor and changes them between its versions.
        let libc = said("getconf", &["GNU_LIBC_VERSION"]).unwrap_or_else(|| "unknown".to_owned());
        let facts = [
            ("compiler", rustc),
            ("libc", libc),
            ("processor", processor()),
            ("valgrind", valgrind),
        ];
        Ok(Some(Self(
            facts.map(|(name, value)| (name.to_owned(), value)).into(),
        )))
    }

    /// What differs between these and those of `here`, in words.
    pub(crate) fn difference(&self, here: &Self) -> Option<String> {
        let differences: Vec<String> = here
            .0
            .iter()
            .filter_map(|(name, now)| {
                let before = self.0.get(name).map_or("not known", String::as_str);
                (before != now).then(|| format!("{name}: it was {before}, here it is {now}"))
            })
            .collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }
}

/// The first line that a command prints.
fn said(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next().filter(|_| output.status.success())?;
    Some(line.trim().to_owned())
}

/// The architecture, and the vectors by which libraries choose their routines at run time.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let vectors = match std::arch::is_x86_feature_detected!("avx2") {
        true => " with AVX2",
        false => " without AVX2",
    };
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = "";
    format!("{}{vectors}", std::env::consts::ARCH)
}

/// Counts, and what they were counted with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Baseline {
    /// What they were counted with.
    pub(crate) conditions: Conditions,
    /// Instructions of one repetition, by piece.
    pub(crate) counts: Vec<(String, f64)>,
}

impl Baseline {
    fn path() -> String {
        format!("{}/../../{FILE}", env!("CARGO_MANIFEST_DIR"))
    }

    /// The one of the project.
    ///
    /// # Errors
    /// When it can't be read or isn't one.
    pub(crate) fn read() -> io::Result<Self> {
        let told = |what: String| io::Error::other(format!("{FILE}: {what}; renew it: {RENEW}"));
        let text = fs::read_to_string(Self::path()).map_err(|error| told(error.to_string()))?;
        Self::parse(&text).map_err(told)
    }

    /// Puts this in the place of the project's.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write(&self) -> io::Result<()> {
        fs::write(Self::path(), self.text())
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Instructions that each piece of the hot path needs. Renewed by\n#   {RENEW}\n# which counts with:\n"
        );
        for (name, value) in &self.conditions.0 {
            let _ = writeln!(text, "{name} = {value}");
        }
        for (name, count) in &self.counts {
            let _ = writeln!(text, "{name:<28} {count:>10.1}");
        }
        text
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut baseline = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once(" = ") {
                let (name, value) = (name.to_owned(), value.to_owned());
                baseline.conditions.0.insert(name, value);
                continue;
            }
            let parts = line.split_once(' ');
            let count = parts.and_then(|(name, count)| Some((name, count.trim().parse().ok()?)));
            let (name, count) = count.ok_or_else(|| format!("no piece and count: {line}"))?;
            baseline.counts.push((name.to_owned(), count));
        }
        Ok(baseline)
    }

    /// How these counts are beside the baseline's.
    pub(crate) fn compare(&self, counts: &[(String, f64)]) -> Verdict {
        let find = |of: &[(String, f64)], wanted: &str| {
            let mut found = of.iter().filter(|(name, _)| name == wanted);
            found.next().map(|(_, count)| *count)
        };
        let mut lines: Vec<Line> = counts
            .iter()
            .map(|(name, now)| Line {
                name: name.clone(),
                before: find(&self.counts, name),
                now: Some(*now),
            })
            .collect();
        let gone = self
            .counts
            .iter()
            .filter(|(name, _)| find(counts, name).is_none());
        lines.extend(gone.map(|(name, before)| Line {
            name: name.clone(),
            before: Some(*before),
            now: None,
        }));
        Verdict(lines)
    }
}

/// One piece, before and now.
struct Line {
    name: String,
    before: Option<f64>,
    now: Option<f64>,
}

impl Line {
    /// What to say of it, and whether it fails the comparison.
    fn judge(&self) -> (String, bool) {
        let (Some(before), Some(now)) = (self.before, self.now) else {
            let what = match self.now {
                Some(_) => "FAILED: not in the baseline",
                None => "FAILED: only in the baseline",
            };
            return (what.to_owned(), true);
        };
        let growth = now / before - 1.0;
        let more = format!("{:+.1} %", 100.0 * growth);
        if growth > GROWTH_MAX && now - before > GROWTH_FREE {
            return (format!("{more}  FAILED: {before:.1} before"), true);
        }
        if growth < -GROWTH_MAX && before - now > GROWTH_FREE {
            return (
                format!("{more}  better: renew the baseline to keep it so"),
                false,
            );
        }
        (more, false)
    }
}

/// All pieces beside the baseline.
pub(crate) struct Verdict(Vec<Line>);

impl Verdict {
    /// Whether no piece needs notably more, and all are known.
    pub(crate) fn passes(&self) -> bool {
        !self.0.iter().any(|line| line.judge().1)
    }

    /// A line for each piece.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.0 {
            let now = line.now.map_or("-".to_owned(), |now| format!("{now:.1}"));
            let _ = writeln!(text, "{:<28} {now:>10}  {}", line.name, line.judge().0);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(counts: &[(&str, f64)]) -> Baseline {
        let conditions = [("compiler".to_owned(), "rustc 1.95.0 (abc)".to_owned())];
        Baseline {
            conditions: Conditions(conditions.into()),
            counts: named(counts),
        }
    }

    fn named(counts: &[(&str, f64)]) -> Vec<(String, f64)> {
        let owned = counts
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count));
        owned.collect()
    }

    fn passes(before: f64, now: f64) -> bool {
        let verdict = baseline(&[("a", before)]).compare(&named(&[("a", now)]));
        verdict.passes()
    }

    #[test]
    fn more_than_five_percent_fails() {
        assert!(passes(1000.0, 1049.0) && passes(1000.0, 500.0));
        assert!(!passes(1000.0, 1051.0));
    }

    #[test]
    fn a_few_instructions_are_no_regression() {
        assert!(passes(40.0, 44.0));
        assert!(!passes(40.0, 44.5));
    }

    #[test]
    fn pieces_that_come_and_go_ask_for_a_new_baseline() {
        let before = baseline(&[("a", 1.0), ("b", 2.0)]);
        assert!(!before.compare(&named(&[("a", 1.0)])).passes());
        let verdict = before.compare(&named(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]));
        assert!(!verdict.passes());
        assert!(verdict.text().contains("not in the baseline"));
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let before = baseline(&[("scan-small", 210.5), ("b", 2.0)]);
        assert_eq!(Baseline::parse(&before.text()), Ok(before));
        assert!(Baseline::parse("scan-small many\n").is_err());
    }

    #[test]
    fn another_compiler_is_told_and_the_same_is_not() {
        let (before, mut now) = (baseline(&[]).conditions, baseline(&[]).conditions);
        assert_eq!(before.difference(&now), None);
        now.0
            .insert("compiler".to_owned(), "rustc 1.96.0".to_owned());
        let told = before.difference(&now).expect("a difference");
        assert!(told.contains("1.95.0") && told.contains("1.96.0"), "{told}");
    }
}
