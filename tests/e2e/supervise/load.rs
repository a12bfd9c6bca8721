//! Constant load while a server changes: new and keep-alive connections, uploads, long downloads.
//!
//! Each client goes on until it is told to stop, and counts what it did. Any failure is a panic of its
//! thread, which `stop` hands on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::support::server::Address;
use crate::support::{Client, noise};

/// Bytes of the long download.
pub(crate) const LONG: usize = 4 << 20;

/// Bytes of an upload, which the server throws away: below what keeps the connection.
const UPLOAD: usize = 32 << 10;

/// Clients that run.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients on this address, where `/ok` and `/long.bin` (of [`LONG`] bytes of noise) are.
    pub(crate) fn start(address: &Address) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            clients: Vec::new(),
        };
        for _ in 0..2 {
            load.client(address, |address, _| {
                let mut client = Client::connect(address);
                let response = client.get_with("/ok", "Connection: close\r\n");
                assert_eq!(response.status, 200);
            });
        }
        for _ in 0..3 {
            load.client(address, |address, kept| {
                let client = kept.get_or_insert_with(|| Client::connect(address));
                let response = client.get("/ok");
                assert_eq!(response.status, 200);
                if response.closes() {
                    *kept = None;
                }
            });
        }
        load.client(address, |address, kept| {
            let client = kept.get_or_insert_with(|| Client::connect(address));
            let body = vec![b'x'; UPLOAD];
            client.send(format!(
                "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n"
            ));
            // In pieces, so that a change meets it in the middle.
            for piece in body.chunks(UPLOAD / 4) {
                client.send(piece);
                thread::yield_now();
            }
            let response = client.response();
            assert_eq!(response.status, 200);
            if response.closes() {
                *kept = None;
            }
        });
        load.client(address, |address, _| {
            let mut client = Client::connect_with(address, |socket| {
                socket.set_recv_buffer_size(64 << 10).expect("SO_RCVBUF");
            });
            let response = client.get_with("/long.bin", "Connection: close\r\n");
            assert_eq!(response.status, 200);
            assert!(response.body == noise(LONG), "the download is whole");
        });
        load
    }

    fn client(
        &mut self,
        address: &Address,
        round: impl Fn(&Address, &mut Option<Client>) + Send + 'static,
    ) {
        let (stop, done) = (Arc::clone(&self.stop), Arc::clone(&self.done));
        let address = address.clone();
        self.clients.push(thread::spawn(move || {
            let mut kept = None;
            while !stop.load(Ordering::Relaxed) {
                round(&address, &mut kept);
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    /// Whether every client still runs: none has seen a failure.
    pub(crate) fn is_whole(&self) -> bool {
        self.clients.iter().all(|client| !client.is_finished())
    }

    /// Ends the clients. A request that failed is a panic here.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("no request failed");
        }
        self.done.load(Ordering::Relaxed)
    }
}
