//! Values of expressions.
//!
//! Every step costs fuel, and what a name refers to costs its size, so that no file can make this reader run or
//! grow without end; how deep expressions lie in each other is limited as well.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use hcl_edit::expr::{BinaryOperator, Expression, UnaryOperator};

use super::{
    fault::{Failure, Fault, nearest},
    functions,
    number::{Number, NumberError},
    source::{Span, Texts},
    syntax::{self, Access, AccessStep, Call, Expr, For, Kind, Origin, Part},
    value::{Type, Value},
};

mod names;

/// Steps, elements and portions of text that one reading may take.
const FUEL: usize = 1_000_000;
/// Bytes that cost as much as one step.
const PORTION: usize = 64;
/// Expressions within each other, through names as well.
const DEPTH_MAX: usize = 200;
/// Collections within each other.
pub(super) const NESTING_MAX: usize = 100;

pub(super) type Evaluated = Result<Value, Failure>;

/// What names can refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everything of the folder.
    Module,
    /// The variables of a template file.
    Template,
    /// Nothing: values of variables stand for themselves.
    Values,
}

/// An expression of a file that has not been looked at yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) text: usize,
    pub(super) expr: &'a Expression,
    /// The whole attribute.
    pub(super) span: Span,
}

/// How far something named has come.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    Untouched,
    /// Being evaluated: to meet it again is a cycle.
    Begun,
    Done(Value),
    /// Told already.
    Failed,
}

#[derive(Debug)]
pub(super) struct Local<'a> {
    pub(super) source: Source<'a>,
    pub(super) progress: Progress,
}

/// A `variable` block.
#[derive(Debug)]
pub(super) struct Variable<'a> {
    pub(super) span: Span,
    pub(super) of: Type,
    /// Whether a text from outside is the value itself, not an expression.
    pub(super) literal: bool,
    pub(super) nullable: bool,
    pub(super) sensitive: bool,
    pub(super) default: Option<Source<'a>>,
    pub(super) validations: Vec<Validation<'a>>,
    /// From a file or the command line; checked when it is used.
    pub(super) given: Option<Given>,
    pub(super) progress: Progress,
}

/// A condition and what is told when it does not hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validation<'a> {
    pub(super) condition: Source<'a>,
    pub(super) message: Source<'a>,
}

/// A value from outside, and from where.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) from: String,
    pub(super) span: Option<Span>,
}

/// Of which instance of a resource values are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Instance {
    pub(super) each: Option<(Value, Value)>,
    pub(super) count: Option<usize>,
}

pub(super) struct Evaluator<'a> {
    pub(super) texts: Texts,
    pub(super) folder: PathBuf,
    pub(super) home: Option<PathBuf>,
    pub(super) workspace: String,
    pub(super) locals: BTreeMap<String, Local<'a>>,
    pub(super) variables: BTreeMap<String, Variable<'a>>,
    /// Types of resources that are declared, for messages.
    pub(super) resources: Vec<String>,
    pub(super) faults: Vec<(Option<String>, Fault)>,
    /// The resource that is being read, for messages.
    pub(super) reading: Option<String>,
    /// Texts that may be in no message.
    pub(super) secrets: Vec<Arc<str>>,
    pub(super) instance: Instance,
    pub(super) scope: Scope,
    bindings: Vec<(String, Value)>,
    fuel: usize,
    depth: usize,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(folder: PathBuf, home: Option<PathBuf>) -> Self {
        Self {
            texts: Texts::default(),
            folder,
            home,
            workspace: "default".to_owned(),
            locals: BTreeMap::new(),
            variables: BTreeMap::new(),
            resources: Vec::new(),
            faults: Vec::new(),
            reading: None,
            secrets: Vec::new(),
            instance: Instance::default(),
            scope: Scope::Module,
            bindings: Vec::new(),
            fuel: FUEL,
            depth: 0,
        }
    }

    /// Keeps a mistake to be told.
    pub(super) fn tell(&mut self, fault: Fault) {
        self.faults.push((self.reading.clone(), fault));
    }

    /// The value, or `None` once it has been told why there is none.
    pub(super) fn told(&mut self, value: Evaluated) -> Option<Value> {
        match value {
            Ok(value) => Some(value),
            Err(Failure::Told) => None,
            Err(Failure::Fault(fault)) => {
                self.tell(*fault);
                None
            }
        }
    }

    pub(super) fn source(&mut self, source: Source<'_>) -> Evaluated {
        let expr = self.prepared(source)?;
        self.value(&expr)
    }

    pub(super) fn prepared(&self, source: Source<'_>) -> Result<Expr, Failure> {
        Ok(Origin { texts: &self.texts, text: source.text }.expr(source.expr, source.span)?)
    }

    fn spend(&mut self, amount: usize, span: Span) -> Result<(), Failure> {
        match self.fuel.checked_sub(amount) {
            Some(left) => {
                self.fuel = left;
                Ok(())
            }
            None => {
                self.fuel = 0;
                Err(Fault::at(span, "makes this configuration too large to evaluate")
                    .hint("make the values smaller; Terraform itself has no such limit")
                    .into())
            }
        }
    }

    /// The cost of a copy.
    fn spend_on(&mut self, value: &Value, span: Span) -> Result<(), Failure> {
        let amount = weight(value, self.fuel + 1);
        self.spend(amount, span)
    }

    pub(super) fn value(&mut self, expr: &Expr) -> Evaluated {
        if self.depth >= DEPTH_MAX {
            return Err(Fault::at(expr.span, "is nested too deeply").into());
        }
        self.depth += 1;
        let value = self.spend(1, expr.span).and_then(|()| self.kind(expr));
        self.depth -= 1;
        value
    }

    fn kind(&mut self, expr: &Expr) -> Evaluated {
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Template(parts) => self.template(parts, expr.span),
            Kind::Tuple(items) => {
                let items: Vec<Value> =
                    items.iter().map(|item| self.value(item)).collect::<Result<_, _>>()?;
                Ok(Value::tuple(items))
            }
            Kind::Object(items) => self.object(items),
            Kind::Variable(name) => {
                let (value, _) = self.name(name, &[], expr.span)?;
                self.spend_on(&value, expr.span)?;
                Ok(value)
            }
            Kind::Traversal(base, steps) => self.traversal(base, steps, expr.span),
            Kind::Conditional(of) => self.conditional(of, expr.span),
            Kind::Call(call) => self.call(call, expr.span),
            Kind::Unary(operator, operand) => self.unary(*operator, operand),
            Kind::Binary(operator, operands) => self.binary(*operator, operands, expr.span),
            Kind::For(it) => self.for_expression(it),
        }
    }

    /// As a value of a type, and not null.
    fn of_type(&mut self, expr: &Expr, of: &Type) -> Evaluated {
        let value = self.value(expr)?;
        if value == Value::Null {
            return Err(Fault::of_values(expr.span, format!("is null, not {}", of.in_words())).into());
        }
        value.convert(of).map_err(|why| Fault::of_values(expr.span, why.to_string()).into())
    }

    fn number(&mut self, expr: &Expr) -> Result<Number, Failure> {
        let value = self.of_type(expr, &Type::Number)?;
        value.as_number().cloned().ok_or_else(|| Fault::of_values(expr.span, "is not a number").into())
    }

    fn truth(&mut self, expr: &Expr) -> Result<bool, Failure> {
        Ok(self.of_type(expr, &Type::Bool)? == Value::Bool(true))
    }

    fn template(&mut self, parts: &[Part], span: Span) -> Evaluated {
        if let [Part::Value(only)] = parts {
            return self.value(only);
        }
        let mut text = String::new();
        self.parts(parts, &mut text, span)?;
        Ok(Value::string(text))
    }

    fn parts(&mut self, parts: &[Part], to: &mut String, span: Span) -> Result<(), Failure> {
        for part in parts {
            match part {
                Part::Literal(text) => {
                    self.spend(text.len() / PORTION + 1, span)?;
                    to.push_str(text);
                }
                Part::Value(expr) => {
                    let value = self.value(expr)?;
                    let text = value.to_text().ok_or_else(|| {
                        let fault = Fault::of_values(
                            expr.span,
                            format!("is {}, which cannot be part of a text", value.kind()),
                        );
                        fault.hint_some(value.items().map(|_| "join the elements: join(\" \", …)".to_owned()))
                    })?;
                    self.spend(text.len() / PORTION, span)?;
                    to.push_str(&text);
                }
                Part::If { condition, then, otherwise } => {
                    let parts = if self.truth(condition)? { then } else { otherwise };
                    self.parts(parts, to, span)?;
                }
                Part::For { key, value, collection, body } => {
                    for (k, v) in self.elements(collection)? {
                        self.bound(key.as_deref(), value, k, v, |it| it.parts(body, to, span))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn object(&mut self, items: &[(Expr, Expr)]) -> Evaluated {
        let mut made = BTreeMap::new();
        for (key, value) in items {
            let name = self.value(key)?.to_text();
            let Some(name) = name else {
                return Err(Fault::of_values(key.span, "cannot be a key: it is no text").into());
            };
            let value = self.value(value)?;
            drop(made.insert(name.to_string(), value));
        }
        Ok(Value::object(made))
    }

    fn conditional(&mut self, [condition, yes, no]: &[Expr; 3], span: Span) -> Evaluated {
        let truth = self.truth(condition)?;
        let (chosen, other) = if truth { (yes, no) } else { (no, yes) };
        let value = self.value(chosen)?;
        // The other one counts for its type only, and may fail with the values that there are.
        let other = match self.value(other) {
            Ok(other) => other,
            Err(Failure::Fault(fault)) if fault.of_values => return Ok(value),
            Err(failure) => return Err(failure),
        };
        let Some(of) = value.type_of().unify(&other.type_of()) else {
            let cause = format!("has results of different types: {} and {}", value.kind(), other.kind());
            return Err(Fault::of_values(span, cause).into());
        };
        value.convert(&of).map_err(|why| Fault::of_values(span, format!("has a result that {why}")).into())
    }

    fn unary(&mut self, operator: UnaryOperator, operand: &Expr) -> Evaluated {
        match operator {
            UnaryOperator::Not => Ok(Value::Bool(!self.truth(operand)?)),
            UnaryOperator::Neg => Ok(Value::Number(self.number(operand)?.neg())),
        }
    }

    fn binary(&mut self, operator: BinaryOperator, operands: &[Expr; 2], span: Span) -> Evaluated {
        use BinaryOperator as Op;
        let [a, b] = operands;
        match operator {
            Op::Eq => Ok(Value::Bool(self.value(a)?.is(&self.value(b)?))),
            Op::NotEq => Ok(Value::Bool(!self.value(a)?.is(&self.value(b)?))),
            Op::And => {
                let (a, b) = (self.truth(a)?, self.truth(b)?);
                Ok(Value::Bool(a && b))
            }
            Op::Or => {
                let (a, b) = (self.truth(a)?, self.truth(b)?);
                Ok(Value::Bool(a || b))
            }
            Op::LessEq
            | Op::GreaterEq
            | Op::Less
            | Op::Greater
            | Op::Plus
            | Op::Minus
            | Op::Mul
            | Op::Div
            | Op::Mod => {
                let (a, b) = (self.number(a)?, self.number(b)?);
                let number = |n: Result<_, NumberError>| match n {
                    Ok(n) => Ok(Value::Number(n)),
                    Err(error) => Err(Fault::of_values(span, error.to_string()).into()),
                };
                match operator {
                    Op::LessEq => Ok(Value::Bool(a <= b)),
                    Op::GreaterEq => Ok(Value::Bool(a >= b)),
                    Op::Less => Ok(Value::Bool(a < b)),
                    Op::Greater => Ok(Value::Bool(a > b)),
                    Op::Plus => number(a.add(&b)),
                    Op::Minus => number(a.sub(&b)),
                    Op::Mul => number(a.mul(&b)),
                    Op::Div => number(a.div(&b)),
                    Op::Mod | Op::Eq | Op::NotEq | Op::And | Op::Or => number(a.rem(&b)),
                }
            }
        }
    }

    /// Keys and values of what a `for` goes through.
    fn elements(&mut self, collection: &Expr) -> Result<Vec<(Value, Value)>, Failure> {
        let value = self.value(collection)?;
        let elements: Vec<(Value, Value)> = match &value {
            Value::Tuple(items) | Value::List(items) => {
                items.iter().enumerate().map(|(n, item)| (Value::number(n), item.clone())).collect()
            }
            Value::Set(items) => items.iter().map(|item| (item.clone(), item.clone())).collect(),
            Value::Object(items) | Value::Map(items) => {
                items.iter().map(|(name, item)| (Value::string(name), item.clone())).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                let cause = format!("is {}, which has no elements", value.kind());
                return Err(Fault::of_values(collection.span, cause).into());
            }
        };
        self.spend(elements.len(), collection.span)?;
        Ok(elements)
    }

    fn bound<T>(
        &mut self,
        key_name: Option<&str>,
        value_name: &str,
        key: Value,
        value: Value,
        then: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let before = self.bindings.len();
        if let Some(name) = key_name {
            self.bindings.push((name.to_owned(), key));
        }
        self.bindings.push((value_name.to_owned(), value));
        let result = then(self);
        self.bindings.truncate(before);
        result
    }

    fn for_expression(&mut self, it: &For) -> Evaluated {
        let mut items = Vec::new();
        let mut members: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (k, v) in self.elements(&it.collection)? {
            let made = self.bound(it.key.as_deref(), &it.value, k, v, |own| {
                if let Some(condition) = &it.condition
                    && !own.truth(condition)?
                {
                    return Ok(None);
                }
                let key = match &it.made_key {
                    None => None,
                    Some(key) => {
                        let value = own.of_type(key, &Type::String)?;
                        value.to_text()
                    }
                };
                Ok(Some((key, own.value(&it.made_value)?)))
            })?;
            let Some((key, value)) = made else { continue };
            match (key, &it.made_key) {
                (Some(key), Some(at)) => {
                    let values = members.entry(key.to_string()).or_default();
                    if !values.is_empty() && !it.grouped {
                        let cause = format!("gives the key {key:?} twice");
                        let fault = Fault::of_values(at.span, cause);
                        return Err(fault
                            .hint("write ... after the value to have all values of a key")
                            .into());
                    }
                    values.push(value);
                }
                (Some(_) | None, _) => items.push(value),
            }
        }
        if it.made_key.is_none() {
            return Ok(Value::tuple(items));
        }
        let grouped = |mut values: Vec<Value>| {
            if it.grouped { Value::tuple(values) } else { values.pop().unwrap_or(Value::Null) }
        };
        Ok(Value::object(members.into_iter().map(|(key, values)| (key, grouped(values))).collect()))
    }

    fn traversal(&mut self, base: &Expr, steps: &[Access], span: Span) -> Evaluated {
        let (value, used) = match &base.kind {
            Kind::Variable(name) => self.name(name, steps, base.span)?,
            Kind::Literal(_)
            | Kind::Template(_)
            | Kind::Tuple(_)
            | Kind::Object(_)
            | Kind::Traversal(..)
            | Kind::Conditional(_)
            | Kind::Call(_)
            | Kind::Unary(..)
            | Kind::Binary(..)
            | Kind::For(_) => (self.value(base)?, 0),
        };
        let value = self.steps(value, steps.get(used..).unwrap_or_default())?;
        self.spend_on(&value, span)?;
        Ok(value)
    }

    fn steps(&mut self, mut value: Value, steps: &[Access]) -> Evaluated {
        for (n, access) in steps.iter().enumerate() {
            let after = steps.get(n + 1..).unwrap_or_default();
            let (own, rest) = match &access.step {
                AccessStep::Attribute(name) => {
                    value = attribute(&value, name, access.span)?;
                    continue;
                }
                AccessStep::Index(index) => {
                    let index = self.value(index)?;
                    value = element(&value, &index, access.span)?;
                    continue;
                }
                AccessStep::FullSplat => (after, &[][..]),
                AccessStep::AttributeSplat => {
                    let attributes =
                        after.iter().take_while(|s| matches!(s.step, AccessStep::Attribute(_))).count();
                    after.split_at(attributes)
                }
            };
            let items = match value.items() {
                Some(items) => items.to_vec(),
                None if value == Value::Null => Vec::new(),
                None => vec![value],
            };
            self.spend(items.len(), access.span)?;
            let items = items.into_iter().map(|item| self.steps(item, own));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            return self.steps(Value::tuple(items), rest);
        }
        Ok(value)
    }

    fn call(&mut self, call: &Call, span: Span) -> Evaluated {
        if self.scope == Scope::Values {
            return Err(Fault::at(span, "calls a function, and values of variables cannot").into());
        }
        match call.name.as_str() {
            "try" => {
                let mut last = Failure::from(Fault::at(span, "has no arguments"));
                for arg in &call.args {
                    match self.value(arg) {
                        Err(Failure::Fault(fault)) if fault.of_values => last = Failure::Fault(fault),
                        other => return other,
                    }
                }
                return Err(last);
            }
            "can" => {
                let [arg] = call.args.as_slice() else {
                    return Err(Fault::at(span, "takes one argument").into());
                };
                return match self.value(arg) {
                    Ok(_) => Ok(Value::Bool(true)),
                    Err(Failure::Fault(fault)) if fault.of_values => Ok(Value::Bool(false)),
                    Err(failure) => Err(failure),
                };
            }
            _ => {}
        }
        let known = functions::find(&call.name).map_err(|why| match why {
            functions::Unknown::NotHere(why) => Fault::at(span, format!("calls {}, {why}", call.name)),
            functions::Unknown::NoSuch => {
                let fault = Fault::at(span, format!("calls {:?}, and there is no such function", call.name));
                let near = nearest(&call.name, functions::names());
                fault.hint_some(near.map(|name| format!("did you mean {name}?")))
            }
        })?;
        let mut args: Vec<Value> = call.args.iter().map(|arg| self.value(arg)).collect::<Result<_, _>>()?;
        if call.expand
            && let Some(last) = args.pop()
        {
            let Some(items) = last.items() else {
                let cause = format!("expands {}, which is not a list", last.kind());
                return Err(Fault::of_values(span, cause).into());
            };
            args.extend(items.iter().cloned());
        }
        let around = functions::Around { folder: &self.folder, home: self.home.as_deref() };
        let done = known(&args, around).map_err(|wrong| {
            // The argument itself says more than the whole call.
            let at = wrong.argument.and_then(|n| call.args.get(n)).filter(|_| !call.expand);
            Fault::of_values(at.map_or(span, |arg| arg.span), wrong.cause).hint_some(wrong.hint)
        })?;
        match done {
            functions::Done::Value(value) => {
                self.spend_on(&value, span)?;
                Ok(value)
            }
            functions::Done::Secret(value) => {
                self.hide(&value);
                Ok(value)
            }
            functions::Done::Template { name, text, variables } => {
                self.template_file(name, text, variables, span)
            }
        }
    }

    fn template_file(
        &mut self,
        name: PathBuf,
        text: String,
        variables: BTreeMap<String, Value>,
        span: Span,
    ) -> Evaluated {
        if self.scope == Scope::Template {
            return Err(Fault::at(span, "reads a template within a template").into());
        }
        self.spend(text.len() / PORTION + 1, span)?;
        let parsed = hcl_edit::parser::parse_template(&text);
        let end = text.len();
        let text = self.texts.add(name, text);
        let template = parsed.map_err(|error| {
            let start = error.location().offset();
            Fault::of_values(Span { text, start, end: start }, error.message().to_owned()).not_shown()
        })?;
        let whole = Span { text, start: 0, end };
        let expr = syntax::template_of_text(Origin { texts: &self.texts, text }, &template, whole)?;
        let bindings = std::mem::replace(&mut self.bindings, variables.into_iter().collect());
        let scope = std::mem::replace(&mut self.scope, Scope::Template);
        let value = self.value(&expr);
        self.bindings = bindings;
        self.scope = scope;
        value
    }

    /// Keeps texts out of messages.
    pub(super) fn hide(&mut self, value: &Value) {
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::String(_) | Value::Number(_) => {
                self.secrets.extend(value.to_text().filter(|text| !text.is_empty()));
            }
            Value::Tuple(items) | Value::List(items) | Value::Set(items) => {
                items.iter().for_each(|item| self.hide(item));
            }
            Value::Object(items) | Value::Map(items) => items.values().for_each(|item| self.hide(item)),
        }
    }
}

/// Elements and portions of text, counted up to a limit.
fn weight(value: &Value, limit: usize) -> usize {
    let sum = |items: &mut dyn Iterator<Item = &Value>| {
        let mut sum = 1;
        for item in items {
            if sum >= limit {
                break;
            }
            sum += weight(item, limit - sum);
        }
        sum
    };
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => text.len() / PORTION + 1,
        Value::Tuple(items) | Value::List(items) | Value::Set(items) => sum(&mut items.iter()),
        Value::Object(items) | Value::Map(items) => sum(&mut items.values()),
    }
}

fn attribute(value: &Value, name: &str, span: Span) -> Evaluated {
    let Some(members) = value.members() else {
        let fault = Fault::of_values(span, format!("asks {} for an attribute", value.kind()));
        let splat = value.items().map(|_| format!("write [*].{name} to have it of every element"));
        return Err(fault.hint_some(splat).into());
    };
    members.get(name).cloned().ok_or_else(|| {
        let near = nearest(name, members.keys().map(String::as_str));
        let fault = Fault::of_values(span, format!("asks for {name:?}, which is not there"));
        fault.hint_some(near.map(|near| format!("did you mean {near}?"))).into()
    })
}

fn element(value: &Value, index: &Value, span: Span) -> Evaluated {
    let no = |cause: String| Err(Fault::of_values(span, cause).into());
    match value {
        Value::Tuple(items) | Value::List(items) => {
            let Ok(Value::Number(n)) = index.convert(&Type::Number) else {
                return no(format!("asks for an element by {}, not by its number", index.kind()));
            };
            match n.to_usize().and_then(|n| items.get(n)) {
                Some(item) => Ok(item.clone()),
                None => no(format!("asks for element {n} of {}", items.len())),
            }
        }
        Value::Object(_) | Value::Map(_) => match index.to_text() {
            Some(name) => attribute(value, &name, span),
            None => no(format!("asks for an element by {}, not by its name", index.kind())),
        },
        Value::Set(_) => no("asks a set for one element, and sets have no order".to_owned()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            no(format!("asks {} for an element", value.kind()))
        }
    }
}
