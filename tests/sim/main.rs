//! Seeded simulations of a small server on the runtime: thousands of runs with faults everywhere, in
//! virtual time. Every request ends once, and nothing is left or touched after its release.
//!
//! `BELTWAY_SIM_SEEDS=100000` runs more seeds, `BELTWAY_SIM_SEED=42` one of them again.
#![allow(
    clippy::print_stderr,
    reason = "a failing seed says how to see it again"
)]

mod client;
mod server;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread;

use beltway::runtime::engine::sim::{self, Config, Faults, World};
use beltway::runtime::executor::Core;

use client::{FILES, Plan};
use server::{Server, body};

/// Seeds in an ordinary run.
const SEEDS: u64 = 3000;

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
        drop_after: Cell::new(0),
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

/// One run; gives the hash of what happened.
fn run(seed: u64) -> u64 {
    let faults = Faults::seeded(seed);
    let config = Config::seeded(seed);
    // Small buffers move few bytes per round trip: keep the runs equally long.
    let most = (config.socket_bytes * 8).min(32 << 10);
    let (core, world) = sim::new(seed, faults.clone(), config);
    let server = server(&core, &world);
    let mut random = world.random(0);
    if random.below(4) == 0 {
        server.drop_after.set(random.between(1, 60));
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
        plan.check(&server, index);
    }
    finish(server)
}

/// Runs a seed, and says how to run it again when it fails.
fn told(seed: u64, run: impl FnOnce() -> u64) -> u64 {
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
        told(seed, || run(seed));
        return;
    }
    let seeds = number("BELTWAY_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..seeds).step_by(threads as usize) {
                    told(seed, || run(seed));
                }
            });
        }
    });
}

#[test]
fn a_seed_gives_the_same_trace_again() {
    for seed in 0..50 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}
