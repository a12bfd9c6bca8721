//! A small client beside a large load: how long does a short answer take meanwhile?
//!
//! It runs on a thread of its own, with a ring of its own and on the same core, at a fixed rate: a
//! server that lets it wait is not asked less often for that.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::driver::{Driver, Tally};
use super::load::{Load, Pace};
use super::{OPEN_LIMIT, sharpen_timers};
use crate::body;

/// Its requests in a second: enough for a thousandth of them to be some in a second or two, and little
/// for a server.
const RATE: u32 = 4000;
/// Its connections.
const CONNECTIONS: u32 = 8;
/// How often it looks whether it is to begin or to end.
const STEP: Duration = Duration::from_millis(2);

/// The client, and what the load beside it tells it.
pub struct Bystander {
    address: SocketAddr,
    body_len: u64,
    /// One of the states below, which only grow.
    state: AtomicU8,
}

const OPENING: u8 = 0;
const RUNS: u8 = 1;
const MEASURES: u8 = 2;
const ENDS: u8 = 3;

impl Bystander {
    /// A client of the file of `body_len` bytes.
    pub fn new(address: SocketAddr, body_len: u64) -> Self {
        Self {
            address,
            body_len,
            state: AtomicU8::new(OPENING),
        }
    }

    /// Waits until its connections are open, at most until `deadline`.
    ///
    /// # Errors
    /// When it has ended, or isn't there in time.
    pub fn wait_until_it_runs(&self, deadline: Instant) -> io::Result<()> {
        loop {
            match self.state.load(Ordering::Acquire) {
                OPENING if Instant::now() < deadline => std::thread::sleep(STEP),
                RUNS => return Ok(()),
                _ => return Err(io::Error::other("the client beside the load didn't start")),
            }
        }
    }

    /// From now on it counts.
    pub fn begin(&self) {
        self.state.fetch_max(MEASURES, Ordering::AcqRel);
    }

    /// It is to end.
    pub fn end(&self) {
        self.state.fetch_max(ENDS, Ordering::AcqRel);
    }

    /// Runs until it is to end, and returns what it counted.
    ///
    /// # Errors
    /// Those of its driver.
    pub fn run(&self) -> io::Result<Tally> {
        let tally = self.drive();
        if tally.is_err() {
            self.end();
        }
        tally
    }

    fn drive(&self) -> io::Result<Tally> {
        sharpen_timers()?;
        let mut driver = Driver::new(Load {
            address: self.address,
            target: format!("/{}", body::file_name(self.body_len)),
            body_len: self.body_len,
            connections: CONNECTIONS,
            depth: 1,
            upgrade: false,
            tls: None,
            pace: Pace::Rate(RATE),
        })?;
        driver.open(CONNECTIONS, Instant::now() + OPEN_LIMIT)?;
        driver.start()?;
        self.state.fetch_max(RUNS, Ordering::AcqRel);
        let mut counts = false;
        loop {
            match self.state.load(Ordering::Acquire) {
                ENDS => break,
                MEASURES if !counts => {
                    driver.reset();
                    counts = true;
                }
                _ => {}
            }
            driver.run_until(Instant::now() + STEP)?;
        }
        driver.note_overdue();
        Ok(driver.tally)
    }
}
