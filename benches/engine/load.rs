//! The load: each connection asks again when its answer is whole, until a number of requests is reached.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

/// Connections to a server, on which nothing is under way.
pub(crate) struct Load {
    epoll: std::os::fd::OwnedFd,
    connections: Vec<(TcpStream, usize)>,
    /// Bytes of an answer.
    answer: usize,
}

impl Load {
    /// So many connections to a port of this machine.
    pub(crate) fn connect(port: u16, count: usize, answer: usize) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let connections = (0..count).map(|index| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            stream.set_nonblocking(true).expect("O_NONBLOCK");
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN).expect("epoll");
            (stream, 0)
        });
        let connections = connections.collect();
        Self {
            epoll,
            connections,
            answer,
        }
    }

    /// Asks so often in all, and takes all answers.
    pub(crate) fn ask(&mut self, requests: u64, request: &[u8]) {
        let (mut asked, mut answered) = (0, 0);
        for (stream, _) in self.connections.iter_mut().take(requests as usize) {
            stream.write_all(request).expect("room for a request");
            asked += 1;
        }
        let mut ready = Vec::with_capacity(self.connections.len());
        let mut bytes = vec![0; 64 << 10];
        while answered < requests {
            ready.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut ready), None).expect("epoll");
            for event in &ready {
                let (stream, got) = &mut self.connections[event.data.u64() as usize];
                match stream.read(&mut bytes) {
                    Ok(0) => panic!("the server has closed a connection"),
                    Ok(read) => *got += read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => panic!("{error}"),
                }
                if *got < self.answer {
                    continue;
                }
                assert_eq!(*got, self.answer, "nobody asked for more");
                *got = 0;
                answered += 1;
                if asked < requests {
                    stream.write_all(request).expect("room for a request");
                    asked += 1;
                }
            }
        }
    }
}
