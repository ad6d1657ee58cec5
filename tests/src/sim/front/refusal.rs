//! Errors in each service's own shape.

use http::{Method, StatusCode};

use super::{
    call::Asked,
    http::Answer,
    xml::{Element, encode},
};

/// An error as a service tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
}

/// The usual one.
pub(super) fn refuse<T>(code: &str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(400, code, message))
}

impl Refusal {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// When the simulation itself fails.
    pub(super) fn internal(error: &anyhow::Error) -> Self {
        Self::new(500, "InternalFailure", format!("the simulation failed: {error:#}"))
    }

    pub(super) fn answer(&self, asked: &Asked, method: &Method) -> Answer {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let id = request_id();
        let error = |extra: &[Element]| {
            Element::new("Error")
                .with(Element::text("Code", &self.code))
                .with(Element::text("Message", &self.message))
                .with_all(extra.iter().cloned())
        };
        let body = match asked.service.as_str() {
            "s3" if *method == Method::HEAD => String::new(),
            "s3" => error(&[Element::text("Resource", asked.resource()), Element::text("RequestId", &id)])
                .to_string(),
            "ec2" => Element::new("Response")
                .with(Element::new("Errors").with(error(&[])))
                .with(Element::text("RequestID", &id))
                .to_string(),
            _ if !asked.json.is_null() => {
                serde_json::json!({ "__type": self.code, "message": self.message, "Message": self.message })
                    .to_string()
            }
            _ => {
                let side = if self.status < 500 { "Sender" } else { "Receiver" };
                let mut error = error(&[]);
                error.children.insert(0, Element::text("Type", side));
                Element::new("ErrorResponse").with(error).with(Element::text("RequestId", &id)).to_string()
            }
        };
        let kind = if asked.json.is_null() { "text/xml" } else { "application/x-amz-json-1.1" };
        let kind = if asked.service == "s3" { "application/xml" } else { kind };
        let mut answer = Answer::new(status, kind, body);
        if let Ok(id) = http::HeaderValue::from_str(&id) {
            let name = if asked.service == "s3" { "x-amz-request-id" } else { "x-amzn-requestid" };
            drop(answer.headers.insert(name, id));
        }
        answer
    }
}

/// The code in an answer that is an error.
pub(super) fn code_in(answer: &Answer) -> String {
    if answer.status.is_success() || answer.body.len() > 100_000 {
        return String::new();
    }
    let text = answer.text();
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) {
        return json["__type"].as_str().unwrap_or_default().to_owned();
    }
    Element::parse(&text)
        .ok()
        .and_then(|e| e.texts("Code").first().map(|c| (*c).to_owned()))
        .unwrap_or_default()
}

/// A name for a request.
pub(super) fn request_id() -> String {
    let hex = hex::encode(rand::random::<[u8; 16]>());
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// An answer of the query protocol.
pub(super) fn query_answer(
    namespace: &str,
    action: &str,
    result: impl IntoIterator<Item = Element>,
) -> Answer {
    let result: String = result.into_iter().map(|e| e.to_string()).collect();
    Answer::xml(format!(
        "<{action}Response xmlns=\"{}\"><{action}Result>{result}</{action}Result><ResponseMetadata><RequestId>{}\
         </RequestId></ResponseMetadata></{action}Response>",
        encode(namespace),
        request_id()
    ))
}
