//! Templates: `"…${x}…"`, heredocs, and files of `templatefile`.
//!
//! Terraform works on a flat sequence of literals and sequences (`${…}`, `%{…}`): strip markers trim the literal
//! next to them, `<<-` takes the indentation of the least indented line from all, and only then directives are
//! matched. In a heredoc each line is a literal of its own, so a marker never trims beyond its line. The parser
//! gives a tree whose literals are treated already, so it is taken apart and put together again here.

use std::iter::Peekable;

use hcl_edit::{
    Span as _,
    expr::Expression,
    template::{Directive, Element, HeredocTemplate, Strip, Template},
};

use super::{Expr, Fault, Kind, Origin, Span, Value};

/// Part of a template.
#[derive(Debug)]
pub(in super::super) enum Part {
    Literal(String),
    Value(Expr),
    If { condition: Expr, then: Vec<Part>, otherwise: Vec<Part> },
    For { key: Option<String>, value: String, collection: Expr, body: Vec<Part> },
}

/// Literals and sequences in the order of the text.
#[derive(Debug)]
enum Token {
    Literal(String),
    Sequence(Sequence),
}

#[derive(Debug)]
enum Sequence {
    Value(Expr),
    If(Expr),
    Else,
    EndIf,
    For { key: Option<String>, value: String, collection: Expr },
    EndFor,
}

/// How literals are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// In quotes: backslashes escape.
    Quoted,
    /// Line by line.
    Heredoc,
    /// A whole file.
    Bare,
}

impl Origin<'_> {
    /// A string in quotes. One that is nothing but `${x}` is x, whatever its type.
    pub(super) fn quoted<'a>(
        self,
        elements: impl Iterator<Item = &'a Element>,
        span: Span,
    ) -> Result<Kind, Fault> {
        let mut flat = Flat { origin: self, manner: Manner::Quoted, tokens: Vec::new(), trim_next: false };
        for element in elements {
            flat.element(element, span)?;
        }
        flat.finish(false)
    }

    pub(super) fn heredoc(self, heredoc: &HeredocTemplate, span: Span) -> Result<Kind, Fault> {
        let flush = self.texts.slice(span).starts_with("<<-");
        let mut flat = Flat { origin: self, manner: Manner::Heredoc, tokens: Vec::new(), trim_next: false };
        for element in &heredoc.template {
            flat.element(element, span)?;
        }
        flat.finish(flush)
    }
}

/// The template of a whole text that has been added to the texts already.
pub(in super::super) fn of_text(origin: Origin<'_>, template: &Template, whole: Span) -> Result<Expr, Fault> {
    let mut flat = Flat { origin, manner: Manner::Bare, tokens: Vec::new(), trim_next: false };
    for element in template {
        flat.element(element, whole)?;
    }
    Ok(Expr { span: whole, kind: flat.finish(false)? })
}

struct Flat<'a> {
    origin: Origin<'a>,
    manner: Manner,
    tokens: Vec<Token>,
    /// Whether the sequence before ended with `~}`.
    trim_next: bool,
}

impl Flat<'_> {
    fn element(&mut self, element: &Element, around: Span) -> Result<(), Fault> {
        let span = self.origin.span(element.span(), around);
        match element {
            Element::Literal(_) => self.literal(span),
            Element::Interpolation(it) => {
                let value = self.origin.expr(&it.expr, span)?;
                self.sequence(it.strip, Sequence::Value(value));
                Ok(())
            }
            Element::Directive(directive) => match &**directive {
                Directive::If(it) => {
                    let condition = self.inner(&it.if_expr.cond_expr, span)?;
                    self.sequence(it.if_expr.strip, Sequence::If(condition));
                    self.elements(&it.if_expr.template, span)?;
                    if let Some(otherwise) = &it.else_expr {
                        self.sequence(otherwise.strip, Sequence::Else);
                        self.elements(&otherwise.template, span)?;
                    }
                    self.sequence(it.endif_expr.strip, Sequence::EndIf);
                    Ok(())
                }
                Directive::For(it) => {
                    let collection = self.inner(&it.for_expr.collection_expr, span)?;
                    let key = it.for_expr.key_var.as_ref().map(|name| name.value().to_string());
                    let value = it.for_expr.value_var.value().to_string();
                    self.sequence(it.for_expr.strip, Sequence::For { key, value, collection });
                    self.elements(&it.for_expr.template, span)?;
                    self.sequence(it.endfor_expr.strip, Sequence::EndFor);
                    Ok(())
                }
            },
        }
    }

    fn elements(&mut self, template: &Template, around: Span) -> Result<(), Fault> {
        template.iter().try_for_each(|element| self.element(element, around))
    }

    fn inner(&self, expr: &Expression, around: Span) -> Result<Expr, Fault> {
        self.origin.expr(expr, around)
    }

    fn sequence(&mut self, strip: Strip, sequence: Sequence) {
        if strip.strip_start()
            && let Some(Token::Literal(before)) = self.tokens.last_mut()
        {
            before.truncate(before.trim_end().len());
        }
        self.trim_next = strip.strip_end();
        self.tokens.push(Token::Sequence(sequence));
    }

    /// From the text itself: the parser has trimmed what it gives.
    fn literal(&mut self, span: Span) -> Result<(), Fault> {
        let raw = self.origin.texts.slice(span);
        let lines: Vec<&str> = match self.manner {
            Manner::Heredoc => raw.split_inclusive('\n').collect(),
            Manner::Quoted | Manner::Bare => vec![raw],
        };
        if self.manner == Manner::Quoted && raw.contains('\n') {
            return Err(Fault::at(span, "is a text in quotes with more than one line")
                .hint("write \\n, or a heredoc: <<-EOT"));
        }
        for line in lines {
            let mut text = match self.manner {
                Manner::Quoted => unescaped(line).ok_or_else(|| {
                    Fault::at(span, "has a backslash before something that it does not escape")
                })?,
                Manner::Heredoc | Manner::Bare => line.replace("$${", "${").replace("%%{", "%{"),
            };
            if std::mem::take(&mut self.trim_next) {
                text = text.trim_start().to_owned();
            }
            self.tokens.push(Token::Literal(text));
        }
        Ok(())
    }

    fn finish(mut self, flush: bool) -> Result<Kind, Fault> {
        if flush {
            unindent(&mut self.tokens);
        }
        if let [Token::Sequence(Sequence::Value(_))] = self.tokens.as_slice()
            && let Some(Token::Sequence(Sequence::Value(only))) = self.tokens.pop()
        {
            // A file's whole text that is one value is that value too.
            return Ok(Kind::Template(vec![Part::Value(only)]));
        }
        let mut tokens = self.tokens.into_iter().peekable();
        let parts = parts(&mut tokens);
        let mut texts = String::new();
        for part in &parts {
            match part {
                Part::Literal(text) => texts.push_str(text),
                Part::Value(_) | Part::If { .. } | Part::For { .. } => return Ok(Kind::Template(parts)),
            }
        }
        Ok(Kind::Literal(Value::string(texts)))
    }
}

/// Up to the end of the directive that they are in; that end is left.
fn parts(tokens: &mut Peekable<std::vec::IntoIter<Token>>) -> Vec<Part> {
    let mut made = Vec::new();
    while let Some(token) = tokens.next_if(|token| {
        !matches!(token, Token::Sequence(Sequence::Else | Sequence::EndIf | Sequence::EndFor))
    }) {
        match token {
            Token::Literal(text) => made.push(Part::Literal(text)),
            Token::Sequence(Sequence::Value(value)) => made.push(Part::Value(value)),
            Token::Sequence(Sequence::If(condition)) => {
                let then = parts(tokens);
                let mut otherwise = Vec::new();
                if let Some(Token::Sequence(Sequence::Else)) = tokens.next() {
                    otherwise = parts(tokens);
                    drop(tokens.next());
                }
                made.push(Part::If { condition, then, otherwise });
            }
            Token::Sequence(Sequence::For { key, value, collection }) => {
                let body = parts(tokens);
                drop(tokens.next());
                made.push(Part::For { key, value, collection, body });
            }
            // Left by the condition of the loop.
            Token::Sequence(Sequence::Else | Sequence::EndIf | Sequence::EndFor) => {}
        }
    }
    made
}

/// Takes from each line as much white space as the line with the least has. Lines of nothing else do not count.
fn unindent(tokens: &mut [Token]) {
    let spaces = |text: &str| text.chars().take_while(|c| c.is_whitespace()).count();
    let mut least = usize::MAX;
    let mut lines = Vec::new();
    let mut begins = true;
    for (n, token) in tokens.iter().enumerate() {
        if std::mem::take(&mut begins) {
            match token {
                Token::Literal(text) if text.trim_start().is_empty() && text.ends_with('\n') => {}
                Token::Literal(text) => {
                    lines.push(n);
                    least = least.min(spaces(text));
                }
                Token::Sequence(_) => least = 0,
            }
        }
        if let Token::Literal(text) = token {
            begins = text.ends_with('\n');
        }
    }
    for n in lines {
        if let Some(Token::Literal(text)) = tokens.get_mut(n) {
            *text = text.chars().skip(least).collect();
        }
    }
}

/// A literal in quotes without its escapes.
fn unescaped(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix("$${") {
            text.push_str("${");
            rest = after;
        } else if let Some(after) = rest.strip_prefix("%%{") {
            text.push_str("%{");
            rest = after;
        } else if c == '\\' {
            let escape = after.chars().next()?;
            rest = after.get(escape.len_utf8()..)?;
            let digits = match escape {
                'n' => {
                    text.push('\n');
                    continue;
                }
                'r' => {
                    text.push('\r');
                    continue;
                }
                't' => {
                    text.push('\t');
                    continue;
                }
                '"' | '\\' => {
                    text.push(escape);
                    continue;
                }
                'u' => 4,
                'U' => 8,
                _ => return None,
            };
            let code = rest.get(..digits)?;
            text.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
            rest = rest.get(digits..)?;
        } else {
            text.push(c);
            rest = after;
        }
    }
    Some(text)
}
