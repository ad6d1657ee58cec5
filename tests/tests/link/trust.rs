//! Whom the controller believes, and who believes it.

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use tpi_controller::link::{
    ConnectError,
    connect::{connect, connect_as},
};
use tpi_store::identity::{Holder, PrivateKey};

use crate::rig::{Rig, run};

const WAITS: &str = "#!/bin/bash\nwhile [ ! -e \"$RIG/stop\" ]; do sleep 0.05; done\n";

#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_not_connecting_has_its_own_error() -> Result<()> {
    let rig = Rig::new(WAITS, 2).await?;
    let dial = |user| connect(&rig.store, &rig.task, run(0, 1), user);
    assert!(matches!(dial(&rig.user).await, Err(ConnectError::NoIdentity { .. })));

    let mut agent = rig.start("a", true)?;
    let identity = rig.identity(run(0, 1)).await?;
    let refused = dial(&rig.user).await.expect_err("not published yet");
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused}");
    // A certificate that is there is accepted at the first try, also just after a refusal.
    rig.user.publish(&rig.store, &rig.task).await?;
    rig.user.publish(&rig.store, &rig.task).await?;
    let connection = dial(&rig.user).await?;
    assert_eq!(connection.run(), run(0, 1));
    assert_eq!(connection.address(), identity.addresses[0]);
    let second = rig.stranger("elsewhere")?;
    assert!(matches!(dial(&second).await, Err(ConnectError::Refused { .. })));
    second.publish(&rig.store, &rig.task).await?;
    dial(&second).await?;

    let mismatch = connect_as(&rig.store, &rig.task, run(0, 1), &rig.user, &[7, 9]).await;
    match mismatch {
        Err(ConnectError::VersionMismatch { ours, theirs }) => {
            assert_eq!((ours, theirs), (vec![7, 9], vec![1]));
        }
        other => panic!("{other:?}"),
    }

    // Another agent of the same task answers at that address.
    let mut other = rig.start("b", true)?;
    let neighbour = rig.identity(run(1, 1)).await?;
    let mut forged = identity.clone();
    forged.addresses = neighbour.addresses.clone();
    rig.rewrite_identity(&forged).await?;
    let wrong = dial(&rig.user).await.expect_err("another agent");
    assert!(matches!(wrong, ConnectError::WrongCertificate { .. } | ConnectError::Refused { .. }), "{wrong}");
    // The right name, the right certificate of another run.
    let mut forged = neighbour.clone();
    forged.run = run(0, 1);
    rig.rewrite_identity(&forged).await?;
    let wrong = dial(&rig.user).await.expect_err("another run's certificate");
    assert!(matches!(wrong, ConnectError::WrongCertificate { .. }), "{wrong}");
    // The right address, another certificate of the right name.
    let (name, now) = (run(0, 1).server_name(&rig.task), Timestamp::now());
    let until = now + SignedDuration::from_hours(1);
    let mut forged = identity.clone();
    forged.certificate = PrivateKey::generate()?.certify(Holder::Agent { name: &name }, now, until)?.pem;
    rig.rewrite_identity(&forged).await?;
    let wrong = dial(&rig.user).await.expect_err("another certificate");
    assert!(matches!(wrong, ConnectError::WrongCertificate { .. }), "{wrong}");

    // Nobody there; then somebody at the second address.
    let mut moved = identity.clone();
    moved.addresses = vec!["127.0.0.1:1".to_owned()];
    rig.rewrite_identity(&moved).await?;
    let nobody = dial(&rig.user).await.expect_err("nobody there");
    assert!(matches!(nobody, ConnectError::Unreachable { .. }), "{nobody}");
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
    moved.addresses.extend(identity.addresses.clone());
    rig.rewrite_identity(&moved).await?;
    dial(&rig.user).await?;

    std::fs::write(rig.path("stop"), "")?;
    agent.ended().await?;
    other.ended().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_is_asked_over_the_connection() -> Result<()> {
    let rig = Rig::new(WAITS, 1).await?;
    let mut agent = rig.start("a", true)?;
    rig.identity(run(0, 1)).await?;
    rig.user.publish(&rig.store, &rig.task).await?;
    let connection = connect(&rig.store, &rig.task, run(0, 1), &rig.user).await?;
    assert!(!connection.is_broken().await);
    connection.stop(None).await?;
    let status = rig.status(0, |status| status.state.is_final()).await?;
    assert!(!matches!(
        status.state,
        tpi_proto::state::SlotState::Finished { outcome: tpi_proto::state::Outcome::Exited { .. }, .. }
    ));
    agent.ended().await?;
    assert!(connection.is_broken().await);
    Ok(())
}
