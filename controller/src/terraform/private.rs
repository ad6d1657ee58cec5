//! What is kept beside the state, for this provider alone.

use serde::{Deserialize, Serialize};
use tpi_proto::spec::CloudName;
use url::Url;

/// Version of this shape.
const VERSION: u32 = 1;

/// Tells a task of ours from one of the earlier provider, and where it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Private {
    /// Version of this shape; the earlier provider writes other keys.
    tpi: u32,
    /// Where its machines are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cloud: Option<CloudName>,
    /// Where its record is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) store: Option<Url>,
    /// Whether submitting it was cut off.
    #[serde(default)]
    pub(super) unfinished: bool,
    /// Whether it came by import: what a record does not keep is unknown then, not absent.
    #[serde(default)]
    pub(super) imported: bool,
}

impl Private {
    pub(super) fn new(cloud: Option<CloudName>, store: Option<Url>) -> Self {
        Self { tpi: VERSION, cloud, store, unfinished: false, imported: false }
    }

    /// `None` for what another provider, or nobody, has written.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|private| private.tpi == VERSION)
    }

    pub(super) fn bytes(&self) -> bytes::Bytes {
        // It has no map with other keys than texts, so encoding cannot fail.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_not_ours() {
        let mut ours = Private::new(Some(CloudName::Local), None);
        ours.unfinished = true;
        assert_eq!(Private::read(&ours.bytes()), Some(ours));
        assert_eq!(Private::read(b""), None);
        assert_eq!(Private::read(br#"{"e2bfb730":{"create":900000000000},"schema_version":"0"}"#), None);
    }
}
