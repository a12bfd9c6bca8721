//! DNS messages that ask for the servers of a service, and what their answers say (RFC 1035, RFC 2782).
//!
//! It is bytes in and records out: who was asked, how often and by which transport is not known here.
//! An answer is somebody else's bytes, so nothing of it is believed before its id and its question are
//! those that were asked.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

/// Bytes of the header (RFC 1035 §4.1.1).
const HEADER: usize = 12;

/// Least bytes of a question, and of a record: those of one with the shortest name.
const QUESTION_MIN: usize = 5;
const RECORD_MIN: usize = 11;

/// Most aliases that are followed within an answer.
const ALIASES_MAX: usize = 8;

/// What an answer says of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Its servers, those of the lowest priority first, otherwise in the order of the answer.
    pub servers: Vec<Service>,
    /// Addresses of hosts that the answer has besides (RFC 2782, "Additional").
    pub addresses: Vec<HostAddress>,
    /// How long all aliases on the way are good for; [`Duration::MAX`] without any.
    pub alias_ttl: Duration,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Servers of the lowest priority are used first.
    pub priority: u16,
    /// The share of the requests among those of one priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host: lower case, letters, digits, `-`, `_` and dots, without the final one. Empty when the
    /// service is decidedly not available (the target is the root).
    pub target: String,
    /// How long the record is good for.
    pub ttl: Duration,
}

/// One A or AAAA record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The host, in the form of [`Service::target`].
    pub host: String,
    /// Its address.
    pub address: IpAddr,
    /// How long the record is good for.
    pub ttl: Duration,
}

/// Why a message is not the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// It is no answer to what was asked: another id, another question, a query. The answer may still come.
    NotOurs,
    /// It can't be parsed, though its id is right.
    Malformed,
    /// It was cut (TC): the whole one is to be had by TCP.
    Truncated,
    /// There is no such name.
    NoSuchName,
    /// The name has no SRV records, or none that can be used.
    NoRecords,
    /// The server couldn't or wouldn't answer; another one may.
    Refused(u8),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("it answered another question"),
            Self::Malformed => f.write_str("its answer is malformed"),
            Self::Truncated => f.write_str("its answer is cut short"),
            Self::NoSuchName => f.write_str("there is no such name (NXDOMAIN)"),
            Self::NoRecords => f.write_str("the name has no SRV records"),
            Self::Refused(2) => f.write_str("it failed (SERVFAIL)"),
            Self::Refused(5) => f.write_str("it refused (REFUSED)"),
            Self::Refused(code) => write!(f, "it answered with code {code}"),
        }
    }
}

/// A query for the SRV records of a name; recursion is desired. `None` for what is no name in DNS: a label
/// of more than 63 bytes, more than 255 in all, none at all.
pub fn query(id: u16, name: &str) -> Option<Vec<u8>> {
    let name = Name::new(name).ok()?;
    host(&name).filter(|host| !host.is_empty())?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let (kind, class) = (QTYPE::TYPE(TYPE::SRV), QCLASS::CLASS(CLASS::IN));
    packet
        .questions
        .push(Question::new(name, kind, class, false));
    packet.build_bytes_vec().ok()
}

/// Reads the answer to the query of this id and name.
///
/// # Errors
/// See [`Unusable`].
pub fn read(message: &[u8], id: u16, name: &str) -> Result<Services, Unusable> {
    let asked = Name::new(name).map_err(|_| Unusable::NotOurs)?;
    if message.len() < HEADER || word(message, 0) != id {
        return Err(Unusable::NotOurs);
    }
    // The parser makes room for as many records as are announced.
    let records: usize = [6, 8, 10]
        .map(|at| usize::from(word(message, at)))
        .iter()
        .sum();
    let questions = usize::from(word(message, 4));
    if HEADER + questions * QUESTION_MIN + records * RECORD_MIN > message.len() {
        return Err(Unusable::Malformed);
    }
    // What was cut may have been cut in the middle of a record: then it is still worth asking by TCP.
    let cut = message[2] & 0x82 == 0x82;
    let packet = match Packet::parse(message) {
        Ok(packet) => packet,
        Err(_) if cut => return Err(Unusable::Truncated),
        Err(_) => return Err(Unusable::Malformed),
    };
    if !packet.has_flags(PacketFlag::RESPONSE) || !is_question(&packet, &asked) {
        return Err(Unusable::NotOurs);
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Err(Unusable::Truncated);
    }
    match packet.rcode() {
        RCODE::NoError => services(&packet, asked),
        RCODE::NameError => Err(Unusable::NoSuchName),
        _ => Err(Unusable::Refused(message[3] & 0x0f)),
    }
}

/// Whether the answer repeats the one question. Some servers leave it away when they fail.
fn is_question(packet: &Packet<'_>, asked: &Name<'_>) -> bool {
    match packet.questions.as_slice() {
        [question] => {
            question.qname == *asked
                && question.qtype == QTYPE::TYPE(TYPE::SRV)
                && question.qclass == QCLASS::CLASS(CLASS::IN)
        }
        [] => !matches!(packet.rcode(), RCODE::NoError | RCODE::NameError),
        _ => false,
    }
}

fn services<'a>(packet: &Packet<'a>, mut name: Name<'a>) -> Result<Services, Unusable> {
    let answers = || packet.answers.iter().filter(|it| it.class == CLASS::IN);
    let mut services = Services {
        alias_ttl: Duration::MAX,
        ..Services::default()
    };
    for _ in 0..ALIASES_MAX {
        let alias = answers().find_map(|record| match &record.rdata {
            RData::CNAME(target) if record.name == name => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        let Some((target, seconds)) = alias else {
            break;
        };
        services.alias_ttl = services.alias_ttl.min(ttl(seconds));
        name = target;
    }
    for record in answers().filter(|record| record.name == name) {
        let RData::SRV(server) = &record.rdata else {
            continue;
        };
        // The resolver of the system takes host names only.
        let Some(target) = host(&server.target) else {
            continue;
        };
        if server.port == 0 && !target.is_empty() {
            continue;
        }
        services.servers.push(Service {
            priority: server.priority,
            weight: server.weight,
            port: server.port,
            target,
            ttl: ttl(record.ttl),
        });
    }
    if services.servers.is_empty() {
        return Err(Unusable::NoRecords);
    }
    services.servers.sort_by_key(|server| server.priority);
    let additional = packet.additional_records.iter();
    services.addresses = additional
        .filter(|record| record.class == CLASS::IN)
        .filter_map(|record| {
            let address = match &record.rdata {
                RData::A(a) => IpAddr::from(a.address.to_be_bytes()),
                RData::AAAA(aaaa) => IpAddr::from(aaaa.address.to_be_bytes()),
                _ => return None,
            };
            Some(HostAddress {
                host: host(&record.name)?,
                address,
                ttl: ttl(record.ttl),
            })
        })
        .collect();
    Ok(services)
}

/// Seconds of a record; above 2^31 - 1 they are none (RFC 2181 §8).
fn ttl(seconds: u32) -> Duration {
    let seconds = i32::try_from(seconds).map_or(0, i32::unsigned_abs);
    Duration::from_secs(seconds.into())
}

/// A name in lower case, without the final dot; `None` when it has bytes that no host name has.
fn host(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            let known = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            text.push(known.then(|| byte.to_ascii_lowercase().into())?);
        }
    }
    Some(text)
}

fn word(message: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([message[at], message[at + 1]])
}

#[cfg(test)]
mod tests {
    use simple_dns::rdata::{A, AAAA, CNAME, NS, SRV};
    use simple_dns::{Name, ResourceRecord};

    use super::*;

    const NAME: &str = "_http._tcp.example.com";

    fn record<'a>(name: &'a str, seconds: u32, rdata: RData<'a>) -> ResourceRecord<'a> {
        ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, seconds, rdata)
    }

    fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData<'_> {
        RData::SRV(SRV {
            priority,
            weight,
            port,
            target: Name::new(target).unwrap(),
        })
    }

    fn answer(change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
        let question = query(7, NAME).unwrap();
        let mut packet = Packet::parse(&question).unwrap().into_reply();
        change(&mut packet);
        packet.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn a_query_is_one_question_with_recursion() {
        let bytes = query(0x1234, NAME).unwrap();
        assert_eq!(bytes[..6], [0x12, 0x34, 1, 0, 0, 1]);
        assert!(bytes.ends_with(b"\x05_http\x04_tcp\x07example\x03com\0\0\x21\0\x01"));
        for bad in ["", ".", "a b", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(query(1, bad), None, "{bad}");
        }
    }

    #[test]
    fn servers_come_by_priority_with_their_addresses() {
        let bytes = answer(|packet| {
            packet.answers = vec![
                record(NAME, 60, srv(20, 1, 81, "c.example.com")),
                record(
                    "_HTTP._tcp.Example.com",
                    30,
                    srv(10, 5, 80, "B.example.com"),
                ),
                record(NAME, 60, srv(10, 0, 80, "a.example.com")),
                record("other.example.com", 1, srv(1, 1, 1, "x.example.com")),
                record(NAME, 60, srv(1, 1, 0, "no-port.example.com")),
                record(NAME, 60, srv(1, 1, 80, "not a host.example.com")),
            ];
            packet.additional_records = vec![
                record(
                    "b.example.com",
                    9,
                    RData::A(A {
                        address: 0x7f00_0001,
                    }),
                ),
                record("b.example.com", u32::MAX, RData::AAAA(AAAA { address: 1 })),
                record("b.example.com", 9, RData::NS(NS(Name::new("ns").unwrap()))),
            ];
        });
        let services = read(&bytes, 7, NAME).unwrap();
        let targets: Vec<_> = services
            .servers
            .iter()
            .map(|it| (it.priority, it.weight, it.port, &*it.target))
            .collect();
        let expected = [
            (10, 5, 80, "b.example.com"),
            (10, 0, 80, "a.example.com"),
            (20, 1, 81, "c.example.com"),
        ];
        assert_eq!(targets, expected);
        assert_eq!(services.servers[0].ttl, Duration::from_secs(30));
        let addresses: Vec<_> = services
            .addresses
            .iter()
            .map(|it| (&*it.host, it.address.to_string(), it.ttl.as_secs()))
            .collect();
        let expected = [
            ("b.example.com", "127.0.0.1".to_owned(), 9),
            ("b.example.com", "::1".to_owned(), 0),
        ];
        assert_eq!(addresses, expected);
    }

    #[test]
    fn aliases_are_followed_and_a_circle_ends() {
        let cname = |to| RData::CNAME(CNAME(Name::new(to).unwrap()));
        let bytes = answer(|packet| {
            packet.answers = vec![
                record("there.example.com", 60, srv(1, 1, 80, "a.example.com")),
                record(NAME, 5, cname("there.example.com")),
            ];
        });
        let services = read(&bytes, 7, NAME).unwrap();
        assert_eq!(services.servers.len(), 1);
        assert_eq!(services.alias_ttl, Duration::from_secs(5));
        let circle = answer(|packet| packet.answers = vec![record(NAME, 5, cname(NAME))]);
        assert_eq!(read(&circle, 7, NAME), Err(Unusable::NoRecords));
    }

    #[test]
    fn a_service_that_is_not_there_says_so() {
        let bytes = answer(|packet| packet.answers = vec![record(NAME, 60, srv(0, 0, 0, "."))]);
        assert_eq!(read(&bytes, 7, NAME).unwrap().servers[0].target, "");
    }

    #[test]
    fn what_is_no_answer_to_the_question_is_not_taken() {
        let good = answer(|packet| {
            packet.answers = vec![record(NAME, 60, srv(1, 1, 80, "a.example.com"))];
        });
        assert!(read(&good, 7, NAME).is_ok());
        assert_eq!(read(&good, 8, NAME), Err(Unusable::NotOurs));
        assert_eq!(
            read(&good, 7, "_https._tcp.example.com"),
            Err(Unusable::NotOurs)
        );
        let asked = query(7, NAME).unwrap();
        assert_eq!(read(&asked, 7, NAME), Err(Unusable::NotOurs));
        assert_eq!(read(&good[..11], 7, NAME), Err(Unusable::NotOurs));
        for end in HEADER..good.len() {
            assert_eq!(
                read(&good[..end], 7, NAME),
                Err(Unusable::Malformed),
                "{end}"
            );
        }
        let with = |code| answer(|packet| *packet.rcode_mut() = code);
        for (code, expected) in [
            (RCODE::NameError, Unusable::NoSuchName),
            (RCODE::ServerFailure, Unusable::Refused(2)),
            (RCODE::Refused, Unusable::Refused(5)),
            (RCODE::NoError, Unusable::NoRecords),
        ] {
            assert_eq!(read(&with(code), 7, NAME), Err(expected));
        }
        let bare = b"\0\x07\x81\x82\0\0\0\0\0\0\0\0";
        assert_eq!(read(bare, 7, NAME), Err(Unusable::Refused(2)));
    }

    #[test]
    fn a_cut_answer_is_known_wherever_it_was_cut() {
        let cut = answer(|packet| {
            packet.set_flags(PacketFlag::TRUNCATION);
            packet.answers = vec![record(NAME, 60, srv(1, 1, 80, "a.example.com"))];
        });
        assert_eq!(read(&cut, 7, NAME), Err(Unusable::Truncated));
        assert_eq!(
            read(&cut[..cut.len() - 3], 7, NAME),
            Err(Unusable::Truncated)
        );
    }

    #[test]
    fn announced_records_cost_nothing() {
        let mut message = answer(|_| {});
        message[6..12].fill(0xff);
        assert_eq!(read(&message, 7, NAME), Err(Unusable::Malformed));
    }
}
