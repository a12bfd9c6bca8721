//! Simulated upstream servers: what answers when the core itself connects.
//!
//! A connection that the core opens has the core at the end which the rest of the simulator calls the
//! server's, and a scripted peer at the other, as one that a client opened: bytes, ends and resets
//! are the same for both.

use std::time::Duration;

use rustix::io::Errno;

use super::kernel::{Hands, Kernel, Object, failed};
use super::net::{Client, Connection};
use super::world::Act;
use crate::runtime::address::Address;
use crate::runtime::op::Op;
use crate::runtime::slot::SlotKey;

/// What happens to those that connect to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are connected to a peer that goes through its script.
    Accepts,
    /// Nobody listens.
    Refuses,
    /// A router says that there is no way.
    Unreachable,
    /// Nothing ever comes back.
    Silent,
    /// The backlog is full, which is an answer of unix sockets.
    Full,
    /// They are connected, and then nothing ever comes back.
    HalfOpen,
}

/// Makes the script of the peer of the n-th connection. It may not use the [`super::World`].
pub type Script = Box<dyn Fn(usize) -> Vec<(Duration, Act)>>;

/// One upstream server.
pub(super) struct Backend {
    pub(super) address: Address,
    pub(super) answer: Answer,
    pub(super) script: Script,
    /// The peers of its connections, in order.
    pub(super) peers: Vec<usize>,
}

impl Kernel {
    /// A socket that isn't connected.
    pub(super) fn socket(&mut self) -> Result<u32, Errno> {
        if self.random.chance(self.faults.no_descriptors) {
            return Err(Errno::MFILE);
        }
        Ok(self.open(Object::Unconnected))
    }

    /// The answer to a connect has come, or never will.
    pub(super) fn connect(&mut self, key: SlotKey, number: u32, hands: &mut Hands<'_>) {
        let Some(Op::Connect { address, .. }) = hands.slots.larger(key) else {
            self.fail("the slot of a connect holds another op");
        };
        if !matches!(self.descriptor(number).object, Object::Unconnected) {
            return self.post(key, failed(Errno::ISCONN), false, None);
        }
        let address = Address::decode(address);
        let found = self
            .backends
            .iter()
            .position(|of| Some(&of.address) == address.as_ref());
        let answer = match found {
            None => Answer::Refuses,
            Some(_) if self.random.chance(self.faults.connect_refused) => Answer::Refuses,
            Some(_) if self.random.chance(self.faults.connect_lost) => Answer::Silent,
            Some(index) => self.backends[index].answer,
        };
        self.note("core connects", u64::from(number), answer as i64);
        match (answer, found) {
            (Answer::Accepts | Answer::HalfOpen, Some(index)) => {
                self.connect_to(index, number, answer == Answer::HalfOpen);
                self.post(key, 0, false, None);
            }
            (Answer::Unreachable, _) => self.post(key, failed(Errno::HOSTUNREACH), false, None),
            (Answer::Full, _) => self.post(key, failed(Errno::AGAIN), false, None),
            (Answer::Silent, _) => {}
            _ => self.post(key, failed(Errno::CONNREFUSED), false, None),
        }
    }

    fn connect_to(&mut self, index: usize, number: u32, half_open: bool) {
        let (id, connection) = (self.clients.len(), self.connections.len());
        let mut of = Connection::new(id, u32::MAX);
        of.server = Some(number);
        // Nothing moves on it, and nobody is told.
        of.dead = half_open;
        self.connections.push(of);
        let mut peer = Client::new(connection, self.config.socket_bytes);
        let backend = &mut self.backends[index];
        if !half_open {
            peer.connected = true;
            peer.script.extend((backend.script)(backend.peers.len()));
        }
        backend.peers.push(id);
        self.clients.push(peer);
        self.descriptor(number).object = Object::Socket(connection);
        self.poke(id);
    }
}
