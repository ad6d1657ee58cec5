//! Proofs: what is told of machines, and what is said when nothing can be proved.

use serde_json::Value;
use tpi_controller::cloud::{Cloud as _, CloudErrorKind, Leftovers, aws::Aws};
use tpi_controller::home::Home;
use tpi_proto::id::TaskId;

use super::{
    Place, causes,
    gate::Gate,
    program::{Computer, done, fresh, out, told},
};

const LEFT_BEHIND: Option<i32> = Some(6);

fn denied(action: &'static str, code: &'static str, status: &'static str) -> super::gate::Answer {
    Box::new(move |seen| {
        let error = format!("<Error><Code>{code}</Code><Message>You may not.</Message></Error>");
        let body = match seen.service.as_str() {
            "ec2" => format!("<Response><Errors>{error}</Errors><RequestID>r</RequestID></Response>"),
            _ => format!("<ErrorResponse>{error}<RequestId>r</RequestId></ErrorResponse>"),
        };
        (seen.action == action).then(|| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        })
    })
}

#[test]
fn a_cloud_that_may_not_be_asked_proves_nothing() {
    let Some(place) = Place::new("ap-northeast-3") else { return };
    let mut computer = Computer::new(&place, &place.api.endpoint);
    let name = fresh("proof");
    let id: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
    // Machines may not be looked at.
    let gate = Gate::new(
        &place.api.endpoint,
        false,
        denied("DescribeInstances", "UnauthorizedOperation", "403 Forbidden"),
    );
    computer.set("AWS_ENDPOINT_URL_EC2", gate.endpoint.as_str().trim_end_matches('/'));
    let status = computer.run(&["status", &name, "--output", "json"]);
    assert_eq!(status.status.code(), LEFT_BEHIND, "{}", told(&status));
    let report: Value = serde_json::from_str(&out(&status)).unwrap();
    // What the store says is told all the same.
    assert_eq!((&report["id"], &report["proof"]["nothing_left"]), (&id.as_str().into(), &false.into()));
    assert!(report["proof"]["unproved"].as_str().unwrap().contains("UnauthorizedOperation"), "{report}");
    assert_eq!(report["group"], Value::Null);
    let destroyed = computer.run(&["destroy", &name]);
    assert_eq!(destroyed.status.code(), LEFT_BEHIND, "{}", told(&destroyed));
    assert!(told(&destroyed).contains(&format!("destroy {id}")), "{}", told(&destroyed));
    // The store is not emptied on a guess.
    computer.unset("AWS_ENDPOINT_URL_EC2");
    let destroyed = computer.run(&["destroy", &name]);
    let proof = done(&destroyed);
    assert!(proof.contains("destroyed") && proof.contains("nothing is left"), "{proof}");
    assert_eq!(place.left(&id), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_failed_says_what_is_left_and_what_it_costs() {
    let Some(place) = Place::new("me-south-1") else { return };
    for (action, leftovers, expected) in [
        ("CreateAutoScalingGroup", Leftovers::Free, "all free of charge"),
        ("PutScheduledUpdateGroupAction", Leftovers::Free, "all free of charge"),
        ("CreateSecurityGroup", Leftovers::Free, "all free of charge"),
    ] {
        let gate = Gate::new(&place.api.endpoint, false, denied(action, "AccessDenied", "403 Forbidden"));
        let mut settings = place.settings();
        settings.endpoint = Some(gate.endpoint.clone());
        let aws = Aws::with(&Home::at(place.home.path()), settings);
        let want = place.hour(1);
        let error = aws.ensure(&want).await.expect_err("may not");
        let text = causes(&error);
        assert_eq!((error.kind, error.leftovers), (CloudErrorKind::PermissionDenied, leftovers), "{text}");
        assert!(text.contains(expected) && text.contains(&format!("role {}", want.task)), "{text}");
        let left = text.split("): ").next().unwrap();
        assert_eq!(left.contains("scaling group tpi-"), action.starts_with("Put"), "{text}");
        assert!(!place.left(&want.task).is_empty());
        assert!(place.aws().destroy(&want.task).await.unwrap().is_gone());
        assert_eq!(place.left(&want.task), Vec::<String>::new());
    }
}
