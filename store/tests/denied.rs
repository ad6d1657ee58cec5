//! A bucket that tells those who may not list it that what is absent is forbidden, as S3 does.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use tpi_store::{Store, StoreErrorKind};
use url::Url;

const OBJECTS: [&str; 3] = ["tasks/own/record.json", "tasks/own/slots/0.json", "tasks/own/slots/10.json"];

/// May read anything and list `tasks/own/` only.
fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..n]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut line = head.split(' ');
    let (method, target) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
    let url = Url::parse(&format!("http://x{target}")).unwrap();
    let query = |name: &str| url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned());
    let key = url.path().trim_start_matches("/bucket").trim_start_matches('/');
    let (status, body) = if query("list-type").is_some() {
        let prefix = query("prefix").unwrap_or_default();
        let after = query("start-after").unwrap_or_default();
        if prefix.starts_with("tasks/own/") {
            let found = OBJECTS.iter().filter(|k| k.starts_with(&prefix) && **k > after.as_str());
            let found: String = found
                .map(|key| {
                    format!(
                        "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                         <Size>2</Size></Contents>"
                    )
                })
                .collect();
            let body =
                format!("<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>");
            ("200 OK", body)
        } else {
            ("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>".to_owned())
        }
    } else if method != "PUT" && OBJECTS.contains(&key) {
        ("200 OK", "{}".to_owned())
    } else {
        ("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>".to_owned())
    };
    let length = body.len();
    let body = if method == "HEAD" { "" } else { &body };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"1\"\r\nConnection: close\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n{body}"
    )
}

fn store() -> Store {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test's process.
    let _serving = std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            drop(serve(client));
        }
    });
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Store::open_with(&Url::parse("s3://bucket").unwrap(), settings).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_is_told_from_what_is_forbidden_where_one_may_list() {
    let store = store();
    assert_eq!(store.get("tasks/own/slots/0.json").await.unwrap().as_ref(), b"{}");
    for absent in
        ["tasks/own/stop.json", "tasks/own/slots/1.json", "tasks/own/slots/1", "tasks/own/saved/0/1"]
    {
        assert_eq!(store.get_versioned(absent).await.unwrap(), None, "{absent}");
        assert_eq!(store.head(absent).await.unwrap(), None, "{absent}");
        assert_eq!(store.get(absent).await.unwrap_err().kind, StoreErrorKind::NotFound, "{absent}");
    }
    // Of others nothing is told, and what may not be read is not absent.
    for denied in ["tasks/other/record.json", "cache/0123"] {
        assert_eq!(store.get(denied).await.unwrap_err().kind, StoreErrorKind::PermissionDenied, "{denied}");
    }
    let (_, version) = store.get_versioned("tasks/own/slots/0.json").await.unwrap().unwrap();
    let swapped = store.update("tasks/own/slots/7.json", "{}".into(), &version).await;
    assert_eq!(swapped.unwrap_err().kind, StoreErrorKind::Conflict);
    let swapped = store.update("tasks/own/slots/0.json", "{}".into(), &version).await;
    assert_eq!(swapped.unwrap_err().kind, StoreErrorKind::PermissionDenied);
}
