//! The bucket of an account and region, where tasks that name none of their own have their records.
//!
//! It is called `tpi-{account}-{region}`, where `{account}` stands for the account's number without telling it:
//! the number has twelve digits, so it is stretched as passwords are. A name that can be foreseen can be taken by
//! somebody else, hence every look names the account that the bucket has to belong to.
//!
//! Made on first use: private whatever its policy says, owned by nobody but the account, encrypted, and with a
//! lifecycle that removes what was not uploaded to the end and shared content that nobody has sent again for long.
//! The tag is set last: a bucket without it was cut off while being made, and is finished by the next one.

use std::num::NonZeroU32;

use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, BucketLocationConstraint,
    CreateBucketConfiguration, ExpirationStatus, LifecycleExpiration, LifecycleRule, LifecycleRuleFilter,
    ObjectOwnership, OwnershipControls, OwnershipControlsRule, PublicAccessBlockConfiguration,
    ServerSideEncryption, ServerSideEncryptionByDefault, ServerSideEncryptionConfiguration,
    ServerSideEncryptionRule, Tag, Tagging,
};
use tpi_store::layout::{CACHE, CACHE_INDEX};
use url::Url;

use super::{
    client::Clients,
    error::{code, failed, status_of},
    lookup::Caller,
};
use crate::cloud::{CloudError, CloudErrorKind, Leftovers};

/// Tag of a bucket that is complete, and how it was made.
const MADE_TAG: &str = "tpi:store";
/// To be counted up when something else is set: buckets that are there are brought up to date then.
const MADE: &str = "1";
/// Parts of uploads that never ended cost as much as objects.
const UNFINISHED_DAYS: i32 = 7;
/// Shared content is sent again when it is a quarter as old, see `tpi_store::snapshot`.
const CACHE_DAYS: i32 = 60;

const NAME_ROUNDS: NonZeroU32 = match NonZeroU32::new(300_000) {
    Some(rounds) => rounds,
    None => NonZeroU32::MIN,
};
const NAME_BYTES: usize = 8;

/// The bucket's name. Takes a tenth of a second, on purpose.
fn name(account: &str, region: &str) -> String {
    let mut hash = [0; NAME_BYTES];
    let method = ring::pbkdf2::PBKDF2_HMAC_SHA256;
    ring::pbkdf2::derive(method, NAME_ROUNDS, b"tpi bucket 1", account.as_bytes(), &mut hash);
    format!("tpi-{}-{region}", hex::encode(hash))
}

/// The part of the name that stands for the account.
pub(super) async fn account_mark(account: &str) -> Result<String, CloudError> {
    let account = account.to_owned();
    tokio::task::spawn_blocking(move || name(&account, "")).await.map_err(|error| CloudError {
        kind: CloudErrorKind::Other,
        operation: "naming the account's bucket".to_owned(),
        leftovers: Leftovers::None,
        source: Some(error.into()),
    })
}

/// The region that a name of ours ends with; `None` for other buckets.
pub(super) fn region_of(bucket: &str) -> Option<String> {
    let (mark, region) = bucket.strip_prefix("tpi-")?.split_once('-')?;
    let ours = mark.len() == 2 * NAME_BYTES && mark.bytes().all(|b| b.is_ascii_hexdigit());
    super::place::region(region).ok().filter(|native| ours && native == region)
}

/// As tasks name it.
pub(super) fn url(bucket: &str) -> Result<Url, CloudError> {
    Url::parse(&format!("s3://{bucket}/")).map_err(|error| CloudError {
        kind: CloudErrorKind::Other,
        operation: format!("naming the bucket {bucket} as a URL"),
        leftovers: Leftovers::None,
        source: Some(error.into()),
    })
}

fn taken(bucket: &str, why: &str) -> CloudError {
    CloudError {
        kind: CloudErrorKind::PermissionDenied,
        operation: format!("using the account's own bucket {bucket}"),
        leftovers: Leftovers::None,
        source: Some(
            format!(
                "{why}: nothing is sent there; name a bucket of your own with `--storage BUCKET/PATH`, or ask \
                 AWS about the other one"
            )
            .into(),
        ),
    }
}

fn built<T>(value: Result<T, aws_sdk_s3::error::BuildError>, what: &str) -> Result<T, CloudError> {
    value.map_err(|error| CloudError {
        kind: CloudErrorKind::Other,
        operation: format!("writing {what} of a bucket"),
        leftovers: Leftovers::None,
        source: Some(error.into()),
    })
}

impl Clients {
    /// Whether the bucket is there. One of another account's is an error.
    pub(super) async fn has_bucket(&self, bucket: &str, caller: &Caller) -> Result<bool, CloudError> {
        let looked = self.s3.head_bucket().bucket(bucket).expected_bucket_owner(&caller.account).send().await;
        match looked {
            Ok(_) => Ok(true),
            Err(error) => match status_of(&error) {
                Some(404) => Ok(false),
                Some(403) => {
                    Err(taken(bucket, "it belongs to another account, or these credentials may not use it"))
                }
                Some(_) | None => {
                    Err(failed(format!("looking for the bucket {bucket}"), Leftovers::None)(error))
                }
            },
        }
    }

    /// Makes it exist, complete and private.
    pub(super) async fn make_bucket(&self, bucket: &str, caller: &Caller) -> Result<(), CloudError> {
        let (there, complete) =
            futures::future::join(self.has_bucket(bucket, caller), self.bucket_is_made(bucket, caller)).await;
        match (there?, complete) {
            (true, Ok(true)) => return Ok(()),
            (true, Err(error)) => return Err(error),
            (true, Ok(false)) => {}
            (false, _) => self.create_bucket(bucket).await?,
        }
        self.set_up_bucket(bucket, caller).await
    }

    async fn bucket_is_made(&self, bucket: &str, caller: &Caller) -> Result<bool, CloudError> {
        let asked =
            self.s3.get_bucket_tagging().bucket(bucket).expected_bucket_owner(&caller.account).send().await;
        match asked {
            Ok(tags) => Ok(tags.tag_set().iter().any(|tag| tag.key() == MADE_TAG && tag.value() == MADE)),
            Err(error) if code(&error) == "NoSuchTagSet" => Ok(false),
            Err(error) => {
                Err(failed(format!("reading the tags of the bucket {bucket}"), Leftovers::None)(error))
            }
        }
    }

    async fn create_bucket(&self, bucket: &str) -> Result<(), CloudError> {
        // The first region has no name here.
        let place = (self.region != "us-east-1").then(|| {
            let region = BucketLocationConstraint::from(self.region.as_str());
            CreateBucketConfiguration::builder().location_constraint(region).build()
        });
        let made = self
            .s3
            .create_bucket()
            .bucket(bucket)
            .object_ownership(ObjectOwnership::BucketOwnerEnforced)
            .set_create_bucket_configuration(place)
            .send()
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == "BucketAlreadyOwnedByYou" => Ok(()),
            Err(error) if code(&error) == "BucketAlreadyExists" => {
                Err(taken(bucket, "somebody else has taken its name"))
            }
            // An empty bucket costs nothing.
            Err(error) => Err(failed(format!("making the bucket {bucket}"), Leftovers::None)(error)),
        }
    }

    async fn set_up_bucket(&self, bucket: &str, caller: &Caller) -> Result<(), CloudError> {
        let owner = caller.account.as_str();
        let setting = |what: &str| format!("setting {what} of the bucket {bucket}");
        let all = PublicAccessBlockConfiguration::builder()
            .block_public_acls(true)
            .ignore_public_acls(true)
            .block_public_policy(true)
            .restrict_public_buckets(true)
            .build();
        let enforced =
            OwnershipControlsRule::builder().object_ownership(ObjectOwnership::BucketOwnerEnforced).build();
        let enforced = built(enforced, "the ownership")?;
        let enforced = built(OwnershipControls::builder().rules(enforced).build(), "the ownership")?;
        let default = ServerSideEncryptionByDefault::builder().sse_algorithm(ServerSideEncryption::Aes256);
        let default = ServerSideEncryptionRule::builder()
            .apply_server_side_encryption_by_default(built(default.build(), "the encryption")?)
            .build();
        let encrypted = ServerSideEncryptionConfiguration::builder().rules(default).build();
        let encrypted = built(encrypted, "the encryption")?;
        let lifecycle = lifecycle()?;
        let tagging = || async {
            let tag = built(Tag::builder().key(MADE_TAG).value(MADE).build(), "the tag")?;
            let tags = built(Tagging::builder().tag_set(tag).build(), "the tags")?;
            let put = self.s3.put_bucket_tagging().bucket(bucket).expected_bucket_owner(owner).tagging(tags);
            put.send().await.map_err(failed(setting("the tags"), Leftovers::None))
        };
        let s3 = &self.s3;
        let private = s3.put_public_access_block().bucket(bucket).expected_bucket_owner(owner);
        let private = private.public_access_block_configuration(all).send();
        let owned = s3.put_bucket_ownership_controls().bucket(bucket).expected_bucket_owner(owner);
        let owned = owned.ownership_controls(enforced).send();
        let encrypts = s3.put_bucket_encryption().bucket(bucket).expected_bucket_owner(owner);
        let encrypts = encrypts.server_side_encryption_configuration(encrypted).send();
        let ages = s3.put_bucket_lifecycle_configuration().bucket(bucket).expected_bucket_owner(owner);
        let ages = ages.lifecycle_configuration(lifecycle).send();
        let (private, owned, encrypts, ages) = futures::future::join4(private, owned, encrypts, ages).await;
        let _answer = private.map_err(failed(setting("the privacy"), Leftovers::None))?;
        let _answer = owned.map_err(failed(setting("the ownership"), Leftovers::None))?;
        let _answer = encrypts.map_err(failed(setting("the encryption"), Leftovers::None))?;
        let _answer = ages.map_err(failed(setting("the lifecycle"), Leftovers::None))?;
        let _answer = tagging().await?;
        tracing::info!(bucket, region = self.region, "the account's own bucket is there");
        Ok(())
    }
}

fn lifecycle() -> Result<BucketLifecycleConfiguration, CloudError> {
    let below = |prefix: &str| LifecycleRuleFilter::builder().prefix(prefix).build();
    let rule = |id: &str, prefix: &str| {
        LifecycleRule::builder().id(id).filter(below(prefix)).status(ExpirationStatus::Enabled)
    };
    let unfinished = AbortIncompleteMultipartUpload::builder().days_after_initiation(UNFINISHED_DAYS).build();
    let unfinished = rule("unfinished-uploads", "").abort_incomplete_multipart_upload(unfinished).build();
    let old = |id: &str, folder: &str| {
        let expiration = LifecycleExpiration::builder().days(CACHE_DAYS).build();
        rule(id, &format!("{folder}/")).expiration(expiration).build()
    };
    let rules = [unfinished, old("old-cache", CACHE), old("old-cache-index", CACHE_INDEX)];
    let rules: Result<Vec<_>, CloudError> =
        rules.into_iter().map(|rule| built(rule, "the lifecycle")).collect();
    built(BucketLifecycleConfiguration::builder().set_rules(Some(rules?)).build(), "the lifecycle")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_region_and_not_the_account() {
        let made = name("123456789012", "us-gov-west-1");
        assert_eq!(made, name("123456789012", "us-gov-west-1"));
        assert_ne!(made, name("123456789013", "us-gov-west-1"));
        assert!(!made.contains("1234567890") && made.len() <= 63, "{made}");
        assert_eq!(region_of(&made).as_deref(), Some("us-gov-west-1"));
        for other in ["tpi-data", "tpi-test-us-west-1", "mine", "tpi-0011223344556677-us-west"] {
            assert_eq!(region_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_lifecycle_touches_nothing_but_the_cache() {
        let rules = lifecycle().expect("a lifecycle").rules;
        let expiring: Vec<_> = rules
            .iter()
            .filter(|rule| rule.expiration.is_some())
            .map(|rule| rule.filter().and_then(|filter| filter.prefix()))
            .collect();
        assert_eq!(expiring, [Some("cache/"), Some("cache-index/")]);
        assert!(rules.iter().any(|rule| rule.abort_incomplete_multipart_upload.is_some()));
    }
}
