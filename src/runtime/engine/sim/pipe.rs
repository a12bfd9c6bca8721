//! Simulated pipes, and the plain calls that take bytes from a socket.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::kernel::{Kernel, Object};
use super::net::Way;
use super::ops::Kind;

/// A pipe between two descriptors.
pub(super) struct PipeBytes {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Kernel {
    /// A pipe of about `bytes` bytes: its two ends, and what it really holds.
    pub(super) fn make_pipe(&mut self, bytes: usize) -> Result<(u32, u32, usize), Errno> {
        if self.random.chance(self.faults.no_pipe) {
            return Err(Errno::MFILE);
        }
        let capacity = bytes.min(self.config.socket_bytes.max(1));
        let index = self.pipes.len();
        self.pipes.push(PipeBytes {
            bytes: VecDeque::new(),
            capacity,
        });
        let read = self.open(Object::Pipe(index));
        let write = self.open(Object::Pipe(index));
        Ok((read, write, capacity))
    }

    fn pipe_of(&mut self, number: u32) -> Result<usize, Errno> {
        match self.descriptor(number).object {
            Object::Pipe(index) => Ok(index),
            _ => Err(Errno::INVAL),
        }
    }

    /// A pipe comes into use: what an earlier user left in it would go to the wrong peer.
    pub(super) fn check_pipe(&mut self, number: u32) {
        if let Ok(index) = self.pipe_of(number)
            && !self.pipes[index].bytes.is_empty()
        {
            self.fail("a pipe with bytes in it is used again");
        }
    }

    /// Up to `most` bytes of what has come, at least one; none is the end of the stream.
    pub(super) fn receive_now(&mut self, number: u32, most: usize) -> Result<Vec<u8>, Errno> {
        let Object::Socket(connection) = self.descriptor(number).object else {
            return Err(Errno::NOTCONN);
        };
        self.refuse_second(number, Kind::Receive);
        if self.random.chance(self.faults.would_block) {
            return Err(Errno::AGAIN);
        }
        let of = &self.connections[connection];
        let there = of.up.incoming.len().min(most);
        if there == 0 {
            return match of {
                of if of.server_reset => Err(Errno::CONNRESET),
                of if of.up.fin_arrived => Ok(Vec::new()),
                _ => Err(Errno::AGAIN),
            };
        }
        let mut len = there;
        if self.random.chance(self.faults.short_read) {
            len = self.random.part(there);
        }
        let bytes = self.connections[connection]
            .up
            .incoming
            .drain(..len)
            .collect();
        self.note("receive", u64::from(number), len as i64);
        self.pump(connection, Way::Up);
        Ok(bytes)
    }

    /// splice(2) from a socket into a pipe.
    pub(super) fn splice_in(&mut self, from: u32, pipe: u32, most: usize) -> Result<usize, Errno> {
        let index = self.pipe_of(pipe)?;
        let of = &self.pipes[index];
        let room = of.capacity.saturating_sub(of.bytes.len());
        if room == 0 {
            return Err(Errno::AGAIN);
        }
        let bytes = self.receive_now(from, most.min(room))?;
        self.pipes[index].bytes.extend(&bytes);
        Ok(bytes.len())
    }

    /// splice(2) from a pipe into a socket.
    pub(super) fn splice_out(&mut self, pipe: u32, to: u32, most: usize) -> Result<usize, Errno> {
        let index = self.pipe_of(pipe)?;
        let bytes: Vec<u8> = self.pipes[index].bytes.iter().take(most).copied().collect();
        if bytes.is_empty() {
            return Err(Errno::AGAIN);
        }
        let sent = self.send_now(to, &bytes)?;
        self.pipes[index].bytes.drain(..sent);
        Ok(sent)
    }
}
