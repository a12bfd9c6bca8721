//! The simulated kernel: a virtual clock, a queue of what will happen, descriptors and ops.
//!
//! What the executor asks for goes into a submission queue, in order, and takes effect in a turn. An
//! op makes progress in steps, whose results are posted at times of their own: late, and in any
//! order among ops, but never within one. Like the real one this kernel holds on to the memory of an
//! op until its terminal completion; it checks that nobody touched it meanwhile.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Config;
use super::backend::Backend;
use super::faults::{Faults, Random, Trace};
use super::files::Files;
use super::net::{Client, Connection, Side, Way};
use super::ops::InFlight;
use super::pipe::PipeBytes;
use crate::runtime::buf::BufPool;
use crate::runtime::engine::Event;
use crate::runtime::op::Job;
use crate::runtime::slot::{SlotKey, SlotTable};

/// Longest delay of a late completion.
const LATE_MAX_NS: u64 = 5_000_000;

/// Turns after which a run is taken for one that never ends.
const TURNS_MAX: u64 = 5_000_000;

/// What the executor asked for.
pub(super) enum Command {
    Start(SlotKey),
    Cancel(SlotKey),
    Close(u32),
}

/// What happens at a time.
pub(super) enum What {
    /// An op may make progress.
    Step(SlotKey),
    /// The oldest posted completion of an op becomes visible.
    Post(SlotKey),
    /// Bytes or an end of stream arrive.
    Deliver(usize, Way),
    /// A reset arrives.
    Reset(usize, Side),
    /// A connection arrives at its listener.
    Arrive(usize),
    /// A client goes on with its script.
    Client(usize),
    /// A slow client reads.
    ClientRead(usize),
    /// A helper runs a job.
    Job(SlotKey),
}

/// What a descriptor refers to.
pub(super) enum Object {
    Listener {
        backlog: VecDeque<usize>,
    },
    /// A socket of the core's that isn't connected yet.
    Unconnected,
    Socket(usize),
    /// An end of a pipe.
    Pipe(usize),
    File(usize),
    /// A file that was opened with O_DIRECT.
    Direct(usize),
    Directory(Vec<u8>),
}

/// One descriptor. Numbers are never used again, so that a use after the close is always seen.
pub(super) struct Descriptor {
    pub(super) object: Object,
    /// The last reference is gone, or the close was even done.
    closing: bool,
    /// Ops that refer to it, in the order of their start.
    pub(super) ops: Vec<SlotKey>,
}

/// What an op on a slot's memory needs besides the kernel.
pub(super) struct Hands<'a> {
    pub(super) slots: &'a mut SlotTable,
    pub(super) buffers: &'a Rc<BufPool>,
}

pub(super) struct Kernel {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) config: Config,
    pub(super) trace: Trace,
    base: Instant,
    pub(super) now_ns: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64, u64), What>,
    pub(super) descriptors: Vec<Descriptor>,
    pub(super) connections: Vec<Connection>,
    pub(super) clients: Vec<Client>,
    pub(super) backends: Vec<Backend>,
    pub(super) pipes: Vec<PipeBytes>,
    pub(super) files: Files,
    pub(super) ops: BTreeMap<u64, InFlight>,
    pub(super) submission: VecDeque<Command>,
    pub(super) local: Vec<Event>,
    jobs: BTreeMap<u64, Job>,
    finished: VecDeque<(SlotKey, Option<Box<dyn Any + Send>>)>,
    /// Buffers that were filled and whose completion isn't seen yet.
    pub(super) filling: BTreeSet<u16>,
    pub(super) woken: bool,
    pub(super) turns: u64,
    /// How often a sendfile had to wait for a disk.
    pub(super) blocked: u64,
    /// The last turn found that nothing will happen any more.
    idle: bool,
    /// The first rule that was broken. The executor catches what a task panics with.
    broken: RefCell<Option<String>>,
}

impl Kernel {
    pub(super) fn new(seed: u64, faults: Faults, config: Config) -> Self {
        Self {
            seed,
            random: Random::new(seed),
            faults,
            config,
            trace: Trace::default(),
            base: Instant::now(),
            now_ns: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            descriptors: Vec::new(),
            connections: Vec::new(),
            clients: Vec::new(),
            backends: Vec::new(),
            pipes: Vec::new(),
            files: Files::new(),
            ops: BTreeMap::new(),
            submission: VecDeque::new(),
            local: Vec::new(),
            jobs: BTreeMap::new(),
            finished: VecDeque::new(),
            filling: BTreeSet::new(),
            woken: false,
            turns: 0,
            blocked: 0,
            idle: false,
            broken: RefCell::default(),
        }
    }

    /// A rule was broken: ends the run with what is needed to see it again.
    pub(super) fn fail(&self, why: impl Display) -> ! {
        let first = self.broken.borrow().clone();
        let text = first.unwrap_or_else(|| {
            format!(
                "simulation, seed {}: {why}\nthe last of what happened:\n{}",
                self.seed,
                self.trace.text()
            )
        });
        *self.broken.borrow_mut() = Some(text.clone());
        panic!("{text}")
    }

    /// Ends the run when a rule was broken in a task.
    pub(super) fn check_rules(&self) {
        if self.broken.borrow().is_some() {
            self.fail("a rule was broken");
        }
    }

    pub(super) fn note(&mut self, what: &'static str, subject: u64, value: i64) {
        self.trace.note(self.now_ns, what, subject, value);
    }

    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_nanos(self.now_ns)
    }

    /// Puts something into the queue, `delay_ns` from now. Things of one time come in any order.
    pub(super) fn after(&mut self, delay_ns: u64, what: What) {
        self.at(self.now_ns.saturating_add(delay_ns), what);
    }

    fn at(&mut self, at_ns: u64, what: What) {
        self.sequence += 1;
        let order = self.random.bits();
        self.queue.insert((at_ns, order, self.sequence), what);
    }

    /// The time that a packet needs now.
    pub(super) fn latency_ns(&mut self) -> u64 {
        let (least, most) = self.config.latency_us;
        self.random.between(least * 1000, most * 1000)
    }

    // ---- descriptors -------------------------------------------------------------------------

    pub(super) fn open(&mut self, object: Object) -> u32 {
        let number = self.descriptors.len() as u32;
        self.descriptors.push(Descriptor {
            object,
            closing: false,
            ops: Vec::new(),
        });
        self.note("descriptor", u64::from(number), 0);
        number
    }

    /// The descriptor, which must be open.
    pub(super) fn descriptor(&mut self, number: u32) -> &mut Descriptor {
        match self.descriptors.get(number as usize) {
            None => self.fail(format_args!("descriptor {number} never existed")),
            Some(descriptor) if descriptor.closing => {
                self.fail(format_args!("descriptor {number} is used after its close"))
            }
            Some(_) => &mut self.descriptors[number as usize],
        }
    }

    /// The numbers of the descriptors that nobody has closed.
    pub(super) fn open_descriptors(&self) -> Vec<u32> {
        let all = self.descriptors.iter().enumerate();
        all.filter(|(_, descriptor)| !descriptor.closing)
            .map(|(number, _)| number as u32)
            .collect()
    }

    /// The last reference to a descriptor is gone: its close is submitted.
    pub(super) fn close(&mut self, number: u32) {
        let descriptor = self.descriptor(number);
        descriptor.closing = true;
        if !descriptor.ops.is_empty() {
            self.fail(format_args!(
                "descriptor {number} is closed under an op in flight"
            ));
        }
        self.submission.push_back(Command::Close(number));
    }

    fn closed(&mut self, number: u32) {
        self.note("close", u64::from(number), 0);
        match &mut self.descriptors[number as usize].object {
            Object::Listener { backlog } => {
                for connection in std::mem::take(backlog) {
                    self.break_off(connection);
                }
            }
            Object::Socket(connection) => {
                let connection = *connection;
                self.close_server(connection);
            }
            _ => {}
        }
    }

    /// Something changed for this descriptor: its ops look again.
    pub(super) fn touch(&mut self, number: u32) {
        for index in 0..self.descriptors[number as usize].ops.len() {
            let key = self.descriptors[number as usize].ops[index];
            let delay = self.random.below(3_000);
            self.schedule(key, delay);
        }
    }

    // ---- jobs --------------------------------------------------------------------------------

    pub(super) fn offload(&mut self, key: SlotKey, job: Job) {
        self.jobs.insert(key.to_bits(), job);
        let mut delay = self.random.between(10_000, 200_000);
        if self.random.chance(self.faults.job_delay) {
            delay += self.random.below(50_000_000);
        }
        self.after(delay, What::Job(key));
    }

    fn run_job(&mut self, key: SlotKey) {
        let Some(job) = self.jobs.remove(&key.to_bits()) else {
            self.fail("a job runs twice");
        };
        let answer = if self.random.chance(self.faults.job_loss) {
            None
        } else {
            catch_unwind(AssertUnwindSafe(job)).ok()
        };
        self.note("job", key.to_bits(), i64::from(answer.is_some()));
        self.finished.push_back((key, answer));
    }

    pub(super) fn finished_job(&mut self) -> Option<(SlotKey, Option<Box<dyn Any + Send>>)> {
        self.finished.pop_front()
    }

    // ---- completions -------------------------------------------------------------------------

    /// Posts a completion of an op, to be seen now or later, after those before it.
    pub(super) fn post(&mut self, key: SlotKey, result: i32, more: bool, buffer: Option<u16>) {
        self.note("post", key.to_bits(), i64::from(result));
        let mut delay = 0;
        if self.random.chance(self.faults.late) {
            delay = self.random.below(LATE_MAX_NS);
        }
        let now_ns = self.now_ns;
        let Some(op) = self.ops.get_mut(&key.to_bits()) else {
            self.fail("a completion of an op that isn't in flight");
        };
        assert!(!op.terminal, "nothing follows the terminal completion");
        op.terminal = !more;
        op.posted.push_back(Event {
            key,
            result,
            more,
            buffer,
        });
        op.seen_ns = (op.seen_ns + 1).max(now_ns + delay);
        let at_ns = op.seen_ns;
        self.at(at_ns, What::Post(key));
    }

    /// The oldest posted completion of an op becomes visible.
    fn deliver(&mut self, key: SlotKey, hands: &mut Hands<'_>, events: &mut Vec<Event>) {
        self.check_memory(key, hands);
        let Some(op) = self.ops.get_mut(&key.to_bits()) else {
            self.fail("a completion is seen after the terminal one");
        };
        let Some(event) = op.posted.pop_front() else {
            self.fail("a completion is seen twice");
        };
        if let Some(buffer) = event.buffer {
            self.filling.remove(&buffer);
        }
        if !event.more {
            let fd = op.fd;
            self.ops.remove(&key.to_bits());
            if let Some(number) = fd {
                self.descriptor(number).ops.retain(|of| *of != key);
            }
        }
        self.note("complete", key.to_bits(), i64::from(event.result));
        events.push(event);
    }

    /// Every receive buffer is free, filled and not yet seen, or held: none is lost or there twice.
    fn check_buffers(&self, buffers: &BufPool) {
        let free = buffers.free_ids();
        let known: BTreeSet<u16> = free.iter().copied().collect();
        if known.len() != free.len() || !known.is_disjoint(&self.filling) {
            self.fail("a receive buffer is free twice");
        }
        let held = usize::from(buffers.count() - buffers.available());
        if known.len() + self.filling.len() + held != usize::from(buffers.count()) {
            self.fail("a receive buffer is lost");
        }
    }

    // ---- turns -------------------------------------------------------------------------------

    /// Submits what was asked for; with a full queue only the first part of it.
    fn submit(&mut self, hands: &mut Hands<'_>) {
        let mut room = self.submission.len();
        if self.random.chance(self.faults.queue_full) {
            room = self.random.below(room as u64 + 1) as usize;
        }
        for _ in 0..room {
            match self.submission.pop_front() {
                Some(Command::Start(key)) => self.started(key),
                Some(Command::Cancel(key)) => self.cancelled(key, hands),
                Some(Command::Close(number)) => self.closed(number),
                None => return,
            }
        }
    }

    /// Never inlined: by its name `tools/counts` leaves out what the simulation itself costs.
    #[inline(never)]
    pub(super) fn turn(
        &mut self,
        wait: Option<Duration>,
        hands: &mut Hands<'_>,
        events: &mut Vec<Event>,
    ) {
        self.check_rules();
        self.turns += 1;
        if self.turns > TURNS_MAX {
            self.fail("the run doesn't end");
        }
        self.check_buffers(hands.buffers);
        events.append(&mut self.local);
        self.submit(hands);
        self.now_ns += 1_000 + self.random.below(self.config.turn_us * 1000);
        if self.random.chance(self.faults.empty_turn) {
            return;
        }
        let at_once = !events.is_empty() || !self.submission.is_empty() || self.woken;
        let wait = if at_once { Some(Duration::ZERO) } else { wait };
        let end_ns = wait.map(|wait| {
            let wait_ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            self.now_ns.saturating_add(wait_ns)
        });
        loop {
            self.run_due(hands, events);
            if !events.is_empty() || !self.finished.is_empty() || self.woken {
                return;
            }
            let next = self.queue.first_key_value().map(|((at_ns, ..), _)| *at_ns);
            match (next, end_ns) {
                (Some(at_ns), end) if end.is_none_or(|end| at_ns <= end) => self.now_ns = at_ns,
                (_, Some(end)) => {
                    self.now_ns = self.now_ns.max(end);
                    return;
                }
                // The test may have what it waited for. If it has not, it never will.
                (_, None) if !self.idle => {
                    self.idle = true;
                    return;
                }
                (_, None) => self.fail("the core waits for ever: nothing will happen any more"),
            }
        }
    }

    /// Lets everything happen whose time has come.
    fn run_due(&mut self, hands: &mut Hands<'_>, events: &mut Vec<Event>) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > self.now_ns {
                return;
            }
            self.idle = false;
            match entry.remove() {
                What::Step(key) => self.step(key, hands),
                What::Post(key) => self.deliver(key, hands, events),
                What::Deliver(connection, way) => self.arrived(connection, way),
                What::Reset(connection, side) => self.reset_arrived(connection, side),
                What::Arrive(connection) => self.connected(connection),
                What::Client(client) => self.client_goes_on(client),
                What::ClientRead(client) => self.client_reads(client),
                What::Job(key) => self.run_job(key),
            }
        }
    }

    /// Whether something waits to be submitted or told.
    pub(super) fn pending(&self) -> bool {
        !self.submission.is_empty() || !self.local.is_empty()
    }

    /// What is left of what a run has made, in words; empty when it was left clean.
    pub(super) fn leftovers(&self) -> String {
        let mut left = Vec::new();
        let mut say = |many: usize, what: &str| {
            if many > 0 {
                left.push(format!("{many} {what}"));
            }
        };
        say(self.open_descriptors().len(), "open descriptors");
        say(self.ops.len(), "ops in flight");
        say(self.submission.len(), "entries to submit");
        say(self.local.len(), "events to tell");
        say(self.jobs.len(), "jobs that never ran");
        say(self.finished.len(), "answers of jobs that nobody took");
        say(self.filling.len(), "filled buffers");
        left.join(", ")
    }
}

/// The result of a failed op, as a completion queue entry has it.
pub(super) fn failed(errno: Errno) -> i32 {
    -errno.raw_os_error()
}
