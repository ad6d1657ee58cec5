//! What every cloud has to do, as a suite that runs on any of them: an emulator, this computer, a live account.
//!
//! Each case makes a task of its own and removes it. A violation is an error with the case's name; the caller
//! decides how long a case may take, because clouds differ in that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use tpi_proto::id::{MachineId, TaskId};

use super::{
    Cloud, CloudError, CloudErrorKind, GroupSpec, GroupState, Leftover, MachineEnd, Observed, Regions,
    ResourceKind, plan::Resource,
};

/// What the suite needs to know of a cloud.
#[async_trait]
pub trait Rig: Send + Sync {
    /// The cloud, as a controller would see it.
    fn cloud(&self) -> Arc<dyn Cloud>;

    /// A group that can be made, of a task that was never used before: its record wants machines, and its
    /// agent (which shall do nothing and stay) is in the store.
    async fn want(&self, machines: u16, deadline: Timestamp) -> GroupSpec;

    /// Takes a machine away as bad luck would, without a word to anybody.
    async fn take(&self, task: &TaskId, machine: &MachineId);

    /// Takes away whatever keeps the group's size, where that can fail apart from the machines; `false` where
    /// it cannot.
    async fn break_group(&self, task: &TaskId) -> bool;

    /// Removes part of what a group is made of, as a destroy that was cut off would leave it.
    async fn half_destroy(&self, task: &TaskId);

    /// Everything that there is of a task but machines and their disks, found without the cloud's own code.
    async fn resources(&self, task: &TaskId) -> Vec<Resource>;

    /// Longest time for the cloud to reach what is asked of it.
    fn patience(&self) -> Duration;
}

/// A promise that the cloud does not keep.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A verb failed that must not.
    #[error("{case}")]
    Failed {
        /// What was being shown.
        case: &'static str,
        /// How it failed.
        #[source]
        source: CloudError,
    },
    /// The world is not as it should be.
    #[error("{case}: found {found:?}")]
    Found {
        /// What was being shown.
        case: &'static str,
        /// What was found.
        found: Box<Observed>,
    },
    /// Something else is not as it should be.
    #[error("{case}: {cause}")]
    Other {
        /// What was being shown.
        case: &'static str,
        /// What is wrong.
        cause: String,
    },
}

struct Suite<'a> {
    rig: &'a dyn Rig,
    cloud: Arc<dyn Cloud>,
}

fn hour() -> Timestamp {
    Timestamp::now() + jiff::SignedDuration::from_hours(1)
}

fn failed(case: &'static str) -> impl FnOnce(CloudError) -> Violation {
    move |source| Violation::Failed { case, source }
}

fn alive(observed: &Observed) -> Vec<MachineId> {
    let mut ids: Vec<MachineId> = observed.alive().map(|m| m.id.clone()).collect();
    ids.sort();
    ids
}

/// Runs every case, one after the other.
///
/// # Errors
/// The first violation.
pub async fn run(rig: &dyn Rig) -> Result<(), Violation> {
    let suite = Suite { rig, cloud: rig.cloud() };
    suite.absent_is_a_value().await?;
    suite.a_plan_makes_nothing_and_tells_what_is_made().await?;
    suite.a_group_lives_and_goes().await?;
    suite.two_controllers_make_one_group().await?;
    suite.a_lost_machine_is_replaced().await?;
    suite.a_broken_group_is_made_whole().await?;
    suite.what_is_half_gone_goes_altogether().await?;
    suite.what_is_left_is_found_and_removed().await?;
    suite.nothing_begins_after_the_deadline().await?;
    suite.nothing_outlives_the_deadline().await
}

impl Suite<'_> {
    /// Waits until the world is as described.
    async fn until(
        &self,
        case: &'static str,
        task: &TaskId,
        is: impl Fn(&Observed) -> bool,
    ) -> Result<Observed, Violation> {
        let begun = Instant::now();
        loop {
            let observed = self.cloud.observe(task).await.map_err(failed(case))?;
            if is(&observed) {
                return Ok(observed);
            }
            if begun.elapsed() > self.rig.patience() {
                return Err(Violation::Found { case, found: Box::new(observed) });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn listed(&self, case: &'static str, task: &TaskId) -> Result<bool, Violation> {
        Ok(self.cloud.list().await.map_err(failed(case))?.contains(task))
    }

    async fn expect_listed(&self, case: &'static str, task: &TaskId, wanted: bool) -> Result<(), Violation> {
        let begun = Instant::now();
        while self.listed(case, task).await? != wanted {
            if begun.elapsed() > self.rig.patience() {
                let cause = format!("{task} is {}in the list", if wanted { "not " } else { "" });
                return Err(Violation::Other { case, cause });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn make(&self, case: &'static str, machines: u16) -> Result<(GroupSpec, Observed), Violation> {
        let want = self.rig.want(machines, hour()).await;
        let _observed = self.cloud.ensure(&want).await.map_err(failed(case))?;
        let wanted = usize::from(machines);
        let observed = self.until(case, &want.task, |o| o.alive().count() == wanted).await?;
        Ok((want, observed))
    }

    async fn remove(&self, case: &'static str, task: &TaskId) -> Result<(), Violation> {
        let gone = self.cloud.destroy(task).await.map_err(failed(case))?;
        if !gone.is_gone() {
            return Err(Violation::Found { case, found: Box::new(gone) });
        }
        let _observed = self.until(case, task, Observed::is_gone).await?;
        self.expect_listed(case, task, false).await
    }

    async fn absent_is_a_value(&self) -> Result<(), Violation> {
        let case = "what was never made is absent, and destroying it is success";
        let task = self.rig.want(1, hour()).await.task;
        let observed = self.cloud.observe(&task).await.map_err(failed(case))?;
        if observed != Observed::absent() {
            return Err(Violation::Found { case, found: Box::new(observed) });
        }
        self.expect_listed(case, &task, false).await?;
        self.remove(case, &task).await
    }

    async fn a_plan_makes_nothing_and_tells_what_is_made(&self) -> Result<(), Violation> {
        let case = "a plan makes nothing, and tells what ensure makes";
        let want = self.rig.want(2, hour()).await;
        let plan = self.cloud.plan(&want).await.map_err(failed(case))?;
        let before = self.rig.resources(&want.task).await;
        if !before.is_empty() {
            return Err(Violation::Other { case, cause: format!("there is {before:?}") });
        }
        let observed = self.cloud.observe(&want.task).await.map_err(failed(case))?;
        if observed != Observed::absent() {
            return Err(Violation::Found { case, found: Box::new(observed) });
        }
        let _observed = self.cloud.ensure(&want).await.map_err(failed(case))?;
        let machines = usize::try_from(plan.machines).unwrap_or(usize::MAX);
        let _observed = self.until(case, &want.task, |o| o.alive().count() == machines).await?;
        let (mut planned, mut made) = (plan.resources, self.rig.resources(&want.task).await);
        planned.sort();
        made.sort();
        if planned != made {
            let cause = format!("planned were {planned:?} and made {made:?}");
            return Err(Violation::Other { case, cause });
        }
        self.remove(case, &want.task).await
    }

    async fn a_group_lives_and_goes(&self) -> Result<(), Violation> {
        let case = "ensure twice is one group, destroy twice is none, and then it can be made again";
        let (want, first) = self.make(case, 2).await?;
        let again = self.cloud.ensure(&want).await.map_err(failed(case))?;
        if again.group != (GroupState::Active { size: 2 }) || alive(&again) != alive(&first) {
            return Err(Violation::Found { case, found: Box::new(again) });
        }
        self.expect_listed(case, &want.task, true).await?;
        let gone = self.cloud.destroy(&want.task).await.map_err(failed(case))?;
        let mut named: Vec<MachineId> = gone.machines.iter().map(|m| m.id.clone()).collect();
        named.sort();
        let ended = gone.machines.iter().all(|m| {
            m.end == Some(MachineEnd::Destroyed) && m.ended.is_some_and(|ended| ended >= m.launched)
        });
        if !gone.is_gone() || !ended || named != alive(&first) {
            return Err(Violation::Found { case, found: Box::new(gone) });
        }
        self.remove(case, &want.task).await?;
        let _observed = self.cloud.ensure(&want).await.map_err(failed(case))?;
        let second = self.until(case, &want.task, |o| o.alive().count() == 2).await?;
        if alive(&second).iter().any(|id| alive(&first).contains(id)) {
            return Err(Violation::Found { case, found: Box::new(second) });
        }
        self.remove(case, &want.task).await
    }

    async fn two_controllers_make_one_group(&self) -> Result<(), Violation> {
        let case = "two controllers that make the same group at once make one";
        let want = self.rig.want(2, hour()).await;
        let other = self.rig.cloud();
        let (one, two) = futures::future::join(self.cloud.ensure(&want), other.ensure(&want)).await;
        let _both = (one.map_err(failed(case))?, two.map_err(failed(case))?);
        let full = self.until(case, &want.task, |o| o.alive().count() >= 2).await?;
        if full.machines.len() != 2 {
            return Err(Violation::Found { case, found: Box::new(full) });
        }
        let other = self.rig.cloud();
        let (one, two) =
            futures::future::join(self.cloud.destroy(&want.task), other.destroy(&want.task)).await;
        let _both = (one.map_err(failed(case))?, two.map_err(failed(case))?);
        self.remove(case, &want.task).await
    }

    async fn a_lost_machine_is_replaced(&self) -> Result<(), Violation> {
        let case = "a machine that is lost is replaced by another one";
        let (want, first) = self.make(case, 2).await?;
        let Some(lost) = alive(&first).into_iter().next() else {
            return Err(Violation::Found { case, found: Box::new(first) });
        };
        self.rig.take(&want.task, &lost).await;
        let is_new = |o: &Observed| o.alive().count() == 2 && !alive(o).contains(&lost);
        let second = self.until(case, &want.task, is_new).await?;
        let noted = second.machines.iter().any(|m| m.id == lost && m.end == Some(MachineEnd::Lost));
        if !noted || second.machines.len() != 3 {
            return Err(Violation::Found { case, found: Box::new(second) });
        }
        self.remove(case, &want.task).await
    }

    async fn a_broken_group_is_made_whole(&self) -> Result<(), Violation> {
        let case = "ensure makes a broken group whole and leaves its machines alone";
        let (want, first) = self.make(case, 2).await?;
        if self.rig.break_group(&want.task).await {
            let again = self.cloud.ensure(&want).await.map_err(failed(case))?;
            if again.group != (GroupState::Active { size: 2 }) || alive(&again) != alive(&first) {
                return Err(Violation::Found { case, found: Box::new(again) });
            }
            if self.rig.break_group(&want.task).await {
                // Now without making it whole first.
                return self.remove(case, &want.task).await;
            }
        }
        self.remove(case, &want.task).await
    }

    async fn what_is_half_gone_goes_altogether(&self) -> Result<(), Violation> {
        let case = "a destroy that was cut off is finished by another one";
        let (want, _first) = self.make(case, 2).await?;
        self.rig.half_destroy(&want.task).await;
        self.remove(case, &want.task).await
    }

    async fn what_is_left_is_found_and_removed(&self) -> Result<(), Violation> {
        let case = "what is there of a task is told, each thing alone, and removing it leaves nothing";
        let (want, seen) = self.make(case, 2).await?;
        let things = async || -> Result<Vec<Leftover>, Violation> {
            let all = self.cloud.survey(&Regions::Usual).await.map_err(failed(case))?;
            Ok(all.into_iter().filter(|thing| thing.task == want.task).collect())
        };
        let found = things().await?;
        let machines: Vec<&str> =
            found.iter().filter(|t| t.kind == ResourceKind::Machine).map(|t| t.id.as_str()).collect();
        let told = alive(&seen).iter().all(|id| machines.contains(&id.0.as_str()));
        let group = found.iter().find(|t| t.kind == ResourceKind::ScalingGroup);
        // The deadline may be told in whole seconds.
        let late =
            |at: Timestamp| at.duration_since(want.deadline).abs() <= jiff::SignedDuration::from_secs(1);
        let dated =
            group.is_some_and(|g| g.deadline.is_some_and(late) && g.store.as_ref() == Some(&want.store));
        if !told || machines.len() != 2 || !dated {
            return Err(Violation::Other { case, cause: format!("found {found:?}") });
        }
        self.rig.half_destroy(&want.task).await;
        let left = things().await?;
        self.cloud.remove(&left).await.map_err(failed(case))?;
        self.cloud.remove(&left).await.map_err(failed(case))?;
        let left = things().await?;
        if !left.is_empty() {
            return Err(Violation::Other { case, cause: format!("left are {left:?}") });
        }
        self.remove(case, &want.task).await
    }

    async fn nothing_begins_after_the_deadline(&self) -> Result<(), Violation> {
        let case = "a group whose deadline is over is refused and leaves nothing";
        let past = Timestamp::now() - jiff::SignedDuration::from_secs(1);
        let want = self.rig.want(1, past).await;
        match self.cloud.ensure(&want).await {
            Err(error) if error.kind == CloudErrorKind::InvalidSpec => {}
            Err(error) => return Err(failed(case)(error)),
            Ok(observed) => return Err(Violation::Found { case, found: Box::new(observed) }),
        }
        let observed = self.cloud.observe(&want.task).await.map_err(failed(case))?;
        if !observed.is_gone() {
            return Err(Violation::Found { case, found: Box::new(observed) });
        }
        self.remove(case, &want.task).await
    }

    async fn nothing_outlives_the_deadline(&self) -> Result<(), Violation> {
        let case = "the cloud itself ends everything at the deadline";
        let soon = Timestamp::now() + jiff::SignedDuration::from_secs(5);
        let want = self.rig.want(2, soon).await;
        let _observed = self.cloud.ensure(&want).await.map_err(failed(case))?;
        let ended = |o: &Observed| {
            !matches!(o.group, GroupState::Active { .. })
                && o.alive().next().is_none()
                && !o.machines.is_empty()
        };
        let observed = self.until(case, &want.task, ended).await?;
        if observed.machines.iter().any(|m| m.end != Some(MachineEnd::Deadline)) {
            return Err(Violation::Found { case, found: Box::new(observed) });
        }
        self.remove(case, &want.task).await
    }
}
