//! Asks as the load's pace says, and counts and times what comes back.
//!
//! In a closed loop every connection is kept busy. At a fixed rate each request has a time at which it
//! is meant to be sent, and its latency counts from then, whether or not a connection was free: what a
//! slow server holds back is part of what it takes (no coordinated omission).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::load::{Load, Pace, connect};
use super::reader::{Expectation, Fault, HEAD_MAX, Reader};
use super::ring::{Completion, Dimensions, Kind, Owner, Ring, SLOT_LEN};
use super::tls::Side;
use crate::histogram::Histogram;
use crate::interrupt;

/// Bodies up to this many bytes are copied out of the kernel, longer ones discarded in it.
pub const COPIED_BODY_MAX: u64 = 8192;
/// Connections that are opened at a time, so that no listener's backlog overflows.
const OPENED_AT_ONCE: usize = 128;
/// The end of a discarded body that the first response of a connection is compared by, in bytes.
const COMPARED_TAIL: u64 = 512;
/// A provided buffer where longer bodies are copied, as all are under TLS.
const LONG_BUFFER: u32 = 64 << 10;
/// Requests on their way of one connection are at most this many bytes: less than any send buffer.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 10;

const NANOSECONDS: u64 = 1_000_000_000;

/// What was counted since the last reset.
#[derive(Debug)]
pub struct Tally {
    /// Complete and right responses.
    pub requests: u64,
    /// Bytes that came, of heads and bodies.
    pub bytes: u64,
    /// Nanoseconds from when a request was queued, or at a fixed rate meant to be, to the end of its
    /// response.
    pub latency: Histogram,
    /// Connections given up, by kind of fault.
    pub errors: BTreeMap<String, u64>,
    /// The first fault, in words.
    pub first_error: Option<String>,
    /// Connections that the server closed after announcing it, and that were opened anew.
    pub reconnects: u64,
}

struct Connection {
    stream: TcpStream,
    reader: Reader,
    /// What it is under, where that is TLS.
    tls: Option<Box<Side>>,
    generation: u32,
    /// Nanoseconds since the driver's epoch at which the requests on their way were queued: a ring of
    /// as many places as the depth.
    stamps: Box<[u64]>,
    oldest: usize,
    outstanding: u32,
    /// Something came since the tally was reset.
    progress: bool,
    /// Given up; the stream stays open only to keep its descriptor's number.
    lost: bool,
}

/// When requests are meant to be sent. Those that are late are not kept anywhere: their times follow
/// from the one that is due next.
struct Schedule {
    /// Nanoseconds since the driver's epoch.
    due: u64,
    /// Nanoseconds between two.
    interval: u64,
    /// Connections without a request, the longest idle one first.
    free: VecDeque<u32>,
}

/// The connections and their ring.
pub struct Driver {
    load: Load,
    /// What is sent.
    request: String,
    ring: Ring,
    connections: Vec<Connection>,
    expected: Expectation,
    /// Since the last [`Self::reset`].
    pub tally: Tally,
    /// Completed responses are followed by new requests.
    issuing: bool,
    /// At a fixed rate.
    schedule: Option<Schedule>,
    epoch: Instant,
    now: u64,
    completions: Vec<Completion>,
}

impl Driver {
    /// A driver without connections.
    ///
    /// # Errors
    /// Of the ring; or when the load breaks a bound that [`Load`] names.
    pub fn new(load: Load) -> io::Result<Self> {
        let request = load.request();
        let discards = load.body_len > COPIED_BODY_MAX && load.tls.is_none();
        let on_their_way = request.len() * load.depth as usize;
        if load.connections == 0 || load.depth == 0 || load.body_len == 0 {
            return Err(io::Error::other("connections, depth and body begin at 1"));
        }
        if load.depth > 1 && load.pace != Pace::Closed {
            return Err(io::Error::other("pipelining is for a closed loop"));
        }
        if load.pace == Pace::Rate(0) {
            return Err(io::Error::other("a rate begins at 1"));
        }
        if (discards && load.depth > 1) || on_their_way > IN_FLIGHT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "pipelining is for bodies up to {COPIED_BODY_MAX} bytes, and for requests of \
                 {IN_FLIGHT_BYTES_MAX} bytes together",
            )));
        }
        // A batch of responses with their heads, as long as that stays modest.
        let batch = (load.body_len.min(COPIED_BODY_MAX) + 512) * u64::from(load.depth);
        let dimensions = Dimensions {
            connections: load.connections,
            depth: load.depth,
            buffer_len: match load.body_len > COPIED_BODY_MAX && !discards {
                true => LONG_BUFFER,
                false => (batch.min(64 << 10) as u32).next_multiple_of(4096),
            },
        };
        Ok(Self {
            ring: Ring::new(dimensions, request.as_bytes())?,
            connections: Vec::with_capacity(load.connections as usize),
            expected: match (load.upgrade, load.pace) {
                (true, _) => Expectation::tunnel(load.body_len),
                (false, Pace::Reconnect) => Expectation::last(load.body_len),
                (false, _) => Expectation::new(load.body_len),
            },
            tally: Tally::new(),
            issuing: false,
            schedule: None,
            epoch: Instant::now(),
            now: 0,
            completions: Vec::new(),
            request,
            load,
        })
    }

    /// Opens connections up to `count` altogether and gets one response on each, wholly compared.
    ///
    /// # Errors
    /// When a connection is refused, or the responses are not there by `deadline`. A wrong response
    /// is no error here: it is in the tally.
    pub fn open(&mut self, count: u32, deadline: Instant) -> io::Result<()> {
        let count = count.min(self.load.connections) as usize;
        while self.connections.len() < count {
            self.now = self.elapsed();
            let first = self.connections.len();
            for index in first..count.min(first + OPENED_AT_ONCE) {
                let connection = Connection::open(&self.load, 0)?;
                self.connections.push(connection);
                self.listen(index)?;
                self.issue(index, 1, self.now)?;
            }
            while self.connections[first..].iter().any(Connection::waits) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::other(
                        "no response in time while opening connections",
                    ));
                }
                self.turn(left)?;
            }
        }
        Ok(())
    }

    /// Opens all connections and asks for nothing.
    ///
    /// # Errors
    /// When a connection is refused, and those of the ring.
    pub fn connect(&mut self) -> io::Result<()> {
        for index in self.connections.len()..self.load.connections as usize {
            let connection = Connection::open(&self.load, 0)?;
            self.connections.push(connection);
            self.listen(index)?;
        }
        Ok(())
    }

    /// Asks once on each connection and waits for the answers, at most until `deadline`.
    ///
    /// # Errors
    /// See [`Self::run_until`]; and when they are not there in time.
    pub fn ask_once(&mut self, deadline: Instant) -> io::Result<()> {
        self.now = self.elapsed();
        for index in 0..self.connections.len() {
            self.issue(index, 1, self.now)?;
        }
        while self.connections.iter().any(Connection::waits) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::other("no whole response in time"));
            }
            interrupt::check()?;
            self.turn(left)?;
        }
        Ok(())
    }

    /// Begins to ask: as many requests as the depth on each connection, or the first of the schedule.
    ///
    /// # Errors
    /// Of the ring.
    pub fn start(&mut self) -> io::Result<()> {
        self.issuing = true;
        self.now = self.elapsed();
        let count = self.connections.len();
        // One that is closing begins when it was opened anew.
        let ready = |one: &Connection| !one.lost && !one.reader.closing();
        if let Pace::Rate(rate) = self.load.pace {
            self.schedule = Some(Schedule {
                due: self.now,
                interval: NANOSECONDS / u64::from(rate),
                free: (0..count as u32)
                    .filter(|&index| ready(&self.connections[index as usize]))
                    .collect(),
            });
            return self.keep_up();
        }
        for index in 0..count {
            if ready(&self.connections[index]) {
                self.issue(index, self.load.depth, self.now)?;
            }
        }
        Ok(())
    }

    /// Lets the load run until `deadline`, until no connection is left, or until this process is told
    /// to end.
    ///
    /// # Errors
    /// Of the ring, or of a connection that could not be opened anew.
    pub fn run_until(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let lost: u64 = self.tally.errors.values().sum();
            let all_lost = lost > 0 && self.connections.iter().all(|connection| connection.lost);
            if left.is_zero() || all_lost || interrupt::check().is_err() {
                return Ok(());
            }
            self.turn(self.until_due().map_or(left, |due| left.min(due)))?;
            self.keep_up()?;
        }
    }

    /// Time until the next request is meant to be sent, where there is a connection for it.
    fn until_due(&self) -> Option<Duration> {
        let schedule = self.schedule.as_ref()?;
        let due = schedule.due.saturating_sub(self.elapsed());
        (!schedule.free.is_empty()).then(|| Duration::from_nanos(due))
    }

    /// Sends what is due on the connections that are free.
    fn keep_up(&mut self) -> io::Result<()> {
        if self.schedule.is_none() {
            return Ok(());
        }
        self.now = self.elapsed();
        while let Some(schedule) = &mut self.schedule
            && schedule.due <= self.now
            && let Some(index) = schedule.free.pop_front()
        {
            if self.connections[index as usize].lost {
                continue;
            }
            let due = schedule.due;
            schedule.due += schedule.interval;
            self.issue(index as usize, 1, due)?;
        }
        Ok(())
    }

    /// Counts requests at a fixed rate that are due and have no response yet as if it came now: they
    /// took at least this long, and leaving them out would hide the slowest.
    pub fn note_overdue(&mut self) {
        let Some(schedule) = &self.schedule else {
            return;
        };
        let now = self.epoch.elapsed().as_nanos() as u64;
        for connection in self.connections.iter().filter(|one| one.waits()) {
            let stamp = connection.stamps[connection.oldest];
            self.tally.latency.record(now.saturating_sub(stamp));
        }
        for due in (schedule.due..now).step_by(schedule.interval as usize) {
            self.tally.latency.record(now - due);
        }
    }

    /// Begins to count anew. Errors stay: a connection that was lost before is still missing.
    pub fn reset(&mut self) {
        self.tally.requests = 0;
        self.tally.bytes = 0;
        self.tally.latency.clear();
        for connection in &mut self.connections {
            connection.progress = false;
        }
    }

    /// Gives up connections that wait for a response of which nothing came since the reset. At a fixed
    /// rate that is no fault: what waits is in the latencies.
    pub fn note_stalled(&mut self) {
        if self.schedule.is_some() {
            return;
        }
        for index in 0..self.connections.len() {
            if self.connections[index].waits() && !self.connections[index].progress {
                self.lose(index, Fault::Stalled);
            }
        }
    }

    /// Whether bodies are discarded in the kernel. What is under TLS has to be decrypted.
    fn discards(&self) -> bool {
        self.load.body_len > COPIED_BODY_MAX && self.load.tls.is_none()
    }

    fn elapsed(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// One turn of the ring. The clock is read once for all that it brought.
    fn turn(&mut self, limit: Duration) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.turn(limit, &mut completions)?;
        self.now = self.elapsed();
        for completion in completions.drain(..) {
            self.handle(completion)?;
        }
        self.completions = completions;
        Ok(())
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        let index = completion.owner.index as usize;
        let connection = &self.connections[index];
        if connection.lost || connection.owner(index) != completion.owner {
            self.ring.consume(completion, |_| ());
            return Ok(());
        }
        let (kind, more) = (completion.kind, completion.more);
        let bytes = match (kind, completion.result) {
            // The multishot ends when there is no buffer; by the end of this turn there are.
            (Kind::Many, error) if error == -libc::ENOBUFS => 0,
            (_, 1..) => completion.result as u64,
            (_, result) => {
                self.ring.consume(completion, |_| ());
                return self.ended(index, kind, result);
            }
        };
        if self.load.tls.is_none() {
            self.tally.bytes += bytes;
        }
        let connection = &mut self.connections[index];
        connection.progress = true;
        let reader = &mut connection.reader;
        let completed = match kind {
            Kind::Send => Err(Fault::Io(libc::EMSGSIZE)),
            Kind::Discard => Ok(reader.skip(bytes)),
            Kind::Many | Kind::Slot => {
                let (expected, tally) = (&mut self.expected, &mut self.tally);
                let (tls, stream) = (&mut connection.tls, &connection.stream);
                let request = &self.request;
                self.ring.consume(completion, |bytes| match tls {
                    None => reader.receive(expected, bytes),
                    Some(tls) => tls.receive((bytes, request), stream, |plain| {
                        tally.bytes += plain.len() as u64;
                        reader.receive(expected, plain)
                    }),
                })
            }
        };
        match completed {
            Ok(completed) if completed <= connection.outstanding => {
                if kind == Kind::Many && !more {
                    let owner = connection.owner(index);
                    self.ring.receive_many(connection.stream.as_fd(), owner)?;
                }
                self.completed(index, completed)
            }
            Ok(_) => {
                self.lose(index, Fault::Unasked);
                Ok(())
            }
            Err(fault) => {
                self.lose(index, fault);
                Ok(())
            }
        }
    }

    /// Counts what was completed and asks for as much again.
    fn completed(&mut self, index: usize, completed: u32) -> io::Result<()> {
        let connection = &mut self.connections[index];
        for _ in 0..completed {
            self.tally.latency.record(
                self.now
                    .saturating_sub(connection.stamps[connection.oldest]),
            );
            connection.oldest = (connection.oldest + 1) % connection.stamps.len();
        }
        connection.outstanding -= completed;
        self.tally.requests += u64::from(completed);
        if completed > 0 && self.issuing && !connection.reader.closing() {
            match &mut self.schedule {
                None => return self.issue(index, completed, self.now),
                Some(schedule) => schedule.free.push_back(index as u32),
            }
        }
        self.receive(index, false)
    }

    /// Where bodies are copied, arms the receive that stands for the connection's life.
    fn listen(&mut self, index: usize) -> io::Result<()> {
        if self.discards() {
            return Ok(());
        }
        let connection = &self.connections[index];
        self.ring
            .receive_many(connection.stream.as_fd(), connection.owner(index))
    }

    /// Queues requests that count from `stamp`, and the receive of what they bring.
    fn issue(&mut self, index: usize, requests: u32, stamp: u64) -> io::Result<()> {
        let connection = &mut self.connections[index];
        for _ in 0..requests {
            let newest = connection.oldest + connection.outstanding as usize;
            connection.stamps[newest % connection.stamps.len()] = stamp;
            connection.outstanding += 1;
        }
        if let Some(tls) = &mut connection.tls {
            if let Err(fault) = tls.send(&self.request, requests, &connection.stream) {
                self.lose(index, fault);
            }
            return Ok(());
        }
        self.ring
            .send(connection.stream.as_fd(), connection.owner(index), requests)?;
        self.receive(index, true)
    }

    /// Where bodies are discarded, queues the next receive; else the multishot stands. `wait`: nothing
    /// can be there yet.
    fn receive(&mut self, index: usize, wait: bool) -> io::Result<()> {
        if !self.discards() {
            return Ok(());
        }
        let connection = &self.connections[index];
        let (fd, owner) = (connection.stream.as_fd(), connection.owner(index));
        let tail = if connection.reader.first() {
            COMPARED_TAIL
        } else {
            0
        };
        match connection.reader.body_left() {
            0 if connection.outstanding > 0 || connection.reader.closing() => {
                self.ring.receive_slot(fd, owner, SLOT_LEN, wait)
            }
            0 => Ok(()),
            left if left > tail => self.ring.discard(fd, owner, left - tail),
            left => self.ring.receive_slot(fd, owner, left as usize, false),
        }
    }

    /// The peer closed (`result` 0), or an operation failed.
    fn ended(&mut self, index: usize, kind: Kind, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if connection.reader.closing() && connection.reader.body_left() == 0 {
            if kind == Kind::Send {
                // The receive will see the end as well.
                return Ok(());
            }
            return self.reopen(index);
        }
        let fault = match result {
            0 => Fault::Closed,
            errno => Fault::Io(-errno),
        };
        self.lose(index, fault);
        Ok(())
    }

    /// Replaces a connection that the server closed as it had announced.
    fn reopen(&mut self, index: usize) -> io::Result<()> {
        let depth = self.load.depth;
        // Earlier completions of this turn may have queued requests on the old descriptor.
        self.ring.flush()?;
        let connection = &mut self.connections[index];
        let (unanswered, since) = (connection.outstanding, connection.stamps[connection.oldest]);
        let generation = (connection.generation + 1) & 0x00FF_FFFF;
        *connection = Connection::open(&self.load, generation)?;
        connection.progress = true;
        self.tally.reconnects += 1;
        self.listen(index)?;
        match self.schedule.as_mut() {
            Some(schedule) if unanswered == 0 => {
                schedule.free.push_back(index as u32);
                return Ok(());
            }
            Some(_) => return self.issue(index, unanswered, since),
            None => {}
        }
        match if self.issuing { depth } else { unanswered } {
            0 => Ok(()),
            requests => self.issue(index, requests, self.now),
        }
    }

    fn lose(&mut self, index: usize, fault: Fault) {
        let connection = &mut self.connections[index];
        connection.lost = true;
        // Ends what the kernel still has of this connection. It may be gone already.
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        *self
            .tally
            .errors
            .entry(fault.kind().to_owned())
            .or_default() += 1;
        self.tally
            .first_error
            .get_or_insert_with(|| fault.to_string());
    }
}

impl Connection {
    fn open(load: &Load, generation: u32) -> io::Result<Self> {
        let stream = connect(load.address)?;
        let tls = match &load.tls {
            None => None,
            Some(tls) => Some(Box::new(tls.begin(&stream, generation > 0)?)),
        };
        Ok(Self {
            stream,
            reader: Reader::new(),
            tls,
            generation,
            stamps: vec![0; load.depth as usize].into_boxed_slice(),
            oldest: 0,
            outstanding: 0,
            progress: false,
            lost: false,
        })
    }

    fn owner(&self, index: usize) -> Owner {
        Owner {
            index: index as u32,
            generation: self.generation,
        }
    }

    fn waits(&self) -> bool {
        !self.lost && self.outstanding > 0
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            requests: 0,
            bytes: 0,
            latency: Histogram::new(),
            errors: BTreeMap::new(),
            first_error: None,
            reconnects: 0,
        }
    }
}

const _: () = assert!(HEAD_MAX >= SLOT_LEN && COMPARED_TAIL as usize <= SLOT_LEN);
