//! Bytes of scripts on their way to a person.
//!
//! A pipe or a file gets a single slot's bytes as they are. A terminal gets whole lines, in which carriage
//! returns have done their work: of a progress bar that redraws itself a thousand times only the last state
//! stays on the screen. Lines of several slots are told apart by a prefix.

/// Longest line kept in memory while its end has not come; a longer one is cut, on the screen only.
const LONGEST: usize = 64 * 1024;

/// What a carriage return does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returns {
    /// Starts the line over, as a terminal would.
    Collapse,
    /// Stays where it is.
    Keep,
}

/// Splits the bytes of one stream into lines; see the module's documentation.
#[derive(Debug)]
pub struct Lines {
    returns: Returns,
    line: Vec<u8>,
    /// A carriage return came last: it means nothing before a line feed, and starts the line over before
    /// anything else.
    returned: bool,
}

impl Lines {
    /// At the beginning of a line.
    #[must_use]
    pub fn new(returns: Returns) -> Self {
        Self { returns, line: Vec::new(), returned: false }
    }

    /// Takes bytes in and gives whole lines, without their ends, to `emit`.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        while let Some(&first) = bytes.first() {
            match first {
                b'\n' => {
                    emit(&self.line);
                    self.line.clear();
                    self.returned = false;
                    bytes = bytes.get(1..).unwrap_or_default();
                }
                b'\r' if self.returns == Returns::Collapse => {
                    self.returned = true;
                    bytes = bytes.get(1..).unwrap_or_default();
                }
                _ => {
                    if std::mem::take(&mut self.returned) {
                        self.line.clear();
                    }
                    let end = bytes
                        .iter()
                        .position(|&byte| {
                            byte == b'\n' || (byte == b'\r' && self.returns == Returns::Collapse)
                        })
                        .unwrap_or(bytes.len());
                    let room = LONGEST.saturating_sub(self.line.len());
                    let (text, rest) = bytes.split_at(end.min(room));
                    self.line.extend_from_slice(text);
                    bytes = rest;
                    if self.line.len() >= LONGEST {
                        emit(&self.line);
                        self.line.clear();
                    }
                }
            }
        }
    }

    /// What there is of the line whose end has not come.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.line
    }

    /// The end of the stream: a last line without an end is one nevertheless.
    pub fn finish(&mut self, emit: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            emit(&self.line);
        }
        self.line.clear();
        self.returned = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(returns: Returns, pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(returns);
        let mut all = Vec::new();
        for piece in pieces {
            lines.push(piece, |line| all.push(String::from_utf8_lossy(line).into_owned()));
        }
        lines.finish(|line| all.push(String::from_utf8_lossy(line).into_owned()));
        all
    }

    #[test]
    fn only_the_last_state_of_a_progress_bar_stays() {
        assert_eq!(lines(Returns::Collapse, &[b"  1%\r 50%\r100%\ndone\n"]), ["100%", "done"]);
        assert_eq!(lines(Returns::Collapse, &[b"\r1%", b"\r2%", b"\r"]), ["2%"]);
        assert_eq!(lines(Returns::Keep, &[b"1%\r2%\n"]), ["1%\r2%"]);
    }

    #[test]
    fn line_ends_of_windows_are_line_ends() {
        assert_eq!(lines(Returns::Collapse, &[b"one\r", b"\ntwo\r\n\r\n"]), ["one", "two", ""]);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let long = vec![b'x'; LONGEST + 10];
        let cut = lines(Returns::Collapse, &[&long]);
        assert_eq!(cut.iter().map(String::len).collect::<Vec<_>>(), [LONGEST, 10]);
    }

    proptest::proptest! {
        #[test]
        fn pieces_do_not_matter(bytes: Vec<u8>, cuts: Vec<proptest::sample::Index>) {
            for returns in [Returns::Collapse, Returns::Keep] {
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                cuts.extend([0, bytes.len()]);
                cuts.sort_unstable();
                let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
                proptest::prop_assert_eq!(lines(returns, &pieces), lines(returns, &[&bytes]));
            }
        }

        #[test]
        fn nothing_is_changed_where_nothing_returns(text in "[a-z\n]{0,200}") {
            let expected: Vec<String> = text.lines().map(str::to_owned).collect();
            proptest::prop_assert_eq!(lines(Returns::Collapse, &[text.as_bytes()]), expected);
        }

        #[test]
        fn no_return_reaches_the_screen(text in "[a-c\r\n]{0,200}") {
            for line in lines(Returns::Collapse, &[text.as_bytes()]) {
                proptest::prop_assert!(!line.contains('\r'));
            }
        }
    }
}
