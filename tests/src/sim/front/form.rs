//! Parameters of the query protocol: names with dots, lists by number.

use std::collections::BTreeMap;

use super::xml::Element;
use crate::instance::sigv4::decode;

/// Parameters by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Form(pub(super) BTreeMap<String, String>);

impl Form {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let plain = |text: &str| decode(&text.replace('+', " "));
        Self(pairs.map(|(name, value)| (plain(name), plain(value))).collect())
    }

    pub(super) fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(super) fn encoded(&self) -> String {
        let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pairs = self.0.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
        pairs.collect::<Vec<_>>().join("&")
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let _old = self.0.insert(name.to_owned(), value.into());
    }

    /// What begins with that name and a dot, without them.
    pub(super) fn below(&self, name: &str) -> Self {
        let rest = |(key, value): (&String, &String)| {
            Some((key.strip_prefix(name)?.strip_prefix('.')?.to_owned(), value.clone()))
        };
        Self(self.0.iter().filter_map(rest).collect())
    }

    /// The members of a list: of plain ones the value is under an empty name.
    pub(super) fn list(&self, name: &str) -> Vec<Self> {
        let all = self.below(name);
        let members = all.below("member");
        let all = if members.0.is_empty() { all } else { members };
        let mut found: BTreeMap<u32, Self> = BTreeMap::new();
        for (key, value) in all.0 {
            let (number, rest) = key.split_once('.').unwrap_or((&key, ""));
            if let Ok(number) = number.parse() {
                let _none = found.entry(number).or_default().0.insert(rest.to_owned(), value);
            }
        }
        found.into_values().collect()
    }

    /// A list of plain values.
    pub(super) fn values(&self, name: &str) -> Vec<String> {
        self.list(name).into_iter().filter_map(|mut member| member.0.remove("")).collect()
    }

    /// `Filter.N` of EC2.
    pub(super) fn filters(&self) -> BTreeMap<String, Vec<String>> {
        let pairs = self.list("Filter").into_iter();
        pairs.map(|filter| (filter.text("Name").to_owned(), filter.values("Value"))).collect()
    }

    /// The same as elements, as the query protocol answers with it.
    pub(super) fn elements(&self) -> Vec<Element> {
        let mut names: Vec<&str> = Vec::new();
        for key in self.0.keys() {
            let name = key.split_once('.').map_or(key.as_str(), |(name, _)| name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
            .into_iter()
            .map(|name| {
                if let Some(value) = self.get(name) {
                    return Element::text(name, value);
                }
                let members = self.list(name);
                if members.is_empty() {
                    return Element::new(name).with_all(self.below(name).elements());
                }
                let member = |member: Self| match member.get("") {
                    Some(value) => Element::text("member", value),
                    None => Element::new("member").with_all(member.elements()),
                };
                Element::new(name).with_all(members.into_iter().map(member))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_are_trees() {
        let form = Form::parse("P.T.Name=x+y&P.O.member.1.Type=a&P.O.member.2.Type=b%2Bc&L.1=u&L.10=w&L.2=v");
        assert_eq!(form.values("L"), ["u", "v", "w"]);
        let told: String = form.elements().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            "<L><member>u</member><member>v</member><member>w</member></L><P><O><member><Type>a</Type></member>\
             <member><Type>b+c</Type></member></O><T><Name>x y</Name></T></P>"
        );
        assert_eq!(Form::parse(&form.encoded()), form);
    }
}
