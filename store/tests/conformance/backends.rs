use tpi_store::Store;
use url::Url;

/// A store of its own for one test.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) store: Store,
    _folder: Option<tempfile::TempDir>,
}

pub(crate) fn memory() -> Backend {
    Backend { store: Store::memory(), _folder: None }
}

pub(crate) fn folder() -> Backend {
    let folder = tempfile::tempdir().unwrap();
    let url = Url::from_directory_path(folder.path().join("store")).unwrap();
    Backend { store: Store::open(&url).unwrap(), _folder: Some(folder) }
}

/// `None`, said aloud, where there is no emulator.
pub(crate) async fn s3(test: &str) -> Option<Backend> {
    let Some(endpoint) = std::env::var("TPI_TEST_S3_ENDPOINT").ok().filter(|e| !e.is_empty()) else {
        #[expect(clippy::print_stderr, reason = "what was not tested has to be seen")]
        {
            eprintln!("SKIPPED: {test} on S3: TPI_TEST_S3_ENDPOINT names no emulator");
        }
        return None;
    };
    // Fails when it is installed already, by another test of this process.
    drop(rustls::crypto::ring::default_provider().install_default());
    let bucket = format!("tpi-test-{}", hex::encode(rand::random::<[u8; 6]>()));
    let answer = reqwest::Client::new()
        .put(format!("{}/{bucket}", endpoint.trim_end_matches('/')))
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "making the bucket: {}", answer.status());
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = Url::parse(&format!("s3://{bucket}/some/prefix")).unwrap();
    Some(Backend { store: Store::open_with(&url, settings).unwrap(), _folder: None })
}
