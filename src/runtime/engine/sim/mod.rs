//! The simulated engine, for tests only: one core, its kernel, its clients and its files, in virtual
//! time and from one seed, with everything going wrong that may.
//!
//! The same seed gives the same run. It is a detector: a descriptor used after its close or closed
//! twice, memory touched under an op in flight, a buffer handed out twice, a completion for nobody,
//! or a core that would wait for ever end the run with the seed and the last of what happened; and
//! [`World::finish`] checks that nothing is left.

mod backend;
mod faults;
mod files;
mod kernel;
mod net;
mod ops;
mod pipe;
mod script;
#[cfg(test)]
mod tests;
mod world;

use std::any::Any;
use std::cell::RefCell;
use std::ffi::CStr;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

pub use backend::{Answer, Script};
pub use faults::{Faults, Random};
pub use world::{Act, ClientId, End, Enough, ListenerId, Pace, Seen, Talk, World};

use self::kernel::{Hands, Kernel, Object};
use super::syscall::FileStat;
use super::{Engine, Event};
use crate::runtime::buf::BufPool;
use crate::runtime::executor::Core;
use crate::runtime::fd::{Closing, Fd, Handle};
use crate::runtime::mailbox::Wake;
use crate::runtime::op::{Job, Op, OpenRequest};
use crate::runtime::slot::{SlotKey, SlotTable};

/// The sizes and speeds of a simulated machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Receive buffers of the core; a power of two.
    pub buffers: u16,
    /// Bytes that each of a socket's buffers holds, at least 1.
    pub socket_bytes: usize,
    /// Least and most time that a packet needs, in µs.
    pub latency_us: (u64, u64),
    /// Most time that a turn of the core needs, in µs, at least 1.
    pub turn_us: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            buffers: 64,
            socket_bytes: 64 << 10,
            latency_us: (20, 200),
            turn_us: 20,
        }
    }
}

impl Config {
    /// A machine as the seed decides, from one with very little of everything to a common one.
    pub fn seeded(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x006d_6163_6869_6e65);
        let least = random.below(200);
        Self {
            buffers: 1 << random.between(1, 7),
            socket_bytes: 1 << random.between(6, 17),
            latency_us: (least, least + random.below(5_000)),
            turn_us: random.between(1, 500),
        }
    }
}

/// A core on a simulated machine, and the world around it.
///
/// # Panics
/// When the system gives no eventfd for the core's wake.
pub fn new(seed: u64, faults: Faults, config: Config) -> (Core, World) {
    let buffers = BufPool::software(config.buffers);
    let kernel = Rc::new(RefCell::new(Kernel::new(seed, faults, config)));
    let engine = Engine::Sim(Sim {
        kernel: Rc::clone(&kernel),
    });
    let wake = Wake::new().expect("a test can have an eventfd");
    let core = Core::new(engine, buffers, wake, None);
    let world = World::new(kernel, core.clone());
    (core, world)
}

/// The engine's side of a simulated kernel.
pub struct Sim {
    kernel: Rc<RefCell<Kernel>>,
}

fn number(fd: &Fd) -> u32 {
    fd.raw() as u32
}

impl Sim {
    pub(crate) fn start(&mut self, key: SlotKey, op: &mut Op) {
        self.kernel.borrow_mut().start(key, op);
    }

    pub(crate) fn cancel(&mut self, key: SlotKey, op: &Op) {
        // A helper's job can't be called back; its slot waits for the answer.
        if !matches!(op, Op::Offload(_)) {
            self.kernel.borrow_mut().cancel(key);
        }
    }

    pub(crate) fn refuse(&mut self, event: Event) {
        self.kernel.borrow_mut().local.push(event);
    }

    pub(crate) fn close(&mut self, closing: Closing) {
        match closing.handle {
            Handle::Sim(number) => self.kernel.borrow_mut().close(number),
            // A test's own real descriptor: dropping it closes it.
            Handle::Os(_) | Handle::Shared(_) => {}
        }
    }

    pub(crate) fn turn(
        &mut self,
        wait: Option<Duration>,
        slots: &mut SlotTable,
        buffers: &Rc<BufPool>,
        events: &mut Vec<Event>,
    ) -> Result<(), Errno> {
        let mut hands = Hands { slots, buffers };
        self.kernel.borrow_mut().turn(wait, &mut hands, events);
        Ok(())
    }

    pub(crate) fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.kernel.borrow_mut().woken)
    }

    pub(crate) fn pending(&self) -> bool {
        self.kernel.borrow().pending()
    }

    pub(crate) fn now(&self) -> Instant {
        self.kernel.borrow().now()
    }

    pub(crate) fn offload(&mut self, key: SlotKey, job: Job) {
        self.kernel.borrow_mut().offload(key, job);
    }

    pub(crate) fn finished_job(&mut self) -> Option<(SlotKey, Option<Box<dyn Any + Send>>)> {
        self.kernel.borrow_mut().finished_job()
    }

    pub(crate) fn accept_now(&mut self, listener: &Fd) -> Result<u32, Errno> {
        self.kernel.borrow_mut().accept_now(number(listener))
    }

    pub(crate) fn socket(&mut self) -> Result<u32, Errno> {
        self.kernel.borrow_mut().socket()
    }

    pub(crate) fn make_pipe(&mut self, bytes: usize) -> Result<(u32, u32, usize), Errno> {
        self.kernel.borrow_mut().make_pipe(bytes)
    }

    pub(crate) fn check_pipe(&mut self, end: &Fd) {
        self.kernel.borrow_mut().check_pipe(number(end));
    }

    pub(crate) fn receive_now(&mut self, socket: &Fd, into: &mut [u8]) -> Result<usize, Errno> {
        let received = (self.kernel.borrow_mut()).receive_now(number(socket), into.len())?;
        into[..received.len()].copy_from_slice(&received);
        Ok(received.len())
    }

    pub(crate) fn splice_in(&mut self, from: &Fd, pipe: &Fd, most: usize) -> Result<usize, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.splice_in(number(from), number(pipe), most)
    }

    pub(crate) fn splice_out(&mut self, pipe: &Fd, to: &Fd, most: usize) -> Result<usize, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.splice_out(number(pipe), number(to), most)
    }

    pub(crate) fn send_now(&mut self, socket: &Fd, bytes: &[u8]) -> Result<usize, Errno> {
        self.kernel.borrow_mut().send_now(number(socket), bytes)
    }

    pub(crate) fn send_file(
        &mut self,
        socket: &Fd,
        file: &Fd,
        offset: &mut u64,
        count: usize,
    ) -> Result<usize, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        let inode = kernel.inode_of(number(file))?;
        let bytes = kernel.files.bytes(inode, *offset, count)?.to_vec();
        if bytes.is_empty() {
            return Ok(0);
        }
        let sent = kernel.send_now(number(socket), &bytes)?;
        if kernel.files.resident(inode, *offset, sent) < sent {
            kernel.blocked += 1;
        }
        kernel.files.set_warm(inode, *offset, sent, true);
        *offset += sent as u64;
        Ok(sent)
    }

    pub(crate) fn read_resident(
        &mut self,
        file: &Fd,
        into: &mut [u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        let inode = kernel.inode_of(number(file))?;
        if kernel.random.chance(kernel.faults.cold) {
            kernel.files.set_warm(inode, offset, into.len(), false);
        }
        let there = kernel.files.bytes(inode, offset, into.len())?.len();
        let len = kernel.files.resident(inode, offset, into.len());
        if there > 0 && len == 0 {
            return Err(Errno::AGAIN);
        }
        into[..len].copy_from_slice(kernel.files.bytes(inode, offset, len)?);
        Ok(len)
    }

    /// What O_DIRECT asks of offsets and addresses of this file.
    pub(crate) fn direct_alignment(&mut self, file: &Fd) -> Result<usize, Errno> {
        match self.kernel.borrow_mut().descriptor(number(file)).object {
            Object::Direct(_) => Ok(ops::DIRECT_ALIGN),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    pub(crate) fn stat(&mut self, fd: &Fd) -> Result<FileStat, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        let inode = match &kernel.descriptor(number(fd)).object {
            Object::File(inode) | Object::Direct(inode) => *inode,
            Object::Directory(path) => {
                let path = path.clone();
                kernel.files.inode_of(&path)?
            }
            _ => return Err(Errno::INVAL),
        };
        Ok(kernel.files.stat(inode))
    }

    pub(crate) fn stat_at(&mut self, dir: &Fd, path: &CStr) -> Result<FileStat, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        let from = kernel.directory_of(Some(dir))?;
        let path = (kernel.files).resolve(&from, path.to_bytes(), ResolveFlags::empty())?;
        let inode = kernel.files.inode_of(&path)?;
        Ok(kernel.files.stat(inode))
    }

    pub(crate) fn open(&mut self, request: &OpenRequest) -> Result<u32, Errno> {
        let kernel = &mut *self.kernel.borrow_mut();
        let from = kernel.directory_of(request.dir.as_ref())?;
        let path = request.path.to_bytes();
        let path = kernel.files.resolve(&from, path, request.resolve)?;
        if !kernel.files.is_cached(&path) || kernel.random.chance(kernel.faults.cold) {
            return Err(Errno::AGAIN);
        }
        kernel.open_path(request)
    }

    pub(crate) fn shut_down_write(&mut self, socket: &Fd) -> Result<(), Errno> {
        self.kernel.borrow_mut().shut_down_write(number(socket))
    }

    pub(crate) fn reset_on_close(&mut self, socket: &Fd) -> Result<(), Errno> {
        self.kernel.borrow_mut().reset_on_close(number(socket))
    }

    pub(crate) fn unsent(&mut self, socket: &Fd) -> Option<u64> {
        self.kernel.borrow_mut().unsent(number(socket))
    }

    /// The address of a client: one of those for documentation (RFC 5737), the port by its number.
    pub(crate) fn peer(&mut self, socket: &Fd) -> Option<SocketAddrV4> {
        let kernel = &mut *self.kernel.borrow_mut();
        let Object::Socket(connection) = kernel.descriptor(number(socket)).object else {
            return None;
        };
        let port = 1024 + (kernel.connections[connection].client % 60_000) as u16;
        Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), port))
    }
}

impl Kernel {
    fn inode_of(&mut self, number: u32) -> Result<usize, Errno> {
        match self.descriptor(number).object {
            Object::File(inode) => Ok(inode),
            Object::Directory(_) => Err(Errno::ISDIR),
            _ => Err(Errno::SPIPE),
        }
    }

    fn directory_of(&mut self, dir: Option<&Fd>) -> Result<Vec<u8>, Errno> {
        let Some(dir) = dir else {
            return Ok(Vec::new());
        };
        match &self.descriptor(number(dir)).object {
            Object::Directory(path) => Ok(path.clone()),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Opens a file that is open once more (proc(5), /proc/self/fd), to be read from the disk itself.
    fn open_again(&mut self, number: u32) -> Result<u32, Errno> {
        if !self.open_descriptors().contains(&number) {
            return Err(Errno::NOENT);
        }
        let inode = self.inode_of(number)?;
        if self.random.chance(self.faults.no_direct) {
            return Err(Errno::INVAL);
        }
        Ok(self.open(Object::Direct(inode)))
    }

    /// Opens a file or a directory for reading.
    fn open_path(&mut self, request: &OpenRequest) -> Result<u32, Errno> {
        if let Some(number) = request.path.to_bytes().strip_prefix(b"/proc/self/fd/") {
            let number = std::str::from_utf8(number)
                .ok()
                .and_then(|it| it.parse().ok());
            return self.open_again(number.ok_or(Errno::NOENT)?);
        }
        let from = self.directory_of(request.dir.as_ref())?;
        let path = (self.files).resolve(&from, request.path.to_bytes(), request.resolve)?;
        if self.random.chance(self.faults.no_descriptors) {
            return Err(Errno::MFILE);
        }
        let flags: OFlags = request.flags;
        let (inode, directory) = self.files.open(&path, flags)?;
        Ok(self.open(if directory {
            Object::Directory(path)
        } else {
            Object::File(inode)
        }))
    }
}
