//! A core with hardly any memory, in virtual time and with faults: whatever its clients do, it stays
//! within, goes on answering, and has all of it back afterwards.

use std::cell::Cell;

use super::*;
use crate::http::h1::HeadLimits;
use crate::http::h1::encode::{DateBlock, DateCache};
use crate::http::session::{
    self, Body, Counts, Epoch, Exchange, Peer, Response, Service, Settings, Upload,
};
use crate::http::types::{Request, ResponseHead};
use crate::net::listener::{Listening, accept_loop, limits};
use crate::net::send::ProgressRule;
use crate::runtime::engine::sim::{self, Act, ClientId, Config, Faults, ListenerId, Pace, World};

const TURNS_MAX: u64 = 400_000;
const ROOM: u64 = 8 << 20;
const BODY: usize = 256 << 10;

struct Rules(Settings);

impl Epoch for Rules {
    fn settings(&self) -> &Settings {
        &self.0
    }
}

/// Answers every request with a body that takes memory.
struct Costly {
    rules: Rc<Rules>,
    registry: Rc<Registry>,
}

impl Service for Costly {
    type Epoch = Rules;

    fn epoch(&self, _: &Peer) -> Rc<Rules> {
        Rc::clone(&self.rules)
    }

    async fn call(
        &self,
        _: &Rc<Rules>,
        request: &Request<'_>,
        _: &mut Upload<'_>,
        _: &Peer,
    ) -> Response {
        let bytes = if request.path == "/small" { 10 } else { BODY };
        Response {
            head: ResponseHead::new(200),
            body: Body::Bytes(vec![b'x'; bytes]),
        }
    }

    fn refusal(&self, status: u16) -> Response {
        Response::empty(status)
    }

    fn date(&self) -> DateBlock {
        DateCache::new(0).at(0).clone()
    }

    fn logs(&self, _: &Rules) -> bool {
        false
    }

    fn log(&self, _: &Rules, _: &Peer, _: &Exchange<'_>) {}

    fn registry(&self) -> &Rc<Registry> {
        &self.registry
    }
}

struct Bench {
    core: Core,
    world: World,
    registry: Rc<Registry>,
    ledger: Arc<Ledger>,
    listener: ListenerId,
    /// The most that was in use between two turns.
    most: Cell<u64>,
}

impl Bench {
    fn new(seed: u64, faults: Faults) -> Self {
        // What is in the network is no memory of the server: little.
        let config = Config {
            socket_bytes: 1024,
            ..Config::default()
        };
        let (core, world) = sim::new(seed, faults, config);
        let registry = Rc::new(Registry::default());
        let settings = Settings {
            head: HeadLimits::default(),
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(75),
            progress: ProgressRule {
                window: Duration::from_secs(10),
                rate: 0,
            },
            requests_max: 100,
            body_drain: 0,
        };
        let service = Rc::new(Costly {
            rules: Rc::new(Rules(settings)),
            registry: Rc::clone(&registry),
        });
        let ledger = Ledger::of_this_thread(ROOM);
        core.account_to(Arc::clone(&ledger), 0);
        core.spawn(
            Keeper {
                core: core.clone(),
                registry: Rc::clone(&registry),
                ledger: Arc::clone(&ledger),
                index: 0,
                shrink: || (),
            }
            .keep(),
        );
        let (listener, id) = world.listen();
        let listening = Listening::new(0);
        let (of, its) = (core.clone(), Rc::clone(&listening));
        core.spawn(accept_loop(
            core.clone(),
            listener,
            Rc::clone(registry.population()),
            Rc::clone(&listening),
            limits(10_000),
            move |socket, member| {
                let its = Rc::clone(&its);
                let service = Rc::clone(&service);
                of.spawn(session::serve(of.clone(), socket, member, its, service));
            },
            || (),
        ));
        Self {
            core,
            world,
            registry,
            ledger,
            listener: id,
            most: Cell::new(0),
        }
    }

    fn client(&self, after_ms: u64, script: Vec<(Duration, Act)>) -> ClientId {
        let after = Duration::from_millis(after_ms);
        self.world.connect(self.listener, after, script)
    }

    fn run_until(&self, mut done: impl FnMut() -> bool) {
        self.world.run_until(TURNS_MAX, || {
            self.core.publish_memory();
            let used = self.ledger.reading(0).used;
            self.most.set(self.most.get().max(used));
            done()
        });
    }

    fn count(&self, name: &str) -> u64 {
        let counts: Counts = self.registry.limits().counts();
        let found = counts.iter().find(|(of, _)| *of == name);
        found.map_or(0, |(_, times)| *times)
    }

    /// A client that comes after the others is answered, and nothing is short any more.
    fn is_well_again(&self) {
        // The network may break the first ones.
        let answered = (0..100).any(|_| {
            let client = self.client(0, vec![get("/small"), (MS, Act::HalfClose)]);
            self.run_until(|| self.world.is_over(client) && self.registry.population().open() == 0);
            let seen = self.world.seen(client);
            assert!(seen.broken || seen.received.starts_with(b"HTTP/1.1 200 "));
            !seen.broken
        });
        assert!(answered);
        self.run_until(|| self.core.memory_level() == Level::Enough);
        assert!(!self.registry.population().paused());
        // What the simulator keeps of its clients is little.
        let used = self.ledger.reading(0).used;
        assert!(used < ROOM / 2, "{used}");
        // A helper that gave memory back, or was lost with the job, lets the next one.
        let trimming = || !self.ledger.begin_trim();
        self.run_until(|| !trimming());
    }

    fn end(self) {
        let Self { core, world, .. } = self;
        assert!(core.shut_down());
        world.finish();
    }
}

const MS: Duration = Duration::from_millis(1);

fn get(path: &str) -> (Duration, Act) {
    let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    (Duration::ZERO, Act::Send(text.into_bytes()))
}

/// Runs on a thread of its own, whose memory nobody else counts.
fn on_each_seed(run: impl Fn(u64) + Send + Sync + 'static) {
    std::thread::spawn(move || (0..20).for_each(&run))
        .join()
        .unwrap();
}

fn faults(seed: u64) -> Faults {
    match seed {
        0 => Faults::default(),
        seed => Faults::seeded(seed),
    }
}

#[test]
fn readers_that_do_not_read_are_cut_before_the_room_is_used_up() {
    on_each_seed(|seed| {
        let bench = Bench::new(seed, faults(seed));
        let clients: Vec<ClientId> = (0..60)
            .map(|index| {
                let script = vec![
                    (Duration::ZERO, Act::Read(Pace::Paused)),
                    get("/big"),
                    (Duration::from_secs(30), Act::Abort),
                ];
                bench.client(index * 5, script)
            })
            .collect();
        bench.run_until(|| clients.iter().all(|client| bench.world.is_over(*client)));
        let most = bench.most.get();
        assert!(most <= ROOM + ROOM / 20, "seed {seed}: {most}");
        if seed == 0 {
            assert!(bench.count(CUT) > 0);
            assert!(most >= Level::Accept.begins(ROOM), "it is used, too");
        }
        bench.is_well_again();
        bench.end();
    });
}

#[test]
fn idle_connections_close_while_memory_is_short_those_first_that_idled_longest() {
    const IDLERS: u64 = 48;
    on_each_seed(|seed| {
        let bench = Bench::new(seed, faults(seed));
        let idler = |index| {
            let wait = (Duration::from_secs(60), Act::Abort);
            bench.client(index * 20, vec![get("/small"), wait])
        };
        let idlers: Vec<ClientId> = (0..IDLERS).map(idler).collect();
        let ended = |client: &ClientId| bench.world.is_over(*client);
        let answered = |client: &ClientId| !bench.world.seen(*client).received.is_empty();
        bench.run_until(|| idlers.iter().all(|it| answered(it) || ended(it)));
        // One that is busy: it takes its answer by and by.
        let script = vec![
            (Duration::ZERO, Act::Read(Pace::Paused)),
            get("/big"),
            (Duration::from_secs(5), Act::Read(Pace::Eager)),
            (MS, Act::HalfClose),
        ];
        let busy = bench.client(0, script);
        let holds = || bench.registry.held(&bench.core).busy_bytes >= BODY as u64;
        bench.run_until(|| holds() || ended(&busy));
        // Something else takes the memory: all idle connections together are no more than it.
        let used = bench.ledger.reading(0).used;
        let wanted = Level::Accept.begins(ROOM) - ROOM / 100;
        let ballast = vec![1_u8; usize::try_from(wanted.saturating_sub(used)).unwrap()];
        bench.run_until(|| bench.count(IDLE) > 0);
        bench.run_until(|| idlers.iter().all(ended));
        assert!(bench.count(CUT) == 0, "seed {seed}");
        assert!(std::hint::black_box(&ballast).len() < ROOM as usize);
        drop(ballast);
        bench.run_until(|| ended(&busy));
        let seen = bench.world.seen(busy);
        assert!(
            seen.broken || seen.received.len() > BODY,
            "seed {seed}: it was served"
        );
        for idler in &idlers {
            let seen = bench.world.seen(*idler);
            let answered = seen.received.starts_with(b"HTTP/1.1 200 ");
            assert!(seen.broken || answered, "seed {seed}");
        }
        // Without faults they have idled in this order; who wasn't closed has left by himself.
        let left = |client: &ClientId| bench.world.seen(*client).end.is_none();
        let closed = idlers.iter().take_while(|client| !left(client)).count();
        if seed == 0 {
            assert!(closed >= IDLE_MIN);
            assert!(
                idlers[closed..].iter().all(left),
                "not those that idled longest"
            );
        }
        bench.is_well_again();
        bench.end();
    });
}
