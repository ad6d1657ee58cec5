//! Errors as text, for where the chain of causes cannot be kept as it is: on the wire, in the store, in one line
//! of a list.

use std::error::Error;

/// What caused an error, outermost first, without what was said just before: transparent errors, and those of
/// some libraries, repeat their cause.
#[must_use]
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !text.is_empty() && !said.ends_with(&text) {
            said.clone_from(&text);
            causes.push(text);
        }
        source = cause.source();
    }
    causes
}

/// The error and all its causes, joined by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        text.push_str(": ");
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn a_chain_says_everything_once() {
        let inner = Said("no such device", None);
        let middle = Said("opening /x: no such device", Some(Box::new(inner)));
        let outer = Said("reading the record", Some(Box::new(middle)));
        assert_eq!(causes(&outer), ["opening /x: no such device"]);
        assert_eq!(chain(&outer), "reading the record: opening /x: no such device");
        assert_eq!(chain(&Said("alone", None)), "alone");
    }
}
