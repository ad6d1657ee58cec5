//! JSON, base64, URLs and hashes.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256, Sha512};

use super::{Args, Body::Pure, Entry, Outcome, Value, Wrong, text};

pub(super) const TABLE: &[Entry] = &[
    ("base64decode", 1, 1, Pure(base64decode)),
    ("base64encode", 1, 1, Pure(|a| text(STANDARD.encode(a.text(0)?.as_bytes())))),
    ("base64sha256", 1, 1, Pure(|a| text(STANDARD.encode(Sha256::digest(a.text(0)?.as_bytes()))))),
    ("jsondecode", 1, 1, Pure(jsondecode)),
    ("jsonencode", 1, 1, Pure(|a| text(a.get(0).to_json()))),
    ("sha256", 1, 1, Pure(|a| text(hex::encode(Sha256::digest(a.text(0)?.as_bytes()))))),
    ("sha512", 1, 1, Pure(|a| text(hex::encode(Sha512::digest(a.text(0)?.as_bytes()))))),
    ("urlencode", 1, 1, Pure(urlencode)),
];

fn base64decode(a: Args<'_>) -> Outcome {
    let bytes = STANDARD.decode(&*a.text(0)?).map_err(|_| Wrong::of(0, "is not base64"))?;
    text(String::from_utf8(bytes).map_err(|_| Wrong::of(0, "is base64 of something that is no text"))?)
}

fn jsondecode(a: Args<'_>) -> Outcome {
    let json: serde_json::Value =
        serde_json::from_str(&a.text(0)?).map_err(|error| Wrong::of(0, format!("is not JSON: {error}")))?;
    Ok(Value::from_json(&json)?)
}

fn urlencode(a: Args<'_>) -> Outcome {
    let mut made = String::new();
    for byte in a.text(0)?.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                made.push(char::from(byte));
            }
            b' ' => made.push('+'),
            // Writing to a `String` cannot fail.
            other => drop(write!(made, "%{other:02X}")),
        }
    }
    text(made)
}
