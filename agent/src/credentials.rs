//! How the machine reaches its task's store, and what it signs requests with: data of its configuration.

use tpi_proto::machine::{Credentials, MachineConfig};
use tpi_store::{Store, StoreError};

/// The task's store; nothing is sent yet.
pub(crate) fn open_store(config: &MachineConfig) -> Result<Store, StoreError> {
    Store::open_with(&config.store, settings(&config.credentials))
}

/// As variables, the way [`Store::open_with`] takes them.
pub(crate) fn settings(credentials: &Credentials) -> Vec<(String, String)> {
    match credentials {
        Credentials::Environment => std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty())
            .collect(),
        // Nothing of the process: what lies in its environment is not the instance's.
        Credentials::AwsInstance { endpoint, region, store_endpoint } => {
            let address = |url: &Option<url::Url>| {
                url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned())
            };
            let settings = [
                ("AWS_REGION", Some(region.clone())),
                ("AWS_METADATA_ENDPOINT", address(endpoint)),
                ("AWS_IMDSV1_FALLBACK", Some("false".to_owned())),
                ("AWS_ENDPOINT_URL_S3", address(store_endpoint)),
            ];
            settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        }
    }
}
