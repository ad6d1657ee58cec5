//! IAM policies: whether somebody may do something.
//!
//! Stricter than AWS: a statement with an element, an operator or a condition key that is not known here allows
//! nothing and denies everything that it could be about.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// One thing that has to be allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// `ec2:RunInstances`
    pub(super) action: String,
    /// Its ARN; `*` for what is about no resource.
    pub(super) resource: String,
    /// Condition keys, in lower case, that the request has.
    pub(super) context: BTreeMap<String, Vec<String>>,
}

impl Need {
    pub(super) fn new(action: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { action: action.into(), resource: resource.into(), context: BTreeMap::new() }
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.context.entry(key.to_lowercase()).or_default().push(value.into());
        self
    }
}

/// Why something may not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// No statement allows it.
    Implicitly,
    /// One denies it.
    Explicitly,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Implicitly => "because no identity-based policy allows",
            Self::Explicitly => "with an explicit deny in an identity-based policy for",
        })
    }
}

/// Condition keys that are understood, as far as their names go; the rest of some is a tag's key.
const KEYS: &[&str] = &[
    "aws:principalarn",
    "aws:requestedregion",
    "aws:tagkeys",
    "ec2:createaction",
    "ec2:region",
    "iam:awsservicename",
    "iam:passedtoservice",
    "s3:delimiter",
    "s3:max-keys",
    "s3:prefix",
];
const TAG_KEYS: &[&str] = &[
    "aws:resourcetag/",
    "aws:requesttag/",
    "ec2:resourcetag/",
    "autoscaling:resourcetag/",
    "iam:resourcetag/",
];

/// Whether a text fits a pattern with `*` and `?`.
pub(super) fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

/// A text, or a list of texts; `None` when it is something else.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Whether these policies, together, allow it.
pub(super) fn decide(policies: &[Value], need: &Need) -> Result<(), Denied> {
    let mut allowed = false;
    for policy in policies {
        let statements = match &policy["Statement"] {
            Value::Array(list) => list.iter().collect(),
            one @ Value::Object(_) => vec![one],
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
        };
        // What is not a policy of today's language allows nothing.
        let known = policy["Version"] == "2012-10-17";
        for statement in statements {
            match (statement["Effect"].as_str(), fits(statement, need)) {
                (Some("Allow"), Fit::Yes) => allowed |= known,
                (Some("Allow"), Fit::No | Fit::Unknown) | (Some("Deny"), Fit::No) => {}
                _ => return Err(Denied::Explicitly),
            }
        }
    }
    if allowed { Ok(()) } else { Err(Denied::Implicitly) }
}

/// Condition keys that statements about it ask for and it does not have.
pub(super) fn missing(policies: &[Value], need: &Need) -> Vec<String> {
    let statements = policies.iter().flat_map(|policy| {
        let statements = &policy["Statement"];
        statements.as_array().map_or_else(|| vec![statements], |list| list.iter().collect())
    });
    let mut keys: Vec<String> = Vec::new();
    for statement in statements {
        let mut bare = statement.clone();
        let Some(elements) = bare.as_object_mut() else { continue };
        let Some(Value::Object(conditions)) = elements.remove("Condition") else { continue };
        if fits(&bare, need) != Fit::Yes {
            continue;
        }
        for key in conditions.values().filter_map(Value::as_object).flat_map(|keys| keys.keys()) {
            if !need.context.contains_key(&key.to_lowercase()) && !keys.contains(key) {
                keys.push(key.clone());
            }
        }
    }
    keys
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Yes,
    No,
    Unknown,
}

fn fits(statement: &Value, need: &Need) -> Fit {
    let Some(elements) = statement.as_object() else { return Fit::Unknown };
    let known = ["Sid", "Effect", "Action", "Resource", "Condition"];
    if elements.keys().any(|key| !known.contains(&key.as_str())) {
        return Fit::Unknown;
    }
    let (Some(actions), Some(resources)) = (texts(&statement["Action"]), texts(&statement["Resource"]))
    else {
        return Fit::Unknown;
    };
    let action = need.action.to_lowercase();
    if !actions.iter().any(|pattern| like(&pattern.to_lowercase(), &action)) {
        return Fit::No;
    }
    // What is about no resource in particular is allowed by `*` only.
    if !resources
        .iter()
        .any(|pattern| *pattern == "*" || (need.resource != "*" && arn_like(pattern, &need.resource)))
    {
        return Fit::No;
    }
    let Some(conditions) = statement.get("Condition") else { return Fit::Yes };
    let Some(conditions) = conditions.as_object() else { return Fit::Unknown };
    let mut all = Fit::Yes;
    for (operator, keys) in conditions {
        let Some(keys) = keys.as_object() else { return Fit::Unknown };
        for (key, wanted) in keys {
            let Some(wanted) = texts(wanted) else { return Fit::Unknown };
            match condition(operator, key, &wanted, need) {
                Fit::Yes => {}
                Fit::No => all = Fit::No,
                Fit::Unknown => return Fit::Unknown,
            }
        }
    }
    all
}

/// Each of the six parts for itself: a star does not reach over colons, except in the last.
fn arn_like(pattern: &str, arn: &str) -> bool {
    let (pattern, arn): (Vec<&str>, Vec<&str>) =
        (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    pattern.len() == arn.len() && pattern.iter().zip(&arn).all(|(pattern, part)| like(pattern, part))
}

fn condition(operator: &str, key: &str, wanted: &[&str], need: &Need) -> Fit {
    let key = key.to_lowercase();
    if !KEYS.contains(&key.as_str()) && !TAG_KEYS.iter().any(|begin| key.starts_with(begin)) {
        return Fit::Unknown;
    }
    // Policy variables are not carried out.
    if wanted.iter().any(|text| text.contains("${")) {
        return Fit::Unknown;
    }
    let yes = |yes: bool| if yes { Fit::Yes } else { Fit::No };
    let told = need.context.get(&key);
    if operator == "Null" {
        return match wanted {
            ["true"] => yes(told.is_none()),
            ["false"] => yes(told.is_some()),
            _ => Fit::Unknown,
        };
    }
    let (every, rest) = match operator.split_once(':') {
        Some(("ForAllValues", rest)) => (true, rest),
        Some(("ForAnyValue", rest)) => (false, rest),
        Some(_) => return Fit::Unknown,
        None => (false, operator),
    };
    let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
    let (matches, negated): (fn(&str, &str) -> bool, bool) = match name {
        "StringEquals" => (|pattern, text| pattern == text, false),
        "StringNotEquals" => (|pattern, text| pattern == text, true),
        "StringEqualsIgnoreCase" => (|pattern, text| pattern.eq_ignore_ascii_case(text), false),
        "StringLike" => (like, false),
        "StringNotLike" => (like, true),
        "ArnEquals" | "ArnLike" => (arn_like, false),
        "ArnNotEquals" | "ArnNotLike" => (arn_like, true),
        _ => return Fit::Unknown,
    };
    let Some(told) = told else { return yes(if_exists || negated || every) };
    let one = |text: &String| wanted.iter().any(|pattern| matches(pattern, text)) != negated;
    yes(if every { told.iter().all(one) } else { told.iter().any(one) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(statement: &Value) -> Vec<Value> {
        vec![json!({ "Version": "2012-10-17", "Statement": [statement] })]
    }

    fn may(statement: &Value, need: &Need) -> bool {
        decide(&of(statement), need).is_ok()
    }

    #[test]
    fn patterns() {
        for (pattern, text) in
            [("*", ""), ("a*c", "abbc"), ("a?c", "abc"), ("*a*", "bab"), ("", ""), ("a**", "a")]
        {
            assert!(like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a?c", "ac"), ("a", "ab"), ("*a", "ab"), ("", "a")] {
            assert!(!like(pattern, text), "{pattern} {text}");
        }
        assert!(arn_like("arn:aws:s3:::b/*", "arn:aws:s3:::b/a:b/c"));
        assert!(!arn_like("arn:*:s3:::b", "arn:aws:s3:eu:1:b"));
        assert!(!arn_like("arn:aws:s3:::b/*", "arn:aws:s3:::b"));
    }

    #[test]
    fn allowed_is_what_a_statement_allows_and_none_denies() {
        let read = Need::new("s3:GetObject", "arn:aws:s3:::b/a/1");
        let allow = json!({ "Effect": "Allow", "Action": ["s3:Get*"], "Resource": "arn:aws:s3:::b/a/*" });
        assert!(may(&allow, &read));
        assert_eq!(decide(&[], &read), Err(Denied::Implicitly));
        assert!(!may(&allow, &Need::new("s3:PutObject", "arn:aws:s3:::b/a/1")));
        assert!(!may(&allow, &Need::new("s3:GetObject", "arn:aws:s3:::b/c")));
        let deny = json!({ "Effect": "Deny", "Action": "*", "Resource": "arn:aws:s3:::b/a/1" });
        let both = [of(&allow), of(&deny)].concat();
        assert_eq!(decide(&both, &read), Err(Denied::Explicitly));
        assert_eq!(decide(&both, &Need::new("s3:GetObject", "arn:aws:s3:::b/a/2")), Ok(()));
        // About nothing in particular: a pattern of names is not enough.
        let look = Need::new("ec2:DescribeInstances", "*");
        assert!(!may(&json!({ "Effect": "Allow", "Action": "*", "Resource": "arn:aws:ec2:*" }), &look));
        assert!(may(&json!({ "Effect": "Allow", "Action": "ec2:describe*", "Resource": "*" }), &look));
        // A date that is not the language's.
        assert!(decide(&[json!({ "Statement": allow })], &read).is_err());
    }

    #[test]
    fn conditions() {
        let with = |condition: Value| json!({ "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition });
        let list = Need::new("s3:ListBucket", "arn:aws:s3:::b").with("s3:prefix", "tasks/1/");
        let read = Need::new("s3:ListBucket", "arn:aws:s3:::b");
        let prefix = with(json!({ "StringLikeIfExists": { "s3:prefix": "tasks/1/*" } }));
        assert!(may(&prefix, &list) && may(&prefix, &read));
        assert!(!may(&prefix, &Need::new("s3:ListBucket", "arn:aws:s3:::b").with("s3:prefix", "tasks/2/")));
        let prefix = with(json!({ "StringLike": { "s3:prefix": ["x", "tasks/1/*"] } }));
        assert!(may(&prefix, &list) && !may(&prefix, &read));
        let tagged = with(json!({ "StringLike": { "aws:ResourceTag/tpi:task": "tpi-*" } }));
        let delete = Need::new("ec2:DeleteVolume", "arn:aws:ec2:r:1:volume/v");
        assert!(!may(&tagged, &delete));
        assert!(may(&tagged, &delete.clone().with("aws:ResourceTag/tpi:task", "tpi-a")));
        assert!(may(&with(json!({ "Null": { "s3:prefix": "true" } })), &read));
        assert!(!may(&with(json!({ "Null": { "s3:prefix": "true" } })), &list));
        let keys = with(json!({ "ForAllValues:StringEquals": { "aws:TagKeys": ["a", "b"] } }));
        let tags =
            |keys: &[&str]| keys.iter().fold(delete.clone(), |need, key| need.with("aws:TagKeys", *key));
        assert!(may(&keys, &tags(&["a", "b"])) && !may(&keys, &tags(&["a", "c"])) && may(&keys, &tags(&[])));
    }

    #[test]
    fn what_a_condition_would_have_to_be_told() {
        let when = json!({ "StringEquals": { "iam:PassedToService": "ec2.amazonaws.com" } });
        let pass = json!({ "Effect": "Allow", "Action": "iam:PassRole", "Resource": "*", "Condition": when });
        let need = Need::new("iam:PassRole", "arn:aws:iam::1:role/r");
        assert_eq!(missing(&of(&pass), &need), ["iam:PassedToService"]);
        assert!(missing(&of(&pass), &need.with("iam:PassedToService", "x")).is_empty());
        assert!(missing(&of(&pass), &Need::new("iam:GetRole", "arn:aws:iam::1:role/r")).is_empty());
    }

    #[test]
    fn what_is_not_known_is_denied() {
        let need = Need::new("s3:GetObject", "arn:aws:s3:::b/a");
        for condition in [
            json!({ "StringLikes": { "s3:prefix": "*" } }),
            json!({ "StringLikeIfExists": { "s3:nobodyKnows": "*" } }),
            json!({ "StringEqualsIfExists": { "s3:prefix": "${aws:username}" } }),
            json!({ "Bool": { "s3:prefix": true } }),
        ] {
            let allow = json!({ "Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition });
            assert_eq!(decide(&of(&allow), &need), Err(Denied::Implicitly), "{condition}");
            let yes = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
            let deny = json!({ "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition });
            assert_eq!(
                decide(&[of(&yes), of(&deny)].concat(), &need),
                Err(Denied::Explicitly),
                "{condition}"
            );
        }
        assert!(!may(&json!({ "Effect": "Allow", "NotAction": "iam:*", "Resource": "*" }), &need));
    }
}
