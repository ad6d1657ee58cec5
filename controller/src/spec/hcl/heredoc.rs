//! Ends of heredocs. Terraform ends one at a line that is nothing but the delimiter; the parser at one that begins
//! with it, so that `END { print n }` in an awk script would end a heredoc of `END`.

/// Delimiters without an end after which no more are looked for: a file that can be parsed has none.
const OPEN_MAX: usize = 100;

/// Parses a text, and where that fails once more as [`unambiguous`] has it; the first failure is what is told.
pub(super) fn parsed<T, E>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<T, E> {
    parse(text).or_else(|error| parse(&unambiguous(text)).map_err(|_| error))
}

/// The text as the parser is given it: delimiters that it would find too early are replaced by others of the same
/// length, so that every place stays what it is. Texts of heredocs are read from the original.
fn unambiguous(text: &str) -> String {
    let mut made = text.to_owned();
    let mut from = 0;
    let mut open = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find("<<")) {
        let start = from + at + 2;
        from = start;
        let Some((begin, delimiter, body)) = opening(text, start) else { continue };
        let Some(end) = closing(text, body, delimiter) else {
            open += 1;
            if open > OPEN_MAX {
                break;
            }
            continue;
        };
        from = end;
        let within = text.get(body..end).unwrap_or_default();
        let begins = |line: &str, word: &str| {
            line.trim_start().strip_prefix(word).is_some_and(|rest| !rest.starts_with(is_word))
        };
        if !within.lines().any(|line| begins(line, delimiter)) {
            continue;
        }
        let free = ('A'..='Z').map(|letter| letter.to_string().repeat(delimiter.len()));
        let Some(other) = free.into_iter().find(|word| !within.lines().any(|line| begins(line, word))) else {
            continue;
        };
        for place in [begin, end] {
            made.replace_range(place..place + delimiter.len(), &other);
        }
    }
    made
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Where the delimiter begins, itself, and where the text after its line begins.
fn opening(text: &str, after: usize) -> Option<(usize, &str, usize)> {
    let rest = text.get(after..)?;
    let begin = if rest.starts_with('-') { after + 1 } else { after };
    let (line, _) = text.get(begin..)?.split_once('\n')?;
    let delimiter = line.strip_suffix('\r').unwrap_or(line);
    // One of other letters has another length in bytes than its replacement.
    let is_one = delimiter.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && delimiter.chars().all(|c| c.is_ascii() && is_word(c));
    is_one.then_some((begin, delimiter, begin + line.len() + 1))
}

/// Where the delimiter stands that ends it.
fn closing(text: &str, body: usize, delimiter: &str) -> Option<usize> {
    let mut at = body;
    for line in text.get(body..)?.split_inclusive('\n') {
        if line.trim() == delimiter {
            return Some(at + line.len() - line.trim_start().len());
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ambiguous_is_replaced() {
        let plain = "a = <<-END\n  x\n  END\n";
        assert_eq!(unambiguous(plain), plain);
        let awk = "a = <<-END\n  awk '\n  END { x }'\n  ENDING\n  END\nb = <<END\nEND\n";
        assert_eq!(unambiguous(awk), "a = <<-AAA\n  awk '\n  END { x }'\n  ENDING\n  AAA\nb = <<END\nEND\n");
        let taken = "a = <<E\nE x\nA\nE\n";
        assert_eq!(unambiguous(taken), "a = <<B\nE x\nA\nB\n");
    }

    proptest::proptest! {
        #[test]
        fn places_stay(text in "(<<|<<-|END|E|A| x|\n|\r\n|é| ){0,40}") {
            proptest::prop_assert_eq!(unambiguous(&text).len(), text.len());
        }
    }
}
