//! Clients of the SDK: one configuration for all, one client for each service and region.

use std::{sync::Arc, time::Duration};

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

use super::AwsSettings;

/// Where nothing says otherwise; it has all services that are asked without naming a region.
const FALLBACK: &str = "us-east-1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 6;
const QUOTA_ATTEMPTS: u32 = 2;
const QUOTA_TIMEOUT: Duration = Duration::from_secs(10);

/// An account, reached with whatever credentials the environment has. Nothing is read before the first use.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) settings: Arc<AwsSettings>,
    config: Arc<OnceCell<SdkConfig>>,
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
    /// Asked for what is good to know only, so it is not waited for.
    pub(super) quotas: aws_sdk_servicequotas::Client,
}

impl Account {
    pub(super) fn new(settings: AwsSettings) -> Self {
        Self { settings: Arc::new(settings), config: Arc::default() }
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
            quotas: aws_sdk_servicequotas::Client::from_conf(
                aws_sdk_servicequotas::config::Builder::from(&config)
                    .retry_config(RetryConfig::standard().with_max_attempts(QUOTA_ATTEMPTS))
                    .timeout_config(TimeoutConfig::builder().operation_timeout(QUOTA_TIMEOUT).build())
                    .build(),
            ),
        }
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
