//! Runs the script in a container, as if it ran without one: same folder at the same path, same output, same ways to
//! end.
//!
//! ```text
//!  image there? ─no─► pull ─► (old containers of the slot removed) ─► create ─► attach ─► start ─► ended ─► removed
//! ```
//!
//! The engine is asked through its socket (`DOCKER_HOST`, else `/var/run/docker.sock`). Inside, an init process
//! passes signals on to the script's process group and reaps what the script leaves behind. An exit status above 128
//! is taken for the signal that it stands for: the engine does not tell the two apart.

use std::{collections::HashMap, os::fd::OwnedFd};

use bollard::{
    Docker,
    container::{AttachContainerResults, LogOutput},
    errors::Error as EngineError,
    models::{ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType},
    query_parameters::{
        AttachContainerOptions, ContainerArchiveInfoOptionsBuilder, CreateContainerOptions,
        CreateImageOptions, KillContainerOptions, ListContainersOptions, RemoveContainerOptions,
        WaitContainerOptions,
    },
};
use futures::StreamExt;
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::watch, time::Instant};
use tpi_proto::{
    fault::chain,
    id::{RunId, TaskId},
    state::Failure,
};

use crate::{
    exec::{Job, Order, script},
    logs::pump::{PipeEnds, Pump},
    supervisor::state::{Fault, ScriptEnd},
};

const TASK_LABEL: &str = "tpi.task";
const SLOT_LABEL: &str = "tpi.slot";
const MACHINE_LABEL: &str = "tpi.machine";

/// A container engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    docker: Docker,
}

fn engine_fault(error: &EngineError) -> Fault {
    let message = format!("reaching the container engine: {}", chain(error));
    Fault { failure: Failure::Prepare, message }
}

/// Where the engine listens, by the value of `DOCKER_HOST`. The error is a lower-case fragment.
fn engine_address(asked: Option<String>) -> Result<String, String> {
    match asked.filter(|host| !host.is_empty()) {
        None => Ok("unix:///var/run/docker.sock".to_owned()),
        Some(host) if host.starts_with("unix://") => Ok(host),
        Some(host) => Err(format!(
            "DOCKER_HOST is {host:?}, but only an engine on the machine itself can be used (unix:///path/to/socket), \
             because the work directory is mounted into the container: unset DOCKER_HOST, or give it a socket's path"
        )),
    }
}

impl Engine {
    /// Asks the engine what it speaks.
    pub(crate) async fn connect() -> Result<Self, Fault> {
        let host = engine_address(std::env::var("DOCKER_HOST").ok())
            .map_err(|message| Fault { failure: Failure::Prepare, message })?;
        let docker = Docker::connect_with_host(&host).map_err(|e| engine_fault(&e))?;
        let docker = docker.negotiate_version().await.map_err(|e| engine_fault(&e))?;
        Ok(Self { docker })
    }

    /// Removes what an earlier attempt at the slot left, and pulls the image if it is not there.
    pub(crate) async fn prepare(&self, image: &str, task: &TaskId, run: RunId) -> Result<(), Fault> {
        self.remove_old(task, run).await.map_err(|e| engine_fault(&e))?;
        match self.docker.inspect_image(image).await {
            Ok(_) => return Ok(()),
            Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(engine_fault(&error)),
        }
        let options = CreateImageOptions { from_image: Some(with_tag(image)), ..Default::default() };
        let mut pull = self.docker.create_image(Some(options), None, None);
        while let Some(step) = pull.next().await {
            if let Err(error) = step {
                let message = format!("pulling the container image {image}: {}", chain(&error));
                return Err(Fault { failure: Failure::Start, message });
            }
        }
        Ok(())
    }

    /// The slot is ours, so whatever runs for it is not.
    async fn remove_old(&self, task: &TaskId, run: RunId) -> Result<(), EngineError> {
        let labels = vec![format!("{TASK_LABEL}={task}"), format!("{SLOT_LABEL}={}", run.slot)];
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), labels)])),
            ..Default::default()
        };
        for old in self.docker.list_containers(Some(options)).await? {
            if let Some(id) = old.id {
                tracing::info!(container = id, "removing the container of an earlier attempt");
                self.remove(&id).await?;
            }
        }
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        match self.docker.remove_container(id, Some(options)).await {
            // Gone, or going.
            Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            result => result,
        }
    }

    async fn has_gpus(&self) -> bool {
        let runtimes = self.docker.info().await.ok().and_then(|info| info.runtimes);
        runtimes.is_some_and(|runtimes| runtimes.contains_key("nvidia"))
    }

    async fn create(&self, image: &str, job: &Job, script: &str) -> Result<String, EngineError> {
        let work = job.work_dir.to_string_lossy().into_owned();
        let bind = |path: &str, read_only| Mount {
            typ: Some(MountType::BIND),
            source: Some(path.to_owned()),
            target: Some(path.to_owned()),
            read_only: Some(read_only),
            ..Default::default()
        };
        let gpus = self.has_gpus().await.then(|| {
            vec![DeviceRequest {
                count: Some(-1),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..Default::default()
            }]
        });
        let mut environment: Vec<String> =
            job.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        // The init process sends signals to the script's whole process group.
        environment.push("TINI_KILL_PROCESS_GROUP=1".to_owned());
        let labels = [
            (TASK_LABEL, job.task.to_string()),
            (SLOT_LABEL, job.run.slot.to_string()),
            (MACHINE_LABEL, job.machine.to_string()),
        ];
        let user = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![script.to_owned()]),
            cmd: Some(Vec::new()),
            env: Some(environment),
            working_dir: Some(work.clone()),
            user: Some(format!("{user}:{group}")),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            host_config: Some(HostConfig {
                mounts: Some(vec![bind(&work, false), bind(script, true)]),
                network_mode: Some("host".to_owned()),
                // Training code shares memory between processes; the default is far too little.
                ipc_mode: Some("host".to_owned()),
                init: Some(true),
                // The log is ours; the engine's copy would fill the disk.
                log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
                device_requests: gpus,
                ..Default::default()
            }),
            ..Default::default()
        };
        let name = format!("{}-{}", job.task, job.run);
        let options = CreateContainerOptions { name: Some(name), ..Default::default() };
        Ok(self.docker.create_container(Some(options), body).await?.id)
    }

    /// Whether a path exists in a container that is not running.
    async fn has(&self, id: &str, path: &str) -> bool {
        let options = ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        !matches!(
            self.docker.get_container_archive_info(id, Some(options)).await,
            Err(EngineError::DockerResponseServerError { status_code: 404, .. })
        )
    }

    async fn signal(&self, id: &str, signal: &str) {
        let options = KillContainerOptions { signal: signal.to_owned() };
        match self.docker.kill_container(id, Some(options)).await {
            // It has ended meanwhile.
            Ok(()) | Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
            Err(error) => tracing::warn!(error = chain(&error), signal, "signalling the container"),
        }
    }
}

/// The engine pulls every tag of an image that is named without one.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Runs a script to its end in a container; see [`crate::exec::run`].
pub(crate) async fn run(
    engine: &Engine,
    image: &str,
    job: &Job,
    ends: PipeEnds,
    pump: &mut Pump,
    mut orders: watch::Receiver<Order>,
) -> ScriptEnd {
    let not_started = |message: String| ScriptEnd::NotStarted { message };
    let interpreter = match script::shebang(&job.script) {
        Ok(found) => found,
        Err(message) => return not_started(message),
    };
    let path = match script::write(&job.run_dir, &job.script) {
        Ok(path) => path.to_string_lossy().into_owned(),
        Err(error) => {
            return not_started(format!("writing the script to {}: {error}", job.run_dir.display()));
        }
    };
    let failed = |text: &str, error: &EngineError| not_started(format!("{text}: {}", chain(error)));
    let id = match engine.create(image, job, &path).await {
        Ok(id) => id,
        Err(error) => return failed("creating the container", &error),
    };
    let end = if engine.has(&id, interpreter.program).await {
        match live(engine, &id, ends, &mut orders).await {
            Ok(end) => end,
            Err(error) => failed("running the container", &error),
        }
    } else {
        // Nobody writes there.
        drop(ends);
        not_started(format!("the script's interpreter {} is not in the image {image}", interpreter.program))
    };
    if let Err(error) = engine.remove(&id).await {
        tracing::warn!(error = chain(&error), "removing the container");
    }
    pump.drained().await;
    end
}

async fn live(
    engine: &Engine,
    id: &str,
    ends: PipeEnds,
    orders: &mut watch::Receiver<Order>,
) -> Result<ScriptEnd, EngineError> {
    let attach = AttachContainerOptions { stream: true, stdout: true, stderr: true, ..Default::default() };
    let output = engine.docker.attach_container(id, Some(attach)).await?;
    engine.docker.start_container(id, None).await?;
    let (ended, copied) = tokio::join!(wait(engine, id, orders), copy(output, ends));
    if let Err(error) = copied {
        tracing::warn!(%error, "the container's output broke off");
    }
    ended
}

/// Waits for the container, ending it when ordered to.
async fn wait(
    engine: &Engine,
    id: &str,
    orders: &mut watch::Receiver<Order>,
) -> Result<ScriptEnd, EngineError> {
    let options = WaitContainerOptions { condition: "not-running".to_owned() };
    let mut ended = engine.docker.wait_container(id, Some(options)).boxed();
    let (mut termed, mut killed) = (false, false);
    loop {
        let kill_at = match *orders.borrow_and_update() {
            Order::Run => None,
            Order::End { kill_at } => Some(kill_at),
            Order::Kill => Some(Instant::now()),
        };
        if !killed && kill_at.is_some_and(|at| Instant::now() >= at) {
            killed = true;
            engine.signal(id, "SIGKILL").await;
        } else if !termed && kill_at.is_some() {
            termed = true;
            engine.signal(id, "SIGTERM").await;
        }
        let killing = async {
            match kill_at {
                Some(at) if !killed => tokio::time::sleep_until(at).await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            status = ended.next() => return match status {
                Some(Ok(status)) => Ok(script_end(status.status_code)),
                Some(Err(EngineError::DockerContainerWaitError { code, .. })) => Ok(script_end(code)),
                Some(Err(error)) => Err(error),
                None => Ok(ScriptEnd::NotStarted { message: "the container engine went away".to_owned() }),
            },
            Ok(()) = orders.changed() => {}
            () = killing => {}
        }
    }
}

fn script_end(code: i64) -> ScriptEnd {
    let code = i32::try_from(code).unwrap_or(-1);
    match code {
        129..=159 => ScriptEnd::Signalled { signal: code - 128 },
        _ => ScriptEnd::Exited { code },
    }
}

/// From the engine to the pipes, no quicker than they are read.
async fn copy(mut output: AttachContainerResults, ends: PipeEnds) -> std::io::Result<()> {
    let mut stdout = pipe::Sender::from_owned_fd(OwnedFd::from(ends.stdout))?;
    let mut stderr = pipe::Sender::from_owned_fd(OwnedFd::from(ends.stderr))?;
    while let Some(piece) = output.output.next().await {
        match piece.map_err(std::io::Error::other)? {
            LogOutput::StdErr { message } => stderr.write_all(&message).await?,
            LogOutput::StdOut { message } | LogOutput::Console { message } => {
                stdout.write_all(&message).await?;
            }
            LogOutput::StdIn { .. } => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        assert_eq!(with_tag("ubuntu"), "ubuntu:latest");
        assert_eq!(with_tag("host:5000/a/b"), "host:5000/a/b:latest");
        assert_eq!(with_tag("a/b:1"), "a/b:1");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
    }

    #[test]
    fn deaths_by_signal_are_told_as_such() {
        assert_eq!(script_end(137), ScriptEnd::Signalled { signal: 9 });
        assert_eq!(script_end(255), ScriptEnd::Exited { code: 255 });
    }

    #[test]
    fn only_an_engine_of_the_same_machine_is_used() {
        let of = |host: &str| engine_address(Some(host.to_owned()));
        assert_eq!(engine_address(None), of("unix:///var/run/docker.sock"));
        assert_eq!(of(""), engine_address(None));
        assert_eq!(
            of("unix:///run/user/1000/podman.sock"),
            Ok("unix:///run/user/1000/podman.sock".to_owned())
        );
        for elsewhere in ["tcp://10.0.0.5:2375", "ssh://user@host", "/var/run/docker.sock"] {
            let text = of(elsewhere).expect_err(elsewhere);
            assert!(text.starts_with("DOCKER_HOST is") && text.contains(elsewhere), "{text}");
        }
    }
}
