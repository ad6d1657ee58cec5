//! The log as Terraform takes it from a provider: lines of JSON on stderr, which it puts among its own at the levels
//! that `TF_LOG` or `TF_LOG_PROVIDER` asks for.

use std::{collections::BTreeMap, env, fmt::Debug, io};

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

/// Installs the log. What nobody asked to see is not even formatted.
pub(super) fn install() {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let own = set("TPI_LOG").and_then(|filter| EnvFilter::try_new(filter).ok());
    let asked = set("TF_LOG_PROVIDER").or_else(|| set("TF_LOG"));
    let filter = own.unwrap_or_else(|| EnvFilter::new(filter(asked.as_deref())));
    let installed = tracing_subscriber::registry().with(Lines.with_filter(filter)).try_init();
    if let Err(error) = installed {
        tracing::debug!(%error, "another log is installed");
    }
}

/// Libraries are kept one level quieter: what they have to say at length is of no use to whoever looks for us.
fn filter(asked: Option<&str>) -> &'static str {
    match asked.map(str::to_uppercase).as_deref() {
        None | Some("OFF") => "off",
        Some("ERROR") => "error",
        Some("WARN") => "warn",
        Some("INFO") => "warn,tpi_controller=info,tpi_store=info",
        Some("DEBUG") => "info,tpi_controller=debug,tpi_store=debug",
        // TRACE, JSON, and whatever else Terraform takes for it.
        Some(_) => "debug,tpi_controller=trace,tpi_store=trace",
    }
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        use io::Write as _;
        let mut line = line(event).to_string();
        line.push('\n');
        // One write per line, so that lines of several threads stay whole; nobody is left to tell when it fails.
        drop(io::stderr().lock().write_all(line.as_bytes()));
    }
}

fn line(event: &Event<'_>) -> Value {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut line = json!({
        "@level": level,
        "@message": fields.message,
        "@module": event.metadata().target(),
        "@timestamp": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
    });
    if let Some(object) = line.as_object_mut() {
        object.extend(fields.others.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))));
    }
    line
}

#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<&'static str, String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format!("{value:?}"));
    }
}

impl Fields {
    fn take(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            let _first = self.others.insert(field.name(), value);
        }
    }
}
