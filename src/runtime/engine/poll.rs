//! The epoll engine: readiness made into completions.
//!
//! Each connection is registered once, edge-triggered, for both directions. An op tries its system
//! call first and waits for an edge only after `EAGAIN`; so a request costs one receive and one send.
//! Listening sockets are level-triggered and exclusive, and registered only while an accept is armed.

mod calls;

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFlags, epoll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use slab::Slab;
use socket2::SockAddr;

use self::calls::{as_result, connected, is_ready, send_now};
use super::{Event, offload};
use crate::runtime::buf::{BUFFER_SIZE, BufPool};
use crate::runtime::fd::{Closing, Fd, Handle, UNREGISTERED};
use crate::runtime::mailbox::Wake;
use crate::runtime::op::{Interest, Job, Op};
use crate::runtime::slot::{SlotKey, SlotTable, Waits};
use crate::runtime::sys;

/// Connections accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Readiness events taken from the kernel in one turn.
const READY_PER_TURN: usize = 1024;

/// Turns in a row that may do without asking the kernel because results are at hand.
const TURNS_WITHOUT_WAIT: u32 = 4;

/// Longest wait at one go; the next turn waits on. A kernel before 5.11 counts it in 31 bits of ms.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The registration of the wake eventfd.
const WAKE: u64 = u64::MAX;

/// One descriptor in the interest list.
///
/// `readable` and `writable` are what is known: cleared by `EAGAIN` or a short transfer, set by an edge.
struct Registration {
    generation: u32,
    listening: bool,
    readable: bool,
    writable: bool,
    /// The peer has ended or broken the connection: a short receive is not the end of the story.
    hung_up: bool,
    reader: Option<SlotKey>,
    writer: Option<SlotKey>,
    /// In the list of those to try without a further edge.
    listed: bool,
}

/// epoll for one core.
pub(crate) struct Poll {
    epoll: OwnedFd,
    registrations: Slab<Registration>,
    generation: u32,
    /// Registrations with an armed reader that is known to be readable.
    again: Vec<u32>,
    trying: Vec<u32>,
    ready: Vec<epoll::Event>,
    turns_without_wait: u32,
    pub(crate) local: Vec<Event>,
    pub(crate) woken: bool,
}

impl Poll {
    /// An epoll instance that watches the wake eventfd.
    ///
    /// # Errors
    /// What `epoll_create1(2)` or `epoll_ctl(2)` answers.
    pub(crate) fn new(wake: &Arc<Wake>) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(
            &epoll,
            wake.fd(),
            data,
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            registrations: Slab::new(),
            generation: 0,
            again: Vec::new(),
            trying: Vec::new(),
            ready: Vec::with_capacity(READY_PER_TURN),
            turns_without_wait: 0,
            local: Vec::new(),
            woken: false,
        })
    }

    fn data(index: u32, generation: u32) -> epoll::EventData {
        epoll::EventData::new_u64(u64::from(generation) << 32 | u64::from(index))
    }

    /// Registers the descriptor unless it is; gives its index.
    fn register(&mut self, fd: &Fd, listening: bool) -> Result<u32, Errno> {
        if fd.registration() != UNREGISTERED {
            return Ok(fd.registration());
        }
        self.generation = self.generation.wrapping_add(1) & (u32::MAX >> 1);
        let registration = Registration {
            generation: self.generation,
            listening,
            readable: false,
            writable: true,
            hung_up: false,
            reader: None,
            writer: None,
            listed: false,
        };
        let index = self.registrations.insert(registration) as u32;
        if !listening {
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            if let Err(errno) = self.add(index, fd, flags) {
                self.registrations.remove(index as usize);
                return Err(errno);
            }
        }
        fd.set_registration(index);
        Ok(index)
    }

    fn add(&self, index: u32, fd: &Fd, flags: epoll::EventFlags) -> Result<(), Errno> {
        let os = fd.os().ok_or(Errno::BADF)?;
        let generation = self
            .registrations
            .get(index as usize)
            .map_or(0, |r| r.generation);
        epoll::add(&self.epoll, os, Self::data(index, generation), flags)
    }

    /// Starts an op. Gives the job of one that has to run on a helper thread.
    pub(crate) fn start(&mut self, key: SlotKey, op: &mut Op, _: &Rc<BufPool>) -> Option<Job> {
        let started = match op {
            Op::Accept { listener, .. } => self.start_accept(key, listener),
            Op::Connect { socket, address } => self.start_connect(key, socket, address),
            Op::Recv { socket, .. } => self.start_reader(key, socket),
            Op::Send {
                socket,
                data,
                from,
                more,
            } => self.start_send(key, socket, &data[*from..], *more),
            Op::Ready {
                fd,
                interest: Interest::Readable,
            } => self.start_ready(key, fd),
            Op::Ready {
                fd,
                interest: Interest::Writable,
            } => self.start_writer(key, fd),
            // MSG_ZEROCOPY tells its end by the socket's error queue, which every other wait on the
            // socket would take for an error.
            Op::SendZeroCopy { .. } => Err(Errno::OPNOTSUPP),
            Op::Open(_)
            | Op::Read { .. }
            | Op::ReadFixed { .. }
            | Op::WillNeed { .. }
            | Op::Offload(_) => {
                return offload::job(op);
            }
        };
        if let Err(errno) = started {
            self.end(key, -errno.raw_os_error());
        }
        None
    }

    fn end(&mut self, key: SlotKey, result: i32) {
        self.local.push(Event::ended(key, result));
    }

    fn start_accept(&mut self, key: SlotKey, listener: &Fd) -> Result<(), Errno> {
        let index = self.register(listener, true)?;
        self.add(
            index,
            listener,
            epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE,
        )?;
        self.registrations[index as usize].reader = Some(key);
        Ok(())
    }

    fn start_reader(&mut self, key: SlotKey, fd: &Fd) -> Result<(), Errno> {
        let index = self.register(fd, false)?;
        let registration = &mut self.registrations[index as usize];
        if registration.reader.is_some() {
            return Err(Errno::BUSY);
        }
        registration.reader = Some(key);
        self.try_again(index);
        Ok(())
    }

    /// Waits until a descriptor is readable, whose bytes are taken by calls that this engine doesn't
    /// watch (splice), so what it knows may be old: asks for the level once, then waits for an edge.
    fn start_ready(&mut self, key: SlotKey, fd: &Fd) -> Result<(), Errno> {
        let index = self.register(fd, false)?;
        let os = fd.os().ok_or(Errno::BADF)?;
        let registration = &mut self.registrations[index as usize];
        if registration.reader.is_some() {
            return Err(Errno::BUSY);
        }
        registration.readable = is_ready(os, PollFlags::IN | PollFlags::RDHUP);
        if registration.readable {
            self.end(key, 1);
        } else {
            registration.reader = Some(key);
        }
        Ok(())
    }

    /// Puts a registration that is known to be readable, and has a reader, on the list.
    fn try_again(&mut self, index: u32) {
        let registration = &mut self.registrations[index as usize];
        let known = registration.readable && registration.reader.is_some();
        if known && !std::mem::replace(&mut registration.listed, true) {
            self.again.push(index);
        }
    }

    fn start_writer(&mut self, key: SlotKey, fd: &Fd) -> Result<(), Errno> {
        let index = self.register(fd, false)?;
        let os = fd.os().ok_or(Errno::BADF)?;
        // The caller has just seen EAGAIN on a path that this engine doesn't watch (sendfile), so the
        // edge may be gone already: ask for the level once, then wait for an edge.
        let registration = &mut self.registrations[index as usize];
        if registration.writer.is_some() {
            return Err(Errno::BUSY);
        }
        if is_ready(os, PollFlags::OUT) {
            self.end(key, 1);
        } else {
            registration.writable = false;
            registration.writer = Some(key);
        }
        Ok(())
    }

    fn start_connect(
        &mut self,
        key: SlotKey,
        socket: &Fd,
        address: &SockAddr,
    ) -> Result<(), Errno> {
        let os = socket.os().ok_or(Errno::BADF)?;
        match sys::connect(os, address) {
            Ok(()) => {
                self.end(key, 0);
                Ok(())
            }
            Err(Errno::INPROGRESS) => {
                // Registered after the call: a socket that is neither connected nor connecting is
                // reported as hung up (tcp_poll in the kernel).
                let index = self.register(socket, false)?;
                let registration = &mut self.registrations[index as usize];
                if registration.writer.is_some() {
                    return Err(Errno::BUSY);
                }
                registration.writable = false;
                registration.writer = Some(key);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    fn start_send(
        &mut self,
        key: SlotKey,
        socket: &Fd,
        bytes: &[u8],
        more: bool,
    ) -> Result<(), Errno> {
        let os = socket.os().ok_or(Errno::BADF)?;
        match send_now(os, bytes, more) {
            Err(Errno::AGAIN) => {
                let index = self.register(socket, false)?;
                let registration = &mut self.registrations[index as usize];
                if registration.writer.is_some() {
                    return Err(Errno::BUSY);
                }
                registration.writable = false;
                registration.writer = Some(key);
                Ok(())
            }
            result => {
                self.end(key, as_result(result));
                Ok(())
            }
        }
    }

    pub(crate) fn cancel(&mut self, key: SlotKey, op: &Op) {
        let fd = match op {
            Op::Accept { listener: fd, .. } | Op::Recv { socket: fd, .. } => fd,
            Op::Send { socket: fd, .. } | Op::Ready { fd, .. } => fd,
            Op::Connect { socket: fd, .. } => fd,
            // A helper's job can't be called back; its slot waits for the answer.
            Op::Open(_)
            | Op::Read { .. }
            | Op::ReadFixed { .. }
            | Op::WillNeed { .. }
            | Op::Offload(_) => return,
            // It has ended with its start.
            Op::SendZeroCopy { .. } => return,
        };
        let Some(registration) = self.registrations.get_mut(fd.registration() as usize) else {
            return;
        };
        if registration.reader == Some(key) {
            registration.reader = None;
            if registration.listening
                && let Some(os) = fd.os()
            {
                let _ = epoll::delete(&self.epoll, os);
            }
        } else if registration.writer == Some(key) {
            registration.writer = None;
        } else {
            // Its terminal event is on the way already.
            return;
        }
        self.end(key, -Errno::CANCELED.raw_os_error());
    }

    pub(crate) fn close(&mut self, closing: Closing) {
        if closing.registration != UNREGISTERED {
            let registration = self.registrations.remove(closing.registration as usize);
            debug_assert!(registration.reader.is_none() && registration.writer.is_none());
            if let (Handle::Shared(fd), false) = (&closing.handle, registration.listening) {
                let _ = epoll::delete(&self.epoll, fd.as_fd());
            }
        }
        // Closing the last reference takes it out of the interest list (epoll(7)).
        drop(closing.handle);
    }

    pub(crate) fn turn(
        &mut self,
        wait: Option<Duration>,
        slots: &SlotTable,
        buffers: &Rc<BufPool>,
        events: &mut Vec<Event>,
    ) -> Result<(), Errno> {
        let at_hand = !self.local.is_empty() || !self.again.is_empty();
        self.turns_without_wait = if at_hand {
            self.turns_without_wait + 1
        } else {
            0
        };
        if !at_hand || self.turns_without_wait > TURNS_WITHOUT_WAIT {
            self.turns_without_wait = 0;
            self.wait(if at_hand { Some(Duration::ZERO) } else { wait }, slots)?;
        }
        self.serve_readers(slots, buffers);
        events.append(&mut self.local);
        Ok(())
    }

    fn wait(&mut self, wait: Option<Duration>, slots: &SlotTable) -> Result<(), Errno> {
        let until = wait.map(|wait| wait.min(WAIT_MAX)).map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let room = rustix::buffer::spare_capacity(&mut ready);
        match epoll::wait(&self.epoll, room, until.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        for event in &ready {
            let (data, flags) = (event.data, event.flags);
            self.note(data.u64(), flags, slots);
        }
        self.ready = ready;
        Ok(())
    }

    /// Takes note of an edge, or of a listener that is readable.
    fn note(&mut self, data: u64, flags: epoll::EventFlags, slots: &SlotTable) {
        if data == WAKE {
            self.woken = true;
            return;
        }
        let (index, generation) = (data as u32, (data >> 32) as u32);
        let Some(registration) = self.registrations.get_mut(index as usize) else {
            return;
        };
        if registration.generation != generation {
            return;
        }
        let broken = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::RDHUP | broken) {
            registration.hung_up = true;
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | broken) {
            registration.readable = true;
            self.try_again(index);
        }
        let registration = &mut self.registrations[index as usize];
        if flags.intersects(epoll::EventFlags::OUT | broken) {
            registration.writable = true;
            if let Some(key) = registration.writer.take() {
                self.serve_writer(index, key, slots);
            }
        }
    }

    fn serve_writer(&mut self, index: u32, key: SlotKey, slots: &SlotTable) {
        let result = match slots.larger(key) {
            Some(Op::Send {
                socket,
                data,
                from,
                more,
            }) => match socket.os() {
                Some(os) => send_now(os, &data[*from..], *more),
                None => Err(Errno::BADF),
            },
            Some(Op::Connect { socket, .. }) => match socket.os() {
                Some(os) => connected(os),
                None => Err(Errno::BADF),
            },
            _ => Ok(1),
        };
        if result == Err(Errno::AGAIN) {
            let registration = &mut self.registrations[index as usize];
            registration.writable = false;
            registration.writer = Some(key);
        } else {
            self.end(key, as_result(result));
        }
    }

    /// Receives and accepts where that is known to be possible, once each.
    fn serve_readers(&mut self, slots: &SlotTable, buffers: &Rc<BufPool>) {
        let mut trying = std::mem::take(&mut self.trying);
        std::mem::swap(&mut trying, &mut self.again);
        for index in trying.drain(..) {
            let Some(registration) = self.registrations.get_mut(index as usize) else {
                continue;
            };
            registration.listed = false;
            let Some(key) = registration.reader else {
                continue;
            };
            match slots.waits(key) {
                Some(Waits::Accept { listener, one }) => self.accept(index, key, listener, one),
                Some(Waits::Recv { socket, one }) => {
                    self.receive(index, key, (socket, one), buffers);
                }
                None => {}
                Some(Waits::Ready) => {
                    self.registrations[index as usize].reader = None;
                    self.end(key, 1);
                }
            }
        }
        self.trying = trying;
    }

    fn accept(&mut self, index: u32, key: SlotKey, listener: &Fd, one: bool) {
        let Some(os) = listener.os() else {
            return;
        };
        // Level-triggered: what is left in the queue is reported again.
        self.registrations[index as usize].readable = false;
        for _ in 0..ACCEPTS_PER_TURN {
            match accept_with(os, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let result = socket.into_raw_fd();
                    self.local.push(Event {
                        key,
                        result,
                        more: !one,
                        buffer: None,
                    });
                    if one {
                        self.registrations[index as usize].reader = None;
                        let _ = epoll::delete(&self.epoll, os);
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                // The client left before it was accepted (accept(2)); the next may be there.
                Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                Err(errno) => {
                    self.registrations[index as usize].reader = None;
                    let _ = epoll::delete(&self.epoll, os);
                    self.end(key, -errno.raw_os_error());
                    return;
                }
            }
        }
    }

    fn receive(
        &mut self,
        index: u32,
        key: SlotKey,
        (socket, one): (&Fd, bool),
        buffers: &Rc<BufPool>,
    ) {
        let Some(os) = socket.os() else {
            return;
        };
        let received = buffers.receive(|bytes| recv(os, bytes, RecvFlags::empty()).map(|(n, _)| n));
        let registration = &mut self.registrations[index as usize];
        match received {
            Some(Ok((id, len))) if len > 0 => {
                // A short receive has emptied the socket; what comes later is a new edge. Only an end
                // of stream that was reported together with these bytes has had its edge already.
                if len < BUFFER_SIZE && !registration.hung_up {
                    registration.readable = false;
                }
                if one {
                    registration.reader = None;
                }
                self.try_again(index);
                let result = len as i32;
                self.local.push(Event {
                    key,
                    result,
                    more: !one,
                    buffer: Some(id),
                });
            }
            Some(Err(Errno::AGAIN)) => registration.readable = false,
            Some(Err(Errno::INTR)) => self.try_again(index),
            None => {
                registration.reader = None;
                self.end(key, -Errno::NOBUFS.raw_os_error());
            }
            Some(ended) => {
                registration.reader = None;
                self.end(key, as_result(ended.map(|_| 0)));
            }
        }
    }
}
