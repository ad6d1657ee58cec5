//! Expressions as they are evaluated: what the parser gives, with every place kept, numbers as they were written
//! and templates in the shape that Terraform gives them.

use hcl_edit::{
    Span as _,
    expr::{self, BinaryOperator, Expression, ObjectKey, TraversalOperator, UnaryOperator},
};

use super::{
    fault::Fault,
    source::{Span, Texts},
    value::Value,
};

mod template;

pub(super) use template::{Part, of_text as template_of_text};

/// An expression and its place.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Literal(Value),
    Template(Vec<Part>),
    Tuple(Vec<Expr>),
    Object(Vec<(Expr, Expr)>),
    Variable(String),
    Traversal(Box<Expr>, Vec<Access>),
    Conditional(Box<[Expr; 3]>),
    Call(Call),
    Unary(UnaryOperator, Box<Expr>),
    Binary(BinaryOperator, Box<[Expr; 2]>),
    For(Box<For>),
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) args: Vec<Expr>,
    /// Whether the last argument's elements are arguments.
    pub(super) expand: bool,
}

/// One step into a value.
#[derive(Debug)]
pub(super) struct Access {
    /// From the beginning of the whole expression to the end of this step.
    pub(super) span: Span,
    pub(super) step: AccessStep,
}

#[derive(Debug)]
pub(super) enum AccessStep {
    Attribute(String),
    Index(Expr),
    /// `.*`: each element's attributes, as far as attributes follow.
    AttributeSplat,
    /// `[*]`: everything that follows, of each element.
    FullSplat,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) key: Option<String>,
    pub(super) value: String,
    pub(super) collection: Expr,
    /// Of an object; a tuple has none.
    pub(super) made_key: Option<Expr>,
    pub(super) made_value: Expr,
    pub(super) grouped: bool,
    pub(super) condition: Option<Expr>,
}

/// Where an expression of the parser comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) texts: &'a Texts,
    pub(super) text: usize,
}

impl Origin<'_> {
    /// The place of something that the parser read; of `around` where it kept none.
    pub(super) fn span(self, of: Option<std::ops::Range<usize>>, around: Span) -> Span {
        of.map_or(around, |range| Span { text: self.text, start: range.start, end: range.end })
    }

    /// From what the parser gives.
    pub(super) fn expr(self, from: &Expression, around: Span) -> Result<Expr, Fault> {
        let span = self.span(from.span(), around);
        let literal = |value| Ok(Kind::Literal(value));
        let kind = match from {
            Expression::Null(_) => literal(Value::Null),
            Expression::Bool(b) => literal(Value::Bool(*b.value())),
            Expression::Number(_) => match self.texts.slice(span).parse() {
                Ok(number) => literal(Value::Number(number)),
                Err(error) => Err(Fault::at(span, format!("{error}"))),
            },
            Expression::String(text) => {
                self.one_line(span)?;
                literal(Value::string(text.value()))
            }
            Expression::Array(items) => Ok(Kind::Tuple(self.all(items.iter(), span)?)),
            Expression::Object(items) => Ok(Kind::Object(self.object(items, span)?)),
            Expression::StringTemplate(template) => {
                self.one_line(span)?;
                self.quoted(template.iter(), span)
            }
            Expression::HeredocTemplate(heredoc) => self.heredoc(heredoc, span),
            Expression::Parenthesis(inner) => return self.expr(inner.inner(), span),
            Expression::Variable(name) => Ok(Kind::Variable(name.value().to_string())),
            Expression::Conditional(it) => Ok(Kind::Conditional(Box::new([
                self.expr(&it.cond_expr, span)?,
                self.expr(&it.true_expr, span)?,
                self.expr(&it.false_expr, span)?,
            ]))),
            Expression::FuncCall(call) => Ok(Kind::Call(Call {
                name: self.function(&call.name, span)?,
                args: self.all(call.args.iter(), span)?,
                expand: call.args.expand_final(),
            })),
            Expression::Traversal(it) => self.traversal(it, span),
            Expression::UnaryOp(it) => {
                Ok(Kind::Unary(*it.operator.value(), Box::new(self.expr(&it.expr, span)?)))
            }
            Expression::BinaryOp(it) => Ok(Kind::Binary(
                *it.operator.value(),
                Box::new([self.expr(&it.lhs_expr, span)?, self.expr(&it.rhs_expr, span)?]),
            )),
            Expression::ForExpr(it) => Ok(Kind::For(Box::new(For {
                key: it.intro.key_var.as_ref().map(|name| name.value().to_string()),
                value: it.intro.value_var.value().to_string(),
                collection: self.expr(&it.intro.collection_expr, span)?,
                made_key: it.key_expr.as_ref().map(|key| self.expr(key, span)).transpose()?,
                made_value: self.expr(&it.value_expr, span)?,
                grouped: it.grouping,
                condition: it.cond.as_ref().map(|cond| self.expr(&cond.expr, span)).transpose()?,
            }))),
        }?;
        Ok(Expr { span, kind })
    }

    fn all<'a>(self, items: impl Iterator<Item = &'a Expression>, around: Span) -> Result<Vec<Expr>, Fault> {
        items.map(|item| self.expr(item, around)).collect()
    }

    /// The parser lets strings in quotes have several lines; Terraform does not.
    fn one_line(self, span: Span) -> Result<(), Fault> {
        let text = self.texts.slice(span);
        if text.contains('\n') && !text.contains("${") && !text.contains("%{") {
            return Err(Fault::at(span, "is a text in quotes with more than one line")
                .hint("write \\n, or a heredoc: <<-EOT"));
        }
        Ok(())
    }

    fn function(self, name: &expr::FuncName, span: Span) -> Result<String, Fault> {
        let own: Vec<&str> = name.namespace.iter().map(|part| part.value().as_str()).collect();
        match own.as_slice() {
            [] | ["core"] => Ok(name.name.value().to_string()),
            _ => Err(Fault::at(span, "calls a function of a provider, which only Terraform has")),
        }
    }

    fn object(self, items: &expr::Object, around: Span) -> Result<Vec<(Expr, Expr)>, Fault> {
        let mut made = Vec::with_capacity(items.len());
        for (key, value) in items {
            let key = match key {
                ObjectKey::Ident(name) => Expr {
                    span: self.span(name.span(), around),
                    kind: Kind::Literal(Value::string(name.value().as_str())),
                },
                ObjectKey::Expression(key @ Expression::Traversal(_)) => {
                    return Err(Fault::at(self.span(key.span(), around), "is ambiguous as a key")
                        .hint("put parentheses around it, or quotes"));
                }
                ObjectKey::Expression(key) => self.expr(key, around)?,
            };
            made.push((key, self.expr(value.expr(), around)?));
        }
        Ok(made)
    }

    fn traversal(self, it: &expr::Traversal, whole: Span) -> Result<Kind, Fault> {
        let base = self.expr(&it.expr, whole)?;
        let mut steps = Vec::with_capacity(it.operators.len());
        for operator in &it.operators {
            let own = self.span(operator.span(), whole);
            let step = match operator.value() {
                TraversalOperator::GetAttr(name) => AccessStep::Attribute(name.value().to_string()),
                TraversalOperator::Index(index) => AccessStep::Index(self.expr(index, own)?),
                TraversalOperator::LegacyIndex(index) => AccessStep::Index(Expr {
                    span: own,
                    kind: Kind::Literal(Value::Number((*index.value()).into())),
                }),
                TraversalOperator::AttrSplat(_) => AccessStep::AttributeSplat,
                TraversalOperator::FullSplat(_) => AccessStep::FullSplat,
            };
            steps.push(Access { span: Span { start: whole.start, ..own }, step });
        }
        Ok(Kind::Traversal(Box::new(base), steps))
    }
}
