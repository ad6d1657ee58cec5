//! Functions of lists, sets and maps, and conversions.

use std::collections::{BTreeMap, BTreeSet};

use super::{ANY, Args, Body, Body::Pure, Done, ELEMENTS_MAX, Entry, Number, Outcome, Type, Value, Wrong};

pub(super) const TABLE: &[Entry] = &[
    ("alltrue", 1, 1, Pure(|a| Ok(Value::Bool(truths(a)?.iter().all(|b| *b))))),
    ("anytrue", 1, 1, Pure(|a| Ok(Value::Bool(truths(a)?.iter().any(|b| *b))))),
    ("chunklist", 2, 2, Pure(chunklist)),
    ("coalesce", 1, ANY, Pure(coalesce)),
    ("coalescelist", 1, ANY, Pure(coalescelist)),
    ("compact", 1, 1, Pure(compact)),
    ("concat", 1, ANY, Pure(concat)),
    ("contains", 2, 2, Pure(|a| Ok(Value::Bool(a.items(0)?.iter().any(|item| item.is(a.get(1))))))),
    ("distinct", 1, 1, Pure(distinct)),
    ("element", 2, 2, Pure(element)),
    ("flatten", 1, 1, Pure(|a| Ok(Value::tuple(flat(a.items(0)?))))),
    ("index", 2, 2, Pure(index)),
    ("keys", 1, 1, Pure(keys)),
    ("length", 1, 1, Pure(length)),
    ("lookup", 2, 3, Pure(lookup)),
    ("merge", 0, ANY, Pure(merge)),
    ("nonsensitive", 1, 1, Pure(|a| Ok(a.get(0).clone()))),
    ("one", 1, 1, Pure(one)),
    ("range", 1, 3, Pure(range)),
    ("reverse", 1, 1, Pure(|a| Ok(Value::tuple(a.items(0)?.iter().rev().cloned().collect())))),
    ("sensitive", 1, 1, Body::Reading(|a, _| Ok(Done::Secret(a.get(0).clone())))),
    ("setintersection", 1, ANY, Pure(|a| sets(a, |one, other| one.intersection(other).cloned().collect()))),
    ("setproduct", 1, ANY, Pure(setproduct)),
    ("setsubtract", 2, 2, Pure(|a| sets(a, |one, other| one.difference(other).cloned().collect()))),
    ("setunion", 1, ANY, Pure(|a| sets(a, |one, other| one.union(other).cloned().collect()))),
    ("slice", 3, 3, Pure(slice)),
    ("sort", 1, 1, Pure(sort)),
    ("tobool", 1, 1, Pure(|a| convert(a, &Type::Bool))),
    ("tolist", 1, 1, Pure(|a| convert(a, &Type::List(Box::new(Type::Any))))),
    ("tomap", 1, 1, Pure(|a| convert(a, &Type::Map(Box::new(Type::Any))))),
    ("tonumber", 1, 1, Pure(|a| convert(a, &Type::Number))),
    ("toset", 1, 1, Pure(|a| convert(a, &Type::Set(Box::new(Type::Any))))),
    ("tostring", 1, 1, Pure(|a| convert(a, &Type::String))),
    ("transpose", 1, 1, Pure(transpose)),
    ("values", 1, 1, Pure(values)),
    ("zipmap", 2, 2, Pure(zipmap)),
];

fn convert(a: Args<'_>, to: &Type) -> Outcome {
    a.get(0).convert(to).map_err(|why| Wrong::of(0, why.to_string()))
}

fn truths(a: Args<'_>) -> Result<Vec<bool>, Wrong> {
    let items = a.items(0)?;
    let inner = Args(items);
    (0..items.len())
        .map(|n| match items.get(n) {
            Some(Value::Null) => Ok(false),
            _ => inner
                .truth(n)
                .map_err(|wrong| Wrong::of(0, format!("has element {n}, which {}", wrong.cause))),
        })
        .collect()
}

/// A list where all of them are lists, else a tuple.
fn alike(args: &[Value], items: Vec<Value>) -> Outcome {
    let made = Value::tuple(items);
    let lists = args.iter().all(|arg| matches!(arg, Value::List(_) | Value::Set(_)));
    Ok(if lists { made.convert(&Type::List(Box::new(Type::Any))).unwrap_or(made) } else { made })
}

fn chunklist(a: Args<'_>) -> Outcome {
    let (items, size) = (a.items(0)?, a.index(1)?);
    let size = if size == 0 { items.len().max(1) } else { size };
    Ok(Value::list(items.chunks(size).map(|chunk| Value::list(chunk.to_vec())).collect()))
}

fn coalesce(a: Args<'_>) -> Outcome {
    let types: Vec<Type> = a.0.iter().map(Value::type_of).collect();
    let of = Type::of_all(types.iter())
        .ok_or_else(|| Wrong::new("has arguments of types that have nothing in common"))?;
    for value in a.0 {
        let value = value.convert(&of)?;
        if value != Value::Null && value != Value::string("") {
            return Ok(value);
        }
    }
    Err(Wrong::new("has no argument that is neither null nor empty"))
}

fn coalescelist(a: Args<'_>) -> Outcome {
    for (n, value) in a.0.iter().enumerate() {
        if *value != Value::Null && !a.items(n)?.is_empty() {
            return Ok(value.clone());
        }
    }
    Err(Wrong::new("has no list with elements"))
}

fn compact(a: Args<'_>) -> Outcome {
    let items: Vec<Value> = a.items(0)?.iter().filter(|item| **item != Value::Null).cloned().collect();
    let texts = Args(&[Value::tuple(items)]).texts(0)?;
    Ok(Value::list(texts.into_iter().filter(|text| !text.is_empty()).map(Value::String).collect()))
}

fn concat(a: Args<'_>) -> Outcome {
    let mut items = Vec::new();
    for n in 0..a.len() {
        items.extend_from_slice(a.items(n)?);
    }
    alike(a.0, items)
}

fn distinct(a: Args<'_>) -> Outcome {
    let mut seen = BTreeSet::new();
    let items = a.items(0)?.iter().filter(|item| seen.insert(*item)).cloned().collect();
    alike(a.0, items)
}

fn element(a: Args<'_>) -> Outcome {
    let (items, n) = (a.items(0)?, a.index(1)?);
    let wrapped = n.checked_rem(items.len()).and_then(|n| items.get(n));
    wrapped.cloned().ok_or_else(|| Wrong::of(0, "has no elements"))
}

fn flat(items: &[Value]) -> Vec<Value> {
    let mut made = Vec::new();
    for item in items {
        match item.items() {
            Some(inner) => made.extend(flat(inner)),
            None => made.push(item.clone()),
        }
    }
    made
}

fn index(a: Args<'_>) -> Outcome {
    let found = a.items(0)?.iter().position(|item| item.is(a.get(1)));
    found.map(Value::number).ok_or_else(|| Wrong::of(0, "does not contain that"))
}

fn keys(a: Args<'_>) -> Outcome {
    let names = a.members(0)?.keys().map(Value::string).collect();
    Ok(if matches!(a.get(0), Value::Map(_)) { Value::list(names) } else { Value::tuple(names) })
}

fn values(a: Args<'_>) -> Outcome {
    let values = a.members(0)?.values().cloned().collect();
    Ok(if matches!(a.get(0), Value::Map(_)) { Value::list(values) } else { Value::tuple(values) })
}

fn length(a: Args<'_>) -> Outcome {
    let value = a.get(0);
    let count = match (value, value.items(), value.members()) {
        (Value::String(text), ..) => text.chars().count(),
        (_, Some(items), _) => items.len(),
        (_, _, Some(members)) => members.len(),
        _ => return Err(Wrong::of(0, format!("is {}, which has no length", value.kind()))),
    };
    Ok(Value::number(count))
}

fn lookup(a: Args<'_>) -> Outcome {
    let key = a.text(1)?;
    match (a.members(0)?.get(&*key), a.len()) {
        (Some(value), _) => Ok(value.clone()),
        (None, 3) => Ok(a.get(2).clone()),
        (None, _) => Err(Wrong::of(1, format!("is a key that is not there: {key:?}"))),
    }
}

fn merge(a: Args<'_>) -> Outcome {
    let mut made = BTreeMap::new();
    for (n, value) in a.0.iter().enumerate() {
        if *value != Value::Null {
            made.extend(a.members(n)?.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    let maps = a.0.iter().all(|value| matches!(value, Value::Map(_)));
    let made = Value::object(made);
    Ok(if maps { made.convert(&Type::Map(Box::new(Type::Any))).unwrap_or(made) } else { made })
}

fn one(a: Args<'_>) -> Outcome {
    if *a.get(0) == Value::Null {
        return Ok(Value::Null);
    }
    match a.items(0)? {
        [] => Ok(Value::Null),
        [only] => Ok(only.clone()),
        items => Err(Wrong::of(0, format!("has {} elements, more than one", items.len()))),
    }
}

fn range(a: Args<'_>) -> Outcome {
    let zero = Number::from(0u32);
    let (start, limit) = match a.len() {
        1 => (zero.clone(), a.number(0)?),
        _ => (a.number(0)?, a.number(1)?),
    };
    let one = Number::from(1u32);
    let step = match a.len() {
        3 => a.number(2)?,
        _ if limit < start => one.neg(),
        _ => one,
    };
    if step.is_zero() || (step.is_negative() && limit > start) || (!step.is_negative() && limit < start) {
        return Err(Wrong::new("has a step that does not lead to its end"));
    }
    let mut made = Vec::new();
    let mut at = start;
    while if step.is_negative() { at > limit } else { at < limit } {
        if made.len() >= 1024 {
            return Err(Wrong::new("has more than 1024 elements"));
        }
        made.push(Value::Number(at.clone()));
        at = at.add(&step)?;
    }
    Ok(Value::list(made))
}

fn sets(a: Args<'_>, with: fn(&BTreeSet<Value>, &BTreeSet<Value>) -> BTreeSet<Value>) -> Outcome {
    let types: Vec<Type> = a.0.iter().map(Value::type_of).collect();
    let of = Type::of_all(types.iter())
        .ok_or_else(|| Wrong::new("has sets of types that have nothing in common"))?;
    let mut sets = Vec::with_capacity(a.len());
    for (n, value) in a.0.iter().enumerate() {
        a.items(n)?;
        let set = value.convert(&of)?.convert(&Type::Set(Box::new(Type::Any)))?;
        sets.push(set.items().unwrap_or_default().iter().cloned().collect::<BTreeSet<Value>>());
    }
    let made = sets.into_iter().reduce(|one, other| with(&one, &other)).unwrap_or_default();
    Ok(Value::set(made.into_iter().collect()))
}

fn setproduct(a: Args<'_>) -> Outcome {
    let mut rows: Vec<Vec<Value>> = vec![Vec::new()];
    for n in 0..a.len() {
        let items = a.items(n)?;
        if rows.len().saturating_mul(items.len()) > ELEMENTS_MAX {
            return Err(Wrong::new("makes too many elements"));
        }
        rows = rows
            .iter()
            .flat_map(|row| items.iter().map(move |item| row.iter().chain([item]).cloned().collect()))
            .collect();
    }
    Ok(Value::tuple(rows.into_iter().map(Value::tuple).collect()))
}

fn slice(a: Args<'_>) -> Outcome {
    let (items, start, end) = (a.items(0)?, a.index(1)?, a.index(2)?);
    let part =
        items.get(start..end).ok_or_else(|| Wrong::new(format!("has {} elements only", items.len())))?;
    alike(a.0.get(..1).unwrap_or_default(), part.to_vec())
}

fn sort(a: Args<'_>) -> Outcome {
    let mut texts = a.texts(0)?;
    texts.sort();
    Ok(Value::list(texts.into_iter().map(Value::String).collect()))
}

fn transpose(a: Args<'_>) -> Outcome {
    let mut made: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, value) in a.members(0)? {
        for text in Args(std::slice::from_ref(value)).texts(0).map_err(|wrong| Wrong::of(0, wrong.cause))? {
            made.entry(text.to_string()).or_default().push(Value::string(name));
        }
    }
    Ok(Value::map(made.into_iter().map(|(name, names)| (name, Value::list(names))).collect()))
}

fn zipmap(a: Args<'_>) -> Outcome {
    let (names, values) = (a.texts(0)?, a.items(1)?);
    if names.len() != values.len() {
        return Err(Wrong::of(1, format!("has {} elements for {} keys", values.len(), names.len())));
    }
    let members = names.iter().map(|name| name.to_string()).zip(values.iter().cloned()).collect();
    Ok(if matches!(a.get(1), Value::List(_)) { Value::map(members) } else { Value::object(members) })
}
