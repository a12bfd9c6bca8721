//! A name server on loopback that says what a test wants.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, ResourceRecord};

use super::settings::Settings;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The server. Its threads end with the process.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    /// Queries so far.
    pub(crate) asked: Arc<AtomicUsize>,
}

impl NameServer {
    /// `says` gives the messages that answer a query.
    pub(crate) fn start(
        says: impl Fn(&[u8], Transport) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (tcp, udp) = (0..100)
            .find_map(|_| {
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
                Some((tcp, udp))
            })
            .expect("a port that both have");
        let address = udp.local_addr().unwrap();
        let says = Arc::new(says);
        let asked = Arc::new(AtomicUsize::new(0));
        let (of_udp, of_tcp) = (Arc::clone(&says), says);
        let (count_udp, count_tcp) = (Arc::clone(&asked), Arc::clone(&asked));
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((count, peer)) = udp.recv_from(&mut buffer) {
                count_udp.fetch_add(1, Ordering::SeqCst);
                for message in of_udp(&buffer[..count], Transport::Udp) {
                    let _ = udp.send_to(&message, peer);
                }
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { continue };
                count_tcp.fetch_add(1, Ordering::SeqCst);
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                if stream.read_exact(&mut query).is_err() {
                    continue;
                }
                for message in of_tcp(&query, Transport::Tcp) {
                    let length = u16::try_from(message.len()).unwrap();
                    let _ = stream.write_all(&length.to_be_bytes());
                    // Byte by byte: however it is cut, it is one message.
                    for byte in message {
                        let _ = stream.write_all(&[byte]);
                    }
                }
            }
        });
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Settings that name these servers, with little patience.
pub(crate) fn settings(servers: &[&NameServer]) -> Settings {
    Settings {
        servers: servers.iter().map(|server| server.address).collect(),
        timeout: Duration::from_secs(1),
        attempts: 1,
        ..Settings::default()
    }
}

/// The answer to a query, changed by a test.
pub(crate) fn answer(query: &[u8], change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    change(&mut packet);
    packet.build_bytes_vec_compressed().unwrap()
}

/// Priority, weight, port, target and TTL of a record.
pub(crate) type Record = (u16, u16, u16, &'static str, u32);

/// The answer with these records, and `10.0.0.N` for a target `nN.example`.
pub(crate) fn servers(query: &[u8], records: &[Record]) -> Vec<u8> {
    let question = Packet::parse(query).unwrap().questions[0].qname.clone();
    answer(query, |packet| {
        for (priority, weight, port, target, ttl) in records.iter().copied() {
            let target = Name::new(target).unwrap();
            let (name, of_it) = (question.clone().into_owned(), target.clone());
            let srv = SRV {
                priority,
                weight,
                port,
                target,
            };
            let record = ResourceRecord::new(name, CLASS::IN, ttl, RData::SRV(srv));
            packet.answers.push(record);
            let text = of_it.to_string();
            let number = text
                .strip_prefix('n')
                .and_then(|it| it.strip_suffix(".example"));
            if let Some(number) = number.and_then(|number| number.parse::<u8>().ok()) {
                let address = Ipv4Addr::new(10, 0, 0, number).to_bits();
                let a = ResourceRecord::new(of_it, CLASS::IN, ttl, RData::A(A { address }));
                packet.additional_records.push(a);
            }
        }
    })
}
