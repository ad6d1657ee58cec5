//! Waits for events, tells the state machine, carries out its actions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinError, JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tpi_proto::{
    id::RunId,
    machine::{MachineConfig, Timings},
    state::{Phase, Progress, SlotState, SlotStatus},
};
use tpi_store::{Store, layout::TaskKeys, record::TaskRecord, snapshot::Collector};

use super::{
    Concern, Event, Handle, Prepared, ProcessContext,
    admission::{Admitted, admit},
    state::{Action, Budgets, Fault, Input, Machine, ScriptEnd},
    work,
};
use crate::{
    boot::Held,
    call::Names,
    clock::Clock,
    config::{Paths, TestHooks},
    exec::{
        Job, Order,
        leftovers::{self, Reaper, SHELL_MARK, Scope},
    },
    journal::{self, Journal},
    logs::{
        self,
        pump::Pump,
        recover,
        spool::{self, Spool, Writer},
        upload::Uploader,
    },
    losses, preemption, release, rpc,
    save::{self, Command, Saver},
    slots::{Fence, Holder},
    telemetry::Sampler,
};

/// How often progress is told, when nothing else happens.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often orphans are reaped, and how often the clock is corrected.
const REAP: Duration = Duration::from_secs(10);
const CLOCK: Duration = Duration::from_secs(600);
/// How long clients have to read the rest after the end.
const DRAIN: Duration = Duration::from_secs(10);
/// Longest wait for telemetry, events and the holder at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// How the agent's work on a slot came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The slot has finished, and the machine was given back.
    Finished,
    /// The machine is being taken away; the slot waits for another.
    Interrupted,
    /// Another machine holds the slot.
    Superseded,
}

/// Lives a slot's life.
pub(crate) async fn drive(config: MachineConfig, hooks: TestHooks, held: Held) -> std::io::Result<End> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut driver = Driver::start(config, hooks, held).await?;
    driver.handle_all(&mut terminated).await;
    Ok(driver.leave().await)
}

/// What the supervisor wakes up for.
enum Turn {
    Event(Event),
    Settled,
    Terminated,
    Due,
    Progress,
    Reap,
    Correct,
    Joined(Result<(), JoinError>),
}

struct Driver {
    config: MachineConfig,
    hooks: TestHooks,
    paths: Paths,
    store: Store,
    clock: Clock,
    run: RunId,
    record: Result<TaskRecord, Fault>,
    machine: Machine,
    concerns: BTreeMap<Concern, String>,
    remarks: Vec<String>,
    journal: Journal,
    /// Kept for as long as new work may be started.
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// What the holder writes.
    desired: watch::Sender<Arc<SlotStatus>>,
    /// What is in the store.
    written: watch::Receiver<u64>,
    fence: Fence,
    /// What clients see.
    published: Option<watch::Sender<Arc<SlotStatus>>>,
    context: watch::Sender<Option<Arc<ProcessContext>>>,
    spool: Spool,
    progress: watch::Receiver<spool::Progress>,
    /// Until the script takes it.
    writer: Option<Writer>,
    /// Until the last save takes it.
    pump: Option<Pump>,
    prepared: Prepared,
    orders: watch::Sender<Order>,
    saver: Option<mpsc::Sender<Command>>,
    uploader: Option<AbortOnDropHandle<Result<(), String>>>,
    /// Work of the current phase.
    phase: Option<AbortHandle>,
    /// Everything that runs beside; all of it ends before the supervisor does.
    beside: JoinSet<()>,
    shutdown: CancellationToken,
    telemetry_stop: CancellationToken,
    server: Option<JoinHandle<()>>,
    ending: Option<Action>,
    _lock: std::fs::File,
}

impl Driver {
    async fn start(config: MachineConfig, hooks: TestHooks, held: Held) -> std::io::Result<Self> {
        let Held { store, clock, status, version, record, remarks, _lock } = held;
        let run = status.run();
        let paths = Paths::new(&config);
        let keys = TaskKeys::new(&config.task);
        let (events, inbox) = mpsc::channel(64);
        let mut beside = JoinSet::new();

        let (grace, timeout) = match &record {
            Ok(record) => (record.spec.grace(), record.spec.timeout()),
            Err(_) => (Duration::ZERO, Duration::ZERO),
        };
        let budgets = Budgets { timings: config.timings.clone(), deadline: config.deadline, grace, timeout };
        let status = Arc::new(status);
        let machine = Machine::new(SlotStatus::clone(&status), budgets);

        let (desired, to_write) = watch::channel(Arc::clone(&status));
        let (holder, fence, written) =
            Holder::new(store.clone(), keys.clone(), version, &config.timings, to_write, events.clone());
        beside.spawn(work::essential(holder.run()));

        let (journal, notes) = Journal::new(clock.clone(), run, config.machine.clone());
        beside.spawn(journal::write(store.clone(), keys, run, notes));

        let (spool, writer) = Spool::create(&paths.spool().join(run.to_string()))?;
        let uploader = Uploader {
            spool: spool.clone(),
            store: store.clone(),
            task: config.task.clone(),
            run,
            flush: Timings::of(config.timings.log_flush),
            events: events.clone(),
        };
        let uploader = AbortOnDropHandle::new(tokio::spawn(uploader.run()));
        {
            let (store, task, dir) = (store.clone(), config.task.clone(), paths.spool());
            beside.spawn(async move { recover::recover(&store, &task, &dir, run).await });
        }

        let telemetry_stop = CancellationToken::new();
        let (sampler, telemetry) = Sampler::new(
            store.clone(),
            config.task.clone(),
            run,
            clock.clone(),
            paths.work(),
            Timings::of(config.timings.log_flush),
        );
        beside.spawn(sampler.run(telemetry_stop.clone()));

        for notice in config.preemption.clone() {
            let names = Names::new(&config, Some(run));
            beside.spawn(preemption::watch(notice, names, events.clone()));
        }

        let (published, seen) = watch::channel(status);
        let (context, context_seen) = watch::channel(None);
        let handle = Handle {
            task: config.task.clone(),
            run,
            machine: config.machine.clone(),
            clock: clock.clone(),
            status: seen,
            events: events.downgrade(),
            logs: logs::Reader::new(spool.clone(), store.clone(), config.task.clone(), run),
            telemetry,
            context: context_seen,
        };
        let mut driver = Self {
            hooks,
            paths,
            clock,
            run,
            record,
            machine,
            concerns: BTreeMap::new(),
            remarks,
            journal,
            inbox,
            desired,
            written,
            fence,
            published: Some(published),
            context,
            progress: spool.progress(),
            spool,
            writer: Some(writer),
            pump: None,
            prepared: Prepared::default(),
            orders: watch::Sender::new(Order::Run),
            saver: None,
            uploader: Some(uploader),
            phase: None,
            beside,
            shutdown: CancellationToken::new(),
            telemetry_stop,
            server: None,
            ending: None,
            _lock,
            store,
            config,
            events,
        };
        for remark in driver.remarks.clone() {
            driver.journal.note(remark);
        }
        driver.refresh();
        driver.hooks.begins(Phase::Boot);
        driver.serve(handle);
        Ok(driver)
    }

    /// Runs a phase's work; its end is an event.
    fn work(&mut self, work: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        let handle = self.beside.spawn(async move {
            let event = work::essential(work).await;
            // The supervisor is gone only when it needs no telling.
            drop(events.send(event).await);
        });
        self.phase = Some(handle);
    }

    fn serve(&mut self, handle: Handle) {
        let (config, store, shutdown) = (self.config.clone(), self.store.clone(), self.shutdown.clone());
        self.work(async move {
            let served = rpc::serve(handle, &config, &store, shutdown).await;
            Event::Booted(served.map_err(|e| tpi_proto::fault::chain(&e)))
        });
    }

    /// Until there is nothing more to do but to leave.
    async fn handle_all(&mut self, terminated: &mut Signal) {
        let mut progress = tokio::time::interval(PROGRESS);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reap = tokio::time::interval(REAP);
        let mut reaper = Reaper::default();
        let mut correct = tokio::time::interval_at(Instant::now() + CLOCK, CLOCK);
        while self.ending.is_none() {
            let wake = self.machine.wake_at().map(|at| self.clock.until(at));
            let due = async {
                match wake {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            let settled = self.machine.is_settling();
            let generation = self.machine.status().generation;
            let turn = tokio::select! {
                Some(event) = self.inbox.recv() => Turn::Event(event),
                Ok(_) = self.written.wait_for(|g| *g >= generation), if settled => Turn::Settled,
                _ = terminated.recv() => Turn::Terminated,
                () = due => Turn::Due,
                _ = progress.tick() => Turn::Progress,
                _ = reap.tick() => Turn::Reap,
                _ = correct.tick() => Turn::Correct,
                Some(joined) = self.beside.join_next() => Turn::Joined(joined),
            };
            match turn {
                Turn::Event(event) => self.react(event),
                Turn::Settled => self.feed(Input::Settled),
                Turn::Terminated => {
                    self.journal.note("the machine is going down".to_owned());
                    self.feed(Input::Preempted);
                }
                Turn::Due => self.feed(Input::Tick),
                Turn::Progress => self.refresh(),
                Turn::Reap => reaper.look(),
                Turn::Correct => {
                    let (clock, store) = (self.clock.clone(), self.store.clone());
                    let root = TaskKeys::new(&self.config.task).root().to_owned();
                    self.beside.spawn(async move {
                        if let Err(error) = clock.correct(&store, &root).await {
                            tracing::warn!(%error, "correcting the clock");
                        }
                    });
                }
                Turn::Joined(Ok(())) => {}
                Turn::Joined(Err(error)) if error.is_panic() => {
                    tracing::error!(%error, "a part of the agent failed");
                }
                // Ended by us.
                Turn::Joined(Err(_)) => {}
            }
        }
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Stop(call) => match admit(&self.machine, call) {
                Admitted::Stop { input, reply } => {
                    self.journal.note("a client asked for the end".to_owned());
                    self.feed(input);
                    // The caller may have gone; the request stands.
                    let _gone = reply.send(self.machine.status().generation);
                }
                Admitted::TooLate => {}
            },
            Event::StopFound { grace } => {
                self.journal.note("a request to stop was found in the store".to_owned());
                self.feed(Input::Stop { grace });
            }
            Event::Booted(served) => {
                match served {
                    Ok(server) => self.server = Some(server),
                    // The script does not need clients; they can follow the store.
                    Err(text) => self.concern(Concern::Clients, Some(text)),
                }
                let record = self.record.as_ref().map(|_| ()).map_err(Clone::clone);
                self.feed(Input::Booted(record));
            }
            Event::Prepared(Ok(prepared)) => {
                self.prepared = prepared;
                self.feed(Input::Prepared(Ok(())));
            }
            Event::Prepared(Err(fault)) => self.feed(Input::Prepared(Err(fault))),
            Event::Restored(Ok(restored)) => {
                let files = restored.report.written;
                match restored.generation {
                    Some(generation) => {
                        self.journal.note(format!("restored {files} files of generation {generation}"));
                    }
                    None => self.journal.note(format!("restored {files} files as they were submitted")),
                }
                self.start_saving(&restored);
                self.machine.note(|status| status.saved = restored.generation.or(status.saved));
                self.feed(Input::Restored(Ok(())));
            }
            Event::Restored(Err(fault)) => self.feed(Input::Restored(Err(fault))),
            Event::ScriptEnded { end, pump } => {
                self.journal.note(match &end {
                    ScriptEnd::Exited { code } => format!("the script ended with status {code}"),
                    ScriptEnd::Signalled { signal } => format!("the script was ended by signal {signal}"),
                    ScriptEnd::NotStarted { message } => message.clone(),
                });
                self.pump = pump;
                self.feed(Input::ScriptEnded(end));
            }
            Event::Saved { generation } => {
                self.machine.note(|status| {
                    status.saved = Some(generation);
                    status.progress = status.progress.max(Progress::Saved);
                });
                self.publish();
            }
            Event::LastSave(result) => {
                self.refresh();
                self.feed(Input::Saved(result));
            }
            Event::Superseded => {
                tracing::warn!("another machine holds the slot");
                self.feed(Input::Superseded);
            }
            Event::Preempted => {
                self.journal.note("the cloud takes the machine back".to_owned());
                if let Some(saver) = &self.saver {
                    // Full: a save is about to begin anyway.
                    drop(saver.try_send(Command::Now));
                }
                self.feed(Input::Preempted);
            }
            Event::Forewarned => {
                self.journal.note("the cloud may take the machine back soon".to_owned());
                if let Some(saver) = &self.saver {
                    // Full: a save is about to begin anyway.
                    drop(saver.try_send(Command::Now));
                }
            }
            Event::Concern { concern, text } => self.concern(concern, text),
        }
    }

    fn concern(&mut self, concern: Concern, text: Option<String>) {
        match text {
            Some(text) => {
                if self.concerns.insert(concern, text.clone()).as_ref() != Some(&text) {
                    self.journal.note(text);
                }
            }
            None => {
                if let Some(text) = self.concerns.remove(&concern) {
                    self.journal.note(format!("no longer: {text}"));
                }
            }
        }
        self.refresh();
    }

    /// Brings what is reported beside the state up to date.
    fn refresh(&mut self) {
        let progress = *self.progress.borrow();
        let warnings: Vec<String> = self.remarks.iter().chain(self.concerns.values()).cloned().collect();
        let now = self.clock.now();
        let changed = self.machine.note(|status| {
            status.progress = losses::progress(status, now);
            status.log_stored = progress.stored;
            status.log_complete = progress.complete.then_some(progress.end);
            status.warnings = warnings;
        });
        if changed {
            self.publish();
        }
    }

    fn feed(&mut self, input: Input) {
        let before = self.machine.status().generation;
        let actions = self.machine.handle(self.clock.now(), input);
        if self.machine.status().generation != before {
            self.publish();
        }
        for action in actions {
            self.act(action);
        }
    }

    /// To the store and to clients; the last status to the store only.
    fn publish(&mut self) {
        let status = Arc::new(self.machine.status().clone());
        let fenced =
            matches!(status.state, SlotState::Stopping { reason: tpi_proto::state::StopReason::Superseded });
        if !fenced {
            self.desired.send_replace(Arc::clone(&status));
        }
        if !self.machine.is_settling()
            && let Some(published) = &self.published
        {
            published.send_replace(status);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Prepare => self.hooks.begins(Phase::Prepare),
            Action::Restore => self.hooks.begins(Phase::Restore),
            Action::Save { .. } => self.hooks.begins(Phase::Save),
            Action::Release => self.hooks.begins(Phase::Release),
            Action::Run
            | Action::Abandon
            | Action::EndScript { .. }
            | Action::KillScript
            | Action::AbandonSave
            | Action::Settle
            | Action::Leave => {}
        }
        match action {
            Action::Prepare => {
                let Ok(record) = &self.record else { return };
                let (store, config, spec, run) =
                    (self.store.clone(), self.config.clone(), record.spec.clone(), self.run);
                self.work(async move { Event::Prepared(work::prepare(store, config, spec, run).await) });
            }
            Action::Restore => {
                let Ok(record) = &self.record else { return };
                let (store, config, run, dir) =
                    (self.store.clone(), self.config.clone(), self.run, self.paths.work());
                let input = record.input_stored;
                self.work(
                    async move { Event::Restored(work::restore(store, config, run, dir, input).await) },
                );
            }
            Action::Run => self.start_script(),
            Action::Abandon | Action::AbandonSave => {
                if let Some(phase) = self.phase.take() {
                    phase.abort();
                }
            }
            Action::EndScript { grace } => {
                let kill_at = Instant::now() + grace;
                self.orders.send_modify(|order| {
                    *order = match *order {
                        Order::Run => Order::End { kill_at },
                        Order::End { kill_at: earlier } => Order::End { kill_at: kill_at.min(earlier) },
                        Order::Kill => Order::Kill,
                    };
                });
            }
            Action::KillScript => {
                self.orders.send_replace(Order::Kill);
            }
            Action::Save { files } => {
                let saver = self.saver.take().filter(|_| files);
                let (pump, writer, uploader) = (self.pump.take(), self.writer.take(), self.uploader.take());
                self.telemetry_stop.cancel();
                self.work(
                    async move { Event::LastSave(work::last_save(saver, pump, writer, uploader).await) },
                );
            }
            // Publishing has told the holder already.
            Action::Settle => {}
            Action::Release | Action::Leave => self.ending = Some(action),
        }
    }

    fn start_saving(&mut self, restored: &crate::save::Restored) {
        let (commands, orders) = mpsc::channel(2);
        let saver = Saver {
            store: self.store.clone(),
            task: self.config.task.clone(),
            run: self.run,
            work: self.paths.work(),
            base: restored.manifest.clone(),
            generation: restored.generation,
            interval: Timings::of(self.config.timings.save_interval),
            fence: self.fence.clone(),
            events: self.events.clone(),
            collector: Collector::new(self.store.clone(), &self.config.task, self.run, save::GRACE),
        };
        self.beside.spawn(saver.run(orders));
        self.saver = Some(commands);
        let mut environment = self.prepared.machine.clone();
        environment.insert(SHELL_MARK.to_owned(), "true".to_owned());
        let context = ProcessContext { work_dir: self.paths.work(), environment };
        self.context.send_replace(Some(Arc::new(context)));
    }

    fn start_script(&mut self) {
        let (Ok(record), Some(writer)) = (&self.record, self.writer.take()) else { return };
        let job = Job {
            script: record.spec.script.clone(),
            run_dir: self.paths.run(),
            work_dir: self.paths.work(),
            environment: self.prepared.script.clone(),
            machine: self.config.machine.clone(),
            task: self.config.task.clone(),
            run: self.run,
        };
        let (image, clock) = (record.spec.container.clone(), self.clock.clone());
        let (events, orders) = (self.events.clone(), self.orders.subscribe());
        let hooks = self.hooks.clone();
        self.journal.note("the script starts".to_owned());
        self.work(async move {
            hooks.begins(Phase::Run);
            let (end, pump) = work::run(job, image, writer, clock, events, orders).await;
            Event::ScriptEnded { end, pump }
        });
    }

    /// Tells clients the end, gives the machine back, and ends everything that is left of it.
    async fn leave(mut self) -> End {
        let end = match self.machine.status().state {
            SlotState::Finished { .. } => End::Finished,
            SlotState::Interrupted => End::Interrupted,
            SlotState::Active { .. } | SlotState::Stopping { .. } => End::Superseded,
        };
        if end == End::Superseded {
            // The script's driver kills it as ordered; make sure of it, whatever the driver is waiting for.
            leftovers::kill(&self.config.machine, Scope::Script).await;
        }
        if let Some(published) = self.published.take() {
            published.send_replace(Arc::new(self.machine.status().clone()));
        }
        // Events end here: callers that still wait are told so by the closed channel.
        self.inbox.close();
        self.shutdown.cancel();
        self.telemetry_stop.cancel();
        self.uploader = None;
        let drain = if end == End::Superseded { Duration::from_secs(1) } else { DRAIN };
        if let Some(mut server) = self.server.take()
            && tokio::time::timeout(drain, &mut server).await.is_err()
        {
            tracing::info!("clients that are still connected are left");
            server.abort();
        }
        if self.ending == Some(Action::Release) {
            let names = Names::new(&self.config, Some(self.run));
            give_back(&self.config, &names, Some(&self.journal)).await;
        }
        leftovers::kill(&self.config.machine, Scope::All).await;
        self.finish_beside().await;
        if end != End::Superseded && self.progress.borrow().stored == self.progress.borrow().end {
            // All of it is in the store.
            let dir = self.paths.spool().join(self.run.to_string());
            drop(std::fs::remove_dir_all(dir));
        }
        drop(self.spool);
        end
    }

    /// Lets what runs beside end by itself for a moment, then ends it.
    async fn finish_beside(&mut self) {
        let (journal, _) = Journal::new(self.clock.clone(), self.run, self.config.machine.clone());
        self.journal = journal;
        self.saver = None;
        let flushed = async { while self.beside.join_next().await.is_some() {} };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            self.beside.shutdown().await;
        }
    }
}

/// The release call, and the power switch.
pub(crate) async fn give_back(config: &MachineConfig, names: &Names, journal: Option<&Journal>) {
    let budget = Timings::of(config.timings.release_budget);
    if let Some(request) = &config.release
        && !release::release(request, names, budget).await
        && let Some(journal) = journal
    {
        journal.note("the machine could not take itself out of its group".to_owned());
    }
    if config.power_off {
        release::power_off().await;
    }
}
