//! Type constraints of variables: `string`, `list(number)`, `object({…, optional(…)})`.

use std::collections::BTreeMap;

use hcl_edit::{
    Span as _,
    expr::{Expression, FuncCall, ObjectKey},
};

use super::{
    eval::{Evaluator, Scope, Source},
    fault::{Failure, Fault},
    source::Span,
    syntax::Origin,
    value::{Member, Type, Value},
};

const HINT: &str = "types are string, number, bool, any, list(…), set(…), map(…), object({…}) and tuple([…])";

/// Reads a constraint.
pub(super) fn constraint(of: &mut Evaluator<'_>, source: Source<'_>) -> Result<Type, Failure> {
    read(of, source.text, source.expr, source.span)
}

fn read(of: &mut Evaluator<'_>, text: usize, expr: &Expression, around: Span) -> Result<Type, Failure> {
    let span = Origin { texts: &of.texts, text }.span(expr.span(), around);
    let no = || Fault::at(span, "is not a type").hint(HINT);
    let word = match expr {
        Expression::Variable(word) => Some(word.value().as_str()),
        // As old files have it.
        Expression::String(word) => Some(word.value().as_str()),
        Expression::FuncCall(call) => return made(of, text, call, span),
        Expression::Null(_)
        | Expression::Bool(_)
        | Expression::Number(_)
        | Expression::Array(_)
        | Expression::Object(_)
        | Expression::StringTemplate(_)
        | Expression::HeredocTemplate(_)
        | Expression::Parenthesis(_)
        | Expression::Conditional(_)
        | Expression::Traversal(_)
        | Expression::UnaryOp(_)
        | Expression::BinaryOp(_)
        | Expression::ForExpr(_) => None,
    };
    Ok(match word {
        Some("string") => Type::String,
        Some("number") => Type::Number,
        Some("bool") => Type::Bool,
        Some("any") => Type::Any,
        Some("list") => Type::List(Box::new(Type::Any)),
        Some("set") => Type::Set(Box::new(Type::Any)),
        Some("map") => Type::Map(Box::new(Type::Any)),
        Some(_) | None => return Err(no().into()),
    })
}

fn made(of: &mut Evaluator<'_>, text: usize, call: &FuncCall, span: Span) -> Result<Type, Failure> {
    let no = || Fault::at(span, "is not a type").hint(HINT);
    let Some(argument) = call.args.get(0).filter(|_| call.args.len() == 1) else { return Err(no().into()) };
    Ok(match (call.name.name.value().as_str(), argument) {
        ("list", of_each) => Type::List(Box::new(read(of, text, of_each, span)?)),
        ("set", of_each) => Type::Set(Box::new(read(of, text, of_each, span)?)),
        ("map", of_each) => Type::Map(Box::new(read(of, text, of_each, span)?)),
        ("tuple", Expression::Array(items)) => {
            Type::Tuple(items.iter().map(|item| read(of, text, item, span)).collect::<Result<_, _>>()?)
        }
        ("object", Expression::Object(members)) => {
            let mut types = BTreeMap::new();
            for (key, value) in members {
                let name = match key {
                    ObjectKey::Ident(name) => name.value().to_string(),
                    ObjectKey::Expression(Expression::String(name)) => name.value().clone(),
                    ObjectKey::Expression(_) => return Err(no().into()),
                };
                drop(types.insert(name, member(of, text, value.expr(), span)?));
            }
            Type::Object(types)
        }
        _ => return Err(no().into()),
    })
}

fn member(of: &mut Evaluator<'_>, text: usize, expr: &Expression, span: Span) -> Result<Member, Failure> {
    let Expression::FuncCall(call) = expr else {
        return Ok(Member { of: read(of, text, expr, span)?, optional: None });
    };
    if call.name.name.value().as_str() != "optional" {
        return Ok(Member { of: read(of, text, expr, span)?, optional: None });
    }
    let (Some(inner), 1..=2) = (call.args.get(0), call.args.len()) else {
        return Err(Fault::at(span, "is not a type").hint(HINT).into());
    };
    let inner = read(of, text, inner, span)?;
    let optional = match call.args.get(1) {
        None => Value::Null,
        Some(default) => {
            let source = Source { text, expr: default, span };
            of.with_scope(Scope::Values, |own| own.source(source))?
        }
    };
    Ok(Member { of: inner, optional: Some(optional) })
}
