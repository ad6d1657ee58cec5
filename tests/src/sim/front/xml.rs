//! As much XML as AWS's answers consist of: elements and text.

use anyhow::{Context as _, Result, bail, ensure};

/// An element; text beside children is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    /// As written.
    attributes: String,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
}

impl Element {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(super) fn text(name: &str, text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::new(name) }
    }

    /// One inside the other.
    pub(super) fn with(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn with_all(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut open: Vec<Self> = vec![Self::default()];
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            let last = open.last_mut().context("an end without a beginning")?;
            if last.children.is_empty() {
                last.text.push_str(&decode(before));
            }
            let (tag, after) = after.split_once('>').context("a tag without an end")?;
            rest = after;
            if tag.starts_with(['?', '!']) {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                let mut done = open.pop().context("an end without a beginning")?;
                ensure!(done.name == name.trim(), "<{}> is ended by </{name}>", done.name);
                if !done.children.is_empty() {
                    done.text.clear();
                }
                open.last_mut().context("an end without a beginning")?.children.push(done);
                continue;
            }
            let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
            let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
            let element = Self { attributes: attributes.trim().to_owned(), ..Self::new(name) };
            if empty {
                open.last_mut().context("an end without a beginning")?.children.push(element);
            } else {
                open.push(element);
            }
        }
        let Some(root) = open.pop().filter(|_| open.is_empty()) else { bail!("an element without an end") };
        root.children.into_iter().next().context("no element")
    }

    /// The first child of that name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|c| c.name == name)
    }

    pub(super) fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.children.iter_mut().find(|c| c.name == name)
    }

    /// Text of the element at the end of a path of names.
    pub(super) fn at(&self, path: &[&str]) -> &str {
        let end = path.iter().try_fold(self, |element, name| element.child(name));
        end.map_or("", |element| element.text.as_str())
    }

    /// Every element below that has a child of that name.
    pub(super) fn having(&self, child: &str) -> Vec<&Self> {
        let own = self.child(child).map(|_| self);
        own.into_iter().chain(self.children.iter().flat_map(|c| c.having(child))).collect()
    }

    /// The texts of all elements of that name.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        let own = (self.name == name).then_some(self.text.as_str());
        own.into_iter().chain(self.children.iter().flat_map(|c| c.texts(name))).collect()
    }

    /// Has a look at, and a hand on, every element.
    pub(super) fn visit(&mut self, change: &mut impl FnMut(&mut Self)) {
        change(self);
        for child in &mut self.children {
            child.visit(change);
        }
    }

    /// Sets the text of a child, making it where there is none.
    pub(super) fn set(&mut self, name: &str, text: &str) {
        match self.child_mut(name) {
            Some(child) => text.clone_into(&mut child.text),
            None => self.children.push(Self::text(name, text)),
        }
    }

    fn write(&self, out: &mut String) {
        let space = if self.attributes.is_empty() { "" } else { " " };
        out.extend(["<", &self.name, space, &self.attributes, ">"]);
        out.push_str(&encode(&self.text));
        for child in &self.children {
            child.write(out);
        }
        out.extend(["</", &self.name, ">"]);
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = String::new();
        self.write(&mut out);
        f.write_str(&out)
    }
}

pub(super) fn encode(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn decode(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let Some((name, after)) = after.split_once(';') else {
            out.push('&');
            rest = after;
            continue;
        };
        let number = |digits: &str| match digits.strip_prefix('x') {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        match name {
            "lt" => out.push('<'),
            "gt" => out.push('>'),
            "amp" => out.push('&'),
            "quot" => out.push('"'),
            "apos" => out.push('\''),
            other => out.extend(other.strip_prefix('#').and_then(number).and_then(char::from_u32)),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again() -> Result<()> {
        let text = "<a x=\"1\"><b>1 &lt; 2 &amp; 3</b><c></c><d><b>4</b></d></a>";
        let element = Element::parse(&format!("<?xml version=\"1.0\"?>\n{text}\n"))?;
        assert_eq!(element.to_string(), text);
        assert_eq!(element.at(&["b"]), "1 < 2 & 3");
        assert_eq!(element.texts("b"), ["1 < 2 & 3", "4"]);
        assert_eq!(element.having("b").len(), 2);
        assert_eq!(Element::parse("<a><b/>&#65;</a>")?.children.len(), 1);
        for bad in ["", "<a>", "<a></b>", "</a>", "<a"] {
            assert!(Element::parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
