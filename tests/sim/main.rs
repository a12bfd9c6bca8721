//! Seeded simulations of a small server on the runtime: thousands of runs with faults everywhere, in
//! virtual time. Every request ends once, and nothing is left or touched after its release.
//!
//! `BELTWAY_SIM_SEEDS=100000` runs more seeds, `BELTWAY_SIM_SEED=42` one of them again.
#![allow(
    clippy::print_stderr,
    reason = "a failing seed says how to see it again"
)]

mod client;
mod epochs;
mod http;
mod secured;
mod server;
mod upstream;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::thread;

use beltway::runtime::engine::sim::{self, Config, Faults, World};
use beltway::runtime::executor::Core;

use client::{FILES, Plan};
use server::{Death, Server, body};

/// Seeds in an ordinary run.
const SEEDS: u64 = 6000;

/// Turns that no run needs.
const TURNS_MAX: u64 = 400_000;

fn server(core: &Core, world: &World) -> Rc<Server> {
    for (name, size) in FILES {
        world.file(name, body(size as u32, size));
    }
    Rc::new(Server {
        core: core.clone(),
        world: world.clone(),
        root: world.root(),
        begun: RefCell::default(),
        ended: RefCell::default(),
        active: Cell::new(0),
        death: Cell::new(Death::Never),
        died: Cell::new(false),
    })
}

/// Lets go of what the tasks and the test hold, and checks the ledger.
fn finish(server: Rc<Server>) -> u64 {
    let (world, core) = (server.world.clone(), server.core.clone());
    drop(server);
    assert!(core.shut_down(), "everything is collected");
    world.finish();
    world.trace_hash()
}

/// What the runs came upon, to know that they went where the bugs would be.
#[derive(Default)]
struct Tally {
    whole: usize,
    manners: BTreeMap<String, usize>,
    ends: BTreeMap<String, usize>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.whole += other.whole;
        for (name, times) in other.manners {
            *self.manners.entry(name).or_default() += times;
        }
        for (name, times) in other.ends {
            *self.ends.entry(name).or_default() += times;
        }
    }
}

/// One run; gives the hash of what happened.
fn run(seed: u64, tally: &mut Tally) -> u64 {
    let faults = Faults::seeded(seed);
    let config = Config::seeded(seed);
    // Small buffers move few bytes per round trip: keep the runs equally long.
    let most = (config.socket_bytes * 8).min(32 << 10);
    let (core, world) = sim::new(seed, faults.clone(), config);
    let server = server(&core, &world);
    let mut random = world.random(0);
    if random.below(4) == 0 {
        server.death.set(Death::Within(random.between(1, 60)));
    }
    let (listener, id) = world.listen();
    let many = random.between(1, 6) as usize;
    let plans: Vec<Plan> = (0..many)
        .map(|client| Plan::new(&world, id, client, &faults, most))
        .collect();
    core.spawn(server::accept(Rc::clone(&server), listener));
    world.run_until(TURNS_MAX, || {
        server.active.get() == 0 && plans.iter().all(|plan| world.is_over(plan.id))
    });
    for (index, plan) in plans.iter().enumerate() {
        tally.whole += plan.check(&server, index);
        *tally
            .manners
            .entry(format!("{:?}", plan.manner))
            .or_default() += 1;
    }
    for end in server.ended.borrow().values() {
        *tally.ends.entry(format!("{end:?}")).or_default() += 1;
    }
    finish(server)
}

/// Runs a seed, and says how to run it again when it fails.
pub(crate) fn told(seed: u64, run: impl FnOnce() -> u64) -> u64 {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!("seed {seed} failed; again: BELTWAY_SIM_SEED={seed} cargo test --test sim");
        resume_unwind(panic)
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

#[test]
fn every_request_ends_once_and_nothing_is_left() {
    if let Some(seed) = number("BELTWAY_SIM_SEED") {
        told(seed, || run(seed, &mut Tally::default()));
        return;
    }
    let seeds = number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let tally = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for first in 0..threads {
            let tally = &tally;
            scope.spawn(move || {
                let mut mine = Tally::default();
                for seed in (first..seeds).step_by(threads as usize) {
                    told(seed, || run(seed, &mut mine));
                }
                tally.lock().expect("no thread fails here").add(mine);
            });
        }
    });
    let tally = tally.into_inner().expect("no thread fails here");
    println!(
        "{} whole answers; {:?}; {:?}",
        tally.whole, tally.manners, tally.ends
    );
    if seeds >= SEEDS {
        assert_eq!(tally.manners.len(), 7, "every manner is met");
        assert_eq!(tally.ends.len(), 7, "every end is met");
    }
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    let hash = |seed| run(seed, &mut Tally::default());
    for seed in 0..50 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
    }
    assert_ne!(hash(1), hash(2));
}

/// A run with one client, whose connection's task dies as told; says whether it lived so long.
fn run_to_death(seed: u64, death: Death) -> bool {
    let faults = Faults {
        reset: 0.0,
        ..Faults::seeded(seed)
    };
    let (core, world) = sim::new(seed, faults.clone(), Config::seeded(seed));
    let server = server(&core, &world);
    server.death.set(death);
    let (listener, id) = world.listen();
    let plan = Plan::new(&world, id, 0, &faults, 1000);
    core.spawn(server::accept(Rc::clone(&server), listener));
    world.run_until(TURNS_MAX, || {
        server.active.get() == 0 && world.is_over(plan.id)
    });
    plan.check(&server, 0);
    let died = server.died.get();
    finish(server);
    died
}

#[test]
fn a_task_may_be_dropped_at_each_of_its_polls() {
    let mut deaths = 0;
    for seed in 0..40 {
        for death in [Death::At, Death::ScopeAt] {
            let at_each = (1..).take_while(|poll| {
                let mut died = false;
                told(seed, || {
                    died = run_to_death(seed, death(*poll));
                    0
                });
                died
            });
            deaths += at_each.count();
        }
    }
    println!("{deaths} deaths");
    assert!(deaths > 1000, "tasks are polled");
}
