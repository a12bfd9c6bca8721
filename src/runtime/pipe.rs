//! Pipes to move bytes from one socket to another without a copy (splice(2)), pooled per core.
//!
//! A pipe that still holds bytes when its user lets go of it is closed and never used again: what is
//! in it belongs to one connection. When no pipe can be had the user copies instead, so nobody waits
//! for one.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};

use super::engine::Engine;
use super::executor::Core;
use super::fd::Fd;

/// Bytes that a pipe is asked to hold. An unprivileged user may have 256 such pipes, all processes
/// together (pipe(7), `pipe-user-pages-soft`).
pub const PIPE_BYTES: usize = 256 << 10;

/// A pipe that holds less than this isn't worth its two calls a round: beyond the user's limit the
/// kernel gives pipes of one or two pages.
const PIPE_BYTES_MIN: usize = 64 << 10;

/// Most pipes of one core, in use or not. At the bound there is none to be had.
pub const PIPES_MAX: usize = 64;

/// Most pipes that a core keeps while they aren't in use.
const PIPES_KEPT: usize = 16;

/// How long no pipe is asked for after the system refused one.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// How pipes are moved from and to: as much as there is now.
const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// The two ends of a pipe.
struct Ends {
    read: Fd,
    write: Fd,
    capacity: usize,
}

/// The pipes of one core.
#[derive(Default)]
pub(crate) struct PipePool {
    idle: Vec<Ends>,
    in_use: usize,
    refused_until: Option<Instant>,
    /// The configuration wants none.
    is_off: bool,
}

impl PipePool {
    /// How many pipes are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }
}

/// An empty pipe of the core's at first; dropping it gives it back, or closes it when it isn't empty.
///
/// Invariant: `held <= capacity`; `held` is what the pipe really holds.
pub struct Pipe {
    core: Core,
    /// `None` in drop alone.
    ends: Option<Ends>,
    held: usize,
}

impl Core {
    /// Whether there are pipes at all, as there are at first. Those in use stay until they are given
    /// back.
    pub fn allow_pipes(&self, allowed: bool) {
        let pool = &mut *self.inner().pipes.borrow_mut();
        pool.is_off = !allowed;
        if pool.is_off {
            pool.idle.clear();
        }
    }

    /// An empty pipe; `None` when [`PIPES_MAX`] are in use, when there are to be none, or the system
    /// gives none that is large enough, which is asked again a second later.
    pub fn take_pipe(&self) -> Option<Pipe> {
        let pool = &mut *self.inner().pipes.borrow_mut();
        let now = self.now();
        if pool.is_off {
            return None;
        }
        let ends = match pool.idle.pop() {
            Some(ends) => ends,
            None if pool.in_use >= PIPES_MAX => return None,
            None if pool.refused_until.is_some_and(|until| now < until) => return None,
            None => match self.make_pipe() {
                Ok(ends) => ends,
                Err(_) => {
                    pool.refused_until = Some(now + REFUSED_FOR);
                    return None;
                }
            },
        };
        self.with_engine(|engine| {
            if let Engine::Sim(sim) = engine {
                sim.check_pipe(&ends.read);
            }
        });
        pool.in_use += 1;
        Some(Pipe {
            core: self.clone(),
            ends: Some(ends),
            held: 0,
        })
    }

    /// Closes the pipes that nobody uses.
    pub(crate) fn close_pipes(&self) {
        let idle = std::mem::take(&mut self.inner().pipes.borrow_mut().idle);
        drop(idle);
    }

    fn make_pipe(&self) -> Result<Ends, Errno> {
        if let Some(made) = self.with_engine(|engine| match engine {
            Engine::Sim(sim) => Some(sim.make_pipe(PIPE_BYTES)),
            _ => None,
        }) {
            return made.map(|(read, write, capacity)| Ends {
                read: self.simulated(read),
                write: self.simulated(write),
                capacity,
            });
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = match fcntl_setpipe_size(&write, PIPE_BYTES) {
            Ok(bytes) => bytes,
            // Beyond the user's limit (EPERM); the default size may be enough.
            Err(_) => fcntl_getpipe_size(&write)?,
        };
        if capacity < PIPE_BYTES_MIN {
            return Err(Errno::PERM);
        }
        Ok(Ends {
            read: self.own(read),
            write: self.own(write),
            capacity,
        })
    }
}

impl Pipe {
    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    fn ends(&self) -> &Ends {
        self.ends
            .as_ref()
            .expect("the ends are taken by drop alone")
    }

    /// Moves up to `most` bytes, as many as are there and find room, from a socket into the pipe. 0 is
    /// the end of the stream.
    ///
    /// # Errors
    /// `EAGAIN` when nothing is there, or when the pipe is full, which may be long before it holds its
    /// number of bytes: small pieces need a page each. So what it holds is to be moved on first.
    /// `EINVAL` when the socket can't be spliced from; others mean that the source is broken.
    pub fn fill(&mut self, from: &Fd, most: usize) -> Result<usize, Errno> {
        let ends = self.ends();
        let most = most.min(ends.capacity - self.held);
        if most == 0 {
            return Err(Errno::AGAIN);
        }
        let moved = match (from.os(), ends.write.os()) {
            (Some(from), Some(to)) => splice(from, None, to, None, most, FLAGS)?,
            _ => self.core.with_engine(|engine| match engine {
                Engine::Sim(sim) => sim.splice_in(from, &ends.write, most),
                _ => Err(Errno::BADF),
            })?,
        };
        self.held += moved;
        Ok(moved)
    }

    /// Moves up to `most` bytes, as many as it takes, from the pipe into a socket.
    ///
    /// # Errors
    /// `EAGAIN` when the socket takes nothing now, or the pipe is empty; others mean that the sink is
    /// broken.
    pub fn drain(&mut self, to: &Fd, most: usize) -> Result<usize, Errno> {
        let ends = self.ends();
        let most = most.min(self.held);
        if most == 0 {
            return Err(Errno::AGAIN);
        }
        let moved = match (ends.read.os(), to.os()) {
            (Some(from), Some(to)) => splice(from, None, to, None, most, FLAGS)?,
            _ => self.core.with_engine(|engine| match engine {
                Engine::Sim(sim) => sim.splice_out(&ends.read, to, most),
                _ => Err(Errno::BADF),
            })?,
        };
        self.held -= moved;
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let pool = &mut *self.core.inner().pipes.borrow_mut();
        pool.in_use -= 1;
        if let Some(ends) = self.ends.take()
            && self.held == 0
            && !pool.is_off
            && pool.idle.len() < PIPES_KEPT
        {
            pool.idle.push(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::runtime::engine::caps::{EngineChoice, Selection};
    use crate::runtime::mailbox::Wake;

    fn core() -> Core {
        let selection = Selection::choose(EngineChoice::Epoll).unwrap();
        selection.core(Wake::new().unwrap(), None).unwrap()
    }

    /// A socket of the core's, and its peer.
    fn socket(core: &Core) -> (Fd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (core.own(OwnedFd::from(ours)), theirs)
    }

    fn idle(core: &Core) -> usize {
        core.inner().pipes.borrow().idle.len()
    }

    #[test]
    fn a_pipe_moves_bytes_and_an_empty_one_is_used_again() {
        let core = core();
        let ((from, mut source), (to, mut sink)) = (socket(&core), socket(&core));
        let mut pipe = core.take_pipe().unwrap();
        assert_eq!(pipe.fill(&from, 100), Err(Errno::AGAIN));
        assert_eq!(pipe.drain(&to, 100), Err(Errno::AGAIN));
        source.write_all(b"hello, world").unwrap();
        assert_eq!(pipe.fill(&from, 5), Ok(5));
        assert_eq!((pipe.drain(&to, 2), pipe.held()), (Ok(2), 3));
        assert_eq!((pipe.drain(&to, 9), pipe.held()), (Ok(3), 0));
        let mut got = [0; 5];
        sink.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        let first = pipe.ends().read.raw();
        drop(pipe);
        let pipe = core.take_pipe().unwrap();
        assert_eq!(pipe.ends().read.raw(), first);
        assert_eq!(core.usage().pipes, 1);
        drop((pipe, from, to));
        assert!(core.shut_down());
        assert_eq!((core.usage().pipes, idle(&core)), (0, 0));
    }

    #[test]
    fn there_are_none_where_none_are_wanted() {
        let core = core();
        let (in_use, kept) = (core.take_pipe().unwrap(), core.take_pipe().unwrap());
        drop(kept);
        core.allow_pipes(false);
        assert_eq!(idle(&core), 0);
        assert!(core.take_pipe().is_none());
        drop(in_use);
        assert_eq!((core.usage().pipes, idle(&core)), (0, 0));
        core.allow_pipes(true);
        assert!(core.take_pipe().is_some());
        assert!(core.shut_down());
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_closed() {
        let core = core();
        let (from, mut source) = socket(&core);
        source.write_all(b"for one connection alone").unwrap();
        let mut pipe = core.take_pipe().unwrap();
        assert!(pipe.fill(&from, 100).is_ok());
        drop(pipe);
        assert_eq!((core.usage().pipes, idle(&core)), (0, 0));
        drop(from);
        assert!(core.shut_down());
    }

    #[test]
    fn the_number_of_pipes_is_bounded_and_few_are_kept() {
        let core = core();
        let pipes: Vec<_> = std::iter::from_fn(|| core.take_pipe()).collect();
        // The system may give fewer, when other processes of this user have many.
        assert!(!pipes.is_empty() && pipes.len() <= PIPES_MAX);
        let many = pipes.len();
        drop(pipes);
        assert_eq!(idle(&core), many.min(PIPES_KEPT));
        assert!(core.shut_down());
    }
}
