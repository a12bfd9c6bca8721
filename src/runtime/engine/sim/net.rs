//! Simulated connections: two byte pipes with bounded buffers and latency, as TCP presents them.
//!
//! Bytes wait at the sender (`outgoing`), travel in pieces, and wait at the receiver (`incoming`). A
//! close with unread bytes, or bytes that reach a closed end, make a reset, which overtakes nothing
//! but destroys what its receiver has not read yet, as it may with real sockets.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::kernel::{Kernel, Object, What};
use super::ops::Kind;
pub(super) use super::script::Client;
use super::world::End;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

#[derive(Default)]
pub(super) struct Pipe {
    pub(super) outgoing: VecDeque<u8>,
    pub(super) incoming: VecDeque<u8>,
    /// The sender sends no more after what is outgoing.
    pub(super) fin_sent: bool,
    pub(super) fin_arrived: bool,
    /// Something is under way.
    moving: bool,
}

/// One connection.
pub(super) struct Connection {
    pub(super) client: usize,
    pub(super) listener: u32,
    /// The server's descriptor, once it was accepted.
    pub(super) server: Option<u32>,
    pub(super) up: Pipe,
    pub(super) down: Pipe,
    /// The server's end has learned of a reset.
    pub(super) server_reset: bool,
    /// The server was told of the reset by a send; further sends are `EPIPE`.
    told: bool,
    pub(super) server_closed: bool,
    pub(super) write_shut: bool,
    pub(super) reset_on_close: bool,
    pub(super) client_closed: bool,
    /// A reset is under way or has arrived: nothing moves any more.
    pub(super) dead: bool,
}

impl Connection {
    pub(super) fn new(client: usize, listener: u32) -> Self {
        Self {
            client,
            listener,
            server: None,
            up: Pipe::default(),
            down: Pipe::default(),
            server_reset: false,
            told: false,
            server_closed: false,
            write_shut: false,
            reset_on_close: false,
            client_closed: false,
            dead: false,
        }
    }

    fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl Kernel {
    /// The connection of a socket.
    fn connection_of(&mut self, number: u32) -> Result<usize, Errno> {
        match self.descriptor(number).object {
            Object::Socket(connection) => Ok(connection),
            _ => Err(Errno::NOTSOCK),
        }
    }

    /// Room in the buffer at the receiver.
    fn room(&self, connection: usize, way: Way) -> usize {
        let of = &self.connections[connection];
        match way {
            Way::Up => (self.config.socket_bytes).saturating_sub(of.up.incoming.len()),
            Way::Down => {
                let window = self.clients[of.client].window;
                window.saturating_sub(of.down.incoming.len())
            }
        }
    }

    /// Sets what can move in motion.
    pub(super) fn pump(&mut self, connection: usize, way: Way) {
        let room = self.room(connection, way);
        let of = &mut self.connections[connection];
        if of.dead {
            return;
        }
        let pipe = of.pipe(way);
        let bytes = !pipe.outgoing.is_empty() && room > 0;
        let fin = pipe.outgoing.is_empty() && pipe.fin_sent && !pipe.fin_arrived;
        if (bytes || fin) && !pipe.moving {
            pipe.moving = true;
            let delay = self.latency_ns();
            self.after(delay, What::Deliver(connection, way));
        }
    }

    /// A piece arrives.
    pub(super) fn arrived(&mut self, connection: usize, way: Way) {
        let room = self.room(connection, way);
        let of = &mut self.connections[connection];
        let receiver_closed = match way {
            Way::Up => of.server_closed,
            Way::Down => of.client_closed,
        };
        let pipe = of.pipe(way);
        pipe.moving = false;
        let there = pipe.outgoing.len().min(room);
        if of.dead {
            return;
        }
        if self.random.chance(self.faults.reset) {
            self.note("line breaks", connection as u64, 0);
            let client = self.connections[connection].client;
            self.clients[client].broken = true;
            self.break_off(connection);
            return self.reset_from(connection, Side::Client);
        }
        if there > 0 && receiver_closed {
            let sender = match way {
                Way::Up => Side::Client,
                Way::Down => Side::Server,
            };
            return self.reset_from_closed(connection, sender);
        }
        let mut len = there;
        if there > 0 && self.random.chance(0.3) {
            len = self.random.part(there);
        }
        // The end of the stream comes with the last bytes, or on its own.
        let together = len == 0 || self.random.chance(0.5);
        let pipe = self.connections[connection].pipe(way);
        pipe.incoming.extend(pipe.outgoing.drain(..len));
        pipe.fin_arrived = pipe.fin_sent && pipe.outgoing.is_empty() && together;
        self.note("arrive", connection as u64 * 2 + way as u64, len as i64);
        self.tell_ends(connection, way);
        self.pump(connection, way);
    }

    /// Tells both ends that bytes of a pipe moved.
    fn tell_ends(&mut self, connection: usize, way: Way) {
        let of = &self.connections[connection];
        let (client, server) = (of.client, of.server);
        if let (Some(number), false) = (server, of.server_closed) {
            self.touch(number);
        }
        match way {
            Way::Up => self.poke(client),
            Way::Down => self.client_received(client),
        }
    }

    /// Sends a reset to both ends, as when the network drops the connection.
    pub(super) fn break_off(&mut self, connection: usize) {
        let of = &mut self.connections[connection];
        of.dead = true;
        of.up.outgoing.clear();
        of.down.outgoing.clear();
        let delay = self.latency_ns();
        self.after(delay, What::Reset(connection, Side::Client));
    }

    /// An end breaks the connection: the other one will learn of it.
    pub(super) fn reset_from(&mut self, connection: usize, side: Side) {
        let of = &mut self.connections[connection];
        of.dead = true;
        of.up.outgoing.clear();
        of.down.outgoing.clear();
        let other = match side {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let delay = self.latency_ns();
        self.after(delay, What::Reset(connection, other));
    }

    /// Bytes reached an end that is closed: their sender gets a reset.
    fn reset_from_closed(&mut self, connection: usize, sender: Side) {
        self.note("too late", connection as u64, 0);
        let receiver = match sender {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        self.reset_from(connection, receiver);
    }

    pub(super) fn reset_arrived(&mut self, connection: usize, side: Side) {
        self.note("reset", connection as u64, side as i64);
        let lost = self.random.chance(0.5);
        let of = &mut self.connections[connection];
        let (client, server) = (of.client, of.server);
        match side {
            Side::Server => {
                of.server_reset = true;
                if lost {
                    of.up.incoming.clear();
                }
                if let (Some(number), false) = (server, of.server_closed) {
                    self.touch(number);
                }
            }
            Side::Client => {
                if lost {
                    of.down.incoming.clear();
                }
                self.client_ends(client, End::Reset);
            }
        }
    }

    /// A connection arrives at its listener, whose kernel answers before anybody accepts it.
    pub(super) fn connected(&mut self, connection: usize) {
        let of = &self.connections[connection];
        let (client, listener) = (of.client, of.listener);
        let open = self.open_descriptors().contains(&listener);
        self.note("connect", connection as u64, i64::from(open));
        if !open {
            self.connections[connection].dead = true;
            return self.client_ends(client, End::Refused);
        }
        if let Object::Listener { backlog } = &mut self.descriptor(listener).object {
            backlog.push_back(connection);
        }
        self.clients[client].connected = true;
        self.touch(listener);
        self.poke(client);
    }

    /// The server's end is closed.
    pub(super) fn close_server(&mut self, connection: usize) {
        let of = &mut self.connections[connection];
        of.server_closed = true;
        let unread = !of.up.incoming.is_empty();
        of.up.incoming.clear();
        if of.dead {
            return;
        }
        if unread || of.reset_on_close {
            return self.reset_from(connection, Side::Server);
        }
        of.down.fin_sent = true;
        self.pump(connection, Way::Down);
        self.pump(connection, Way::Up);
    }

    // ---- plain calls of the server -----------------------------------------------------------

    /// What a send takes from these bytes: `EAGAIN` when there is no room.
    pub(super) fn take_from_server(&mut self, number: u32, bytes: &[u8]) -> Result<usize, Errno> {
        let connection = self.connection_of(number)?;
        let of = &mut self.connections[connection];
        if of.server_reset {
            let first = !std::mem::replace(&mut of.told, true);
            return Err(if first { Errno::CONNRESET } else { Errno::PIPE });
        }
        if of.write_shut {
            return Err(Errno::PIPE);
        }
        let room = (self.config.socket_bytes).saturating_sub(of.down.outgoing.len());
        if room == 0 && !bytes.is_empty() {
            return Err(Errno::AGAIN);
        }
        let mut len = bytes.len().min(room);
        if len > 0 && self.random.chance(self.faults.short_write) {
            len = self.random.part(len);
        }
        let of = &mut self.connections[connection];
        if !of.dead {
            of.down.outgoing.extend(&bytes[..len]);
        }
        self.note("send", u64::from(number), len as i64);
        self.pump(connection, Way::Down);
        Ok(len)
    }

    /// A send by a plain call, which may answer `EAGAIN` although there is room.
    pub(super) fn send_now(&mut self, number: u32, bytes: &[u8]) -> Result<usize, Errno> {
        self.descriptor(number);
        self.refuse_second(number, Kind::Send);
        if self.random.chance(self.faults.would_block) {
            return Err(Errno::AGAIN);
        }
        self.take_from_server(number, bytes)
    }

    pub(super) fn shut_down_write(&mut self, number: u32) -> Result<(), Errno> {
        let connection = self.connection_of(number)?;
        let of = &mut self.connections[connection];
        if of.dead {
            return Err(Errno::NOTCONN);
        }
        of.write_shut = true;
        of.down.fin_sent = true;
        self.note("shut down", u64::from(number), 0);
        self.pump(connection, Way::Down);
        self.touch(number);
        Ok(())
    }

    pub(super) fn reset_on_close(&mut self, number: u32) -> Result<(), Errno> {
        let connection = self.connection_of(number)?;
        self.connections[connection].reset_on_close = true;
        Ok(())
    }

    /// Bytes that have not arrived at the client's end.
    pub(super) fn unsent(&mut self, number: u32) -> Option<u64> {
        let connection = self.connection_of(number).ok()?;
        Some(self.connections[connection].down.outgoing.len() as u64)
    }
}
