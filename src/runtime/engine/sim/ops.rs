//! Ops of the simulated kernel: how each starts, makes progress, and ends when it is cancelled.

use std::collections::VecDeque;
use std::convert::Infallible;

use rustix::io::Errno;

use super::faults::checksum;
use super::kernel::{Command, Hands, Kernel, Object, failed};
use super::net::Way;
use crate::runtime::buf::BUFFER_SIZE;
use crate::runtime::engine::Event;
use crate::runtime::op::{Interest, Op};
use crate::runtime::slot::{SlotKey, Waits};

/// What a received buffer holds beyond what was received.
const POISON: u8 = 0xdb;

/// What offsets, sizes and addresses of a read from the disk itself are multiples of.
pub(super) const DIRECT_ALIGN: usize = 512;

/// Longest delay of a late notification.
const NOTIFIED_MAX_NS: u64 = 400_000_000;

/// Which op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Accept,
    AcceptOne,
    Connect,
    Receive,
    Send,
    Readable,
    Writable,
    Open,
    Read,
    ReadFixed,
    SendZeroCopy,
    /// A zero-copy send that was taken: the bytes are still on their way out of its memory.
    Notify,
    WillNeed,
}

/// Memory that the kernel uses until the terminal completion.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Memory {
    address: usize,
    len: usize,
    /// Of what is sent; 0 for memory that is written to.
    checksum: u64,
}

/// An op that the kernel knows.
pub(super) struct InFlight {
    pub(super) kind: Kind,
    /// The descriptor it refers to; none for an open relative to the working directory.
    pub(super) fd: Option<u32>,
    memory: Option<Memory>,
    /// It was taken from the submission queue.
    submitted: bool,
    /// A step is in the queue of what will happen.
    scheduled: bool,
    /// The terminal completion was posted.
    pub(super) terminal: bool,
    pub(super) posted: VecDeque<Event>,
    /// When the last posted completion is seen.
    pub(super) seen_ns: u64,
}

fn kind_of(op: &Op) -> (Kind, Option<u32>) {
    let number = |fd: &crate::runtime::fd::Fd| Some(fd.raw() as u32);
    match op {
        Op::Accept {
            listener,
            one: false,
        } => (Kind::Accept, number(listener)),
        Op::Accept {
            listener,
            one: true,
        } => (Kind::AcceptOne, number(listener)),
        Op::Connect { socket, .. } => (Kind::Connect, number(socket)),
        Op::Recv { socket, .. } => (Kind::Receive, number(socket)),
        Op::Send { socket, .. } => (Kind::Send, number(socket)),
        Op::Ready { fd, interest } => match interest {
            Interest::Readable => (Kind::Readable, number(fd)),
            Interest::Writable => (Kind::Writable, number(fd)),
        },
        Op::Open(request) => (Kind::Open, request.dir.as_ref().map(|fd| fd.raw() as u32)),
        Op::Read { file, .. } => (Kind::Read, number(file)),
        Op::ReadFixed { file, .. } => (Kind::ReadFixed, number(file)),
        Op::SendZeroCopy { socket, .. } => (
            Kind::SendZeroCopy,
            socket.as_ref().map(|socket| socket.raw() as u32),
        ),
        Op::WillNeed { file, .. } => (Kind::WillNeed, number(file)),
        Op::Offload(_) => (Kind::Open, None),
    }
}

fn memory_of(op: &Op) -> Option<Memory> {
    match op {
        Op::Send { data, from, .. } => Some(Memory {
            address: data.as_ptr() as usize,
            len: data.len(),
            checksum: checksum(&data[*from..]),
        }),
        Op::Read { data, .. } => Some(Memory {
            address: data.as_ptr() as usize,
            len: data.len(),
            checksum: 0,
        }),
        Op::ReadFixed { buffer, .. } => Some(Memory {
            address: buffer.address() as usize,
            len: buffer.size(),
            checksum: 0,
        }),
        Op::SendZeroCopy { bytes, range, .. } => Some(Memory {
            address: bytes.address() as usize,
            len: bytes.bytes().len(),
            checksum: checksum(&bytes.bytes()[range.0 as usize..range.1 as usize]),
        }),
        Op::Connect { address, .. } => Some(Memory {
            address: std::ptr::from_ref(&**address) as usize,
            len: address.len() as usize,
            checksum: 0,
        }),
        _ => None,
    }
}

impl Kernel {
    /// Takes an op over, whose memory must stay as it is until the terminal completion.
    pub(super) fn start(&mut self, key: SlotKey, op: &mut Op) {
        if let Op::Read { data, len, .. } = op {
            data.resize(*len, 0);
        }
        let (kind, fd) = kind_of(op);
        if let Some(number) = fd {
            self.descriptor(number);
            self.refuse_second(number, kind);
            self.descriptor(number).ops.push(key);
        }
        let in_flight = InFlight {
            kind,
            fd,
            memory: memory_of(op),
            submitted: false,
            scheduled: false,
            terminal: false,
            posted: VecDeque::new(),
            seen_ns: 0,
        };
        if self.ops.insert(key.to_bits(), in_flight).is_some() {
            self.fail("a slot is used twice");
        }
        self.note("start", key.to_bits(), kind as i64);
        self.submission.push_back(Command::Start(key));
    }

    /// Two receives or two sends at once on one socket would mix up the order of its bytes.
    pub(super) fn refuse_second(&self, number: u32, kind: Kind) {
        let sends = |kind| matches!(kind, Kind::Send | Kind::SendZeroCopy);
        if kind != Kind::Receive && !sends(kind) {
            return;
        }
        let same = |other| other == kind || (sends(kind) && sends(other));
        for key in &self.descriptors[number as usize].ops {
            let other = self.ops.get(&key.to_bits());
            if other.is_some_and(|other| same(other.kind) && !other.terminal) {
                self.fail(format_args!(
                    "a second {kind:?} on descriptor {number} while one is in flight"
                ));
            }
        }
    }

    /// An op leaves the submission queue.
    pub(super) fn started(&mut self, key: SlotKey) {
        let Some(op) = self.ops.get_mut(&key.to_bits()) else {
            self.fail("an op is submitted twice");
        };
        op.submitted = true;
        let disk = matches!(
            op.kind,
            Kind::Open | Kind::Read | Kind::ReadFixed | Kind::WillNeed
        );
        let connects = op.kind == Kind::Connect;
        let delay = if disk {
            let (slow, most) = match op.kind {
                Kind::ReadFixed => (self.faults.slow_direct, 100_000_000),
                _ => (self.faults.slow_disk, 2_000_000_000),
            };
            let more = match self.random.chance(slow) {
                true => most,
                false => 800_000,
            };
            self.random.between(20_000, more)
        } else if connects {
            // There and back.
            self.latency_ns() + self.latency_ns()
        } else {
            self.random.below(2_000)
        };
        self.schedule(key, delay);
    }

    /// Lets the op look, a little later, whether it can make progress.
    pub(super) fn schedule(&mut self, key: SlotKey, delay_ns: u64) {
        let Some(op) = self.ops.get_mut(&key.to_bits()) else {
            return;
        };
        if op.submitted && !op.scheduled && !op.terminal {
            op.scheduled = true;
            self.after(delay_ns, super::kernel::What::Step(key));
        }
    }

    /// Lets an op make progress, if it can.
    pub(super) fn step(&mut self, key: SlotKey, hands: &mut Hands<'_>) {
        let Some(op) = self.ops.get_mut(&key.to_bits()) else {
            return;
        };
        op.scheduled = false;
        if op.terminal {
            return;
        }
        let (kind, fd) = (op.kind, op.fd);
        self.check_memory(key, hands);
        match (kind, fd) {
            (Kind::Accept, Some(number)) => self.accept(key, number, false),
            (Kind::AcceptOne, Some(number)) => self.accept(key, number, true),
            (Kind::Connect, Some(number)) => self.connect(key, number, hands),
            (Kind::Receive, Some(number)) => self.receive(key, number, hands),
            (Kind::Send, Some(number)) => self.send(key, number, hands),
            (Kind::Readable, Some(number)) => self.ready(key, number, Way::Up),
            (Kind::Writable, Some(number)) => self.ready(key, number, Way::Down),
            (Kind::Read, Some(number)) => self.read(key, number, hands),
            (Kind::ReadFixed, Some(number)) => self.read_fixed(key, number, hands),
            (Kind::SendZeroCopy, Some(number)) => self.send_zero_copy(key, number, hands),
            (Kind::Notify, _) => {
                let copied = self.random.chance(self.faults.zero_copy_copied);
                self.post(key, i32::from(copied), false, None);
            }
            (Kind::WillNeed, Some(number)) => self.will_need(key, number, hands),
            (_, _) => self.open_file(key, hands),
        }
    }

    /// The slot of an op is there, and its memory is as it was at the start.
    pub(super) fn check_memory(&mut self, key: SlotKey, hands: &mut Hands<'_>) {
        if hands.slots.get_mut(key).is_none() {
            self.fail("the slot of an op in flight is gone");
        }
        let larger = hands.slots.larger(key);
        if larger.is_none() && hands.slots.waits(key).is_none() {
            self.fail("the slot of an op in flight was emptied");
        }
        let expected = self.ops.get(&key.to_bits()).map(|op| op.memory);
        // What waits for something to come has no memory.
        if expected.is_some_and(|memory| memory != larger.and_then(memory_of)) {
            self.fail("the memory of an op in flight was touched");
        }
    }

    fn accept(&mut self, key: SlotKey, number: u32, one: bool) {
        let Object::Listener { backlog } = &mut self.descriptor(number).object else {
            return self.post(key, failed(Errno::INVAL), false, None);
        };
        let Some(connection) = backlog.front().copied() else {
            return;
        };
        if self.random.chance(self.faults.no_descriptors) {
            return self.post(key, failed(Errno::MFILE), false, None);
        }
        if let Object::Listener { backlog } = &mut self.descriptor(number).object {
            backlog.pop_front();
        }
        let gone = self.connections[connection].server_reset;
        if gone && self.random.chance(0.5) {
            return self.post(key, failed(Errno::CONNABORTED), false, None);
        }
        let socket = self.open(Object::Socket(connection));
        self.connections[connection].server = Some(socket);
        let more = !one && !self.random.chance(self.faults.multishot_end);
        self.post(key, socket as i32, more, None);
        let delay = self.random.below(2_000);
        self.schedule(key, delay);
    }

    /// A plain accept(2), which takes what waits or nothing.
    pub(super) fn accept_now(&mut self, number: u32) -> Result<u32, Errno> {
        let Object::Listener { backlog } = &mut self.descriptor(number).object else {
            return Err(Errno::INVAL);
        };
        let connection = backlog.front().copied().ok_or(Errno::AGAIN)?;
        if self.random.chance(self.faults.no_descriptors) {
            return Err(Errno::MFILE);
        }
        if let Object::Listener { backlog } = &mut self.descriptor(number).object {
            backlog.pop_front();
        }
        let socket = self.open(Object::Socket(connection));
        self.connections[connection].server = Some(socket);
        Ok(socket)
    }

    fn receive(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let Object::Socket(connection) = self.descriptor(number).object else {
            return self.post(key, failed(Errno::NOTSOCK), false, None);
        };
        let of = &self.connections[connection];
        let there = of.up.incoming.len().min(BUFFER_SIZE);
        if there == 0 {
            if of.server_reset {
                self.post(key, failed(Errno::CONNRESET), false, None);
            } else if of.up.fin_arrived {
                self.post(key, 0, false, None);
            }
            return;
        }
        if self.random.chance(self.faults.no_buffers) {
            return self.post(key, failed(Errno::NOBUFS), false, None);
        }
        let mut len = there;
        if self.random.chance(self.faults.short_read) {
            len = self.random.part(there);
        }
        let incoming = &mut self.connections[connection].up.incoming;
        let received = hands.buffers.receive(|bytes| {
            bytes[len..].fill(POISON);
            for (to, byte) in bytes.iter_mut().zip(incoming.drain(..len)) {
                *to = byte;
            }
            Ok::<_, Infallible>(len)
        });
        let Some(Ok((buffer, _))) = received else {
            return self.post(key, failed(Errno::NOBUFS), false, None);
        };
        if !self.filling.insert(buffer) {
            self.fail("a receive buffer is handed out twice");
        }
        let one = matches!(hands.slots.waits(key), Some(Waits::Recv { one: true, .. }));
        let more = !one && !self.random.chance(self.faults.multishot_end);
        self.post(key, len as i32, more, Some(buffer));
        self.pump(connection, Way::Up);
        let delay = self.random.below(2_000);
        self.schedule(key, delay);
    }

    fn send(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let Some(Op::Send { data, from, .. }) = hands.slots.larger(key) else {
            self.fail("the slot of a send holds another op");
        };
        match self.take_from_server(number, &data[*from..]) {
            Ok(sent) => self.post(key, sent as i32, false, None),
            Err(Errno::AGAIN) => {}
            Err(errno) => self.post(key, failed(errno), false, None),
        }
    }

    fn ready(&mut self, key: SlotKey, number: u32, way: Way) {
        let Object::Socket(connection) = self.descriptor(number).object else {
            return self.post(key, 1, false, None);
        };
        let room = self.config.socket_bytes;
        let of = &self.connections[connection];
        let ready = match way {
            Way::Up => !of.up.incoming.is_empty() || of.up.fin_arrived,
            Way::Down => of.down.outgoing.len() < room || of.write_shut,
        };
        if ready || of.server_reset {
            self.post(key, 1, false, None);
        }
    }

    fn open_file(&mut self, key: SlotKey, hands: &mut Hands<'_>) {
        let Some(Op::Open(request)) = hands.slots.larger(key) else {
            self.fail("the slot of an open holds another op");
        };
        match self.open_path(request) {
            Ok(number) => self.post(key, number as i32, false, None),
            Err(errno) => self.post(key, failed(errno), false, None),
        }
    }

    fn read(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let Some(Op::Read { data, offset, .. }) = hands.slots.larger_mut(key) else {
            self.fail("the slot of a read holds another op");
        };
        let Object::File(inode) = self.descriptor(number).object else {
            return self.post(key, failed(Errno::ISDIR), false, None);
        };
        if self.random.chance(self.faults.io_error) {
            return self.post(key, failed(Errno::IO), false, None);
        }
        let bytes = match self.files.bytes(inode, *offset, data.len()) {
            Ok(bytes) => bytes,
            Err(errno) => return self.post(key, failed(errno), false, None),
        };
        let mut len = bytes.len();
        if len > 0 && self.random.chance(self.faults.short_read) {
            len = self.random.part(len);
        }
        data[..len].copy_from_slice(&bytes[..len]);
        self.files.set_warm(inode, *offset, data.len(), true);
        self.post(key, len as i32, false, None);
    }

    /// A read into a fixed buffer. A file that was opened with O_DIRECT is read from the disk alone, at
    /// places and in sizes that the disk has.
    fn read_fixed(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let op = hands.slots.larger_mut(key);
        let Some(Op::ReadFixed {
            buffer,
            at,
            len,
            offset,
            ..
        }) = op
        else {
            self.fail("the slot of a read holds another op");
        };
        let (inode, direct) = match self.descriptor(number).object {
            Object::File(inode) => (inode, false),
            Object::Direct(inode) => (inode, true),
            _ => return self.post(key, failed(Errno::ISDIR), false, None),
        };
        if direct {
            let all = [*offset, u64::from(*len), buffer.address() + u64::from(*at)];
            if all.iter().any(|of| !of.is_multiple_of(DIRECT_ALIGN as u64)) {
                return self.post(key, failed(Errno::INVAL), false, None);
            }
        }
        if self.random.chance(self.faults.io_error) {
            return self.post(key, failed(Errno::IO), false, None);
        }
        let bytes = match self.files.bytes(inode, *offset, *len as usize) {
            Ok(bytes) => bytes,
            Err(errno) => return self.post(key, failed(errno), false, None),
        };
        let mut read = bytes.len();
        if read > 0 && self.random.chance(self.faults.short_read) {
            read = self.random.part(read);
        }
        if let Some(memory) = buffer.memory() {
            memory.room()[*at as usize..][..read].copy_from_slice(&bytes[..read]);
        }
        if !direct {
            self.files.set_warm(inode, *offset, *len as usize, true);
        }
        self.post(key, read as i32, false, None);
    }

    /// A zero-copy send: what was taken stays where it is until the notification.
    fn send_zero_copy(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let op = hands.slots.larger(key);
        let Some(Op::SendZeroCopy { bytes, range, .. }) = op else {
            self.fail("the slot of a send holds another op");
        };
        if self.random.chance(self.faults.zero_copy_refused) {
            return self.post(key, failed(Errno::OPNOTSUPP), false, None);
        }
        let sent = &bytes.bytes()[range.0 as usize..range.1 as usize];
        let result = match self.random.chance(self.faults.would_block) {
            true => Err(Errno::AGAIN),
            false => self.take_from_server(number, sent),
        };
        let result = result.map_or_else(failed, |sent| sent as i32);
        // A send that failed has a notification, too, or none.
        let notifies = result >= 0 || self.random.chance(0.5);
        self.post(key, result, notifies, None);
        if !notifies {
            return;
        }
        self.descriptor(number).ops.retain(|of| *of != key);
        if let Some(op) = self.ops.get_mut(&key.to_bits()) {
            (op.kind, op.fd) = (Kind::Notify, None);
        }
        let mut delay = self.latency_ns();
        if self.random.chance(self.faults.late_notification) {
            delay += self.random.below(NOTIFIED_MAX_NS);
        }
        self.schedule(key, delay);
    }

    /// Advice: nothing comes of it where the disk fails.
    fn will_need(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let Some(Op::WillNeed { offset, len, .. }) = hands.slots.larger(key) else {
            self.fail("the slot of an advice holds another op");
        };
        let Object::File(inode) = self.descriptor(number).object else {
            return self.post(key, failed(Errno::SPIPE), false, None);
        };
        if !self.random.chance(self.faults.io_error) {
            self.files.set_warm(inode, *offset, *len as usize, true);
        }
        self.post(key, 0, false, None);
    }

    /// The executor wants an op to end.
    pub(super) fn cancel(&mut self, key: SlotKey) {
        self.note("cancel", key.to_bits(), 0);
        self.submission.push_back(Command::Cancel(key));
    }

    /// A cancellation leaves the submission queue. It may find the op done, just making progress, or
    /// where it can't be interrupted (a read from a disk): then the natural result comes.
    pub(super) fn cancelled(&mut self, key: SlotKey, hands: &mut Hands<'_>) {
        let known = self.ops.get(&key.to_bits()).filter(|op| !op.terminal);
        let Some(kind) = known.map(|op| op.kind) else {
            return;
        };
        if kind == Kind::Notify {
            // The op is done; nothing calls its bytes back.
            return;
        }
        let disk = matches!(
            kind,
            Kind::Open | Kind::Read | Kind::ReadFixed | Kind::WillNeed
        );
        if disk && self.random.chance(0.5) {
            return;
        }
        if !disk && self.random.chance(self.faults.cancel_race) {
            self.step(key, hands);
        }
        if self.ops.get(&key.to_bits()).is_some_and(|op| !op.terminal) {
            self.post(key, failed(Errno::CANCELED), false, None);
        }
    }
}
