//! The load generator: one process that measures one server once.
//!
//! It opens the connections with one wholly compared response on each, runs the closed loop for the
//! warm-up, and then measures. At both ends of the measurement it reads the server's processor time
//! and its own, so that all figures are of the same span.

mod driver;
mod reader;
mod ring;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::procfs::{self, CoreTime, CpuTime, Memory};
use driver::{Driver, Load};

/// Longest time for opening all connections.
pub const OPEN_LIMIT: Duration = Duration::from_secs(30);

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
    /// From queueing a request to the end of its response.
    pub latency_us: Latency,
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
    let load = Load {
        address: options.address,
        target: options.target.clone(),
        body_len: options.body,
        connections: options.connections,
        depth: options.depth,
        upgrade: options.upgrade,
    };
    let mut driver = Driver::new(load)?;
    let deadline = Instant::now() + OPEN_LIMIT;
    let mut report = Report {
        connections: options.connections,
        ..Report::default()
    };
    if options.idle {
        report.idle = Some(measure_idle(&mut driver, options, deadline)?);
    } else {
        driver.open(options.connections, deadline)?;
        measure_load(&mut driver, options, &mut report)?;
    }
    let tally = &driver.tally;
    report.requests = tally.requests;
    report.bytes = tally.bytes;
    report.errors.clone_from(&tally.errors);
    report.first_error.clone_from(&tally.first_error);
    report.reconnects = tally.reconnects;
    let microseconds = |share| tally.latency.quantile(share) as f64 / 1e3;
    report.latency_us = Latency {
        p50: microseconds(0.5),
        p99: microseconds(0.99),
        p999: microseconds(0.999),
        max: tally.latency.max() as f64 / 1e3,
    };
    Ok(report)
}

fn measure_load(
    driver: &mut Driver,
    options: &GenerateOptions,
    report: &mut Report,
) -> io::Result<()> {
    driver.start()?;
    driver.run_until(Instant::now() + Duration::from_secs_f64(options.warm_up))?;
    let before = Snapshot::take(options)?;
    driver.reset();
    driver.run_until(before.at + Duration::from_secs_f64(options.seconds))?;
    let after = Snapshot::take(options)?;
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
