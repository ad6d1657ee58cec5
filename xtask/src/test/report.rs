//! What `cargo test` said, counted, and the end of the whole run.

use std::collections::BTreeSet;
use std::process::ExitCode;

/// Reads the output of `cargo test -- --show-output` line by line.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    /// Names, with the test binary they are in.
    failures: BTreeSet<String>,
    /// `#[ignore]`d ones, which nothing runs.
    ignored: usize,
    /// Tests that passed because they had nothing to run against, and what they said.
    skipped: BTreeSet<String>,
    skipping_tests: usize,
    /// Binary under way, as cargo names it.
    binary: String,
    part: Part,
    test_said_skipped: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Part {
    #[default]
    Running,
    /// The output of tests that passed.
    Successes,
    /// The output of tests that failed.
    Failures,
}

impl Report {
    /// The line as it should be shown, if it should be.
    pub(super) fn line<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let text = line.trim();
        if let Some(name) = text.strip_prefix("Running ").or_else(|| text.strip_prefix("Doc-tests ")) {
            self.binary = name.split(" (").next().unwrap_or(name).to_owned();
            self.part = Part::Running;
            return Some(line);
        }
        if let Some(counts) = text.strip_prefix("test result: ") {
            self.part = Part::Running;
            let count = |what: &str| {
                let words = counts.split([';', '.']).map(str::trim);
                words.filter_map(|word| word.strip_suffix(what)?.trim().parse::<usize>().ok()).sum::<usize>()
            };
            self.passed += count("passed");
            self.ignored += count("ignored");
            return Some(line);
        }
        match line {
            "successes:" => {
                self.part = Part::Successes;
                return None;
            }
            "failures:" => {
                self.part = Part::Failures;
                return Some(line);
            }
            _ => {}
        }
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.test_said_skipped = false;
        }
        match self.part {
            Part::Running => {
                if let Some(name) =
                    text.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
                {
                    self.failures.insert(format!("{}: {name}", self.binary));
                }
                // A line per test that passed is in the log; here it would bury the others.
                (!text.is_empty() && !text.ends_with(" ... ok")).then_some(line)
            }
            Part::Failures => Some(line),
            Part::Successes => {
                let said = text.find("SKIPPED: ").map(|at| &text[at + "SKIPPED: ".len()..])?;
                self.skipped.insert(said.to_owned());
                if !self.test_said_skipped {
                    self.test_said_skipped = true;
                    self.skipping_tests += 1;
                }
                Some(line)
            }
        }
    }

    pub(super) fn failed(&self) -> usize {
        self.failures.len()
    }
}

#[derive(Default)]
pub(crate) struct Summary {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    skipped_tests: usize,
}

#[expect(clippy::print_stdout, reason = "a program for people: it prints")]
impl Summary {
    pub(super) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(super) fn fail(&mut self, what: &str, why: &str) {
        println!("FAILED: {what}: {why}");
        self.failed.push(format!("{what}: {why}"));
    }

    pub(super) fn skip(&mut self, what: &str, why: &str) {
        println!("SKIPPED: {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }

    pub(super) fn tests(&mut self, report: Report) {
        self.passed += report.passed.saturating_sub(report.skipping_tests);
        self.failed.extend(report.failures);
        self.skipped_tests += report.skipping_tests + report.ignored;
        self.skipped.extend(report.skipped);
        if report.ignored > 0 {
            self.skipped.push(format!("{} tests marked #[ignore]", report.ignored));
        }
    }

    /// Everything again that is not well, and the line that counts.
    pub(super) fn print(self) -> ExitCode {
        for skipped in &self.skipped {
            println!("SKIPPED: {skipped}");
        }
        for failed in &self.failed {
            println!("FAILED: {failed}");
        }
        // A part of the set-up that is missing counts by the tests that needed it, once they say so.
        let skipped = self.skipped_tests.max(self.skipped.len());
        println!("{} passed, {} failed, {skipped} skipped", self.passed, self.failed.len());
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/store-1)

running 4 tests
test s3 ... ok
test good ... ok
test bad ... FAILED
test slow ... ignored

successes:

---- s3 stdout ----
SKIPPED: no S3 emulator
SKIPPED: and no network

---- good stdout ----
chatter

successes:
    s3
    good

failures:

---- bad stdout ----
assertion failed

failures:
    bad

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn counts_and_keeps_what_matters() {
        let mut report = Report::default();
        let shown: Vec<_> = OUTPUT.lines().filter_map(|line| report.line(line)).collect();
        assert_eq!((report.passed, report.failed(), report.ignored, report.skipping_tests), (2, 1, 1, 1));
        assert_eq!(report.failures.first().map(String::as_str), Some("unittests src/lib.rs: bad"));
        assert_eq!(report.skipped.len(), 2);
        assert!(shown.contains(&"assertion failed") && shown.contains(&"test bad ... FAILED"), "{shown:?}");
        assert!(!shown.contains(&"chatter") && !shown.contains(&"test good ... ok"), "{shown:?}");
    }
}
