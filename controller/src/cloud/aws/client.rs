//! Clients of the SDK: one configuration for all, one client for each service and region.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::{
    Region, SdkConfig, environment::EnvironmentVariableRegionProvider, meta::region::RegionProviderChain,
    profile::ProfileFileRegionProvider, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_ec2::config::Credentials;
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use tokio::sync::OnceCell;
use tpi_store::{KeySource, Store, StoreError};
use url::Url;

use super::{AwsSettings, bucket, error::status_of, keys::Chain, lookup::Caller};
use crate::cloud::CloudError;

/// Where nothing says otherwise; it has all services that are asked without naming a region.
const FALLBACK: &str = "us-east-1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 6;
/// Longest time to find out where a bucket is; without an answer the environment's region is taken.
const BUCKET_PATIENCE: Duration = Duration::from_secs(10);
const QUOTA_ATTEMPTS: u32 = 2;
const QUOTA_TIMEOUT: Duration = Duration::from_secs(10);

/// An account, reached with whatever credentials the environment has. Nothing is read before the first use.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) settings: Arc<AwsSettings>,
    config: Arc<OnceCell<SdkConfig>>,
    caller: Arc<OnceCell<Caller>>,
    /// What names of buckets begin with.
    mark: Arc<OnceCell<String>>,
    keys: Arc<OnceCell<Arc<Chain>>>,
    /// Regions of buckets that were asked for.
    buckets: Arc<Mutex<BTreeMap<String, String>>>,
}

/// Services in one region.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    pub(super) region: String,
    pub(super) ec2: aws_sdk_ec2::Client,
    pub(super) scaling: aws_sdk_autoscaling::Client,
    /// Global, whatever the region.
    pub(super) iam: aws_sdk_iam::Client,
    pub(super) sts: aws_sdk_sts::Client,
    pub(super) s3: aws_sdk_s3::Client,
    /// Asked once for all regions.
    pub(super) caller: Arc<OnceCell<Caller>>,
    /// Asked for what is good to know only, so it is not waited for.
    pub(super) quotas: aws_sdk_servicequotas::Client,
}

impl Account {
    pub(super) fn new(settings: AwsSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            config: Arc::default(),
            caller: Arc::default(),
            mark: Arc::default(),
            keys: Arc::default(),
            buckets: Arc::default(),
        }
    }

    async fn config(&self) -> &SdkConfig {
        self.config.get_or_init(|| load(&self.settings)).await
    }

    /// The region that the environment or the profile names.
    pub(super) async fn own_region(&self) -> String {
        self.config().await.region().map_or_else(|| FALLBACK.to_owned(), ToString::to_string)
    }

    pub(super) async fn in_region(&self, region: &str) -> Clients {
        let shared = self.config().await;
        let config = shared.to_builder().region(Region::new(region.to_owned())).build();
        // At an address of the user's own the SDK would sign for the task's region, which IAM refuses.
        let global = shared.to_builder().region(Region::from_static(global_region(region))).build();
        Clients {
            region: region.to_owned(),
            ec2: aws_sdk_ec2::Client::new(&config),
            scaling: aws_sdk_autoscaling::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&global),
            sts: aws_sdk_sts::Client::new(&config),
            s3: aws_sdk_s3::Client::from_conf(
                aws_sdk_s3::config::Builder::from(&config)
                    // Emulators have no name for each bucket.
                    .force_path_style(self.settings.s3_endpoint().is_some())
                    .build(),
            ),
            caller: Arc::clone(&self.caller),
            quotas: aws_sdk_servicequotas::Client::from_conf(
                aws_sdk_servicequotas::config::Builder::from(&config)
                    .retry_config(RetryConfig::standard().with_max_attempts(QUOTA_ATTEMPTS))
                    .timeout_config(TimeoutConfig::builder().operation_timeout(QUOTA_TIMEOUT).build())
                    .build(),
            ),
        }
    }

    /// Name of the account's own bucket in a region.
    pub(super) async fn own_bucket(&self, clients: &Clients) -> Result<String, CloudError> {
        let caller = clients.caller().await?;
        let mark = self.mark.get_or_try_init(|| bucket::account_mark(&caller.account)).await?;
        Ok(format!("{mark}{}", clients.region))
    }

    /// Where a bucket is: by its name where it is one of ours, by asking where not; `None` when nobody says.
    pub(super) async fn bucket_region(&self, name: &str) -> Option<String> {
        if let Some(region) = bucket::region_of(name) {
            return Some(region);
        }
        let held = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if held.is_some() {
            return held;
        }
        let own = self.own_region().await;
        let clients = self.in_region(&own).await;
        let looked = clients.s3.head_bucket().bucket(name).send();
        let found = match tokio::time::timeout(BUCKET_PATIENCE, looked).await {
            Ok(Ok(found)) => found.bucket_region,
            // Also who may not look is told where it is.
            Ok(Err(error)) if status_of(&error).is_some() => error
                .raw_response()
                .and_then(|answer| answer.headers().get("x-amz-bucket-region"))
                .map(str::to_owned),
            Ok(Err(_)) | Err(_) => None,
        };
        let mut held = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        Some(held.entry(name.to_owned()).or_insert(found?).clone())
    }

    /// Opens a store in a bucket with the credentials of the account.
    pub(super) async fn open_store(&self, url: &Url) -> Result<Store, StoreError> {
        let region = match self.bucket_region(url.host_str().unwrap_or_default()).await {
            Some(region) => region,
            None => self.own_region().await,
        };
        let provider = self.config().await.credentials_provider();
        let keys = self.keys.get_or_init(|| async { Arc::new(Chain::new(provider)) }).await;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
        let ours = [("AWS_REGION".to_owned(), region)];
        let endpoint = self.settings.endpoint.as_ref().map(|endpoint| {
            ("AWS_ENDPOINT_URL_S3".to_owned(), endpoint.as_str().trim_end_matches('/').to_owned())
        });
        let keys: Arc<dyn KeySource> = Arc::<Chain>::clone(keys);
        Store::open_with_keys(url, environment.chain(ours).chain(endpoint), keys)
    }
}

/// The one region of a partition that its global services are signed for.
fn global_region(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "cn-north-1",
        _ if region.starts_with("us-gov-") => "us-gov-west-1",
        _ => FALLBACK,
    }
}

async fn load(settings: &AwsSettings) -> SdkConfig {
    // The instance metadata service is not asked for a region: on a laptop that is a wait for nothing.
    let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::from_static(FALLBACK));
    // One rustls provider in the whole program: the SDK's default client would bring the other one.
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let mut loader = aws_config::from_env()
        .http_client(http)
        .region(region)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .build(),
        );
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint.as_str().trim_end_matches('/'));
    }
    if let Some((id, secret)) = &settings.access_key {
        loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "settings"));
    }
    loader.load().await
}
