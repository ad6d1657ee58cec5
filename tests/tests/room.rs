//! The machine room by itself, with an account of a few lines: machines boot, their metadata service is as strict as
//! AWS's, and each way to end is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tpi_tests::{
    eventually,
    sim::{
        self,
        front::{EndReason, Instance, InstanceState, MetadataOptions, RoleCredentials, ShutdownBehaviour},
        room::{Account, Network, Room},
    },
};

#[derive(Default)]
struct Paper(Mutex<BTreeMap<String, Instance>>);

impl Paper {
    fn launch(&self, id: &str, user_data: &str) {
        let instance = Instance {
            id: id.to_owned(),
            state: InstanceState::Pending,
            region: "eu-west-1".to_owned(),
            zone: "eu-west-1a".to_owned(),
            kind: "m5.large".to_owned(),
            group: None,
            image: "ami-0123456789abcdef0".to_owned(),
            profile: Some("profile".to_owned()),
            role: Some("role".to_owned()),
            user_data: user_data.as_bytes().to_owned(),
            metadata: MetadataOptions { enabled: true, tokens_required: true, hop_limit: 1 },
            tags: BTreeMap::new(),
            private_ip: None,
            shutdown: ShutdownBehaviour::Terminate,
            spot: true,
            launched: Timestamp::now(),
            ended: None,
        };
        drop(self.0.lock().expect("not poisoned").insert(id.to_owned(), instance));
    }

    fn end(&self, id: &str, reason: Option<EndReason>) {
        let mut instances = self.0.lock().expect("not poisoned");
        let instance = instances.get_mut(id).expect("it was launched");
        instance.state = InstanceState::Terminated;
        instance.ended = reason;
    }

    fn reason(&self, id: &str) -> Option<EndReason> {
        self.0.lock().expect("not poisoned").get(id).and_then(|instance| instance.ended)
    }
}

impl Account for Paper {
    fn instances(&self) -> BoxFuture<'_, Vec<Instance>> {
        Box::pin(async { self.0.lock().expect("not poisoned").values().cloned().collect() })
    }

    fn ended<'a>(&'a self, id: &'a str, reason: EndReason) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.end(id, Some(reason));
            Ok(())
        })
    }

    fn credentials<'a>(&'a self, _: &'a Instance) -> BoxFuture<'a, Result<RoleCredentials>> {
        Box::pin(async {
            Ok(RoleCredentials {
                role: "role".to_owned(),
                access_key: "ASIAEXAMPLE".to_owned(),
                secret_key: "secret".to_owned(),
                token: "token".to_owned(),
                expires: Timestamp::now() + SignedDuration::from_hours(1),
            })
        })
    }
}

/// Marks both stages of cloud-init, and leaves a word when it is shut down in order.
const USER_DATA: &str = r"#cloud-config
bootcmd:
  - echo early >> /var/stages
runcmd:
  - echo late >> /var/stages
";

const ASK: &str = r#"
T=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
ask() { curl -s -o /tmp/body -w '%{http_code}' -H "X-aws-ec2-metadata-token: $T" http://169.254.169.254/latest/$1; printf ' '; cat /tmp/body; echo; }
ask meta-data/instance-id
ask meta-data/iam/security-credentials/
ask meta-data/spot/instance-action
ask meta-data/placement/
ask meta-data/iam/security-credentials/role | grep -c ASIAEXAMPLE
curl -s -o /dev/null -w '%{http_code}\n' http://169.254.169.254/latest/meta-data/instance-id
curl -s -o /dev/null -w '%{http_code}\n' -X PUT -H 'X-Forwarded-For: 192.0.2.1' -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token
curl -s -o /dev/null -w '%{http_code}\n' -X PUT http://169.254.169.254/latest/api/token
"#;

#[test]
fn machines_boot_and_every_way_to_end_is_told() -> Result<()> {
    let engine = match sim::machines() {
        Ok(engine) => engine,
        Err(why) => {
            println!("SKIPPED: {why}");
            return Ok(());
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let entered = runtime.enter();
    let account = Arc::new(Paper::default());
    let network = runtime.block_on(Network::make(engine))?;
    let mut room = Room::open(network, Arc::<Paper>::clone(&account));
    let exec = |id: &str, argv: &[&str]| runtime.block_on(room.exec(id, argv));
    let ids = ["i-0aaaaaaaaaaaaaaa1", "i-0aaaaaaaaaaaaaaa2", "i-0aaaaaaaaaaaaaaa3"];
    for id in ids {
        account.launch(id, USER_DATA);
    }
    for id in ids {
        eventually("cloud-init to have done all", || {
            exec(id, &["cat", "/var/stages"]).ok().filter(|stages| stages == "early\nlate\n")
        })
        .with_context(|| runtime.block_on(room.consoles()))?;
    }
    let [first, second, third] = ids;
    ensure!(room.refusals().is_empty(), "cloud-init never asks what it may not: {:?}", room.refusals());

    let until = Timestamp::now() + SignedDuration::from_mins(2);
    let answers = exec(first, &["sh", "-c", ASK])?;
    let wanted = format!("200 {first}\n200 role\n404 \n200 availability-zone\nregion\n1\n401\n403\n400\n");
    ensure!(answers == wanted, "{answers}");
    ensure!(room.refusals().len() == 3, "{:?}", room.refusals());
    room.spot_notice(first, until)?;
    let answers = exec(first, &["sh", "-c", ASK])?;
    ensure!(answers.contains("\n200 {\"action\":\"terminate\",\"time\":"), "{answers}");

    let listener = std::net::TcpListener::bind((room.gateway(), 0))?;
    let to = listener.local_addr()?;
    let connect = format!("import socket; socket.create_connection(('{}', {}), 3)", to.ip(), to.port());
    let reaches = || exec(second, &["python3", "-c", &connect]).is_ok();
    ensure!(reaches(), "what listens at the gateway is reached");
    runtime.block_on(room.cut_network(second))?;
    ensure!(!reaches(), "nothing is reached");
    runtime.block_on(room.heal_network(second))?;
    eventually("the network to be whole again", || reaches().then_some(()))?;

    drop(exec(first, &["systemctl", "--no-block", "poweroff"]));
    room.kill(second)?;
    account.end(third, None);
    let gone = room.wait("all machines to end", |seen| seen.iter().all(|seen| !seen.alive));
    drop(runtime.block_on(gone)?);
    eventually("all ends to be told", || account.reason(second))?;
    eventually("all ends to be told", || account.reason(first))?;
    ensure!(account.reason(first) == Some(EndReason::PoweredOff));
    ensure!(account.reason(second) == Some(EndReason::Died));
    ensure!(account.reason(third).is_none(), "the account knew");
    ensure!(room.troubles().is_empty(), "{:?}", room.troubles());
    runtime.block_on(room.close());
    drop(entered);
    Ok(())
}
