//! Simulated clients: each goes through a script at its own pace and keeps what it received.

use std::collections::VecDeque;
use std::time::Duration;

use super::kernel::{Kernel, What};
use super::net::{Side, Way};
use super::world::{Act, End, Pace};

/// One client and its connection.
pub(super) struct Client {
    pub(super) connection: usize,
    pub(super) connected: bool,
    /// What is still to do, each after a pause.
    pub(super) script: VecDeque<(Duration, Act)>,
    /// When the next act may begin; `None` while its pause hasn't begun.
    due_ns: Option<u64>,
    /// What a talk has said that found no room yet.
    unsent: Vec<u8>,
    /// It is over but for that.
    is_said: bool,
    pub(super) pace: Pace,
    /// Bytes of its receive buffer.
    pub(super) window: usize,
    pub(super) received: Vec<u8>,
    pub(super) end: Option<End>,
    /// It broke the connection itself.
    pub(super) aborted: bool,
    /// The simulated network broke the connection.
    pub(super) broken: bool,
    reading: bool,
}

impl Client {
    pub(super) fn new(connection: usize, window: usize) -> Self {
        Self {
            connection,
            connected: false,
            script: VecDeque::new(),
            due_ns: None,
            unsent: Vec::new(),
            is_said: false,
            pace: Pace::Eager,
            window,
            received: Vec::new(),
            end: None,
            aborted: false,
            broken: false,
            reading: false,
        }
    }

    /// It neither sends nor receives any more.
    fn over(&self) -> bool {
        self.end.is_some() || self.aborted
    }
}

impl Kernel {
    /// Something changed for a client: it goes on soon.
    pub(super) fn poke(&mut self, client: usize) {
        if !self.clients[client].script.is_empty() {
            let delay = self.random.below(5_000);
            self.after(delay, What::Client(client));
        }
    }

    /// A client does what its script says, as far as it can.
    pub(super) fn client_goes_on(&mut self, client: usize) {
        while self.clients[client].connected {
            let now_ns = self.now_ns;
            let of = &mut self.clients[client];
            let reset = of.end == Some(End::Reset) || of.aborted;
            if reset {
                of.script.clear();
            }
            let Some((pause, _)) = of.script.front() else {
                return;
            };
            match of.due_ns {
                None => {
                    let pause_ns = pause.as_nanos() as u64;
                    of.due_ns = Some(now_ns + pause_ns);
                    return self.after(pause_ns, What::Client(client));
                }
                Some(due_ns) if due_ns > now_ns => return,
                Some(_) => {}
            }
            if !self.act(client) {
                return;
            }
            let of = &mut self.clients[client];
            of.script.pop_front();
            of.due_ns = None;
        }
    }

    /// Performs the first act of the script; says whether it is done.
    fn act(&mut self, client: usize) -> bool {
        let of = &mut self.clients[client];
        let (connection, over) = (of.connection, of.over());
        let Some((_, act)) = of.script.front_mut() else {
            return true;
        };
        match act {
            Act::Send(bytes) => {
                let pipe = &mut self.connections[connection].up;
                if pipe.fin_sent {
                    return true;
                }
                let room = (self.config.socket_bytes).saturating_sub(pipe.outgoing.len());
                let len = bytes.len().min(room);
                pipe.outgoing.extend(bytes.drain(..len));
                let done = bytes.is_empty();
                self.note("client sends", client as u64, len as i64);
                self.pump(connection, Way::Up);
                done
            }
            Act::Talk(talk) => {
                if !of.is_said {
                    let (bytes, is_over) = talk(&of.received);
                    of.unsent.extend(bytes);
                    of.is_said = is_over || over;
                }
                let pipe = &mut self.connections[connection].up;
                if pipe.fin_sent {
                    of.unsent.clear();
                }
                let room = (self.config.socket_bytes).saturating_sub(pipe.outgoing.len());
                let len = of.unsent.len().min(room);
                pipe.outgoing.extend(of.unsent.drain(..len));
                let done = of.is_said && of.unsent.is_empty();
                of.is_said &= !done;
                self.note("client talks", client as u64, len as i64);
                self.pump(connection, Way::Up);
                done
            }
            Act::Await(enough) => over || enough(&of.received),
            Act::Read(pace) => {
                of.pace = *pace;
                self.client_received(client);
                true
            }
            Act::HalfClose => {
                self.note("client ends", client as u64, 0);
                self.connections[connection].up.fin_sent = true;
                self.pump(connection, Way::Up);
                true
            }
            Act::Close => {
                self.note("client closes", client as u64, 0);
                self.connections[connection].client_closed = true;
                if self.connections[connection].down.incoming.is_empty() {
                    self.connections[connection].up.fin_sent = true;
                    self.pump(connection, Way::Up);
                    self.pump(connection, Way::Down);
                } else {
                    self.abort(client);
                }
                true
            }
            Act::Abort => {
                self.abort(client);
                true
            }
        }
    }

    /// A client breaks the connection.
    fn abort(&mut self, client: usize) {
        self.note("client aborts", client as u64, 0);
        let connection = self.clients[client].connection;
        self.clients[client].aborted = true;
        if !self.connections[connection].dead {
            self.reset_from(connection, Side::Client);
        }
    }

    /// Bytes or an end of stream have come to a client's end of the connection.
    pub(super) fn client_received(&mut self, client: usize) {
        match self.clients[client].pace {
            Pace::Eager => self.client_takes(client, usize::MAX),
            Pace::Paused => {}
            Pace::Slow { every, .. } => {
                if !std::mem::replace(&mut self.clients[client].reading, true) {
                    self.after(every.as_nanos() as u64, What::ClientRead(client));
                }
            }
        }
    }

    /// A slow client reads its next bytes.
    pub(super) fn client_reads(&mut self, client: usize) {
        self.clients[client].reading = false;
        if let Pace::Slow { bytes, .. } = self.clients[client].pace {
            self.client_takes(client, bytes);
        }
        let connection = self.clients[client].connection;
        if !self.connections[connection].down.incoming.is_empty() {
            self.client_received(client);
        }
    }

    fn client_takes(&mut self, client: usize, most: usize) {
        let of = &mut self.clients[client];
        if of.over() {
            return;
        }
        let connection = of.connection;
        let pipe = &mut self.connections[connection].down;
        let len = pipe.incoming.len().min(most);
        of.received.extend(pipe.incoming.drain(..len));
        if pipe.incoming.is_empty() && pipe.fin_arrived {
            self.client_ends(client, End::Fin);
        } else if len > 0 {
            self.poke(client);
        }
        self.pump(connection, Way::Down);
    }

    /// A client learns that the connection has ended. After a FIN it may go on sending.
    pub(super) fn client_ends(&mut self, client: usize, end: End) {
        let of = &mut self.clients[client];
        if of.end == Some(End::Reset) || of.aborted {
            return;
        }
        let connection = of.connection;
        if end == End::Reset && of.end.is_none() {
            let pipe = &mut self.connections[connection].down;
            of.received.extend(pipe.incoming.drain(..));
        }
        if of.end.is_none() {
            of.end = Some(end);
        } else if end == End::Reset {
            // A reset after the end of the stream stops what it still sends.
            of.script.clear();
        }
        self.note("client sees", client as u64, end as i64);
        self.poke(client);
    }
}
