//! `format`: the verbs of Go that Terraform has, as far as they are of use here.

use super::{Args, ELEMENTS_MAX, Outcome, TEXT_MAX, Type, Value, Wrong};
use crate::spec::hcl::number::Number;

/// Widths and precisions beyond this are mistakes.
const WIDTH_MAX: usize = 1024;

/// `%` and what follows it.
#[derive(Debug, Default)]
struct Verb {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    width: usize,
    precision: Option<usize>,
    argument: Option<usize>,
}

pub(super) fn format(pattern: &str, args: &[Value]) -> Result<String, Wrong> {
    let mut made = String::new();
    let mut rest = pattern.chars().peekable();
    let mut next = 0;
    let mut explicit = false;
    while let Some(c) = rest.next() {
        if c != '%' {
            made.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = rest.next_if(|c| "-0+ #".contains(*c)) {
            match flag {
                '-' => verb.left = true,
                '0' => verb.zeros = true,
                '+' => verb.plus = true,
                ' ' => verb.space = true,
                _ => return Err(Wrong::of(0, "has the flag #, which is not supported here")),
            }
        }
        let mut digits = || {
            let mut text = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                text.push(digit);
            }
            let number = text.parse::<usize>().unwrap_or(if text.is_empty() { 0 } else { usize::MAX });
            if number > WIDTH_MAX { Err(Wrong::of(0, "has a width that is too large")) } else { Ok(number) }
        };
        verb.width = digits()?;
        if rest.next_if_eq(&'.').is_some() {
            let mut digits = || {
                let mut text = String::new();
                while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                    text.push(digit);
                }
                text.parse::<usize>().unwrap_or_default()
            };
            verb.precision = Some(digits().min(WIDTH_MAX));
        }
        if rest.next_if_eq(&'[').is_some() {
            let mut text = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                text.push(digit);
            }
            let number = text.parse::<usize>().ok().filter(|n| *n > 0);
            verb.argument = number.map(|n| n - 1);
            if rest.next() != Some(']') || number.is_none() {
                return Err(Wrong::of(0, "has a number of an argument that is not one"));
            }
            explicit = true;
        }
        let Some(letter) = rest.next() else {
            return Err(Wrong::of(0, "ends within a verb"));
        };
        if letter == '%' {
            made.push('%');
            continue;
        }
        let n = verb.argument.unwrap_or(next);
        next = n + 1;
        let Some(value) = args.get(n) else {
            return Err(Wrong::of(0, format!("asks for argument {}, of {}", n + 1, args.len())));
        };
        let shown = one(letter, &verb, value, n + 1)?;
        made.push_str(&padded(&shown, &verb, letter));
        if made.len() > TEXT_MAX {
            return Err(Wrong::new("makes a text that is too long"));
        }
    }
    if !explicit && next < args.len() {
        return Err(Wrong::new(format!("has {} arguments, of which {next} are used", args.len())));
    }
    Ok(made)
}

fn one(letter: char, verb: &Verb, value: &Value, n: usize) -> Result<String, Wrong> {
    let number = || match value.convert(&Type::Number) {
        Ok(Value::Number(number)) => Ok(number),
        Ok(_) | Err(_) => Err(Wrong::of(n, format!("is {}, not a number", value.kind()))),
    };
    let signed = |text: String| match (verb.plus, verb.space, text.starts_with('-')) {
        (true, _, false) => format!("+{text}"),
        (false, true, false) => format!(" {text}"),
        _ => text,
    };
    let cut = |text: String| match verb.precision {
        Some(length) => text.chars().take(length).collect(),
        None => text,
    };
    let text = || match value.to_text() {
        Some(text) => Ok(text.to_string()),
        None => Err(Wrong::of(n, format!("is {}, which is no text", value.kind()))),
    };
    match letter {
        's' => Ok(cut(text()?)),
        'q' => Ok(Value::string(text()?).to_json()),
        'v' => match (value, value.to_text()) {
            (Value::Number(_), Some(text)) => Ok(signed(text.to_string())),
            (_, Some(text)) => Ok(cut(text.to_string())),
            (_, None) => Ok(value.to_json()),
        },
        't' => match value.convert(&Type::Bool) {
            Ok(Value::Bool(b)) => Ok(b.to_string()),
            Ok(_) | Err(_) => Err(Wrong::of(n, format!("is {}, not a bool", value.kind()))),
        },
        'd' => {
            let number = number()?;
            if !number.is_whole() {
                return Err(Wrong::of(n, "is not a whole number"));
            }
            Ok(signed(number.to_string()))
        }
        'x' | 'X' | 'o' | 'b' => {
            let number =
                number()?.to_i64().ok_or_else(|| Wrong::of(n, "is not a whole number of a usual size"))?;
            let magnitude = number.unsigned_abs();
            let digits = match letter {
                'x' => format!("{magnitude:x}"),
                'X' => format!("{magnitude:X}"),
                'o' => format!("{magnitude:o}"),
                _ => format!("{magnitude:b}"),
            };
            Ok(signed(if number < 0 { format!("-{digits}") } else { digits }))
        }
        'f' => Ok(signed(fixed(&number()?, verb.precision.unwrap_or(6))?)),
        other => Err(Wrong::of(0, format!("has the verb %{other}, which is not supported here"))),
    }
}

/// With so many digits after the point; halves to even.
fn fixed(number: &Number, digits: usize) -> Result<String, Wrong> {
    let ten = Number::from(10u32).pow(u32::try_from(digits).unwrap_or(u32::MAX))?;
    let scaled = number.abs().mul(&ten)?;
    let mut whole = scaled.trunc()?;
    let rest = scaled.sub(&whole)?;
    let half: Number = "0.5".parse()?;
    let odd = !whole.rem(&Number::from(2u32))?.is_zero();
    if rest > half || (rest == half && odd) {
        whole = whole.add(&Number::from(1u32))?;
    }
    let text = whole.to_string();
    let text = format!("{}{text}", "0".repeat((digits + 1).saturating_sub(text.len())));
    let (before, after) = text.split_at(text.len() - digits);
    let sign = if number.is_negative() { "-" } else { "" };
    Ok(if digits == 0 { format!("{sign}{before}") } else { format!("{sign}{before}.{after}") })
}

fn padded(text: &str, verb: &Verb, letter: char) -> String {
    let missing = verb.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return text.to_owned();
    }
    if verb.left {
        return format!("{text}{}", " ".repeat(missing));
    }
    if verb.zeros && (letter != 'v' || text.parse::<Number>().is_ok()) {
        let (sign, rest) = text.split_at(usize::from(text.starts_with(['-', '+'])));
        return format!("{sign}{}{rest}", "0".repeat(missing));
    }
    format!("{}{text}", " ".repeat(missing))
}

/// `formatlist`: once for each element; what is no list is the same for all.
pub(super) fn list(a: Args<'_>) -> Outcome {
    let pattern = a.text(0)?;
    let args = a.0.get(1..).unwrap_or_default();
    let mut length = None;
    for (n, arg) in args.iter().enumerate() {
        let Some(items) = arg.items() else { continue };
        if length.is_some_and(|length| length != items.len()) {
            return Err(Wrong::of(n + 1, format!("has {} elements, unlike the list before", items.len())));
        }
        length = Some(items.len());
    }
    let length = length.unwrap_or(1);
    if length > ELEMENTS_MAX {
        return Err(Wrong::new("makes too many elements"));
    }
    let mut made = Vec::with_capacity(length);
    let mut bytes = 0;
    for i in 0..length {
        let row: Vec<Value> = args
            .iter()
            .map(|arg| arg.items().map_or(arg, |items| items.get(i).unwrap_or(&Value::Null)).clone())
            .collect();
        let text = format(&pattern, &row)?;
        bytes += text.len();
        if bytes > TEXT_MAX {
            return Err(Wrong::new("makes texts that are too long"));
        }
        made.push(Value::string(text));
    }
    Ok(Value::list(made))
}
