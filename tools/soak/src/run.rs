//! A run with one engine: load and rest in turn, first without blows, so that growth is told from a new
//! beginning, then with them.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{self, Backend};
use crate::load::{Blow, Ledger};
use crate::random::Random;
use crate::server::{DRAIN, Server, Variant};
use crate::watch::{Sample, trends};

/// Longest time to come to rest after a load: draining, and what idles for a second.
const REST_MAX: Duration = Duration::from_secs(20);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The program.
    pub(crate) program: PathBuf,
    /// Time of load in all.
    pub(crate) load: Duration,
    /// Clients at once.
    pub(crate) clients: usize,
    /// Time between two reloads.
    pub(crate) reload_every: Duration,
    /// Time between two kills in rough weather: a worker that dies often is started again ever later.
    pub(crate) kill_every: Duration,
    /// What decides.
    pub(crate) seed: u64,
}

/// How a run went.
pub(crate) struct Outcome {
    /// What must not be and was.
    pub(crate) failures: Vec<String>,
    /// What happened, in lines.
    pub(crate) summary: String,
}

/// What is done to the server beside the load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Reloads in place, rotations, replaced files.
    Fair,
    /// Kills, replacements and upgrades, too.
    Rough,
}

struct Run<'r> {
    engine: &'r str,
    plan: &'r Plan,
    server: &'r Server,
    ledger: &'r Ledger,
    random: Random,
    variant: Variant,
    done: [u64; 4],
}

/// Runs.
///
/// # Errors
/// When the server can't be started.
pub(crate) fn run(plan: &Plan, engine: &str) -> io::Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let backends = [Backend::start()?, Backend::start()?];
    let [steady, unruly] = &backends;
    let server = Server::start(&plan.program, engine, directory.path(), [steady, unruly])?;
    let ledger = Ledger::default();
    let mut run = Run {
        engine,
        plan,
        server: &server,
        ledger: &ledger,
        random: Random::new(plan.seed, engine),
        variant: Variant::default(),
        done: [0; 4],
    };
    run.phases();
    let mut summary = run.summary();
    if ledger.has_failed() {
        let _ = write!(summary, "  its log ends\n    {}\n", server.log_end());
    }
    if let Err(error) = server.stop() {
        ledger.fail(format!("the end: {error}"));
    }
    // One may still make a client wait that is gone.
    let (begin, open) = (Instant::now(), || steady.open() + unruly.open());
    while open() > 0 && begin.elapsed() < backend::LATE + DRAIN {
        thread::sleep(LOOK);
    }
    if open() > 0 {
        ledger.fail(format!(
            "{} connections to backends outlive the server",
            open()
        ));
    }
    Ok(Outcome {
        failures: ledger.failures(),
        summary,
    })
}

impl Run<'_> {
    fn phases(&mut self) {
        let parts = self.plan.load.as_secs_f64();
        // Caches, pools and tables are as large as they get.
        self.load(
            Duration::from_secs_f64((parts * 0.15).clamp(3.0, 60.0)),
            Weather::Fair,
        );
        let Some(base) = self.rest(None) else { return };
        let (mut rests, cycles) = (vec![base.clone()], (parts / 20.0).clamp(3.0, 60.0).round());
        for _ in 0..cycles as usize {
            self.load(
                Duration::from_secs_f64(parts * 0.55 / cycles),
                Weather::Fair,
            );
            let Some(rest) = self.rest(Some(&base)) else {
                return;
            };
            rests.push(rest);
            trends(&rests)
                .into_iter()
                .for_each(|trend| self.ledger.fail(trend));
            if self.ledger.has_failed() {
                return;
            }
        }
        self.load(
            Duration::from_secs_f64((parts * 0.3).max(6.0)),
            Weather::Rough,
        );
        self.rest(Some(&base));
    }

    /// Load for this time, and what the weather brings.
    fn load(&mut self, time: Duration, weather: Weather) {
        let ledger = self.ledger;
        thread::scope(|scope| {
            ledger.start_load(scope, self.server.address, self.plan.clients, &self.random);
            // Other clients the next time.
            self.random.bits();
            let end = Instant::now() + time;
            let (mut reload, mut kill) = (Instant::now(), Instant::now() + LOOK);
            while Instant::now() < end && !ledger.has_failed() {
                thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
                let mut did = self.server.replace_file(self.random.bits());
                if did.is_ok() && reload.elapsed() >= self.plan.reload_every {
                    did = self.change(weather);
                    reload = Instant::now();
                }
                let late = end.saturating_duration_since(Instant::now()) < LOOK;
                if did.is_ok()
                    && weather == Weather::Rough
                    && kill.elapsed() >= self.plan.kill_every
                    && !late
                {
                    did = self.kill();
                    kill = Instant::now();
                }
                if let Err(error) = did {
                    ledger.fail(error.to_string());
                }
            }
            ledger.end_load();
        });
    }

    /// Changes something without ending anything, or, in rough weather, with replacing workers.
    fn change(&mut self, weather: Weather) -> io::Result<()> {
        self.variant.epoch += 1;
        self.done[0] += 1;
        if weather == Weather::Fair {
            self.server.reload(self.variant)?;
            return self.server.rotate();
        }
        // Four generations may drain at once: the next one waits until the first of them has ended.
        if Sample::take(self.server)?.generations > 3 {
            return Ok(());
        }
        self.ledger.blow(Blow::Replacement(Instant::now()));
        if self.random.once_in(2) {
            self.done[2] += 1;
            return self.server.upgrade();
        }
        self.done[1] += 1;
        self.variant.json_log = !self.variant.json_log;
        self.server.reload(self.variant)
    }

    fn kill(&mut self) -> io::Result<()> {
        let workers = self.server.serving_workers()?;
        let Some(worker) = workers.first() else {
            return Ok(());
        };
        self.done[3] += 1;
        self.ledger.blow(Blow::Kill(Instant::now()));
        self.server.kill(*worker)
    }

    /// Waits until the server rests, and compares what it holds with what it held then.
    fn rest(&self, base: Option<&Sample>) -> Option<Sample> {
        let deadline = Instant::now() + REST_MAX + DRAIN;
        let mut last = Sample::default();
        while !self.ledger.has_failed() {
            thread::sleep(LOOK);
            let now = match Sample::take(self.server) {
                Ok(sample) => sample,
                Err(error) => {
                    self.ledger.fail(error.to_string());
                    return None;
                }
            };
            let excess = base.map_or_else(Vec::new, |base| now.excess(base));
            if now.same_counts(&last) && now.generations == 1 && excess.is_empty() {
                println!("{:<9} at rest: {now}", self.engine);
                return Some(now);
            }
            if Instant::now() > deadline {
                println!("{:<9} no rest: {now}", self.engine);
                let why = match excess.is_empty() {
                    true => "its counts don't come to rest".to_owned(),
                    false => excess.join("; "),
                };
                self.ledger.fail(format!("after the load: {why}"));
            }
            last = now;
        }
        None
    }

    fn summary(&self) -> String {
        let (rounds, cuts) = self.ledger.counts();
        let [reloads, replacements, upgrades, kills] = self.done;
        let total: u64 = rounds.values().sum();
        let mut text = format!(
            "{}: {total} rounds of clients; {reloads} changes, {replacements} of them with new workers and \
             {upgrades} upgrades; {kills} kills; {cuts} connections cut by these\n  ",
            self.engine
        );
        let each: Vec<String> = rounds
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        text.push_str(&each.join(", "));
        text.push('\n');
        text
    }
}
