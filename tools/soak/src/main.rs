//! Mixed load with faults for minutes or hours. Every answer that a client waits for is checked, and what
//! the server holds is compared whenever it rests.

mod backend;
mod files;
mod http;
mod load;
mod manners;
mod random;
mod run;
mod server;
mod sockets;
mod watch;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};

use run::{Outcome, Plan};

/// Runs Beltway under mixed load with faults, and watches what it holds.
///
/// Clients keep connections, pipeline, ask for ranges, upload, open tunnels, read and write slowly, and leave
/// at any moment; a backend misbehaves; the server is reloaded, then its workers are killed and replaced.
/// Exits with 0 when every answer was right and whole, save where a kill or the end of a drain explains it,
/// and when memory, descriptors, slots and tasks came back to what they were. Otherwise with 1.
#[derive(Parser, Debug)]
#[command(version)]
struct Options {
    /// Minutes of load
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    minutes: f64,
    /// Seconds of load, instead of minutes
    #[arg(long, conflicts_with = "minutes", value_parser = positive)]
    seconds: Option<f64>,
    /// Engines, side by side
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["uring", "epoll"])]
    engine: Vec<Engine>,
    /// Clients of each server at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Seconds between two reloads
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    reload_every: f64,
    /// Seconds between two kills, in the last third of the load
    #[arg(long, default_value_t = 4.0, value_parser = positive)]
    kill_every: f64,
    /// What decides, as far as the timing of this machine doesn't
    #[arg(long)]
    seed: Option<u64>,
    /// The Beltway to run
    #[arg(long, value_name = "PATH", default_value = "target/release/beltway")]
    beltway: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    Uring,
    Epoll,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Bounded, so that every run ends: a week of minutes.
fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.1..=10_080.0).contains(&value) {
        true => Ok(value),
        false => Err("between 0.1 and 10080".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seconds = options.seconds.unwrap_or(options.minutes * 60.0);
    let seed = options.seed.unwrap_or_else(some_seed);
    let plan = Plan {
        program: options.beltway.clone(),
        load: Duration::from_secs_f64(seconds),
        clients: options.clients.into(),
        reload_every: Duration::from_secs_f64(options.reload_every),
        kill_every: Duration::from_secs_f64(options.kill_every),
        seed,
    };
    println!(
        "{seconds:.0} s of load, {} clients of each server, seed {seed}",
        plan.clients
    );
    let outcomes: Vec<(Engine, io::Result<Outcome>)> = thread::scope(|scope| {
        let runs: Vec<_> = options
            .engine
            .iter()
            .map(|engine| (*engine, scope.spawn(|| run::run(&plan, engine.name()))))
            .collect();
        runs.into_iter()
            .map(|(engine, run)| {
                let ended = run.join();
                (
                    engine,
                    ended.unwrap_or_else(|_| Err(io::Error::other("soak itself has failed"))),
                )
            })
            .collect()
    });
    let mut failed = false;
    for (engine, outcome) in outcomes {
        failed |= !told(engine, outcome);
    }
    if failed {
        println!(
            "FAILED. The same again: --seed {seed} with the same options; one engine alone: --engine. What the \
             server says: its log above."
        );
        return ExitCode::FAILURE;
    }
    println!("every answer was right, and nothing is left");
    ExitCode::SUCCESS
}

/// Prints how it went. False: it failed.
fn told(engine: Engine, outcome: io::Result<Outcome>) -> bool {
    match outcome {
        Ok(outcome) => {
            print!("{}", outcome.summary);
            for failure in &outcome.failures {
                println!("  FAILED: {failure}");
            }
            outcome.failures.is_empty()
        }
        Err(error) if engine == Engine::Uring && error.to_string().contains("can't be used") => {
            println!("uring: SKIPPED: this machine has no io_uring");
            true
        }
        Err(error) => {
            println!("{}: {error}", engine.name());
            false
        }
    }
}

fn some_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(1, |now| u64::from(now.subsec_nanos()))
}
