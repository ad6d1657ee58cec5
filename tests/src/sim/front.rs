//! The API front: AWS as a client sees it, for tests and by hand.
//!
//! Behind it is moto, a third-party emulator, in a process of its own that nobody else reaches; what AWS does and
//! moto does not is done here. One address answers for all services and regions: which one is meant is read from
//! the signature's scope, as `AWS_ENDPOINT_URL` makes every SDK work.
//!
//! ```no_run
//! # async fn f() -> anyhow::Result<()> {
//! use tpi_tests::sim::front::{Front, Options};
//! let Some(options) = Options::of_environment() else { return Ok(()) };
//! let front = Front::start("127.0.0.1:0".parse()?, options).await?;
//! let endpoint = front.url(); // AWS_ENDPOINT_URL
//! # Ok(()) }
//! ```
//!
//! # What is done here and not by moto
//!
//! - Every request's signature is verified ([`crate::instance::sigv4`]), in headers and in links, and so is the time of links
//!   and of roles' credentials.
//! - Every request needs the permissions that AWS's service authorization reference names, the dependent ones
//!   included (tags at creation, `iam:PassRole`, `ec2:RunInstances` for a group, service-linked roles on first use);
//!   policies are evaluated here. Roles' policies are read from moto, the laptop's is given by the test.
//! - Auto Scaling, whole: groups start, replace and end their members by themselves a moment after the call; schedules are
//!   carried out by [`Front::clock`]; activities are recorded in AWS's words; shortages can be planted.
//! - Idempotency tokens of EC2; user-data over 16 KiB; a security group that is in use; instance profiles
//!   that other services do not know yet ([`Options::iam_delay`]); buckets that are asked for in another region.
//! - Instances that end by themselves, the reasons that `DescribeInstances` then tells, and the state `shutting-down`.
//! - Spot prices, EC2's service quotas, dry runs, and `iam:SimulatePrincipalPolicy` as far as policies are evaluated.
//! - Faults on demand, and a note of every call.
//!
//! # Where it differs from AWS
//!
//! Stricter:
//! - What is neither simulated nor moto's is refused (`InvalidAction`, `UnsupportedOperation`), such as fleets, stopping
//!   instances, new versions of a template, sessions of STS, recurring schedules.
//! - Policies: an element, operator or condition key that is not known allows nothing, and in a `Deny` denies; policy variables
//!   are not known; one object of `DeleteObjects` that may not be deleted refuses the whole.
//! - `iam:GetRole` and the like of what does not exist are judged without a path, as AWS judges them.
//! - A signature is good for five minutes, not fifteen.
//! - All headers that begin with `x-amz-` have to be signed, and bodies: none is sent with `UNSIGNED-PAYLOAD`
//!   except through links.
//! - A group that is being deleted refuses everything but looks.
//! - `DescribeSpotPriceHistory` wants to be told types.
//!
//! Otherwise different:
//! - Signatures are dated by this computer's clock, and so are answers; schedules, activities, and the
//!   expiry of credentials and links go by [`Front::clock`].
//! - IAM takes any region in the scope: SDKs name their own where the address of IAM is given.
//! - Buckets are addressed in the path only. There is one account, one user and no session policy, boundary, or
//!   bucket policy.
//! - A group takes the types in their order and the zone with the fewest members, also where it was told to weigh prices and
//!   capacity; it ends its oldest member first. A launch that fails is tried again after seconds, not minutes.
//! - Quotas are told and not enforced: see [`Front::shortage`].
//! - An instance is `running` as soon as it is known, and never `pending`.
//! - The first 1000 rows of moto's lists are what [`Front::everything_left`] sees of roles and profiles.

mod access;
mod call;
mod clock;
mod emulator;
mod faults;
mod form;
mod gate;
mod groups;
mod http;
mod identity;
mod instances;
mod left;
mod market;
mod model;
mod policy;
mod refusal;
mod scaling;
mod shared;
mod xml;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::SignedDuration;

pub use self::{
    clock::Clock,
    model::{
        Call, EndReason, Instance, InstanceState, Matching, MetadataOptions, Refused, RoleCredentials,
        ShortageReason, ShutdownBehaviour, Trouble,
    },
};
use self::{emulator::Moto, faults::Fault, instances::EndedBy, scaling::Shortage, shared::Shared};

/// The account that everything belongs to.
pub const ACCOUNT: &str = "123456789012";

/// How often groups are looked at when nothing happens.
const TICK: Duration = Duration::from_millis(250);

/// How a front is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The virtual environment that moto is in.
    pub moto: PathBuf,
    /// Images that can be had, as moto reads them.
    pub images: PathBuf,
    /// Access key and secret of the user at the laptop.
    pub laptop: (String, String),
    /// What that user may do, as a policy; absent: everything.
    pub laptop_policy: Option<serde_json::Value>,
    /// How long credentials of roles are good for.
    pub credentials_lifetime: SignedDuration,
    /// How long what IAM has made is unknown to other services.
    pub iam_delay: SignedDuration,
    /// How long an instance that is ended by a call is `shutting-down`.
    pub shutdown: Duration,
}

impl Options {
    /// With moto where `TPI_TEST_MOTO` says; `None` where it says nothing.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let moto = std::env::var_os("TPI_TEST_MOTO").filter(|path| !path.is_empty())?;
        Some(Self {
            moto: PathBuf::from(moto),
            images: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/src/moto_images.json")),
            laptop: (
                "AKIATPILAPTOP0000000".to_owned(),
                "laptop/secret+of/the+simulated/AWS000000".to_owned(),
            ),
            laptop_policy: None,
            credentials_lifetime: SignedDuration::from_hours(6),
            iam_delay: SignedDuration::ZERO,
            shutdown: Duration::from_secs(1),
        })
    }
}

/// Names a fault or a shortage, to lift it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planted(u64);

/// A running front; it and its emulator end when it is dropped.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Front {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Front {
    /// Starts the emulator, and to listen.
    pub async fn start(listen: SocketAddr, options: Options) -> Result<Self> {
        let listener =
            tokio::net::TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
        let address = listener.local_addr()?;
        let moto = Moto::start(&options.moto, &options.images).await?;
        let shared = Arc::new(Shared::new(options, moto));
        let answering = Arc::clone(&shared);
        let listening = tokio::spawn(async move { match http::serve(listener, answering).await {} });
        let engine = tokio::spawn(run(Arc::clone(&shared)));
        Ok(Self { address, shared, tasks: [listening, engine] })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL, for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Access key and secret of the user at the laptop.
    #[must_use]
    pub fn laptop(&self) -> (String, String) {
        self.shared.options.laptop.clone()
    }

    /// From now on the user at the laptop may do what the policy says; `None`: everything.
    pub fn allow_laptop(&self, policy: Option<serde_json::Value>) {
        self.shared.lock().laptop_policy = policy;
    }

    /// The clock that schedules and credentials go by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Every instance that there is or was, in the order of their launch.
    pub async fn instances(&self) -> Vec<Instance> {
        self.shared.finish_ends();
        self.shared.lock().instances.iter().map(|known| known.instance.clone()).collect()
    }

    /// An instance ends by itself. Its group replaces it when it wants as many as before; one that has ended
    /// already stays so.
    pub async fn end_instance(&self, id: &str, reason: EndReason) -> Result<()> {
        ensure!(self.shared.instance(id).is_some(), "there is no instance {id}");
        let _engine = self.shared.engine.lock().await;
        if self.shared.end(id, EndedBy::Itself(reason)).await? {
            self.shared.member_lost(id, Some(reason));
        }
        Ok(())
    }

    /// Fresh credentials of the role of an instance profile, or of a role itself, as the metadata service of an
    /// instance gives them out.
    ///
    /// # Errors
    /// When there is none, or EC2 may not become it.
    pub async fn role_credentials(&self, profile_or_role: &str) -> Result<RoleCredentials> {
        let shared = &self.shared;
        let role = match shared.roles_of(profile_or_role).await? {
            Some(roles) => match roles.into_iter().next() {
                Some(role) => role.name,
                None => bail!("the instance profile {profile_or_role} holds no role"),
            },
            None => match shared.role_arn(profile_or_role).await? {
                Some(_) => profile_or_role.to_owned(),
                None => bail!("there is neither a profile nor a role {profile_or_role}"),
            },
        };
        ensure!(
            shared.trusts_machines(&role).await?,
            "the role {role} does not let ec2.amazonaws.com assume it"
        );
        let expires = shared.clock.now().saturating_add(shared.options.credentials_lifetime)?;
        Ok(shared.lock().keys.issue(&role, expires))
    }

    /// From now on instances of the type, in the zone, do not start, for that reason; absent: of any. Until
    /// [`Front::lift`].
    pub fn shortage(&self, kind: Option<&str>, zone: Option<&str>, reason: ShortageReason) -> Planted {
        let id = rand::random();
        let (kind, zone) = (kind.map(str::to_owned), zone.map(str::to_owned));
        self.shared.lock().shortages.push(Shortage { id, kind, zone, reason });
        Planted(id)
    }

    /// Something goes wrong with the calls that fit: the first `skip` of them pass, then it happens `times` times (absent:
    /// until [`Front::lift`]).
    pub fn trouble(&self, matching: Matching, trouble: Trouble, skip: u64, times: Option<u64>) -> Planted {
        let id = rand::random();
        self.shared.lock().faults.push(Fault { id, matching, trouble, skip, times });
        Planted(id)
    }

    /// Takes back what was planted. Groups try again at once.
    pub fn lift(&self, planted: Planted) {
        let mut state = self.shared.lock();
        state.faults.retain(|fault| fault.id != planted.0);
        state.shortages.retain(|shortage| shortage.id != planted.0);
        for group in state.groups.values_mut() {
            group.retry = None;
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// A bucket of that name belongs to another account, which lets nobody in.
    pub fn squat(&self, bucket: &str) {
        let _new = self.shared.lock().foreign.insert(bucket.to_owned());
    }

    /// Sets a spot price, in US dollars per hour; for all zones where none is given.
    pub fn set_spot_price(&self, kind: &str, zone: Option<&str>, usd_per_hour: f64) {
        let key = (kind.to_owned(), zone.unwrap_or_default().to_owned());
        let _old = self.shared.lock().prices.insert(key, usd_per_hour);
    }

    /// Sets a quota of EC2, in vCPUs.
    pub fn set_quota(&self, code: &str, vcpus: f64) {
        let _old = self.shared.lock().quotas.insert(code.to_owned(), vcpus);
    }

    /// Every call so far that was answered or cut, in order of its end.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    /// How many calls were held so far: see [`Trouble::HoldAfter`]. They are not among [`Front::calls`].
    #[must_use]
    pub fn held(&self) -> u64 {
        self.shared.lock().held
    }

    /// Everything that was refused for want of a permission, a signature or time.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.shared.lock().refused.clone()
    }

    /// Secrets that were given out and must be found nowhere.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        self.shared.lock().keys.secrets()
    }

    /// Every resource in the account that a task could have made, whatever its type: instances that have not ended, volumes,
    /// templates, groups, schedules, security groups except the default ones, network interfaces, key pairs, spot requests,
    /// addresses, roles, profiles, policies, buckets and their objects and uploads. In all regions that were asked for anything.
    pub async fn everything_left(&self) -> Result<Vec<String>> {
        self.shared.left().await
    }
}

/// Brings groups to their size whenever something may have changed.
async fn run(shared: Arc<Shared>) {
    loop {
        // A failure of the emulator shows in the calls of tests; the next look tries again.
        if let Err(error) = shared.run_groups().await {
            shared.lock().refused.push(Refused {
                principal: "the simulation".to_owned(),
                action: "autoscaling:".to_owned(),
                resource: String::new(),
                why: format!("{error:#}"),
            });
        }
        let tick = tokio::time::sleep(TICK);
        tokio::select! {
            () = tick => {}
            () = shared.wake.notified() => {}
            () = shared.clock.moved() => {}
        }
    }
}
