//! Thousands of seeded histories in virtual time: a world of workers that start, fail, hang, crash,
//! lose cores and answer late, people who ask for changes at any moment, and a loop that wakes late.
//!
//! The world checks each action when it is given, and the machine after each turn. At the end all
//! faults cease, and then everything has to come to order within a bounded time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::*;

const MS: Duration = Duration::from_millis(1);
const HISTORIES: u64 = 6_000;
const POLICY: Policy = Policy {
    processes: 2,
    start_timeout: Duration::from_secs(2),
    drain_timeout: Duration::from_secs(5),
};
/// Of a history with faults, and of the order after it: longer than window and drains together.
const FAULTS_FOR: Duration = Duration::from_secs(90);
const ORDER_WITHIN: Duration = Duration::from_secs(120);

fn limits() -> Limits {
    Limits {
        budget: 8,
        window: Duration::from_secs(20),
        healthy_after: Duration::from_secs(10),
        changes_waiting_max: 4,
        ..Limits::default()
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// With a chance of so many in a thousand.
    fn hits(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    fn up_to(&mut self, longest: Duration) -> Duration {
        let longest = u64::try_from(longest.as_micros()).unwrap();
        Duration::from_micros(self.below(longest + 1))
    }
}

/// Chances in a thousand.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    start_fails: u64,
    start_is_permanent: u64,
    start_hangs: u64,
    start_is_slow: u64,
    crashes: u64,
    loses_core: u64,
    refuses_apply: u64,
    ignores_apply: u64,
    drain_hangs: u64,
    not_prepared: u64,
    prepare_hangs: u64,
    exec_fails: u64,
    unkillable: u64,
    /// Longest life of a worker that crashes.
    crash_within: Duration,
}

impl Faults {
    fn of(random: &mut Random) -> Self {
        let mut level = |levels: [u64; 4]| levels[usize::try_from(random.below(4)).unwrap()];
        Self {
            start_fails: level([0, 0, 50, 400]),
            start_is_permanent: level([0, 0, 20, 500]),
            start_hangs: level([0, 0, 30, 200]),
            start_is_slow: level([0, 50, 50, 300]),
            crashes: level([0, 100, 500, 1000]),
            loses_core: level([0, 0, 100, 500]),
            refuses_apply: level([0, 0, 100, 500]),
            ignores_apply: level([0, 0, 50, 300]),
            drain_hangs: level([0, 50, 200, 800]),
            not_prepared: level([0, 100, 100, 500]),
            prepare_hangs: level([0, 0, 50, 200]),
            exec_fails: level([0, 200, 500, 1000]),
            unkillable: level([0, 0, 0, 20]),
            crash_within: MS * u32::try_from(level([50, 1_000, 10_000, 60_000])).unwrap(),
        }
    }
}

#[derive(Debug)]
struct Process {
    generation: GenerationId,
    config: ConfigId,
    ready: bool,
    /// Events of one worker come in order.
    last_word: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Open,
    Committed,
    Abandoned,
}

struct World {
    seed: u64,
    random: Random,
    faults: Faults,
    machine: Machine,
    now: Instant,
    order: u64,
    to_come: BTreeMap<(Instant, u64), Event>,
    processes: BTreeMap<WorkerId, Process>,
    /// Killed, but held by the kernel.
    stuck: Vec<WorkerId>,
    spawned: BTreeMap<GenerationId, (usize, Image)>,
    respawns: VecDeque<Instant>,
    configs: BTreeMap<ConfigId, Fate>,
    in_force: Option<ConfigId>,
    preparing: Option<(ChangeId, Kind)>,
    /// Of the upgrade under way, as soon as it is prepared.
    upgrading: Option<ConfigId>,
    requests: BTreeMap<RequestId, Option<Outcome>>,
    has_permanent: bool,
    stopping: bool,
    serving: Option<GenerationId>,
    exit: Option<u8>,
    seen: Seen,
}

/// What happened at all, so that the histories are known to be worth something.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    respawns: usize,
    in_place: usize,
    upgrades: usize,
    exec_failures: usize,
    refused: usize,
    repairs: usize,
    kills: usize,
    parked: usize,
    failed_exits: usize,
}

impl World {
    fn new(seed: u64, base: Instant) -> Self {
        let mut random = Random(seed);
        let faults = Faults::of(&mut random);
        Self {
            seed,
            faults,
            random,
            machine: Machine::new(limits(), base),
            now: base,
            order: 0,
            to_come: BTreeMap::new(),
            processes: BTreeMap::new(),
            stuck: Vec::new(),
            spawned: BTreeMap::new(),
            respawns: VecDeque::new(),
            configs: BTreeMap::new(),
            in_force: None,
            preparing: None,
            upgrading: None,
            requests: BTreeMap::new(),
            has_permanent: false,
            stopping: false,
            serving: None,
            exit: None,
            seen: Seen::default(),
        }
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.order += 1;
        self.to_come.insert((when, self.order), event);
    }

    /// A word of a worker: never before one that it said earlier.
    fn says(&mut self, worker: WorkerId, within: Duration, event: Event) {
        let delay = self.random.up_to(within);
        let process = self.processes.get_mut(&worker).unwrap();
        let when = (self.now + delay).max(process.last_word);
        process.last_word = when;
        self.at(when, event);
    }

    fn exits(&mut self, worker: WorkerId, within: Duration, cause: &str) {
        let cause = cause.to_owned();
        self.says(worker, within, Event::Exited { worker, cause });
    }

    fn new_config(&mut self) -> ConfigId {
        let config = ConfigId(u64::try_from(self.configs.len()).unwrap() + 1);
        self.configs.insert(config, Fate::Open);
        config
    }

    fn ask(&mut self, when: Instant, with_request: bool, kind: Kind) -> Option<RequestId> {
        let request = with_request.then(|| self.new_request());
        self.at(when, Event::Ask { request, kind });
        request
    }

    fn new_request(&mut self) -> RequestId {
        let request = RequestId(u64::try_from(self.requests.len()).unwrap() + 1);
        self.requests.insert(request, None);
        request
    }

    fn plan_history(&mut self) {
        let config = self.new_config();
        let policy = POLICY;
        self.at(self.now, Event::Begin { config, policy });
        for _ in 0..self.random.below(40) {
            let when = self.now + self.random.up_to(FAULTS_FOR);
            let with_request = self.random.hits(600);
            match self.random.below(100) {
                0..=64 => drop(self.ask(when, with_request, Kind::Reload)),
                65..=91 => drop(self.ask(when, with_request, Kind::Upgrade)),
                92..=96 => self.at(when, Event::DrainWorkers),
                97 => {
                    let request = with_request.then(|| self.new_request());
                    let at_once = self.random.hits(300);
                    self.at(when, Event::Stop { at_once, request });
                }
                _ => self.at(
                    when,
                    Event::ExecFailed {
                        why: "out of nothing".into(),
                    },
                ),
            }
        }
    }

    /// Lets the world go on until `end`, or until the master exits.
    fn run_until(&mut self, end: Instant) {
        let mut turns = 0;
        while self.exit.is_none() {
            let next = self.to_come.keys().next().map(|it| it.0);
            // The loop wakes late.
            let late = self.random.up_to(3 * MS);
            let tick = self.machine.deadline().map(|it| it + late);
            let (when, event) = match (next, tick) {
                (Some(next), tick) if tick.is_none_or(|it| next <= it) => {
                    let ((when, _), event) = self.to_come.pop_first().unwrap();
                    if when > end {
                        self.at(when, event);
                        break;
                    }
                    (when, event)
                }
                (_, Some(tick)) if tick <= end => (tick, Event::Tick),
                _ => break,
            };
            self.now = when.max(self.now);
            self.deliver(event);
            turns += 1;
            assert!(turns < 200_000, "seed {}: runs hot", self.seed);
        }
        if self.exit.is_none() {
            self.now = self.now.max(end);
        }
    }

    fn deliver(&mut self, mut event: Event) {
        let is_ready = matches!(event, Event::Ready { .. });
        match &mut event {
            Event::Exited { worker, .. } if self.processes.remove(worker).is_none() => return,
            Event::Ready { worker }
            | Event::Drained { worker }
            | Event::Failed { worker, .. }
            | Event::CoreLost { worker, .. } => {
                let Some(process) = self.processes.get_mut(worker) else {
                    return;
                };
                process.ready |= is_ready;
            }
            Event::Applied { worker, config } => {
                let Some(process) = self.processes.get_mut(worker) else {
                    return;
                };
                process.config = *config;
            }
            Event::NotApplied { worker, .. } if !self.processes.contains_key(worker) => return,
            Event::Prepared { change, config, .. } => {
                *config = self.new_config();
                if self.preparing == Some((*change, Kind::Upgrade)) {
                    self.upgrading = Some(*config);
                }
                self.preparing = self.preparing.filter(|it| it.0 != *change);
            }
            Event::NotPrepared { change, .. } => {
                self.preparing = self.preparing.filter(|it| it.0 != *change);
            }
            Event::Stop { .. } => self.stopping = true,
            Event::DrainWorkers => self.seen.parked += 1,
            _ => {}
        }
        let is_stop = matches!(event, Event::Stop { .. });
        let actions = self.machine.handle(event, self.now);
        self.perform(actions);
        if !is_stop && self.random.hits(20) {
            self.hand_over(false);
        }
        self.check();
    }

    /// Through bytes, as an upgrade does it.
    fn hand_over(&mut self, executed: bool) {
        let before = self.machine.view();
        let deadline = self.machine.deadline();
        let bytes = serde_json::to_vec(&self.machine.export(self.now)).unwrap();
        let snapshot = serde_json::from_slice(&bytes).unwrap();
        self.machine = Machine::import(limits(), snapshot, self.now).unwrap();
        assert_eq!(self.machine.view(), before, "seed {}", self.seed);
        assert_eq!(self.machine.deadline(), deadline, "seed {}", self.seed);
        if executed {
            for (_, image) in self.spawned.values_mut() {
                *image = Image::Own;
            }
            let actions = self.machine.resumed(self.now);
            self.perform(actions);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let batch: Vec<_> = actions.clone();
        let mut actions = actions.into_iter();
        while let Some(action) = actions.next() {
            assert!(
                self.exit.is_none(),
                "seed {}: after the exit: {batch:?}",
                self.seed
            );
            match action {
                Action::Execute => {
                    assert!(self.upgrading.is_some(), "seed {}: {batch:?}", self.seed);
                    assert_eq!(actions.next(), None, "nothing is lost by the exec");
                    return self.execute();
                }
                action => self.perform_one(action, &batch),
            }
        }
    }

    fn execute(&mut self) {
        if self.random.hits(self.faults.exec_fails) {
            self.seen.exec_failures += 1;
            self.at(
                self.now,
                Event::ExecFailed {
                    why: "ENOEXEC".into(),
                },
            );
        } else {
            self.seen.upgrades += 1;
            self.hand_over(true);
        }
    }

    fn perform_one(&mut self, action: Action, batch: &[Action]) {
        let seed = self.seed;
        match action {
            Action::Prepare { change, kind } => self.prepare(change, kind),
            Action::CancelPrepare { change } => {
                assert_eq!(self.preparing.map(|it| it.0), Some(change), "seed {seed}");
                self.preparing = None;
            }
            Action::Spawn {
                worker,
                generation,
                config,
                image,
            } => self.spawn(worker, generation, config, image),
            Action::Apply { worker, config } => self.apply(worker, config),
            Action::Drain {
                worker, deadline, ..
            } => {
                assert!(deadline >= self.now, "seed {seed}: {batch:?}");
                assert!(
                    self.processes.contains_key(&worker),
                    "seed {seed}: {batch:?}"
                );
                if !self.random.hits(self.faults.drain_hangs) {
                    self.says(worker, 6000 * MS, Event::Drained { worker });
                    if !self.random.hits(self.faults.drain_hangs / 4) {
                        self.exits(worker, 20 * MS, "exit code 0");
                    }
                }
            }
            Action::StopWorker { worker } => {
                if !self.random.hits(self.faults.drain_hangs) {
                    self.exits(worker, 100 * MS, "exit code 0");
                }
            }
            Action::Kill { worker } => {
                self.seen.kills += 1;
                if self.random.hits(self.faults.unkillable) {
                    self.stuck.push(worker);
                } else {
                    // It doesn't wait for what the worker would have said.
                    self.at(
                        self.now + 2 * MS,
                        Event::Exited {
                            worker,
                            cause: "killed by SIGKILL".into(),
                        },
                    );
                }
            }
            Action::Commit { config } => {
                assert_eq!(
                    self.configs.insert(config, Fate::Committed),
                    Some(Fate::Open)
                );
                assert!(self.in_force < Some(config), "seed {seed}: {batch:?}");
                self.in_force = Some(config);
                self.upgrading = self.upgrading.filter(|it| *it != config);
            }
            Action::Abandon { config } => {
                assert_eq!(
                    self.configs.insert(config, Fate::Abandoned),
                    Some(Fate::Open)
                );
                self.upgrading = self.upgrading.filter(|it| *it != config);
            }
            Action::Answer { request, outcome } => {
                self.seen.refused += usize::from(
                    matches!(&outcome, Outcome::Failed { text, .. } if text.contains("still drain")),
                );
                self.seen.in_place += usize::from(
                    matches!(&outcome, Outcome::Done { text } if text.contains("in place")),
                );
                let before = self.requests.insert(request, Some(outcome));
                assert_eq!(before, Some(None), "seed {seed}: answered twice: {batch:?}");
            }
            Action::Exit { code, .. } => {
                let left = self.processes.keys().filter(|it| !self.stuck.contains(it));
                assert_eq!(left.count(), 0, "seed {seed}: workers are left");
                self.exit = Some(code);
            }
            Action::Log { text, .. } => {
                if text.contains("starts in place of") {
                    self.costs_budget();
                }
                self.seen.repairs += usize::from(text.contains("serves with all its cores"));
            }
            Action::Execute => unreachable!("performed by the caller"),
        }
    }

    fn prepare(&mut self, change: ChangeId, kind: Kind) {
        assert_eq!(self.preparing, None, "seed {}: two changes", self.seed);
        let open = self
            .configs
            .values()
            .filter(|it| **it == Fate::Open)
            .count();
        assert_eq!(open, 0, "seed {}: two changes", self.seed);
        self.preparing = Some((change, kind));
        let when = self.now + self.random.up_to(50 * MS);
        if self.random.hits(self.faults.not_prepared) {
            let text = "line 1".to_owned();
            return self.at(
                when,
                Event::NotPrepared {
                    change,
                    text,
                    code: 78,
                },
            );
        }
        let mut when = when;
        if self.random.hits(self.faults.prepare_hangs) {
            when += Duration::from_secs(4);
        }
        let placement = match self.random.hits(600) {
            true => Placement::InPlace,
            false => Placement::NewGeneration(vec!["the engine changes".into()]),
        };
        let processes = if self.random.hits(900) { 2 } else { 1 };
        let policy = Policy {
            processes,
            ..POLICY
        };
        // The right one is given when it is delivered: the newest is the highest.
        let config = ConfigId(0);
        self.at(
            when,
            Event::Prepared {
                change,
                config,
                policy,
                placement,
            },
        );
    }

    fn spawn(
        &mut self,
        worker: WorkerId,
        generation: GenerationId,
        config: ConfigId,
        image: Image,
    ) {
        let seed = self.seed;
        assert!(
            !self.stopping,
            "seed {seed}: {worker} is started while stopping"
        );
        let fate = self.configs[&config];
        assert!(
            fate != Fate::Abandoned,
            "seed {seed}: {worker} gets {config}"
        );
        assert!(
            fate == Fate::Open || self.in_force == Some(config),
            "seed {seed}: {worker} gets an old {config}"
        );
        assert!(
            image == Image::Own || self.upgrading == Some(config),
            "seed {seed}"
        );
        if self.serving == Some(generation) {
            assert_eq!(
                self.spawned[&generation].1,
                Image::Own,
                "seed {seed}: {worker}"
            );
            self.seen.respawns += 1;
            self.costs_budget();
        } else {
            let before = self.spawned.get(&generation).map_or(0, |it| it.0);
            assert!(
                before < POLICY.processes,
                "seed {seed}: {worker} is one too many"
            );
        }
        self.spawned.entry(generation).or_insert((0, image)).0 += 1;
        let process = Process {
            generation,
            config,
            ready: false,
            last_word: self.now,
        };
        assert!(
            self.processes.insert(worker, process).is_none(),
            "seed {seed}"
        );
        self.plan_life(worker);
    }

    /// A respawn, or a generation in place of another.
    fn costs_budget(&mut self) {
        let (now, window) = (self.now, limits().window);
        self.respawns.push_back(now);
        self.respawns.retain(|at| *at + window > now);
        let count = self.respawns.len();
        assert!(count <= limits().budget, "seed {}: {count}", self.seed);
    }

    fn plan_life(&mut self, worker: WorkerId) {
        let faults = self.faults;
        if self.random.hits(faults.start_hangs) {
            return;
        }
        if self.random.hits(faults.start_fails) {
            if self.random.hits(500) {
                let permanent = self.random.hits(faults.start_is_permanent);
                self.has_permanent |= permanent;
                let why = "cannot bind".to_owned();
                let failed = Event::Failed {
                    worker,
                    permanent,
                    why,
                };
                self.says(worker, 100 * MS, failed);
            }
            return self.exits(worker, 100 * MS, "exit code 1");
        }
        let is_slow = self.random.hits(faults.start_is_slow);
        let longest = if is_slow { 2500 * MS } else { 100 * MS };
        self.says(worker, longest, Event::Ready { worker });
        if self.random.hits(faults.loses_core) {
            let (core, why) = (0, "stalls".to_owned());
            // Beside what it says in order: the core is lost at any time.
            let when = self.now + self.random.up_to(faults.crash_within);
            let stalls = self.random.hits(500);
            self.at(
                when,
                Event::CoreLost {
                    worker,
                    core,
                    why,
                    stalls,
                },
            );
        }
        if self.random.hits(faults.crashes) {
            let when = self.now + self.random.up_to(faults.crash_within);
            let cause = "killed by SIGSEGV".to_owned();
            self.at(when, Event::Exited { worker, cause });
        }
    }

    fn apply(&mut self, worker: WorkerId, config: ConfigId) {
        let fate = self.configs[&config];
        assert!(
            fate == Fate::Open || self.in_force == Some(config),
            "seed {}: {worker} is brought to {config}, which is {fate:?}",
            self.seed
        );
        assert!(
            self.processes[&worker].ready,
            "seed {}: {worker}",
            self.seed
        );
        let event = if self.random.hits(self.faults.refuses_apply) {
            let why = "root: permission denied".to_owned();
            Event::NotApplied {
                worker,
                config,
                why,
            }
        } else {
            Event::Applied { worker, config }
        };
        if !self.random.hits(self.faults.ignores_apply) {
            self.says(worker, 200 * MS, event);
        } else if self.random.hits(500) {
            // An answer that comes after all patience.
            self.says(worker, 4000 * MS, event);
        }
    }

    /// What holds after every turn.
    fn check(&mut self) {
        let seed = self.seed;
        let view = self.machine.view();
        if self.exit.is_some() {
            assert_eq!(view.phase, "ended");
            return;
        }
        let deadline = self.machine.deadline();
        assert!(
            deadline.is_none_or(|it| it > self.now),
            "seed {seed}: late deadline"
        );
        let bound = limits().draining_max + 2;
        assert!(view.generations.len() <= bound, "seed {seed}: {view:#?}");
        assert!(view.waiting <= limits().changes_waiting_max, "seed {seed}");
        let in_state = |state: &str| {
            view.generations
                .iter()
                .filter(|it| it.state == state)
                .count()
        };
        assert!(
            in_state("serving") <= 1 && in_state("starting") <= 1,
            "seed {seed}: {view:#?}"
        );
        match view.phase {
            "running" => {
                let first = self.in_force.is_none() && in_state("starting") == 1;
                assert!(first || in_state("serving") == 1, "seed {seed}: {view:#?}");
            }
            "ending" => self.stopping = true,
            _ => {}
        }
        let serving = view.generations.iter().find(|it| it.state == "serving");
        let serving = serving.map(|it| it.id);
        if serving != self.serving
            && let Some(id) = serving
        {
            let mut members = self.processes.values().filter(|it| it.generation == id);
            assert!(
                members.all(|it| it.ready),
                "seed {seed}: {id} serves too early"
            );
        }
        self.serving = serving;
    }

    /// All faults cease; then everything has to be as it should within a bounded time.
    fn comes_to_order(&mut self) {
        let seed = self.seed;
        if self.exit.is_some() {
            return;
        }
        self.faults = Faults::default();
        self.to_come.retain(|_, event| {
            !matches!(
                event,
                Event::CoreLost { .. } | Event::Stop { .. } | Event::DrainWorkers
            ) && !matches!(event, Event::Exited { cause, .. } if cause.contains("SEGV"))
        });
        self.run_until(self.now + ORDER_WITHIN);
        if self.exit.is_some() {
            return;
        }
        if !self.stopping {
            if self.machine.view().phase == "running" {
                self.is_in_order(true);
            }
            let request = self.ask(self.now, true, Kind::Reload).unwrap();
            self.run_until(self.now + ORDER_WITHIN);
            let answer = &self.requests[&request];
            assert!(
                matches!(answer, Some(Outcome::Done { .. })),
                "seed {seed}: {answer:?}"
            );
            self.is_in_order(false);
            let request = Some(self.new_request());
            self.at(
                self.now,
                Event::Stop {
                    at_once: false,
                    request,
                },
            );
            self.run_until(self.now + ORDER_WITHIN);
        }
        assert!(
            self.exit.is_some(),
            "seed {seed}: {:#?}",
            self.machine.view()
        );
    }

    /// `may_be_down`: a worker that said that it can never start waits for a reload.
    fn is_in_order(&self, may_be_down: bool) {
        let seed = self.seed;
        let view = self.machine.view();
        assert_eq!((view.phase, view.waiting), ("running", 0), "seed {seed}");
        assert_eq!(
            (view.generations.len(), view.change),
            (1, None),
            "seed {seed}"
        );
        let generation = &view.generations[0];
        assert_eq!(Some(generation.config), self.in_force, "seed {seed}");
        let is_down = |it: &&WorkerView| may_be_down && it.state == "down";
        let down = generation.workers.iter().filter(is_down).count();
        for worker in generation.workers.iter().filter(|it| !is_down(it)) {
            assert_eq!((worker.state, worker.lost), ("ready", false), "seed {seed}");
            let config = Some(self.processes[&worker.id].config);
            assert_eq!(config, self.in_force, "seed {seed}: {:#?}", generation);
        }
        let left = self.processes.keys().filter(|it| !self.stuck.contains(it));
        assert_eq!(
            left.count(),
            generation.workers.len() - down,
            "seed {seed}: workers are left"
        );
    }
}

#[test]
fn thousands_of_histories_keep_every_promise() {
    let base = Instant::now() + Duration::from_secs(1000);
    let mut all = Seen::default();
    for seed in 0..HISTORIES {
        let mut world = World::new(seed, base);
        world.plan_history();
        world.run_until(base + FAULTS_FOR);
        world.comes_to_order();
        if world.exit == Some(1) {
            let may = world.in_force.is_none() || world.has_permanent;
            assert!(may, "seed {seed}: gave up for nothing");
        }
        let unanswered: Vec<_> = world.requests.iter().filter(|it| it.1.is_none()).collect();
        let asked_later = |it: &&(&RequestId, &Option<Outcome>)| {
            let mut events = world.to_come.values();
            events.any(|event| match event {
                Event::Ask { request, .. } | Event::Stop { request, .. } => *request == Some(*it.0),
                _ => false,
            })
        };
        let lost = unanswered.iter().filter(|it| !asked_later(it)).count();
        assert_eq!(lost, 0, "seed {seed}: never answered: {unanswered:?}");
        let seen = world.seen;
        all.respawns += seen.respawns;
        all.in_place += seen.in_place;
        all.upgrades += seen.upgrades;
        all.exec_failures += seen.exec_failures;
        all.refused += seen.refused;
        all.repairs += seen.repairs;
        all.kills += seen.kills;
        all.parked += seen.parked;
        all.failed_exits += usize::from(world.exit == Some(1));
    }
    let counts = [
        all.respawns,
        all.in_place,
        all.upgrades,
        all.exec_failures,
        all.refused,
        all.repairs,
        all.kills,
        all.parked,
        all.failed_exits,
    ];
    assert!(counts.iter().all(|it| *it > 100), "too tame: {all:?}");
}
