//! Answers of name servers: another question or id is never answered, and what is taken is in order and
//! within bounds, whatever its hosts resolve to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use beltway::config::model::Family;
use beltway::upstream::resolve::dns::{Unusable, query, read};
use beltway::upstream::resolve::lookup::servers;
use beltway::upstream::roster::ADDRESSES_MAX;

use crate::Target;

/// What was asked: the corpus has this id and question.
const ID: u16 = 7;
const NAME: &str = "_http._tcp.a.b";

/// Two servers of different priorities, and the address of the first.
const TWO: &[u8] = b"\0\x07\x81\x80\0\x01\0\x02\0\0\0\x01\x05_http\x04_tcp\x01a\x01b\0\0\x21\0\x01\
    \xc0\x0c\0\x21\0\x01\0\0\0\x3c\0\x0b\0\x01\0\x05\0\x50\x01n\x01b\0\
    \xc0\x0c\0\x21\0\x01\0\0\0\x3c\0\x08\0\x02\0\0\0\x51\xc0\x17\
    \xc0\x32\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01";

/// An alias, and the server behind it.
const ALIAS: &[u8] = b"\0\x07\x81\x80\0\x01\0\x02\0\0\0\0\x05_http\x04_tcp\x01a\x01b\0\0\x21\0\x01\
    \xc0\x0c\0\x05\0\x01\0\0\0\x05\0\x04\x01c\xc0\x19\
    \xc0\x2c\0\x21\0\x01\0\0\0\x3c\0\x0a\0\x01\0\x05\0\x50\x01n\xc0\x19";

/// The target.
pub const TARGET: Target = Target {
    name: "dns",
    run,
    corpus: &[
        TWO,
        ALIAS,
        b"\0\x07\x83\x80\0\x01\0\0\0\0\0\0\x05_http\x04_tcp\x01a\x01b\0\0\x21\0\x01",
        b"\0\x07\x81\x83\0\x01\0\0\0\0\0\0\x05_http\x04_tcp\x01a\x01b\0\0\x21\0\x01",
        b"\0\x07\x81\x82\0\0\0\0\0\0\0\0",
    ],
    tokens: &[
        b"\xc0\x0c",
        b"\xc0\x19",
        b"\xc0\x32",
        b"\xff\xff",
        b"\0\x21\0\x01",
        b"\0\x01\0\x01",
        b"\0\x1c\0\x01",
        b"\0\x05\0\x01",
        b"\0\x29",
        b"\0\0\0\x3c",
        b"\0\x09",
        b"\0\x10",
        b"\0",
        b"\x3f",
        b"\x01.",
    ],
};

fn run(input: &[u8]) {
    let verdict = read(input, ID, NAME);
    let other = read(input, ID ^ 1, NAME);
    if input.len() < 2 || input[..2] == ID.to_be_bytes() {
        assert_eq!(other, Err(Unusable::NotOurs), "another id");
    }
    let Ok(services) = verdict else {
        return;
    };
    let stranger = read(input, ID, "_http._tcp.a.c");
    assert_eq!(stranger, Err(Unusable::NotOurs), "another question");
    assert!(!services.servers.is_empty());
    // A record has at least 11 bytes.
    assert!(services.servers.len() + services.addresses.len() <= input.len() / 11);
    assert!(services.servers.is_sorted_by_key(|server| server.priority));
    for server in services.servers.iter().filter(|it| !it.target.is_empty()) {
        assert!(server.port != 0);
        // What was told is a host name, so that it can be asked for as it is.
        assert!(query(ID, &server.target).is_some(), "{server:?}");
        assert!(!server.target.contains(|c: char| c.is_ascii_uppercase()));
    }
    let hosts = |host: &str, port| {
        let last = host.len().to_le_bytes()[0];
        Ok(vec![SocketAddr::from(([10, 1, 0, last], port))])
    };
    let soon = Instant::now() + Duration::from_secs(60);
    let Ok(answer) = servers(&services, Family::Any, soon, hosts) else {
        let targets = services.servers.iter();
        assert!(targets.map(|it| &it.target).all(String::is_empty));
        return;
    };
    let addresses = &answer.addresses;
    assert!((1..=ADDRESSES_MAX).contains(&addresses.len()));
    assert!(!addresses[0].is_backup, "one of them comes first");
    assert!(addresses.is_sorted_by_key(|it| it.is_backup));
    for (at, one) in addresses.iter().enumerate() {
        let first = addresses.iter().position(|it| it.address == one.address);
        assert_eq!(first, Some(at), "each address once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_understood() {
        let two = read(TWO, ID, NAME).expect("an answer");
        assert_eq!((two.servers.len(), two.addresses.len()), (2, 1));
        assert_eq!(
            (&*two.servers[0].target, &*two.addresses[0].host),
            ("n.b", "n.b")
        );
        let alias = read(ALIAS, ID, NAME).expect("an answer");
        assert_eq!(alias.servers.len(), 1);
        assert_eq!(alias.alias_ttl, Duration::from_secs(5));
    }
}
