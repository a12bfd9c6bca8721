//! The load generator: one process that measures one server once.
//!
//! It opens the connections with one wholly compared response on each, runs the closed loop for the
//! warm-up, and then measures. At both ends of the measurement it reads the server's processor time
//! and its own, so that all figures are of the same span.

mod bystander;
mod driver;
mod load;
mod reader;
mod ring;
mod tls;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::set_current_timer_slack;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::procfs::{self, CoreTime, CpuTime, Memory};
use crate::stalls::Stalls;
use bystander::Bystander;
use driver::{Driver, Tally};
use load::{Load, Pace};
pub use tls::Group;
use tls::Tls;

/// Longest time for opening all connections.
pub const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Longest time for one file that isn't in memory.
pub const COLD_LIMIT: Duration = Duration::from_secs(60);

/// Files longer than this are not got once on each connection before the warm-up: it would be most of the
/// time, and what is wrong with them is seen when they end.
const PROVEN_MAX: u64 = 64 << 20;

/// What `versus generate` is told.
#[derive(Args, Clone, Debug)]
pub struct GenerateOptions {
    /// The server's address; loopback only
    #[arg(long)]
    pub address: SocketAddr,
    /// The file's target, as `/1024.bin`
    #[arg(long)]
    pub target: String,
    /// The file's length in bytes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub body: u64,
    /// Keep-alive connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Requests on their way on each connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: u32,
    /// Ask for each file on a connection of its own
    #[arg(long)]
    pub reconnect: bool,
    /// Requests in a second, sent whether or not earlier ones are answered; latency counts from when
    /// each was meant to be sent
    #[arg(long, value_name = "N", conflicts_with = "reconnect",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Measure one file on each connection, from the first request on: no warm-up
    #[arg(long, conflicts_with_all = ["reconnect", "rate", "idle"])]
    pub cold: bool,
    /// Beside it, ask for a file of that many bytes at a fixed rate on connections of its own
    #[arg(long, value_name = "BYTES", conflicts_with = "idle",
          value_parser = clap::value_parser!(u64).range(1..=driver::COPIED_BODY_MAX))]
    pub bystander: Option<u64>,
    /// Speak TLS with the server that has this certificate, a file in PEM
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bystander", "upgrade"])]
    pub certificate: Option<PathBuf>,
    /// The key exchange
    #[arg(long, value_enum, default_value_t = Group::X25519)]
    pub group: Group,
    /// Resume the session of an earlier connection with each new one
    #[arg(long, requires = "certificate")]
    pub resume: bool,
    /// Seconds before the measurement; with --idle, before memory is read
    #[arg(long, default_value_t = 0.3)]
    pub warm_up: f64,
    /// Seconds of the measurement
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Measure the server's memory with all connections idle instead
    #[arg(long)]
    pub idle: bool,
    /// Ask for WebSocket tunnels, whose first bytes are the body
    #[arg(long, requires = "idle")]
    pub upgrade: bool,
    /// The process behind a proxy on this core, whose time is no one else's
    #[arg(long, value_name = "PID")]
    pub backend: Option<u32>,
    /// A process of the server's, whose time and memory count
    #[arg(long = "watch", value_name = "PID")]
    pub watch: Vec<u32>,
    /// The server's core, to report how busy it is
    #[arg(long, value_name = "CPU")]
    pub server_cpu: Option<usize>,
    /// This process's core, to report how busy it is
    #[arg(long, value_name = "CPU")]
    pub client_cpu: Option<usize>,
}

/// What one measurement found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Connections that were opened.
    pub connections: u32,
    /// Complete and right responses.
    pub requests: u64,
    /// Bytes that came, heads included.
    pub bytes: u64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Connections given up, by kind of fault, from the first connection on.
    pub errors: BTreeMap<String, u64>,
    /// The first fault, in words.
    pub first_error: Option<String>,
    /// Connections opened anew after the server closed them as announced.
    pub reconnects: u64,
    /// From queueing a request, or at a fixed rate from when it was meant to be sent, to the end of its
    /// response.
    pub latency_us: Latency,
    /// The same of the requests beside it, where there were some.
    pub bystander_us: Option<Latency>,
    /// Processor time of the watched processes.
    pub server: CpuTime,
    /// Processor time of what is behind a proxy.
    pub backend: CpuTime,
    /// Share of the time in which the server's core was busy, with whatever.
    pub server_core_busy: Option<f64>,
    /// Share of the time in which the generator was busy.
    pub client_busy: f64,
    /// Share of the time in which the generator's core was busy, with whatever.
    pub client_core_busy: Option<f64>,
    /// With `--idle` only.
    pub idle: Option<IdleMemory>,
    /// What a Beltway says of itself; the generator knows nothing of it.
    pub stalls: Option<Stalls>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the requests took at most this long.
    pub p50: f64,
    /// 99 of 100 took at most this long.
    pub p99: f64,
    /// 999 of 1000 took at most this long.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// User memory of the watched processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IdleMemory {
    /// After the first request on the first connection, which makes what is made once.
    pub before: Memory,
    /// With all connections open and idle.
    pub after: Memory,
    /// Connections that came in between.
    pub connections: u32,
}

impl IdleMemory {
    /// Bytes that the server allocated for each connection.
    pub fn per_connection(&self) -> f64 {
        let grown = self.after.allocated as f64 - self.before.allocated as f64;
        grown / f64::from(self.connections.max(1))
    }
}

/// Measures once, on the calling thread.
///
/// # Errors
/// When nothing could be measured: no io_uring, no connection, no response, or a watched process that
/// is gone. Wrong responses are counted in the report instead.
pub fn run(options: &GenerateOptions) -> io::Result<Report> {
    if !options.address.ip().is_loopback() {
        return Err(io::Error::other("only loopback is measured"));
    }
    let pace = match (options.rate, options.reconnect) {
        (Some(rate), _) => Pace::Rate(rate),
        (None, true) => Pace::Reconnect,
        (None, false) => Pace::Closed,
    };
    let mut driver = Driver::new(Load {
        address: options.address,
        target: options.target.clone(),
        body_len: options.body,
        connections: options.connections,
        depth: options.depth,
        upgrade: options.upgrade,
        pace,
        tls: match &options.certificate {
            None => None,
            Some(file) => Some(Tls::new(file, options.group, options.resume)?),
        },
    })?;
    if options.rate.is_some() {
        sharpen_timers()?;
    }
    let mut report = Report {
        connections: options.connections,
        ..Report::default()
    };
    match options.bystander {
        None => measure(&mut driver, options, &mut report, None)?,
        Some(body_len) => {
            let bystander = Bystander::new(options.address, body_len);
            // It reports even where the other measurement failed, or the scope would not end.
            std::thread::scope(|scope| {
                let beside = scope.spawn(|| bystander.run());
                let measured = measure(&mut driver, options, &mut report, Some(&bystander));
                bystander.end();
                let beside = beside.join().map_err(|_| io::Error::other("it panicked"))?;
                measured?;
                report.take_beside(beside?);
                io::Result::Ok(())
            })?;
        }
    }
    let tally = &driver.tally;
    report.requests = tally.requests;
    report.bytes = tally.bytes;
    report.take_errors(tally);
    report.reconnects = tally.reconnects;
    report.latency_us = Latency::of(tally);
    Ok(report)
}

/// Sleeps end when they are meant to, not up to 50 µs later (PR_SET_TIMERSLACK(2const)).
fn sharpen_timers() -> io::Result<()> {
    set_current_timer_slack(Some(NonZeroU64::MIN))?;
    Ok(())
}

impl Report {
    fn take_errors(&mut self, tally: &Tally) {
        for (kind, count) in &tally.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error.clone_from(&tally.first_error);
        }
    }

    fn take_beside(&mut self, tally: Tally) {
        self.take_errors(&tally);
        self.bystander_us = Some(Latency::of(&tally));
    }
}

impl Latency {
    fn of(tally: &Tally) -> Self {
        let microseconds = |share| tally.latency.quantile(share) as f64 / 1e3;
        Self {
            p50: microseconds(0.5),
            p99: microseconds(0.99),
            p999: microseconds(0.999),
            max: tally.latency.max() as f64 / 1e3,
        }
    }
}

fn measure(
    driver: &mut Driver,
    options: &GenerateOptions,
    report: &mut Report,
    beside: Option<&Bystander>,
) -> io::Result<()> {
    let deadline = Instant::now() + OPEN_LIMIT;
    if options.idle {
        report.idle = Some(measure_idle(driver, options, deadline)?);
        return Ok(());
    }
    if options.cold || options.body > PROVEN_MAX {
        driver.connect()?;
    } else {
        driver.open(options.connections, deadline)?;
    }
    if let Some(beside) = beside {
        beside.wait_until_it_runs(deadline)?;
    }
    let before = if options.cold {
        Snapshot::take(options)?
    } else {
        driver.start()?;
        driver.run_until(Instant::now() + Duration::from_secs_f64(options.warm_up))?;
        Snapshot::take(options)?
    };
    if let Some(beside) = beside {
        beside.begin();
    }
    driver.reset();
    if options.cold {
        driver.ask_once(before.at + COLD_LIMIT)?;
    } else {
        driver.run_until(before.at + Duration::from_secs_f64(options.seconds))?;
    }
    let after = Snapshot::take(options)?;
    driver.note_overdue();
    driver.note_stalled();
    let busy = |after: Option<CoreTime>, before: Option<CoreTime>| {
        after
            .zip(before)
            .map(|(after, before)| after.busy_since(before))
    };
    report.seconds = (after.at - before.at).as_secs_f64();
    report.server = after.server.since(before.server);
    report.backend = after.backend.since(before.backend);
    report.server_core_busy = busy(after.server_core, before.server_core);
    report.client_busy = (after.own - before.own).as_secs_f64() / report.seconds;
    report.client_core_busy = busy(after.client_core, before.client_core);
    Ok(())
}

fn measure_idle(
    driver: &mut Driver,
    options: &GenerateOptions,
    deadline: Instant,
) -> io::Result<IdleMemory> {
    let settle = Duration::from_secs_f64(options.warm_up);
    driver.open(1, deadline)?;
    driver.run_until(Instant::now() + settle)?;
    let before = procfs::memory(&options.watch)?;
    driver.open(options.connections, deadline)?;
    driver.run_until(Instant::now() + settle)?;
    Ok(IdleMemory {
        before,
        after: procfs::memory(&options.watch)?,
        connections: options.connections - 1,
    })
}

/// Clocks at one end of the measurement.
struct Snapshot {
    at: Instant,
    server: CpuTime,
    backend: CpuTime,
    own: Duration,
    server_core: Option<CoreTime>,
    client_core: Option<CoreTime>,
}

impl Snapshot {
    fn take(options: &GenerateOptions) -> io::Result<Self> {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Self {
            at: Instant::now(),
            server: procfs::cpu_time(&options.watch)?,
            backend: procfs::cpu_time(options.backend.as_slice())?,
            own: Duration::new(own.tv_sec.unsigned_abs(), own.tv_nsec as u32),
            server_core: options.server_cpu.map(procfs::core_time).transpose()?,
            client_core: options.client_cpu.map(procfs::core_time).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests;
