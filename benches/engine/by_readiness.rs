//! The responder as a loop over edges of epoll, with the techniques of our own engine.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::REQUEST;

/// The listening socket; connections have their place.
const LISTENER: u64 = u64::MAX;

struct Connection {
    socket: TcpStream,
    got: usize,
    out: Vec<u8>,
    /// What of `out` the kernel has taken.
    sent: usize,
}

/// Serves until it is killed.
pub(crate) fn serve(listener: TcpListener, answer: &[u8]) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let data = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, EventFlags::IN).expect("epoll");
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut ready = Vec::with_capacity(1024);
    let mut bytes = [0; 4096];
    loop {
        ready.clear();
        match epoll::wait(&epoll, spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("{errno}"),
        }
        for event in &ready {
            if event.data.u64() == LISTENER {
                accept(&epoll, &listener, &mut connections);
                continue;
            }
            let Some(place) = connections.get_mut(event.data.u64() as usize) else {
                continue;
            };
            let flags = event.flags;
            if let Some(connection) = place
                && !connection.go_on(flags, &mut bytes, answer)
            {
                *place = None;
            }
        }
    }
}

fn accept(epoll: &OwnedFd, listener: &TcpListener, connections: &mut Vec<Option<Connection>>) {
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let data = epoll::EventData::new_u64(connections.len() as u64);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, &socket, data, flags).expect("epoll");
        connections.push(Some(Connection {
            socket,
            got: 0,
            out: Vec::new(),
            sent: 0,
        }));
    }
}

impl Connection {
    /// Reads and answers; `false` ends the connection.
    fn go_on(&mut self, flags: EventFlags, bytes: &mut [u8; 4096], answer: &[u8]) -> bool {
        if flags.contains(EventFlags::OUT) && !self.send() {
            return false;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            return true;
        }
        loop {
            match recv(&self.socket, &mut bytes[..], RecvFlags::empty()) {
                Ok((_, 0)) => return false,
                Ok((_, read)) => {
                    self.got += read;
                    while self.got >= REQUEST.len() {
                        self.out.extend_from_slice(answer);
                        self.got -= REQUEST.len();
                    }
                    if !self.send() {
                        return false;
                    }
                    // A short read has emptied the socket, unless it has an end to tell.
                    if read < bytes.len() && !flags.contains(EventFlags::RDHUP) {
                        return true;
                    }
                }
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    }

    fn send(&mut self) -> bool {
        while self.sent < self.out.len() {
            match send(&self.socket, &self.out[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        self.out.clear();
        self.sent = 0;
        true
    }
}
