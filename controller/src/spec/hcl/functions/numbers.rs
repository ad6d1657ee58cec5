//! Functions of numbers.

use super::{ANY, Args, Body::Pure, Entry, Number, Outcome, Value, Wrong};

pub(super) const TABLE: &[Entry] = &[
    ("abs", 1, 1, Pure(|a| Ok(Value::Number(a.number(0)?.abs())))),
    ("ceil", 1, 1, Pure(|a| Ok(Value::Number(a.number(0)?.ceil()?)))),
    ("floor", 1, 1, Pure(|a| Ok(Value::Number(a.number(0)?.floor()?)))),
    ("max", 1, ANY, Pure(|a| Ok(Value::Number(all(a)?.into_iter().max().unwrap_or_else(zero))))),
    ("min", 1, ANY, Pure(|a| Ok(Value::Number(all(a)?.into_iter().min().unwrap_or_else(zero))))),
    ("parseint", 2, 2, Pure(parseint)),
    ("pow", 2, 2, Pure(pow)),
    ("signum", 1, 1, Pure(signum)),
    ("sum", 1, 1, Pure(sum)),
];

fn zero() -> Number {
    Number::from(0u32)
}

fn all(a: Args<'_>) -> Result<Vec<Number>, Wrong> {
    (0..a.len()).map(|n| a.number(n)).collect()
}

fn parseint(a: Args<'_>) -> Outcome {
    let (text, base) = (a.text(0)?, a.whole(1)?);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| Wrong::of(1, "is not a base from 2 to 36"))?;
    let number = i64::from_str_radix(&text, base)
        .map_err(|_| Wrong::of(0, format!("is not a whole number of base {base} and of a usual size")))?;
    Ok(Value::Number(number.to_string().parse()?))
}

fn pow(a: Args<'_>) -> Outcome {
    let (base, exponent) = (a.number(0)?, a.whole(1)?);
    let magnitude = u32::try_from(exponent.unsigned_abs()).map_err(|_| Wrong::of(1, "is too large"))?;
    let power = base.pow(magnitude)?;
    Ok(Value::Number(if exponent < 0 { Number::from(1u32).div(&power)? } else { power }))
}

fn signum(a: Args<'_>) -> Outcome {
    let number = a.number(0)?;
    let one = Number::from(1u32);
    Ok(Value::Number(match (number.is_zero(), number.is_negative()) {
        (true, _) => number,
        (false, true) => one.neg(),
        (false, false) => one,
    }))
}

fn sum(a: Args<'_>) -> Outcome {
    let items = a.items(0)?;
    if items.is_empty() {
        return Err(Wrong::of(0, "has no elements"));
    }
    let mut sum = zero();
    for n in all(Args(items)).map_err(|wrong| Wrong::of(0, format!("has an element that {}", wrong.cause)))? {
        sum = sum.add(&n)?;
    }
    Ok(Value::Number(sum))
}
