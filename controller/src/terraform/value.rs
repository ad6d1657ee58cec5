//! Values as Terraform sends them: MessagePack between the processes, JSON in stored state.
//!
//! Numbers are kept in the form they came in: Terraform's are decimal and exact, and 0.3 that became a
//! binary fraction on its way would be another value than the one in the configuration.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use rmpv::Value as Packed;
use tpi_proto::tfplugin5 as wire;

/// An object's attributes and blocks, by name.
pub(super) type Object = BTreeMap<String, Value>;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Not set.
    Null,
    /// Known only when it is applied.
    Unknown,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A list or a set.
    List(Vec<Value>),
    /// A map or an object.
    Map(Object),
}

/// A number. Equal numbers are equal in whatever form they came.
#[derive(Debug, Clone)]
pub(super) enum Number {
    Integer(i64),
    Float(f64),
    /// In decimal: what has no exact binary form.
    Decimal(String),
}

impl Number {
    fn approximately(&self) -> Option<f64> {
        match self {
            // Beyond 2^53 the forms are compared as texts.
            Self::Integer(number) => i32::try_from(*number).ok().map(f64::from),
            Self::Float(number) => Some(*number),
            Self::Decimal(text) => text.parse().ok(),
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        match (self.approximately(), other.approximately()) {
            // The same decimal gives the same float.
            (Some(one), Some(other)) => one == other,
            _ => self.to_string() == other.to_string(),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Decimal(text) => f.write_str(text),
        }
    }
}

/// Bytes that are not what Terraform sends.
#[derive(Debug, thiserror::Error)]
pub(super) enum ValueError {
    /// Not MessagePack, or cut off.
    #[error("a value is not MessagePack")]
    Packed(#[source] rmpv::decode::Error),
    /// Not JSON.
    #[error("a state is not JSON")]
    Json(#[source] serde_json::Error),
    /// A kind of value that no attribute has.
    #[error("a value is of a kind that is not expected here: {0}")]
    Kind(&'static str),
}

impl Value {
    /// From text.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Of texts.
    pub(super) fn texts(texts: impl IntoIterator<Item = String>) -> Self {
        Self::List(texts.into_iter().map(Self::Text).collect())
    }

    /// From a whole number.
    pub(super) fn integer(number: i64) -> Self {
        Self::Number(Number::Integer(number))
    }

    /// The text, if it is a known one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Unknown | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Map(_) => {
                None
            }
        }
    }

    /// The elements, if it is a known list or set.
    pub(super) fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            Self::Null | Self::Unknown | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Map(_) => {
                None
            }
        }
    }

    /// The entries, if it is a known map or object.
    pub(super) fn as_map(&self) -> Option<&Object> {
        match self {
            Self::Map(entries) => Some(entries),
            Self::Null | Self::Unknown | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => {
                None
            }
        }
    }

    /// Whether it, or anything in it, is not known yet.
    pub(super) fn has_unknown(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::List(items) => items.iter().any(Self::has_unknown),
            Self::Map(entries) => entries.values().any(Self::has_unknown),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => false,
        }
    }

    /// Reads what came over the wire; absent is null.
    pub(super) fn decode(value: Option<&wire::DynamicValue>) -> Result<Self, ValueError> {
        let Some(value) = value else { return Ok(Self::Null) };
        if value.msgpack.is_empty() {
            if value.json.is_empty() {
                return Ok(Self::Null);
            }
            return Self::from_json_bytes(&value.json);
        }
        let packed = rmpv::decode::read_value(&mut value.msgpack.as_ref()).map_err(ValueError::Packed)?;
        Self::unpack(packed)
    }

    fn unpack(packed: Packed) -> Result<Self, ValueError> {
        let text = |text: rmpv::Utf8String| text.into_str().ok_or(ValueError::Kind("text that is not UTF-8"));
        Ok(match packed {
            Packed::Nil => Self::Null,
            // Both forms of "not known": bare, and with hints at what it will be.
            Packed::Ext(_, _) => Self::Unknown,
            Packed::Boolean(value) => Self::Bool(value),
            Packed::Integer(number) => Self::Number(match number.as_i64() {
                Some(number) => Number::Integer(number),
                None => Number::Decimal(number.to_string()),
            }),
            Packed::F32(number) => Self::Number(Number::Float(number.into())),
            Packed::F64(number) => Self::Number(Number::Float(number)),
            Packed::String(string) => Self::Text(text(string)?),
            Packed::Binary(_) => return Err(ValueError::Kind("binary")),
            Packed::Array(items) => {
                Self::List(items.into_iter().map(Self::unpack).collect::<Result<_, _>>()?)
            }
            Packed::Map(entries) => Self::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let Packed::String(key) = key else { return Err(ValueError::Kind("key of a map")) };
                        Ok((text(key)?, Self::unpack(value)?))
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    /// For the wire.
    pub(super) fn encode(&self) -> wire::DynamicValue {
        let mut bytes = Vec::new();
        // Writing to a `Vec` cannot fail.
        drop(rmpv::encode::write_value(&mut bytes, &self.pack()));
        wire::DynamicValue { msgpack: bytes.into(), json: Bytes::new() }
    }

    fn pack(&self) -> Packed {
        match self {
            Self::Null => Packed::Nil,
            Self::Unknown => Packed::Ext(0, vec![0]),
            Self::Bool(value) => Packed::Boolean(*value),
            Self::Number(Number::Integer(number)) => Packed::from(*number),
            Self::Number(Number::Float(number)) => Packed::F64(*number),
            Self::Number(Number::Decimal(text)) | Self::Text(text) => Packed::from(text.as_str()),
            Self::List(items) => Packed::Array(items.iter().map(Self::pack).collect()),
            Self::Map(entries) => {
                Packed::Map(entries.iter().map(|(k, v)| (Packed::from(k.as_str()), v.pack())).collect())
            }
        }
    }

    /// Reads stored state.
    pub(super) fn from_json_bytes(bytes: &[u8]) -> Result<Self, ValueError> {
        serde_json::from_slice(bytes).map(Self::from_json).map_err(ValueError::Json)
    }

    fn from_json(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match value {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => Self::Number(match number.as_i64() {
                Some(integer) => Number::Integer(integer),
                // As it is written, which is what Terraform wrote.
                None => Number::Decimal(number.to_string()),
            }),
            Json::String(text) => Self::Text(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from_json).collect()),
            Json::Object(entries) => {
                Self::Map(entries.into_iter().map(|(k, v)| (k, Self::from_json(v))).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_wire() {
        let value = Value::Map(BTreeMap::from([
            ("a".to_owned(), Value::Unknown),
            ("b".to_owned(), Value::List(vec![Value::Null, Value::Bool(true), Value::text("x")])),
            ("c".to_owned(), Value::Number(Number::Decimal("0.3".to_owned()))),
            ("d".to_owned(), Value::integer(-1)),
            ("e".to_owned(), Value::Number(Number::Float(0.5))),
        ]));
        let back = Value::decode(Some(&value.encode())).expect("reads");
        // A decimal is a text on the wire; only its type says that it is a number.
        assert_eq!(back.as_map().and_then(|m| m.get("c")), Some(&Value::text("0.3")));
        assert_eq!(back.as_map().and_then(|m| m.get("a")), Some(&Value::Unknown));
        assert!(back.has_unknown());
        assert_eq!(Value::decode(None).expect("reads"), Value::Null);
        assert!(
            Value::decode(Some(&wire::DynamicValue { msgpack: vec![0x92].into(), json: Bytes::new() }))
                .is_err()
        );
    }

    #[test]
    fn numbers_are_equal_in_any_form() {
        let decimal = |text: &str| Number::Decimal(text.to_owned());
        assert_eq!(Number::Integer(5), Number::Float(5.0));
        assert_eq!(decimal("0.3"), Number::Float(0.3));
        assert_ne!(decimal("0.3"), Number::Integer(0));
        assert_eq!(decimal("123456789012345678901"), decimal("123456789012345678901"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            drop(Value::decode(Some(&wire::DynamicValue { msgpack: bytes.into(), json: Bytes::new() })));
        }
    }
}
