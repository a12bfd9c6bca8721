//! Each rule of the machine, by name, on a short history.

use std::time::{Duration, Instant};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(30);

/// A machine, its time, and what it has done since the last look, without the log.
struct Master {
    machine: Machine,
    now: Instant,
    done: Vec<Action>,
    log: Vec<String>,
}

fn policy(processes: usize) -> Policy {
    Policy {
        processes,
        start_timeout: START,
        drain_timeout: DRAIN,
    }
}

fn worker(id: u64) -> WorkerId {
    WorkerId(id)
}

fn spawn(id: u64, generation: u64, config: u64) -> Action {
    Action::Spawn {
        worker: worker(id),
        generation: GenerationId(generation),
        config: ConfigId(config),
        image: Image::Own,
    }
}

fn spawn_new(id: u64, generation: u64, config: u64) -> Action {
    Action::Spawn {
        worker: worker(id),
        generation: GenerationId(generation),
        config: ConfigId(config),
        image: Image::New,
    }
}

fn apply(id: u64, config: u64) -> Action {
    let (worker, config) = (worker(id), ConfigId(config));
    Action::Apply { worker, config }
}

fn kill(id: u64) -> Action {
    Action::Kill { worker: worker(id) }
}

fn commit(config: u64) -> Action {
    Action::Commit {
        config: ConfigId(config),
    }
}

fn abandon(config: u64) -> Action {
    Action::Abandon {
        config: ConfigId(config),
    }
}

fn prepare(change: u64, kind: Kind) -> Action {
    let change = ChangeId(change);
    Action::Prepare { change, kind }
}

impl Master {
    fn new(processes: usize) -> Self {
        let now = Instant::now() + 1000 * SECOND;
        let mut master = Self {
            machine: Machine::new(Limits::default(), now),
            now,
            done: Vec::new(),
            log: Vec::new(),
        };
        master.event(Event::Begin {
            config: ConfigId(1),
            policy: policy(processes),
        });
        master
    }

    /// Generation 1 serves with configuration 1; its workers are 1 and up.
    fn serving(processes: usize) -> Self {
        let mut master = Self::new(processes);
        for id in 1..=processes as u64 {
            master.ready(id);
        }
        assert_eq!(master.states(), ["serving"]);
        master.done.clear();
        master
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Log { text, .. } => self.log.push(text),
                action => self.done.push(action),
            }
        }
    }

    fn event(&mut self, event: Event) {
        let actions = self.machine.handle(event, self.now);
        self.take(actions);
    }

    /// Lets time pass, with a tick at each deadline.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.machine.deadline().filter(|at| *at <= end) {
            self.now = at;
            self.event(Event::Tick);
        }
        self.now = end;
    }

    fn ready(&mut self, id: u64) {
        self.event(Event::Ready { worker: worker(id) });
    }

    fn dies(&mut self, id: u64) {
        let cause = "killed by SIGSEGV".to_owned();
        let worker = worker(id);
        self.event(Event::Exited { worker, cause });
    }

    fn fails(&mut self, id: u64, permanent: bool) {
        self.event(Event::Failed {
            worker: worker(id),
            permanent,
            why: "no such user".to_owned(),
        });
    }

    fn ask(&mut self, request: u64, kind: Kind) {
        let request = Some(RequestId(request));
        self.event(Event::Ask { request, kind });
    }

    fn signal(&mut self, kind: Kind) {
        let request = None;
        self.event(Event::Ask { request, kind });
    }

    fn prepared(&mut self, change: u64, config: u64, placement: Placement) {
        self.prepared_with(change, config, placement, self.processes());
    }

    fn prepared_with(&mut self, change: u64, config: u64, placement: Placement, processes: usize) {
        self.event(Event::Prepared {
            change: ChangeId(change),
            config: ConfigId(config),
            policy: policy(processes),
            placement,
        });
    }

    fn processes(&self) -> usize {
        let view = self.machine.view();
        view.generations.last().map_or(1, |it| it.workers.len())
    }

    fn applied(&mut self, id: u64, config: u64) {
        let (worker, config) = (worker(id), ConfigId(config));
        self.event(Event::Applied { worker, config });
    }

    fn not_applied(&mut self, id: u64, config: u64) {
        self.event(Event::NotApplied {
            worker: worker(id),
            config: ConfigId(config),
            why: "/srv/www: permission denied".to_owned(),
        });
    }

    fn core_lost(&mut self, id: u64) {
        self.core_is(id, false);
    }

    fn core_stalls(&mut self, id: u64) {
        self.core_is(id, true);
    }

    fn core_is(&mut self, id: u64, stalls: bool) {
        self.event(Event::CoreLost {
            worker: worker(id),
            core: 0,
            why: "a turn longer than 10 s".to_owned(),
            stalls,
        });
    }

    fn stop(&mut self, at_once: bool, request: Option<u64>) {
        let request = request.map(RequestId);
        self.event(Event::Stop { at_once, request });
    }

    fn drain(&self, id: u64, handover: bool) -> Action {
        Action::Drain {
            worker: worker(id),
            deadline: self.now + DRAIN,
            handover,
        }
    }

    /// Of one that stalls: it gets no longer than it would get after its deadline.
    fn drain_soon(&self, id: u64) -> Action {
        Action::Drain {
            worker: worker(id),
            deadline: self.now + Limits::default().grace,
            handover: true,
        }
    }

    fn states(&self) -> Vec<&'static str> {
        let view = self.machine.view();
        view.generations.iter().map(|it| it.state).collect()
    }

    #[track_caller]
    fn did(&mut self, actions: &[Action]) {
        assert_eq!(std::mem::take(&mut self.done), actions, "{:#?}", self.log);
    }

    /// Takes the answer to this request out of what was done.
    #[track_caller]
    fn answer(&mut self, request: u64) -> Outcome {
        let is_it =
            |it: &Action| matches!(it, Action::Answer { request: to, .. } if to.0 == request);
        let at = self.done.iter().position(is_it).expect("an answer");
        match self.done.remove(at) {
            Action::Answer { outcome, .. } => outcome,
            other => unreachable!("{other:?}"),
        }
    }

    #[track_caller]
    fn is_done(&mut self, request: u64, part: &str) {
        match self.answer(request) {
            Outcome::Done { text } => assert!(text.contains(part), "{text}"),
            other => unreachable!("{other:?}"),
        }
    }

    #[track_caller]
    fn is_refused(&mut self, request: u64, with: u8, part: &str) {
        match self.answer(request) {
            Outcome::Failed { text, code } => {
                assert!(text.contains(part), "{text}");
                assert_eq!(code, with, "{text}");
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[track_caller]
    fn exits(&mut self, with: u8, part: &str) {
        match self.done.pop() {
            Some(Action::Exit { code, why }) => {
                assert!(why.contains(part), "{why}");
                assert_eq!(code, with, "{why}");
            }
            other => unreachable!("{other:?}"),
        }
        assert_eq!(self.machine.view().phase, "ended");
        assert_eq!(self.machine.deadline(), None);
    }

    /// A reload that ends with a new generation; its workers get READY.
    fn new_generation(&mut self, change: u64, config: u64, first_worker: u64) {
        self.signal(Kind::Reload);
        self.prepared(change, config, because());
        for id in 0..self.processes() as u64 {
            self.ready(first_worker + id);
        }
        self.done.clear();
    }

    /// As the new process has it.
    fn exec(&mut self) {
        assert_eq!(self.done.pop(), Some(Action::Execute));
        let bytes = serde_json::to_string(&self.machine.export(self.now)).unwrap();
        // The other process's clock is another one.
        self.now += 77 * SECOND;
        let snapshot = serde_json::from_str(&bytes).unwrap();
        self.machine = Machine::import(Limits::default(), snapshot, self.now).unwrap();
        let actions = self.machine.resumed(self.now);
        self.take(actions);
    }
}

fn because() -> Placement {
    Placement::NewGeneration(vec!["the engine changes".to_owned()])
}

// ---- The first start ----

#[test]
fn serves_when_all_workers_are_ready_and_not_before() {
    let mut master = Master::new(2);
    master.did(&[spawn(1, 1, 1), spawn(2, 1, 1)]);
    master.ready(2);
    master.did(&[]);
    assert_eq!(master.states(), ["starting"]);
    master.ready(1);
    master.did(&[commit(1)]);
    assert_eq!(master.states(), ["serving"]);
    assert_eq!(master.machine.deadline(), None);
}

#[test]
fn a_first_start_that_fails_ends_the_server_and_is_not_tried_again() {
    for permanent in [false, true] {
        let mut master = Master::new(2);
        master.done.clear();
        master.fails(1, permanent);
        master.did(&[Action::StopWorker { worker: worker(2) }]);
        master.dies(1);
        master.did(&[]);
        master.dies(2);
        master.exits(1, "worker 1 can't start: no such user");
        master.did(&[]);
    }
    let mut master = Master::new(1);
    master.done.clear();
    master.dies(1);
    master.exits(1, "killed by SIGSEGV");
}

#[test]
fn a_first_start_that_never_says_ready_is_killed_and_ends_the_server() {
    let mut master = Master::new(1);
    master.done.clear();
    master.pass(START - SECOND);
    master.did(&[]);
    master.pass(SECOND);
    master.did(&[kill(1)]);
    master.dies(1);
    master.exits(1, "wasn't ready within 5s");
}

// ---- Respawn ----

#[test]
fn a_dead_worker_is_replaced_at_once_then_with_backoff_which_health_resets() {
    let mut master = Master::serving(1);
    let mut id = 1;
    for wait_ms in [0, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
        master.dies(id);
        let wait = Duration::from_millis(wait_ms);
        let at = (wait_ms > 0).then(|| master.now + wait);
        assert_eq!(at, master.machine.deadline().filter(|_| wait_ms > 0));
        master.pass(wait);
        id += 1;
        master.did(&[spawn(id, 1, 1)]);
        master.ready(id);
    }
    assert!(
        master
            .log
            .iter()
            .any(|it| it.contains("killed by SIGSEGV; started again in 100ms"))
    );
    master.pass(Limits::default().healthy_after);
    master.dies(id);
    master.did(&[spawn(id + 1, 1, 1)]);
    assert_eq!(master.machine.view().restarts, 11);
}

#[test]
fn a_crash_loop_is_held_to_the_budget_and_never_given_up() {
    let mut master = Master::serving(4);
    let limits = Limits::default();
    let mut spawns: Vec<Instant> = Vec::new();
    let end = master.now + 10 * limits.window;
    let mut live: Vec<u64> = vec![1, 2, 3, 4];
    while master.now < end {
        for id in std::mem::take(&mut live) {
            master.dies(id);
        }
        while master.done.is_empty() {
            let next = master.machine.deadline().expect("never gives up");
            assert!(next > master.now, "runs hot");
            master.now = next;
            master.event(Event::Tick);
        }
        for action in std::mem::take(&mut master.done) {
            match action {
                Action::Spawn { worker, .. } => live.push(worker.0),
                other => unreachable!("{other:?}"),
            }
            spawns.push(master.now);
        }
    }
    for (at, first) in spawns.iter().enumerate() {
        let within = |it: &&Instant| **it < *first + limits.window;
        let count = spawns[at..].iter().filter(within).count();
        assert!(count <= limits.budget, "{count} respawns in a window");
    }
    assert!(spawns.len() > 100, "{}", spawns.len());
}

#[test]
fn a_respawned_worker_that_never_says_ready_is_killed_and_replaced() {
    let mut master = Master::serving(1);
    master.dies(1);
    master.did(&[spawn(2, 1, 1)]);
    master.pass(START);
    master.did(&[kill(2)]);
    master.dies(2);
    master.pass(SECOND);
    master.did(&[spawn(3, 1, 1)]);
}

#[test]
fn a_respawned_worker_takes_the_configuration_that_came_into_force_meanwhile() {
    let mut master = Master::serving(2);
    master.dies(1);
    master.did(&[spawn(3, 1, 1)]);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[prepare(1, Kind::Reload), apply(2, 2)]);
    master.applied(2, 2);
    master.is_done(1, "in place");
    master.did(&[commit(2)]);
    // It started with the old one, since that was in force.
    master.ready(3);
    master.did(&[apply(3, 2)]);
    master.dies(3);
    master.pass(SECOND);
    master.did(&[spawn(4, 1, 2)]);
    master.ready(4);
    master.did(&[]);
}

#[test]
fn a_permanent_failure_is_not_tried_again_and_ends_the_server_when_nothing_else_serves() {
    let mut master = Master::serving(2);
    for (dead, next) in [(1, 3), (2, 4)] {
        master.dies(dead);
        master.did(&[spawn(next, 1, 1)]);
    }
    master.ready(4);
    master.fails(3, true);
    master.dies(3);
    master.pass(1000 * SECOND);
    let down = master.machine.view().generations[0].workers[0].clone();
    assert_eq!(
        (down.state, down.down_because.as_deref()),
        ("down", Some("no such user"))
    );
    assert!(
        master
            .done
            .iter()
            .all(|it| !matches!(it, Action::Spawn { .. }))
    );
    master.done.clear();
    master.fails(4, true);
    master.dies(4);
    master.exits(1, "no such user (2 times)");
}

#[test]
fn a_reload_in_place_tries_a_worker_again_that_could_not_start() {
    let mut master = Master::serving(2);
    master.dies(1);
    master.fails(3, true);
    master.dies(3);
    master.done.clear();
    master.signal(Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(2, 2);
    master.did(&[
        prepare(1, Kind::Reload),
        apply(2, 2),
        commit(2),
        spawn(4, 1, 2),
    ]);
}

// ---- Reload ----

#[test]
fn a_reload_in_place_is_committed_when_every_worker_has_it() {
    let mut master = Master::serving(2);
    master.ask(1, Kind::Reload);
    master.did(&[prepare(1, Kind::Reload)]);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[apply(1, 2), apply(2, 2)]);
    master.applied(2, 2);
    master.did(&[]);
    master.applied(1, 2);
    master.is_done(1, "in place");
    master.did(&[commit(2)]);
    assert_eq!(master.states(), ["serving"]);
}

#[test]
fn files_that_were_replaced_are_a_change_like_others_and_asked_for_once() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.did(&[prepare(1, Kind::Reload)]);
    master.signal(Kind::Refresh);
    master.signal(Kind::Refresh);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.is_done(1, "in place");
    master.did(&[apply(1, 2), commit(2), prepare(2, Kind::Refresh)]);
    master.prepared(2, 3, Placement::InPlace);
    master.applied(1, 3);
    master.did(&[apply(1, 3), commit(3)]);
    assert_eq!(master.states(), ["serving"]);
}

#[test]
fn a_configuration_that_can_not_be_prepared_changes_nothing() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.event(Event::NotPrepared {
        change: ChangeId(1),
        text: "line 3: unknown key".to_owned(),
        code: 78,
    });
    master.is_refused(1, 78, "line 3: unknown key");
    master.did(&[prepare(1, Kind::Reload)]);
}

#[test]
fn a_preparation_that_takes_too_long_is_cancelled_and_what_it_bound_later_is_closed() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Upgrade);
    master.pass(START);
    master.is_refused(1, 1, "longer than 5 s");
    let change = ChangeId(1);
    master.did(&[prepare(1, Kind::Upgrade), Action::CancelPrepare { change }]);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[abandon(2)]);
}

#[test]
fn a_reload_by_a_new_generation_drains_the_old_one_only_when_the_new_one_is_ready() {
    let mut master = Master::serving(2);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, because());
    master.did(&[prepare(1, Kind::Reload), spawn(3, 2, 2), spawn(4, 2, 2)]);
    master.ready(3);
    master.did(&[]);
    master.ready(4);
    master.is_done(1, "the engine changes");
    let (one, two) = (master.drain(1, true), master.drain(2, true));
    master.did(&[commit(2), one, two]);
    assert_eq!(master.states(), ["draining", "serving"]);
    for id in [1, 2] {
        master.event(Event::Drained { worker: worker(id) });
        master.dies(id);
    }
    master.did(&[]);
    assert_eq!(master.states(), ["serving"]);
}

#[test]
fn a_new_number_of_workers_needs_a_new_generation_whatever_the_placement_says() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.prepared_with(1, 2, Placement::InPlace, 2);
    master.did(&[prepare(1, Kind::Reload), spawn(2, 2, 2), spawn(3, 2, 2)]);
}

#[test]
fn a_generation_that_never_says_ready_is_rolled_back() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, because());
    master.pass(START);
    master.is_refused(1, 78, "wasn't ready within 5s");
    master.did(&[
        prepare(1, Kind::Reload),
        spawn(2, 2, 2),
        kill(2),
        abandon(2),
    ]);
    master.dies(2);
    assert_eq!(master.states(), ["serving"]);
    master.dies(1);
    master.did(&[spawn(3, 1, 1)]);
}

#[test]
fn workers_of_a_failed_generation_that_were_ready_drain_since_they_may_have_clients() {
    let mut master = Master::serving(2);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, because());
    master.ready(3);
    master.done.clear();
    master.fails(4, true);
    master.is_refused(1, 78, "no such user");
    let three = master.drain(3, true);
    master.did(&[three, abandon(2)]);
    assert_eq!(master.states(), ["serving", "draining"]);
}

#[test]
fn a_worker_that_can_not_take_it_in_place_leads_to_a_new_generation() {
    let mut master = Master::serving(2);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.done.clear();
    master.not_applied(2, 2);
    master.did(&[spawn(3, 2, 2), spawn(4, 2, 2)]);
    master.ready(3);
    master.ready(4);
    master.is_done(1, "permission denied");
    let (one, two) = (master.drain(1, true), master.drain(2, true));
    master.did(&[commit(2), one, two]);
}

#[test]
fn if_that_generation_fails_the_workers_go_back_before_the_configuration_goes() {
    let mut master = Master::serving(3);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.not_applied(2, 2);
    master.done.clear();
    master.fails(4, false);
    master.is_refused(1, 78, "no such user");
    // 3 hasn't answered yet: it will take the one, then the other.
    master.did(&[kill(5), kill(6), apply(1, 1), apply(3, 1), abandon(2)]);
    for id in 4..=6 {
        master.dies(id);
    }
    master.applied(3, 2);
    master.applied(3, 1);
    master.applied(1, 1);
    master.pass(START);
    master.did(&[]);
    assert!(
        master.machine.view().generations[0]
            .workers
            .iter()
            .all(|it| !it.lost)
    );
}

#[test]
fn a_worker_that_dies_while_it_takes_a_configuration_does_not_hold_the_reload_up() {
    let mut master = Master::serving(2);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.done.clear();
    master.dies(2);
    master.is_done(1, "in place");
    master.did(&[commit(2), spawn(3, 1, 2)]);
}

#[test]
fn if_all_die_of_it_the_new_configuration_has_to_prove_itself_beside_the_old_one() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.done.clear();
    master.dies(1);
    master.did(&[spawn(2, 2, 2), spawn(3, 1, 1)]);
    master.dies(2);
    master.is_refused(1, 78, "killed by SIGSEGV");
    master.did(&[abandon(2)]);
    master.ready(3);
    assert_eq!(master.states(), ["serving"]);
}

#[test]
fn a_worker_that_does_not_answer_is_replaced_with_its_generation() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.done.clear();
    master.pass(START);
    master.did(&[spawn(2, 2, 2)]);
    master.ready(2);
    master.is_done(1, "doesn't answer");
    // What it holds in its accepts waits for its end.
    let one = master.drain_soon(1);
    master.did(&[commit(2), one]);
}

#[test]
fn a_reload_without_a_serving_worker_brings_new_ones() {
    let mut master = Master::serving(1);
    master.dies(1);
    master.dies(2);
    master.done.clear();
    master.ask(1, Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[prepare(1, Kind::Reload), spawn(3, 2, 2)]);
    master.ready(3);
    master.is_done(1, "no worker serves");
    assert_eq!(master.states(), ["serving"]);
    master.done.clear();
    master.pass(100 * SECOND);
    master.did(&[]);
}

#[test]
fn the_second_of_two_reloads_is_prepared_after_the_first_has_ended() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.ask(2, Kind::Reload);
    master.did(&[prepare(1, Kind::Reload)]);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[apply(1, 2)]);
    master.applied(1, 2);
    master.is_done(1, "in place");
    master.did(&[commit(2), prepare(2, Kind::Reload)]);
    master.prepared(2, 3, Placement::InPlace);
    master.applied(1, 3);
    master.is_done(2, "in place");
}

#[test]
fn reloads_by_signal_that_wait_are_one() {
    let mut master = Master::serving(1);
    for _ in 0..50 {
        master.signal(Kind::Reload);
    }
    assert_eq!(master.machine.view().waiting, 1);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.prepared(2, 3, Placement::InPlace);
    master.applied(1, 3);
    let first = [prepare(1, Kind::Reload), apply(1, 2), commit(2)];
    let second = [prepare(2, Kind::Reload), apply(1, 3), commit(3)];
    master.did(&[first, second].concat());
}

#[test]
fn a_change_waits_until_the_workers_of_a_failed_one_are_gone() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.ask(2, Kind::Reload);
    master.prepared(1, 2, because());
    master.pass(START);
    master.is_refused(1, 78, "wasn't ready");
    let prepared = prepare(1, Kind::Reload);
    master.did(&[prepared, spawn(2, 2, 2), kill(2), abandon(2)]);
    master.dies(2);
    master.did(&[prepare(2, Kind::Reload)]);
}

#[test]
fn a_worker_that_can_not_be_brought_to_what_is_in_force_is_replaced() {
    let mut master = Master::serving(2);
    master.dies(1);
    master.signal(Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(2, 2);
    master.ready(3);
    master.done.clear();
    master.not_applied(3, 2);
    master.did(&[spawn(4, 2, 2), spawn(5, 2, 2)]);
}

#[test]
fn a_worker_that_takes_an_abandoned_configuration_late_is_brought_back() {
    let mut master = Master::serving(1);
    master.signal(Kind::Reload);
    master.prepared(1, 2, Placement::InPlace);
    master.pass(START);
    master.done.clear();
    master.dies(2);
    // It may stall, so it is replaced as well.
    master.did(&[abandon(2), spawn(3, 3, 1)]);
    master.applied(1, 2);
    master.did(&[apply(1, 1)]);
}

#[test]
fn too_many_changes_are_refused() {
    let mut master = Master::serving(1);
    for request in 0..=16 {
        master.ask(request, Kind::Reload);
    }
    assert_eq!(master.machine.view().waiting, 16);
    master.ask(99, Kind::Upgrade);
    master.is_refused(99, 1, "too many changes wait");
}

#[test]
fn a_fifth_draining_generation_is_refused_with_what_to_do_while_reloads_in_place_go_on() {
    let mut master = Master::serving(1);
    for change in 1..=4 {
        master.new_generation(change, change + 1, change + 1);
        master.pass(SECOND);
    }
    assert_eq!(
        master.states()[..],
        ["draining", "draining", "draining", "draining", "serving"]
    );
    master.ask(1, Kind::Reload);
    master.prepared(5, 6, because());
    // The oldest began to drain 4 s ago, has 30 s and a grace of 2 s.
    master.is_refused(1, 1, "ask again in 29 s");
    master.did(&[prepare(5, Kind::Reload), abandon(6)]);
    master.ask(2, Kind::Reload);
    master.prepared(6, 7, Placement::InPlace);
    master.applied(5, 7);
    master.is_done(2, "in place");
    master.done.clear();
    master.pass(28 * SECOND);
    master.did(&[kill(1)]);
    master.dies(1);
    master.ask(3, Kind::Reload);
    master.prepared(7, 8, because());
    master.did(&[prepare(7, Kind::Reload), spawn(6, 6, 8)]);
}

// ---- Lost cores ----

#[test]
fn lost_cores_of_a_generation_bring_one_replacement() {
    let mut master = Master::serving(2);
    master.core_lost(1);
    master.core_lost(2);
    master.core_lost(1);
    master.did(&[spawn(3, 2, 1), spawn(4, 2, 1)]);
    master.ready(3);
    master.ready(4);
    let (one, two) = (master.drain(1, true), master.drain(2, true));
    master.did(&[one, two]);
    master.core_lost(1);
    master.did(&[]);
}

#[test]
fn a_worker_with_a_stalled_core_gets_little_time_and_one_with_a_dead_core_all_of_it() {
    let mut master = Master::serving(1);
    master.core_stalls(1);
    master.done.clear();
    master.ready(2);
    let soon = master.drain_soon(1);
    master.did(&[soon]);
    master.pass(2 * Limits::default().grace);
    master.did(&[kill(1)]);

    let mut master = Master::serving(1);
    master.core_lost(1);
    master.done.clear();
    master.ready(2);
    let all = master.drain(1, true);
    master.did(&[all]);
}

#[test]
fn a_replacement_that_fails_is_tried_again_with_backoff_while_the_old_one_goes_on() {
    let mut master = Master::serving(1);
    master.core_lost(1);
    master.did(&[spawn(2, 2, 1)]);
    for (id, wait_ms) in [(2, 100), (3, 200), (4, 400)] {
        master.dies(id);
        master.did(&[]);
        let wait = Duration::from_millis(wait_ms);
        assert_eq!(master.machine.deadline(), Some(master.now + wait));
        master.pass(wait);
        master.did(&[spawn(id + 1, id + 1, 1)]);
        assert_eq!(master.states(), ["serving", "starting"]);
    }
}

#[test]
fn a_replacement_waits_for_a_change_and_for_a_draining_generation() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.core_lost(1);
    master.did(&[prepare(1, Kind::Reload)]);
    master.prepared(1, 2, Placement::InPlace);
    master.applied(1, 2);
    master.is_done(1, "in place");
    master.did(&[apply(1, 2), commit(2), spawn(2, 2, 2)]);
    master.ready(2);
    for change in 2..=4 {
        master.new_generation(change, change + 1, change + 1);
    }
    assert_eq!(master.states().len(), 5);
    master.core_lost(5);
    master.did(&[]);
    master.pass(SECOND);
    master.did(&[]);
    master.dies(3);
    master.did(&[spawn(6, 6, 5)]);
}

// ---- Upgrade ----

#[test]
fn an_upgrade_executes_after_ready_and_the_new_master_drains_the_old_workers() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Upgrade);
    master.prepared(1, 2, Placement::InPlace);
    master.did(&[prepare(1, Kind::Upgrade), spawn_new(2, 2, 2)]);
    master.ready(2);
    master.did(&[Action::Execute]);
    assert_eq!(master.states(), ["serving", "starting"]);
    master.done.push(Action::Execute);
    master.exec();
    master.is_done(1, "upgraded");
    let one = master.drain(1, true);
    master.did(&[commit(2), one]);
    assert_eq!(master.states(), ["draining", "serving"]);
    // From now on it is an ordinary generation.
    master.dies(2);
    master.did(&[spawn(3, 2, 2)]);
    master.pass(DRAIN + 2 * SECOND);
    assert!(master.done.contains(&kill(1)));
}

#[test]
fn an_exec_that_fails_is_rolled_back() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Upgrade);
    master.prepared(1, 2, because());
    master.ready(2);
    master.done.clear();
    let why = "exec format error".to_owned();
    master.event(Event::ExecFailed { why });
    master.is_refused(1, 1, "exec format error");
    let two = master.drain(2, true);
    master.did(&[two, abandon(2)]);
    assert_eq!(master.states(), ["serving", "draining"]);
}

#[test]
fn a_new_binary_that_exits_hangs_or_refuses_is_rolled_back_and_not_respawned() {
    for fault in ["exits", "hangs", "refuses", "exits after ready"] {
        let mut master = Master::serving(2);
        master.ask(1, Kind::Upgrade);
        master.prepared(1, 2, because());
        master.done.clear();
        match fault {
            "exits" => master.dies(3),
            "hangs" => master.pass(START),
            "refuses" => master.fails(3, false),
            _ => {
                master.ready(3);
                master.dies(3);
            }
        }
        master.is_refused(1, 1, "the old one goes on");
        assert!(master.done.contains(&abandon(2)), "{fault}");
        for id in [3, 4] {
            master.dies(id);
        }
        master.pass(1000 * SECOND);
        assert_eq!(master.states(), ["serving"], "{fault}");
        let is_spawn = |it: &Action| matches!(it, Action::Spawn { .. });
        assert!(
            !master.done.iter().any(is_spawn),
            "{fault}: {:?}",
            master.done
        );
    }
}

#[test]
fn old_workers_that_die_during_an_upgrade_are_respawned_from_the_old_image() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Upgrade);
    master.prepared(1, 2, because());
    master.done.clear();
    master.dies(1);
    master.did(&[spawn(3, 1, 1)]);
}

#[test]
fn the_exec_comes_after_everything_else_of_its_turn() {
    let mut master = Master::serving(1);
    master.dies(1);
    master.dies(2);
    master.ask(1, Kind::Upgrade);
    master.prepared(1, 2, because());
    master.done.clear();
    // The respawn is due, too, when the new worker says READY.
    master.now += SECOND;
    master.ready(3);
    master.did(&[spawn(4, 1, 1), Action::Execute]);
}

#[test]
fn a_reload_during_an_upgrade_is_prepared_by_the_new_master() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Upgrade);
    master.ask(2, Kind::Reload);
    master.prepared(1, 2, because());
    master.ready(2);
    master.exec();
    master.is_done(1, "upgraded");
    assert_eq!(master.done.pop(), Some(prepare(2, Kind::Reload)));
    master.prepared(2, 3, Placement::InPlace);
    master.applied(2, 3);
    master.is_done(2, "in place");
}

#[test]
fn an_upgrade_during_a_reload_waits_for_its_end() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.ask(2, Kind::Upgrade);
    master.prepared(1, 2, because());
    master.did(&[prepare(1, Kind::Reload), spawn(2, 2, 2)]);
    master.dies(2);
    master.is_refused(1, 78, "killed by SIGSEGV");
    master.did(&[abandon(2), prepare(2, Kind::Upgrade)]);
}

#[test]
fn a_snapshot_keeps_what_is_left_of_every_wait_and_refuses_another_version() {
    let mut master = Master::serving(1);
    master.new_generation(1, 2, 2);
    master.pass(10 * SECOND);
    let snapshot = master.machine.export(master.now);
    let later = master.now + 1000 * SECOND;
    let import = |it| Machine::import(Limits::default(), it, later);
    let machine = import(snapshot.clone()).unwrap();
    assert_eq!(machine.deadline(), Some(later + 22 * SECOND));
    assert_eq!(
        machine.view().generations[0].deadline,
        Some(later + 20 * SECOND)
    );
    let foreign = Snapshot {
        version: 99,
        ..snapshot
    };
    assert!(
        import(foreign)
            .unwrap_err()
            .to_string()
            .contains("version 99")
    );
}

// ---- Ends ----

#[test]
fn a_stop_drains_all_generations_and_exits_with_0() {
    let mut master = Master::serving(1);
    master.new_generation(1, 2, 2);
    let early = master.now + DRAIN;
    master.pass(SECOND);
    master.stop(false, Some(1));
    let two = master.drain(2, false);
    let one = Action::Drain {
        worker: worker(1),
        deadline: early,
        handover: false,
    };
    master.did(&[one, two]);
    master.dies(1);
    master.did(&[]);
    master.event(Event::Drained { worker: worker(2) });
    master.dies(2);
    master.exits(0, "stopped");
    master.is_done(1, "has ended");
    master.did(&[]);
}

#[test]
fn a_stop_ends_changes_and_respawns() {
    let mut master = Master::serving(2);
    master.dies(1);
    master.dies(3);
    master.ask(1, Kind::Reload);
    master.ask(2, Kind::Upgrade);
    master.prepared(1, 2, Placement::InPlace);
    master.done.clear();
    master.stop(false, None);
    master.is_refused(1, 1, "stopping");
    master.is_refused(2, 1, "stopping");
    let two = master.drain(2, false);
    master.did(&[two, abandon(2)]);
    master.ask(3, Kind::Reload);
    master.is_refused(3, 1, "stopping");
    master.pass(SECOND);
    master.did(&[]);
    master.dies(2);
    master.exits(0, "stopped");
}

#[test]
fn a_second_stop_or_one_at_once_does_not_wait_for_clients() {
    for at_once in [false, true] {
        let mut master = Master::serving(1);
        if !at_once {
            master.stop(false, None);
            master.done.clear();
        }
        master.stop(at_once, None);
        master.did(&[Action::StopWorker { worker: worker(1) }]);
        master.pass(2 * SECOND);
        master.did(&[kill(1)]);
        master.dies(1);
        master.exits(0, "stopped");
    }
}

#[test]
fn a_worker_that_the_kernel_holds_does_not_hold_the_master() {
    let mut master = Master::serving(1);
    master.stop(true, None);
    master.pass(4 * SECOND);
    master.exits(0, "stopped");
}

#[test]
fn drained_workers_that_stay_are_killed() {
    let mut master = Master::serving(1);
    master.new_generation(1, 2, 2);
    master.event(Event::Drained { worker: worker(1) });
    master.pass(2 * SECOND);
    master.did(&[kill(1)]);
    let mut master = Master::serving(1);
    master.new_generation(1, 2, 2);
    master.pass(DRAIN + SECOND);
    master.did(&[]);
    master.pass(SECOND);
    master.did(&[kill(1)]);
}

#[test]
fn winch_drains_the_workers_until_a_reload_brings_new_ones() {
    let mut master = Master::serving(1);
    master.ask(1, Kind::Reload);
    master.done.clear();
    master.event(Event::DrainWorkers);
    master.is_refused(1, 1, "told to drain");
    let one = master.drain(1, false);
    let change = ChangeId(1);
    master.did(&[one, Action::CancelPrepare { change }]);
    master.dies(1);
    master.pass(100 * SECOND);
    master.did(&[]);
    assert_eq!(master.machine.view().phase, "parked");
    master.ask(2, Kind::Reload);
    master.prepared(2, 2, Placement::InPlace);
    master.did(&[prepare(2, Kind::Reload), spawn(2, 2, 2)]);
    master.ready(2);
    master.is_done(2, "no worker serves");
    assert_eq!(master.machine.view().phase, "running");
}

#[test]
fn a_stop_after_winch_exits() {
    let mut master = Master::serving(1);
    master.event(Event::DrainWorkers);
    master.dies(1);
    master.done.clear();
    master.stop(false, None);
    master.exits(0, "stopped");
    let mut idle = Machine::new(Limits::default(), Instant::now());
    let stop = Event::Stop {
        at_once: false,
        request: None,
    };
    let actions = idle.handle(stop, Instant::now());
    assert!(
        matches!(actions.last(), Some(Action::Exit { code: 0, .. })),
        "{actions:?}"
    );
}
