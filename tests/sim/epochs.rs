//! Histories with reloads and handovers: the configuration of a serving core is swapped at random
//! moments, a listening socket is removed, another generation takes over. Every client gets the answers
//! of the configuration that it has a right to, nobody is cut before the deadline, and what was replaced
//! is gone in the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use beltway::cache::open_files::Bounds;
use beltway::config::model::Model;
use beltway::config::{self, sources::Input};
use beltway::handlers::app::{App, Place};
use beltway::handlers::epoch::NewEpoch;
use beltway::http::session::{self, Registry};
use beltway::net::listener::{Listening, Rest, accept_loop, limits};
use beltway::runtime::engine::sim::{
    self, Act, ClientId, Config, End, Faults, ListenerId, Pace, Random, World,
};
use beltway::runtime::executor::Core;
use beltway::runtime::fd::Fd;
use beltway::runtime::future::Timer;
use beltway::runtime::mailbox::Wake;
use beltway::upstream::Share;

use crate::server::body;
use crate::{SEEDS, TURNS_MAX, number, told};

/// How long a removed listening socket, or a replaced generation, waits for its clients.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long a connection may stay busy beyond that.
const CUT_AFTER: Duration = Duration::from_secs(4);

/// The first epoch of the generation that takes over.
const NEXT_GENERATION: u64 = 100;

/// Content of every answer of an epoch: its number, and filler of a length of its own.
fn content(epoch: u64) -> Vec<u8> {
    let len = [0, 300, 5_000, 20_000][(epoch % 4) as usize];
    let filler = body(epoch as u32, len);
    let text = filler.iter().map(|byte| char::from(b'a' + byte % 26));
    format!("{epoch}:")
        .chars()
        .chain(text)
        .map(|c| c as u8)
        .collect()
}

thread_local! {
    /// Configurations that were read already.
    static MODELS: RefCell<BTreeMap<(u64, bool), Arc<Model>>> = RefCell::default();
}

/// The configuration of an epoch, with one or both of the listening sockets.
fn model(epoch: u64, both: bool) -> Arc<Model> {
    MODELS.with_borrow_mut(|models| {
        let read = || read_model(epoch, both);
        Arc::clone(models.entry((epoch, both)).or_insert_with(read))
    })
}

fn read_model(epoch: u64, both: bool) -> Arc<Model> {
    let addresses: &[&str] = &["127.0.0.1:8080", "127.0.0.1:8081"][..1 + usize::from(both)];
    let text = String::from_utf8(content(epoch)).expect("text");
    let content = format!(
        "[server.timeouts]\nidle = \"90s\"\nheader = \"90s\"\n\
         [site.\"a.test\"]\nlisten = {addresses:?}\nrespond = 200\nbody = {text:?}\n"
    );
    let input = Input {
        file: Some("sim.toml".into()),
        content: Some(content),
        directory: PathBuf::from("/"),
        ..Input::default()
    };
    let loaded = config::load(&input).unwrap_or_else(|_| panic!("a valid configuration"));
    loaded.model
}

/// One answer as a client saw it.
#[derive(Clone, Copy, Debug)]
struct Answer {
    epoch: u64,
    closes: bool,
}

/// Reads the answer at the beginning of these bytes, if it is whole. Gives its length, too.
fn read_answer(bytes: &[u8]) -> Option<(Answer, usize)> {
    let (closes, head, length) = measure_answer(bytes)?;
    let got = &bytes[head..length];
    let text = std::str::from_utf8(got).expect("text");
    let epoch = text.split(':').next().and_then(|epoch| epoch.parse().ok());
    let epoch = epoch.expect("an epoch");
    assert!(got == content(epoch), "an answer of two epochs");
    Some((Answer { epoch, closes }, length))
}

/// Whether the answer at the beginning of these bytes says that the connection closes, where its head
/// ends, and where it ends.
fn measure_answer(bytes: &[u8]) -> Option<(bool, usize, usize)> {
    let length = 4 + bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..length]).expect("heads are text");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let size = head.split_once("Content-Length: ").expect("a length").1;
    let size: usize = size.lines().next().unwrap_or("").parse().expect("a number");
    let closes = head
        .to_ascii_lowercase()
        .contains("\r\nconnection: close\r\n");
    (bytes.len() >= length + size).then_some((closes, length, length + size))
}

fn read_answers(mut bytes: &[u8]) -> (Vec<Answer>, &[u8]) {
    let mut answers = Vec::new();
    while let Some((answer, length)) = read_answer(bytes) {
        answers.push(answer);
        bytes = &bytes[length..];
    }
    (answers, bytes)
}

/// What became of a client's group of connections, and how many answers the client had by then.
#[derive(Clone, Copy, Debug)]
enum Mark {
    /// Its requests are answered by this epoch from now on.
    Epoch(u64),
    /// Its next request is its last.
    Drain,
}

/// A client with its plan.
struct Plan {
    id: ClientId,
    removed: bool,
    requests: usize,
    /// Each request is sent when the one before it has been answered.
    one_by_one: bool,
    /// It leaves its connection open when it has all answers.
    stays: bool,
    leaves: bool,
    marks: RefCell<Vec<(usize, Mark)>>,
    /// It idled, not yet told to close, when its group's deadline came.
    waited: Cell<bool>,
}

impl Plan {
    fn new(world: &World, listeners: &[ListenerId; 2], client: usize) -> Self {
        let mut random = world.random(1 + client as u64);
        let removed = random.below(2) == 0;
        let requests = random.between(1, 8) as usize;
        let (one_by_one, stays) = (random.below(3) > 0, random.below(2) == 0);
        let leaves = random.below(10) == 0;
        let mut script = Vec::new();
        if random.below(4) == 0 {
            let bytes = random.between(200, 4000) as usize;
            let every = Duration::from_micros(random.between(1, 3000));
            script.push((Duration::ZERO, Act::Read(Pace::Slow { bytes, every })));
        }
        let pause = |random: &mut Random| match random.below(8) {
            0 => Duration::from_millis(random.below(20_000)),
            1..4 => Duration::ZERO,
            _ => Duration::from_micros(random.below(60_000)),
        };
        let has = |many: usize| {
            // How far it was read, and whether there is more to come.
            let read = Cell::new((0, 0, false));
            move |received: &[u8]| {
                let (mut at, mut answers, mut closed) = read.get();
                while let Some((closes, _, length)) = measure_answer(&received[at..]) {
                    (at, answers, closed) = (at + length, answers + 1, closes);
                }
                read.set((at, answers, closed));
                answers >= many || closed
            }
        };
        for request in 0..requests {
            if one_by_one && request > 0 {
                script.push((Duration::ZERO, Act::Await(Box::new(has(request)))));
            }
            let mut rest = &b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n"[..];
            let parts = if random.below(4) == 0 { 2 } else { 1 };
            for part in 0..parts {
                let len = if part + 1 == parts { rest.len() } else { 9 };
                script.push((pause(&mut random), Act::Send(rest[..len].to_vec())));
                rest = &rest[len..];
            }
        }
        if leaves {
            script.truncate(random.below(script.len() as u64) as usize);
            script.push((pause(&mut random), Act::Abort));
        } else {
            script.push((Duration::ZERO, Act::Await(Box::new(has(requests)))));
            if !stays {
                script.push((pause(&mut random), Act::HalfClose));
            }
        }
        let listener = listeners[usize::from(removed)];
        Self {
            id: world.connect(listener, pause(&mut random) / 100, script),
            removed,
            requests,
            one_by_one,
            stays,
            leaves,
            marks: RefCell::default(),
            waited: Cell::new(false),
        }
    }

    fn mark(&self, world: &World, mark: Mark) {
        let answers = read_answers(&world.seen(self.id).received).0;
        self.marks.borrow_mut().push((answers.len(), mark));
    }

    /// At the deadline of its group, before idle connections end: whether it idles there, untold.
    fn note_waiting(&self, world: &World) {
        let seen = world.seen(self.id);
        let (answers, rest) = read_answers(&seen.received);
        let told = answers.last().is_some_and(|last| last.closes);
        let all = rest.is_empty() && answers.len() == self.requests;
        // Its answers came before the drain, so nothing told it to close.
        let idles = all && self.stays && self.one_by_one && !self.leaves && !told;
        if idles && !seen.broken && seen.end.is_some() {
            world.fail(format_args!("{:?} was closed before the deadline", self.id));
        }
        self.waited.set(idles);
    }

    /// Checks all answers; gives their number.
    fn check(&self, world: &World, history: &History) -> usize {
        let seen = world.seen(self.id);
        let (answers, rest) = read_answers(&seen.received);
        let fail = |why: &str| -> ! {
            world.fail(format_args!(
                "{why}: {:?} removed {}, {} requests, one by one {}, stays {}, leaves {}, end {:?}, \
                 broken {}, marks {:?}, answers {answers:?}, then {} bytes",
                self.id,
                self.removed,
                self.requests,
                self.one_by_one,
                self.stays,
                self.leaves,
                seen.end,
                seen.broken,
                self.marks.borrow(),
                rest.len(),
            ))
        };
        if answers.windows(2).any(|two| two[0].epoch > two[1].epoch) {
            fail("it went back to an older epoch");
        }
        if answers.iter().rev().skip(1).any(|answer| answer.closes) {
            fail("an answer behind the last");
        }
        let next = answers.iter().all(|of| of.epoch >= NEXT_GENERATION);
        let marks = self.marks.borrow();
        for (had, mark) in marks.iter() {
            // The request behind those that were answered may have been under way already.
            let later = answers.iter().skip(had + 1);
            for answer in later.filter(|_| self.one_by_one) {
                match mark {
                    Mark::Epoch(epoch) if answer.epoch < *epoch => fail("an old epoch answered"),
                    Mark::Drain if !answer.closes && !next => fail("a drain was not told"),
                    _ => {}
                }
            }
        }
        let newest = marks.iter().filter_map(|(_, mark)| match mark {
            Mark::Epoch(epoch) => Some(*epoch),
            Mark::Drain => None,
        });
        let newest = newest.max().unwrap_or(1);
        if answers
            .iter()
            .any(|of| of.epoch > newest && of.epoch < NEXT_GENERATION)
        {
            fail("an epoch without its listening socket answered");
        }
        let drained = marks.iter().any(|(_, mark)| matches!(mark, Mark::Drain));
        let told = answers.last().is_some_and(|last| last.closes);
        if told && !drained {
            fail("it was told to close without a drain");
        }
        let refused = seen.end == Some(End::Refused);
        let cut = drained && history.cut.get() > 0;
        if seen.end == Some(End::Reset) && !(seen.broken || self.leaves || cut) {
            fail("it was reset");
        }
        let late = drained && answers.len() < self.requests;
        let excused = seen.broken || self.leaves || told || refused || late;
        if !excused && answers.len() < self.requests {
            fail("a request was not answered");
        }
        if refused && !history.removed.get() {
            fail("it was refused");
        }
        if self.waited.get() && !seen.broken && seen.end != Some(End::Fin) {
            fail("idle at the deadline, it did not end well");
        }
        answers.len()
    }
}

/// One generation of a server: handlers, and what they accept from.
struct Generation {
    app: Rc<App>,
    registry: Rc<Registry>,
    accepting: Rc<Cell<usize>>,
}

impl Generation {
    fn new(core: &Core, epoch: u64, listenings: &[(Rc<Listening>, usize)]) -> Self {
        let registry = Rc::new(Registry::default());
        let place = Place {
            core: core.clone(),
            wake: Wake::new().expect("an eventfd"),
            share: Share { index: 0, of: 1 },
        };
        let first = NewEpoch {
            id: epoch,
            model: &model(epoch, listenings.len() == 2),
            rosters: &Arc::default(),
            secured: &Arc::default(),
            listeners: listenings,
            log: None,
        };
        Self {
            app: App::new(place, first, Rc::clone(&registry), Bounds::default(), 7),
            registry,
            accepting: Rc::default(),
        }
    }

    fn accept(&self, core: &Core, listener: Fd, listening: Rc<Listening>, most: usize) {
        let (app, of, inner) = (Rc::clone(&self.app), Rc::clone(&listening), core.clone());
        let serve = move |socket, member| {
            let (of, app) = (Rc::clone(&of), Rc::clone(&app));
            inner.spawn(session::serve(inner.clone(), socket, member, of, app));
        };
        let (registry, roomy) = (Rc::clone(&self.registry), core.clone());
        let accepting = Rc::clone(&self.accepting);
        accepting.set(accepting.get() + 1);
        let accepts = accept_loop(
            core.clone(),
            listener,
            Rc::clone(self.registry.population()),
            listening,
            limits(most),
            serve,
            move || registry.make_room(&roomy),
        );
        core.spawn(async move {
            accepts.await;
            accepting.set(accepting.get() - 1);
        });
    }

    fn swap(&self, epoch: u64, listenings: &[(Rc<Listening>, usize)]) {
        self.app.swap(NewEpoch {
            id: epoch,
            model: &model(epoch, listenings.len() == 2),
            rosters: &Arc::default(),
            secured: &Arc::default(),
            listeners: listenings,
            log: None,
        });
    }
}

/// What has happened.
#[derive(Default)]
struct History {
    removed: Cell<bool>,
    cut: Cell<usize>,
    /// Tasks that still have something to do to the server.
    pending: Cell<usize>,
    last_epoch: Cell<u64>,
}

/// What happens to the server.
struct Director {
    core: Core,
    world: World,
    plans: Rc<Vec<Plan>>,
    history: Rc<History>,
    generation: Rc<Generation>,
    /// The sockets that the next generation would get, with what it knows them by.
    sockets: RefCell<Vec<(Fd, Rc<Listening>)>>,
}

impl Director {
    async fn pause(&self, time: Duration) {
        let mut timer = Timer::new(&self.core);
        timer.set(self.core.now() + time);
        timer.expired().await;
    }

    /// Waits until so many listeners still accept, and what they accepted last has been received.
    async fn accepting(&self, left: usize) {
        while self.generation.accepting.get() > left {
            self.pause(Duration::from_millis(1)).await;
        }
        for _ in 0..16 {
            self.core.yield_turn().await;
        }
    }

    fn mark(&self, of: impl Fn(&Plan) -> bool, mark: Mark) {
        let plans = self.plans.iter().filter(|plan| of(plan));
        plans.for_each(|plan| plan.mark(&self.world, mark));
    }

    /// Swaps several times; one of the swaps removes the second listening socket.
    async fn reloads(self: &Rc<Self>, mut listenings: Vec<(Rc<Listening>, usize)>) {
        let mut random = self.world.random(99);
        let swaps = random.between(1, 6);
        let removal = random.between(2, 8);
        for epoch in 2..2 + swaps {
            self.pause(Duration::from_micros(random.below(120_000)))
                .await;
            let removed = if epoch == removal {
                listenings.pop()
            } else {
                None
            };
            self.generation.swap(epoch, &listenings);
            self.history.last_epoch.set(epoch);
            let kept = listenings.len() == 2;
            self.mark(|plan| kept || !plan.removed, Mark::Epoch(epoch));
            if let Some((listening, _)) = removed {
                self.history.removed.set(true);
                self.remove(listening).await;
            }
        }
    }

    async fn remove(self: &Rc<Self>, listening: Rc<Listening>) {
        self.sockets.borrow_mut().truncate(1);
        listening.close(Rest::Take);
        self.core.wake_all();
        self.accepting(1).await;
        listening.drain();
        self.mark(|plan| plan.removed, Mark::Drain);
        self.core.wake_all();
        self.history.pending.set(self.history.pending.get() + 1);
        self.core.spawn(Rc::clone(self).expire(listening));
    }

    /// Ends what is left of a removed listening socket: idle connections first, then all.
    async fn expire(self: Rc<Self>, listening: Rc<Listening>) {
        let core = &self.core;
        let mut timer = Timer::new(core);
        timer.set(core.now() + DEADLINE);
        timer.bound(|| listening.poll_empty(core)).await;
        let plans = self.plans.iter().filter(|plan| plan.removed);
        plans.for_each(|plan| plan.note_waiting(&self.world));
        listening.expire();
        core.wake_all();
        timer.set(core.now() + CUT_AFTER);
        timer.bound(|| listening.poll_empty(core)).await;
        let open = listening.open();
        let cut = self.generation.registry.cut(core, &listening);
        assert_eq!(
            (cut, listening.open()),
            (open, 0),
            "all that is left is cut"
        );
        self.history.cut.set(self.history.cut.get() + cut);
        self.history.pending.set(self.history.pending.get() - 1);
    }

    /// Another generation takes over from the sockets that are left.
    async fn hand_over(&self, next: &Generation) {
        for (socket, listening) in self.sockets.take() {
            next.accept(&self.core, socket, listening, 600);
        }
        let population = self.generation.registry.population();
        population.close(Rest::Leave);
        self.core.wake_all();
        self.accepting(0).await;
        population.drain();
        self.mark(
            |plan| !plan.removed || !self.history.removed.get(),
            Mark::Drain,
        );
        self.core.wake_all();
        let mut timer = Timer::new(&self.core);
        timer.set(self.core.now() + 2 * DEADLINE);
        timer.bound(|| population.poll_empty(&self.core)).await;
        let removed = self.history.removed.get();
        let plans = self.plans.iter().filter(|plan| !(plan.removed && removed));
        plans.for_each(|plan| plan.note_waiting(&self.world));
        population.expire();
        self.core.wake_all();
    }
}

fn run(seed: u64, tally: &mut Tally) -> u64 {
    let faults = Faults {
        // A queue that can't be taken is reset with its socket.
        no_descriptors: 0.0,
        ..Faults::seeded(seed)
    };
    let mut config = Config::seeded(seed);
    config.socket_bytes = config.socket_bytes.max(2048);
    let (core, world) = sim::new(seed, faults, config);
    let mut random = world.random(0);
    let (kept, kept_id) = world.listen();
    let (removed, removed_id) = world.listen();
    let plans: Vec<Plan> = (0..random.between(1, 8) as usize)
        .map(|client| Plan::new(&world, &[kept_id, removed_id], client))
        .collect();
    let plans = Rc::new(plans);
    let history = Rc::new(History::default());
    history.last_epoch.set(1);
    let listenings = vec![(Listening::new(0), 0), (Listening::new(1), 1)];
    let generation = Rc::new(Generation::new(&core, 1, &listenings));
    let most = random.between(16, 600) as usize;
    let hands_over = random.below(2) == 0;
    let mut sockets = Vec::new();
    for (socket, (listening, _)) in [kept, removed].into_iter().zip(&listenings) {
        if hands_over {
            sockets.push((socket.clone(), Listening::new(10 + listening.id())));
        }
        generation.accept(&core, socket, Rc::clone(listening), most);
    }
    let director = Rc::new(Director {
        core: core.clone(),
        world: world.clone(),
        plans: Rc::clone(&plans),
        history: Rc::clone(&history),
        generation: Rc::clone(&generation),
        sockets: RefCell::new(sockets),
    });
    let next: Rc<RefCell<Option<Rc<Generation>>>> = Rc::default();
    let next_generation = Rc::clone(&next);
    history.pending.set(1);
    core.spawn(async move {
        director.reloads(listenings).await;
        if hands_over {
            let sockets = director.sockets.borrow().clone();
            let listenings: Vec<_> = (0..)
                .zip(&sockets)
                .map(|(at, of)| (of.1.clone(), at))
                .collect();
            drop(sockets);
            let next = Rc::new(Generation::new(
                &director.core,
                NEXT_GENERATION,
                &listenings,
            ));
            next_generation.replace(Some(Rc::clone(&next)));
            director.hand_over(&next).await;
        }
        director
            .history
            .pending
            .set(director.history.pending.get() - 1);
    });
    let done = |plan: &Plan| world.is_over(plan.id) || plan.stays && world.seen(plan.id).finished;
    world.run_until(TURNS_MAX, || {
        history.pending.get() == 0 && plans.iter().all(done)
    });
    // The final stop, of both.
    let generations: Vec<Rc<Generation>> = next.take().into_iter().chain([generation]).collect();
    for generation in &generations {
        generation.registry.population().expire();
    }
    core.wake_all();
    world.run_until(TURNS_MAX, || core.usage().tasks == 0);
    for (generation, last) in generations
        .iter()
        .rev()
        .zip([history.last_epoch.get(), NEXT_GENERATION])
    {
        assert_eq!(
            generation.app.epochs(),
            [(last, 0)],
            "what was replaced is gone"
        );
        assert_eq!(generation.registry.population().open(), 0);
    }
    world.run_for(Duration::from_secs(1));
    let answered: usize = plans.iter().map(|plan| plan.check(&world, &history)).sum();
    let counted: u64 = generations
        .iter()
        .map(|of| of.registry.traffic().requests)
        .sum();
    assert!(counted >= answered as u64, "each answer is counted");
    let waited = plans.iter().filter(|plan| plan.waited.get()).count();
    drop((plans, generations));
    world.finish();
    tally.answered += answered;
    tally.removed += usize::from(history.removed.get());
    tally.cut += history.cut.get();
    tally.waited += waited;
    world.trace_hash()
}

/// What the runs came upon.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    removed: usize,
    cut: usize,
    waited: usize,
}

#[test]
fn a_reload_and_a_handover_lose_no_request_and_leave_nothing_behind() {
    let mut tally = Tally::default();
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || run(seed, &mut tally));
        return;
    }
    for seed in 0..number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS) / 4 {
        told(seed, || run(seed, &mut tally));
    }
    println!("{tally:?}");
    assert!(tally.answered > 0 && tally.removed > 0 && tally.cut > 0 && tally.waited > 0);
}
