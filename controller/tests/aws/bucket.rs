//! The account's own bucket, and the keys that object data is sent with.

use tpi_controller::cloud::{Cloud as _, CloudErrorKind, Regions, aws::Aws};
use tpi_controller::home::Home;
use tpi_proto::id::TaskId;

use super::{
    Place, causes,
    gate::{Gate, header},
    program::{Computer, done, fresh, out, told},
};

const OWNER: &str = "123456789012";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_bucket_is_made_private_and_found_again() {
    let Some(place) = Place::new("ap-southeast-2") else { return };
    let gate = Gate::watching(&place.api.endpoint);
    let settings = || {
        let mut settings = place.settings();
        settings.endpoint = Some(gate.endpoint.clone());
        settings
    };
    let aws = || Aws::with(&Home::at(place.home.path()), settings());
    let here = Regions::Named(vec![place.api.region.clone()]);
    let url = aws().make_store("ap-southeast-2").await.unwrap_or_else(|e| panic!("{}", causes(&e)));
    let bucket = url.host_str().unwrap().to_owned();
    assert!(bucket.starts_with("tpi-") && bucket.ends_with("-ap-southeast-2"), "{bucket}");
    assert!(!bucket.contains(OWNER), "{bucket}");
    assert_eq!(aws().stores(&here).await.unwrap(), std::slice::from_ref(&url));
    let (_, asked) = gate.take();
    for seen in asked.iter().filter(|seen| seen.service == "s3") {
        // A bucket that is about to be made has no owner to expect.
        let makes = seen.action == format!("PUT /{bucket}") || seen.action == format!("PUT /{bucket}/");
        let owner = header(&seen.head, "x-amz-expected-bucket-owner");
        assert_eq!(owner, if makes { None } else { Some(OWNER) }, "{}", seen.head);
    }
    for (what, expected) in [
        ("publicAccessBlock", &["<BlockPublicAcls>true", "<RestrictPublicBuckets>true"][..]),
        ("ownershipControls", &["BucketOwnerEnforced"]),
        ("encryption", &["AES256"]),
        ("lifecycle", &["DaysAfterInitiation>7", "<Prefix>cache/</Prefix>", "<Days>60"]),
        ("tagging", &["<Key>tpi:store</Key>"]),
    ] {
        let answer = place.api.s3("GET", &format!("/{bucket}?{what}"));
        for text in expected {
            let found = answer.to_lowercase().contains(&text.to_lowercase());
            assert!(found, "{what}: {answer}");
        }
    }
    // Cut off before it was complete: the next one finishes it.
    let _answer = place.api.s3("DELETE", &format!("/{bucket}?tagging"));
    let _answer = place.api.s3("DELETE", &format!("/{bucket}?lifecycle"));
    assert_eq!(aws().make_store("ap-southeast-2").await.unwrap(), url);
    let answer = place.api.s3("GET", &format!("/{bucket}?lifecycle"));
    assert!(answer.contains("<Prefix>cache/</Prefix>"), "{answer}");
    // Complete: looked at, and nothing else.
    let _before = gate.take();
    assert_eq!(aws().make_store("ap-southeast-2").await.unwrap(), url);
    let (_, asked) = gate.take();
    assert!(asked.iter().all(|s| !s.action.starts_with("PUT")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_somebody_else_has_taken_is_refused() {
    let Some(place) = Place::new("ap-southeast-1") else { return };
    // As AWS does, and the emulator does not.
    let gate = Gate::new(
        &place.api.endpoint,
        false,
        Box::new(|seen| {
            let stranger =
                seen.service == "s3" && header(&seen.head, "x-amz-expected-bucket-owner").is_some();
            stranger.then(|| "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned())
        }),
    );
    let mut settings = place.settings();
    settings.endpoint = Some(gate.endpoint.clone());
    let aws = Aws::with(&Home::at(place.home.path()), settings);
    for error in [
        aws.make_store("ap-southeast-1").await.expect_err("somebody else's"),
        aws.stores(&Regions::Named(vec!["ap-southeast-1".to_owned()])).await.expect_err("somebody else's"),
    ] {
        assert_eq!(error.kind, CloudErrorKind::PermissionDenied);
        let text = causes(&error);
        assert!(text.contains("belongs to another account") && text.contains("--storage"), "{text}");
    }
    let (_, asked) = gate.take();
    assert!(asked.iter().all(|s| s.service != "s3" || !s.action.starts_with("PUT")), "{asked:?}");
}

/// Keys of a profile that a program hands out, which expire at once: no environment, no region.
#[test]
fn object_data_goes_with_the_keys_of_the_profile_and_another_computer_finds_the_task() {
    let Some(place) = Place::new("us-west-1") else { return };
    let gate = Gate::watching(&place.api.endpoint);
    let mut first = Computer::new(&place, &gate.endpoint);
    first.unset("AWS_ACCESS_KEY_ID");
    first.unset("AWS_SECRET_ACCESS_KEY");
    let keys = first.script(
        "keys",
        "#!/bin/sh\necho x >> \"$(dirname \"$0\")/asked\"\n\
         printf '{\"Version\": 1, \"AccessKeyId\": \"PROFILEKEY\", \"SecretAccessKey\": \"s\", \"SessionToken\": \"t\", \
         \"Expiration\": \"%s\"}' \"$(date -u -d '+60 seconds' +%Y-%m-%dT%H:%M:%SZ)\"\n",
    );
    let config = first.path("config");
    std::fs::write(
        &config,
        format!("[profile work]\nregion = us-west-1\ncredential_process = {}\n", keys.display()),
    )
    .unwrap();
    first.set("AWS_CONFIG_FILE", config.to_str().unwrap());
    first.set("AWS_SHARED_CREDENTIALS_FILE", first.path("none").to_str().unwrap().to_owned().as_str());
    first.set("AWS_PROFILE", "work");
    let name = fresh("keys");
    let id: TaskId = done(&first.submit(&name, None)).parse().unwrap();
    let (_, asked) = gate.take();
    let objects: Vec<_> = asked.iter().filter(|s| s.service == "s3" && s.action.contains("tasks/")).collect();
    assert!(objects.len() > 5, "{asked:?}");
    for seen in &asked {
        assert_eq!(seen.key, "PROFILEKEY", "{seen:?}");
    }
    let tokens = objects.iter().filter(|s| header(&s.head, "x-amz-security-token") == Some("t"));
    assert_eq!(tokens.count(), objects.len());
    // What is about to expire is replaced: the program was asked again and again.
    let times = std::fs::read_to_string(first.path("asked")).unwrap().lines().count();
    assert!(times > 3, "asked {times} times");

    // Another computer, with keys of its own and no note of the task.
    let second = Computer::new(&place, &place.api.endpoint);
    let status = second.run(&["status", &name, "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&done(&status)).unwrap();
    assert_eq!(status["id"], id.as_str());
    assert!(status["store"].as_str().unwrap().ends_with("-us-west-1/"), "{status}");
    // Other tests' tasks come and go meanwhile, which it may remark.
    assert!(out(&second.run(&["list", "--ids"])).lines().any(|line| line == id.as_str()));
    let _text = done(&second.run(&["destroy", &name]));
    assert_eq!(place.left(&id), Vec::<String>::new());
    let again = second.run(&["status", &name]);
    assert_eq!(again.status.code(), Some(7), "{}", told(&again));
    assert_eq!(out(&again), "");
}
