//! What names refer to: variables, locals, paths, instances; and why others are not known.

use super::{
    Access, AccessStep, Evaluated, Evaluator, Failure, Fault, NESTING_MAX, Progress, Scope, Source, Span,
    Type, Validation, Value, nearest,
};

impl Evaluator<'_> {
    /// The value of a name, and how many of the steps after it belong to the name.
    pub(super) fn name(
        &mut self,
        name: &str,
        steps: &[Access],
        span: Span,
    ) -> Result<(Value, usize), Failure> {
        if let Some((_, value)) = self.bindings.iter().rev().find(|(bound, _)| bound == name) {
            return Ok((value.clone(), 0));
        }
        let second = steps.first().and_then(|access| match &access.step {
            AccessStep::Attribute(name) => Some((name.as_str(), access.span)),
            AccessStep::Index(_) | AccessStep::AttributeSplat | AccessStep::FullSplat => None,
        });
        match self.scope {
            Scope::Module => self.of_module(name, second, steps, span).map(|value| (value, 1)),
            Scope::Template => {
                let near = nearest(name, self.bindings.iter().map(|(name, _)| name.as_str()));
                let fault = Fault::at(span, "is not among the variables that the template is given");
                Err(fault.hint_some(near.map(|near| format!("did you mean {near}?"))).into())
            }
            Scope::Values => {
                let whole = steps.last().map_or(span, |access| access.span);
                let fault = Fault::at(whole, "cannot be used here: values of variables refer to nothing");
                Err(fault.hint("put texts into quotes").into())
            }
        }
    }

    fn of_module(
        &mut self,
        name: &str,
        second: Option<(&str, Span)>,
        steps: &[Access],
        span: Span,
    ) -> Evaluated {
        let whole = steps.last().map_or(span, |access| access.span);
        match (name, second) {
            ("var", Some((name, span))) => self.variable(name, span),
            ("local", Some((name, span))) => self.local(name, span),
            ("path", Some(("module" | "root", _))) => Ok(Value::string(".")),
            ("path", Some(("cwd", _))) => Ok(Value::string(self.folder.to_string_lossy())),
            ("terraform", Some(("workspace", _))) => Ok(Value::string(&self.workspace)),
            ("each", Some(("key", span))) => match &self.instance.each {
                Some((key, _)) => Ok(key.clone()),
                None => Err(Fault::at(span, "is there only in a resource with for_each").into()),
            },
            ("each", Some(("value", span))) => match &self.instance.each {
                Some((_, value)) => Ok(value.clone()),
                None => Err(Fault::at(span, "is there only in a resource with for_each").into()),
            },
            ("count", Some(("index", span))) => match self.instance.count {
                Some(index) => Ok(Value::number(index)),
                None => Err(Fault::at(span, "is there only in a resource with count").into()),
            },
            ("var" | "local" | "path" | "terraform" | "each" | "count", _) => {
                Err(Fault::at(whole, format!("is not known: {name} has no such value")).into())
            }
            ("data", _) => {
                let fault = Fault::at(whole, "is of a data source, which only Terraform reads");
                Err(fault.hint("put the value into a variable or a local").into())
            }
            ("module", _) => {
                let fault = Fault::at(whole, "is of a module, which only Terraform reads");
                Err(fault.hint("put the value into a variable or a local").into())
            }
            ("iterative_task", _) => {
                let fault = Fault::at(whole, "is of a task, and known only after Terraform has made it");
                Err(fault.hint("put what several tasks need into a local").into())
            }
            ("self", _) => Err(Fault::at(whole, "is known only in provisioners").into()),
            (name, Some(_)) if self.resources.iter().any(|known| known == name) => {
                let fault = Fault::at(whole, "is of another resource, which only Terraform makes");
                Err(fault.hint("put the value into a variable or a local").into())
            }
            (name, _) => {
                let fault = Fault::at(whole, "refers to something that is not known");
                let hint = if self.locals.contains_key(name) {
                    Some(format!("write local.{name}"))
                } else if self.variables.contains_key(name) {
                    Some(format!("write var.{name}"))
                } else {
                    None
                };
                Err(fault.hint_some(hint).into())
            }
        }
    }

    /// Evaluates something of the module's own, away from where it is used.
    fn apart<T>(&mut self, then: impl FnOnce(&mut Self) -> T) -> T {
        let bindings = std::mem::take(&mut self.bindings);
        let instance = std::mem::take(&mut self.instance);
        let reading = self.reading.take();
        let result = then(self);
        self.bindings = bindings;
        self.instance = instance;
        self.reading = reading;
        result
    }

    fn local(&mut self, name: &str, span: Span) -> Evaluated {
        let Some(local) = self.locals.get_mut(name) else {
            let near = nearest(name, self.locals.keys().map(String::as_str));
            let fault = Fault::at(span, "is not declared in any locals block");
            return Err(fault.hint_some(near.map(|near| format!("did you mean local.{near}?"))).into());
        };
        match std::mem::replace(&mut local.progress, Progress::Begun) {
            Progress::Done(value) => {
                local.progress = Progress::Done(value.clone());
                return Ok(value);
            }
            Progress::Failed => {
                local.progress = Progress::Failed;
                return Err(Failure::Told);
            }
            Progress::Begun => return Err(Fault::at(span, "depends on itself").into()),
            Progress::Untouched => {}
        }
        let source = local.source;
        let value = self.apart(|own| {
            let value = own.source(source).and_then(|value| shallow(value, source.span));
            own.told(value)
        });
        let progress = value.clone().map_or(Progress::Failed, Progress::Done);
        if let Some(local) = self.locals.get_mut(name) {
            local.progress = progress;
        }
        value.ok_or(Failure::Told)
    }

    fn variable(&mut self, name: &str, span: Span) -> Evaluated {
        let Some(variable) = self.variables.get_mut(name) else {
            let near = nearest(name, self.variables.keys().map(String::as_str));
            let fault = Fault::at(span, "is not declared in any variable block");
            return Err(fault.hint_some(near.map(|near| format!("did you mean var.{near}?"))).into());
        };
        match std::mem::replace(&mut variable.progress, Progress::Begun) {
            Progress::Done(value) => {
                variable.progress = Progress::Done(value.clone());
                return Ok(value);
            }
            Progress::Failed => {
                variable.progress = Progress::Failed;
                return Err(Failure::Told);
            }
            // Its own validation asks for it.
            Progress::Begun => return Err(Fault::at(span, "depends on itself").into()),
            Progress::Untouched => {}
        }
        let sensitive = variable.sensitive;
        let validations = variable.validations.clone();
        let value = self.apart(|own| {
            let value = own.given(name);
            own.told(value)
        });
        if sensitive && let Some(value) = &value {
            self.hide(value);
        }
        let progress = value.clone().map_or(Progress::Failed, Progress::Done);
        self.progress_of(name, progress);
        let Some(value) = value else { return Err(Failure::Told) };
        let mut valid = true;
        for validation in validations {
            valid &= self.apart(|own| own.validate(name, validation));
        }
        if !valid {
            self.progress_of(name, Progress::Failed);
            return Err(Failure::Told);
        }
        Ok(value)
    }

    fn progress_of(&mut self, name: &str, progress: Progress) {
        if let Some(variable) = self.variables.get_mut(name) {
            variable.progress = progress;
        }
    }

    /// The value from outside, or the default, as the variable's type has it.
    fn given(&mut self, name: &str) -> Evaluated {
        let Some(variable) = self.variables.get(name) else { return Err(Failure::Told) };
        let (of, span, nullable) = (variable.of.clone(), variable.span, variable.nullable);
        let sensitive = variable.sensitive;
        let (given, default) = (variable.given.clone(), variable.default);
        let usable = given.filter(|given| given.value != Value::Null || nullable || default.is_none());
        if let Some(given) = usable {
            let at = given.span.unwrap_or(span);
            if given.value == Value::Null && !nullable {
                let cause = format!("gives null to variable {name:?}, which does not allow it");
                return Err(Fault::at(at, cause).into());
            }
            return given.value.convert(&of).map_err(|why| {
                let from = &given.from;
                let cause = format!("declares variable {name:?}, whose value from {from} {why}");
                let fault =
                    if given.span.is_some() { Fault::at(at, why.to_string()) } else { Fault::at(at, cause) };
                fault.not_shown_if(given.span.is_none()).into()
            });
        }
        let Some(default) = default else {
            let fault = Fault::at(span, format!("variable {name:?} has no value")).not_shown();
            return Err(fault
                .hint(format!("give it one: --var {name}=…, TF_VAR_{name}, terraform.tfvars, or a default"))
                .into());
        };
        let value = self.with_scope(Scope::Values, |own| own.source(default))?;
        if sensitive {
            // What is told of it shows how it is written.
            self.hide(&value);
        }
        value.convert(&of).map_err(|why| {
            Fault::at(default.span, format!("is the default of variable {name:?}, and {why}")).into()
        })
    }

    pub(in super::super) fn with_scope<T>(&mut self, scope: Scope, then: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.scope, scope);
        let result = then(self);
        self.scope = before;
        result
    }

    fn validate(&mut self, name: &str, validation: Validation<'_>) -> bool {
        let held = self.holds(validation.condition);
        match held {
            Some(true) => true,
            Some(false) => {
                let message = self.message(validation.message);
                let fault = Fault::at(
                    validation.condition.span,
                    format!("does not hold for variable {name:?}: {message}"),
                );
                self.tell(fault);
                false
            }
            None => false,
        }
    }

    /// Whether a condition holds; `None` once it has been told why that is not known.
    pub(in super::super) fn holds(&mut self, condition: Source<'_>) -> Option<bool> {
        let value = self.source(condition).and_then(|value| match (value.convert(&Type::Bool), value) {
            (Ok(truth @ Value::Bool(_)), _) => Ok(truth),
            (_, value) => {
                let cause = format!("is a condition, but {}, not a bool", value.kind());
                Err(Fault::at(condition.span, cause).into())
            }
        });
        self.told(value).map(|value| value == Value::Bool(true))
    }

    pub(in super::super) fn message(&mut self, source: Source<'_>) -> String {
        let value = self.source(source);
        self.told(value).and_then(|value| value.to_text()).map(|text| text.to_string()).unwrap_or_default()
    }
}

/// Values within values are gone through by recursion.
fn shallow(value: Value, span: Span) -> Evaluated {
    if value.depth(NESTING_MAX + 1) > NESTING_MAX {
        return Err(Fault::at(span, "has a value that is nested too deeply").into());
    }
    Ok(value)
}
