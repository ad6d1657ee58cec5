//! Functions of texts.

use super::{ANY, Args, Body::Pure, Entry, Outcome, Value, Wrong, at_most, format, text};

pub(super) const TABLE: &[Entry] = &[
    ("chomp", 1, 1, Pure(|a| text(a.text(0)?.trim_end_matches(['\n', '\r']).to_owned()))),
    ("endswith", 2, 2, Pure(|a| Ok(Value::Bool(a.text(0)?.ends_with(&*a.text(1)?))))),
    ("format", 1, ANY, Pure(|a| text(format::format(&a.text(0)?, a.0.get(1..).unwrap_or_default())?))),
    ("formatlist", 1, ANY, Pure(format::list)),
    ("indent", 2, 2, Pure(indent)),
    ("join", 1, ANY, Pure(join)),
    ("lower", 1, 1, Pure(|a| text(a.text(0)?.to_lowercase()))),
    ("replace", 3, 3, Pure(replace)),
    ("split", 2, 2, Pure(split)),
    ("startswith", 2, 2, Pure(|a| Ok(Value::Bool(a.text(0)?.starts_with(&*a.text(1)?))))),
    ("strcontains", 2, 2, Pure(|a| Ok(Value::Bool(a.text(0)?.contains(&*a.text(1)?))))),
    ("strrev", 1, 1, Pure(|a| text(a.text(0)?.chars().rev().collect()))),
    ("substr", 3, 3, Pure(substr)),
    ("title", 1, 1, Pure(title)),
    (
        "trim",
        2,
        2,
        Pure(|a| {
            let cut = a.text(1)?;
            text(a.text(0)?.trim_matches(|c| cut.contains(c)).to_owned())
        }),
    ),
    (
        "trimprefix",
        2,
        2,
        Pure(|a| {
            let (of, prefix) = (a.text(0)?, a.text(1)?);
            text(of.strip_prefix(&*prefix).unwrap_or(&of).to_owned())
        }),
    ),
    ("trimspace", 1, 1, Pure(|a| text(a.text(0)?.trim().to_owned()))),
    (
        "trimsuffix",
        2,
        2,
        Pure(|a| {
            let (of, suffix) = (a.text(0)?, a.text(1)?);
            text(of.strip_suffix(&*suffix).unwrap_or(&of).to_owned())
        }),
    ),
    ("upper", 1, 1, Pure(|a| text(a.text(0)?.to_uppercase()))),
];

fn indent(a: Args<'_>) -> Outcome {
    let (width, of) = (a.index(0)?, a.text(1)?);
    at_most(width.checked_mul(of.matches('\n').count() + 1).and_then(|more| more.checked_add(of.len())))?;
    text(of.replace('\n', &format!("\n{}", " ".repeat(width))))
}

fn join(a: Args<'_>) -> Outcome {
    let separator = a.text(0)?;
    let mut words = Vec::new();
    for n in 1..a.len() {
        words.extend(a.texts(n)?);
    }
    let length: usize = words.iter().map(|word| word.len()).sum();
    at_most(separator.len().checked_mul(words.len()).and_then(|more| more.checked_add(length)))?;
    text(words.join(&*separator))
}

fn replace(a: Args<'_>) -> Outcome {
    let (of, from, to) = (a.text(0)?, a.text(1)?, a.text(2)?);
    if from.len() > 1 && from.starts_with('/') && from.ends_with('/') {
        return Err(Wrong::of(1, "is a regular expression, which is not supported here"));
    }
    let times = of.matches(&*from).count();
    at_most(times.checked_mul(to.len()).and_then(|more| more.checked_add(of.len())))?;
    text(of.replace(&*from, &to))
}

fn split(a: Args<'_>) -> Outcome {
    let (separator, of) = (a.text(0)?, a.text(1)?);
    let words: Vec<Value> = if separator.is_empty() {
        of.chars().map(|c| Value::string(c.to_string())).collect()
    } else {
        of.split(&*separator).map(Value::string).collect()
    };
    Ok(Value::list(words))
}

fn substr(a: Args<'_>) -> Outcome {
    let (of, offset, length) = (a.text(0)?, a.whole(1)?, a.whole(2)?);
    let count = i64::try_from(of.chars().count()).unwrap_or(i64::MAX);
    let start = if offset < 0 { (count + offset).max(0) } else { offset };
    let length = if length < 0 { count } else { length };
    let skip = usize::try_from(start).unwrap_or(usize::MAX);
    text(of.chars().skip(skip).take(usize::try_from(length).unwrap_or(usize::MAX)).collect())
}

fn title(a: Args<'_>) -> Outcome {
    let mut made = String::new();
    let mut begins = true;
    for c in a.text(0)?.chars() {
        if begins {
            made.extend(c.to_uppercase());
        } else {
            made.push(c);
        }
        begins = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    text(made)
}
