//! Connections after their handshake, against rustls and against what breaks the protocol.

use super::super::server::Connection;
use super::super::settings::PROVIDER;
use super::super::testing::{SUITES, Suite, feed, open_pair, sent};
use super::super::{Failure, Plain, TlsServer};
use super::*;

/// The records of a server.
fn layer(server: &mut TlsServer) -> &mut Layer<rustls::server::UnbufferedServerConnection> {
    match server.connection() {
        Connection::Ours(layer) => layer,
        Connection::Rustls(_) | Connection::Lost => panic!("rustls is still there"),
    }
}

/// Has the server send records until its key is used up.
fn wear_out(server: &mut TlsServer, left: u64) {
    match &mut layer(server).sending {
        Sending::Ours(sealer, _) => sealer.wear_out(left),
        Sending::Kernels => panic!("the key is the kernel's"),
    }
}

#[test]
fn bytes_go_both_ways_in_records_of_every_size() {
    for suite in SUITES {
        let mut pair = open_pair(suite);
        layer(&mut pair.server);
        for size in [
            1,
            2,
            15,
            16,
            17,
            1000,
            (1 << 14) - 1,
            1 << 14,
            (1 << 14) + 1,
            50_000,
        ] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            pair.server.send(&content, &mut pair.out).unwrap();
            let ciphertext = pair.client_sends(&content);
            // In parts, so that records are put together.
            let got: Vec<u8> = ciphertext
                .chunks(4096)
                .flat_map(|part| pair.receive(part))
                .collect();
            assert!(got == content, "{size} {suite:?}");
            let [_, got] = pair.exchange();
            assert!(got == content, "{size} {suite:?}");
        }
    }
}

#[test]
fn content_may_be_put_where_its_record_will_be() {
    for suite in SUITES {
        let mut pair = open_pair(suite);
        pair.out.extend_from_slice(b"");
        for content in [&b"x"[..], &[7; 1 << 14]] {
            let begun = pair.server.begin(&mut pair.out).unwrap();
            pair.out.extend_from_slice(content);
            pair.server.finish(&mut pair.out, begun).unwrap();
            // One that is taken back leaves nothing behind, and takes no number.
            let before = pair.out.clone();
            let begun = pair.server.begin(&mut pair.out).unwrap();
            pair.out.extend_from_slice(b"never");
            pair.server.abandon(&mut pair.out, begun);
            assert!(pair.out == before);
            assert!(feed(&mut pair.client, &std::mem::take(&mut pair.out)) == content);
        }
        // After the end nothing is begun.
        pair.server.close(&mut pair.out);
        assert!(pair.server.begin(&mut pair.out).is_err());
        pair.exchange();
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn a_client_that_asks_for_new_keys_gets_them_with_the_next_content() {
    let mut pair = open_pair(SUITES[3]);
    for round in 0..2 * KEY_UPDATES_MAX {
        pair.client.refresh_traffic_keys().unwrap();
        let bytes = pair.client_sends(b"with new keys");
        assert_eq!(pair.receive(&bytes), b"with new keys");
        assert_eq!(pair.out, b"", "nothing is sent for its own sake");
        pair.server.send(&[round], &mut pair.out).unwrap();
        // The update, and the content.
        assert_eq!(pair.out.len(), (5 + 5 + 1 + 16) + (5 + 1 + 1 + 16));
        assert_eq!(
            feed(&mut pair.client, &std::mem::take(&mut pair.out)),
            [round]
        );
        pair.server.send(b"once", &mut pair.out).unwrap();
        assert_eq!(
            feed(&mut pair.client, &std::mem::take(&mut pair.out)),
            b"once"
        );
    }
    // Without anything in between, they are a flood.
    let mut result = Ok(());
    for _ in 0..=KEY_UPDATES_MAX {
        pair.client.refresh_traffic_keys().unwrap();
        let mut bytes = sent(&mut pair.client);
        result = pair.server.receive(&mut bytes, &mut pair.out).map(drop);
    }
    assert_eq!(result, Err(Failure::Protocol));
    pair.client.read_tls(&mut &pair.out[..]).unwrap();
    assert!(pair.client.process_new_packets().is_err(), "it is told");
}

#[test]
fn keys_that_are_used_up_are_renewed_or_end_the_connection() {
    for suite in SUITES {
        let mut pair = open_pair(suite);
        wear_out(&mut pair.server, 3);
        let mut got = Vec::new();
        let mut result = Ok(());
        for round in 0..6 {
            result = pair.server.send(&[round], &mut pair.out);
            got.append(&mut feed(&mut pair.client, &std::mem::take(&mut pair.out)));
        }
        if suite.0.version == ProtocolVersion::TLSv1_3 {
            assert_eq!(
                (result, &*got),
                (Ok(()), &[0, 1, 2, 3, 4, 5][..]),
                "{suite:?}"
            );
            continue;
        }
        assert_eq!(
            (result, &*got),
            (Err(Failure::Exhausted), &[0, 1][..]),
            "{suite:?}"
        );
        // The last record is for the end.
        pair.server.close(&mut pair.out);
        pair.exchange();
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
    }
}

/// A client whose records a test makes itself.
struct Forger {
    server: TlsServer,
    sealer: Sealer,
}

impl Forger {
    fn new(suite: Suite) -> Self {
        let pair = open_pair(suite);
        let secrets = pair.client.dangerous_extract_secrets().unwrap();
        let (next, secrets) = secrets.tx;
        let known = PROVIDER.cipher_suites.iter();
        let known = known.copied().find(|it| it.suite() == suite.1).unwrap();
        Self {
            sealer: sealer(known, &secrets, next).unwrap(),
            server: pair.server,
        }
    }

    /// What the server makes of records of these types and contents.
    fn sends(&mut self, records: &[(u8, &[u8])]) -> (Result<Vec<u8>, Failure>, usize) {
        let mut bytes = Vec::new();
        for (kind, content) in records {
            self.sealer.record(&mut bytes, *kind, content).unwrap();
        }
        let mut out = Vec::new();
        let plain = self.server.receive(&mut bytes, &mut out);
        let plain = plain.map(|plain| match plain {
            Plain::InPlace(length) => bytes[..length].to_vec(),
            Plain::Gathered(plain) => plain,
        });
        (plain, out.len())
    }
}

/// Bytes of an alert in a record.
const OF_ALERT_13: usize = 5 + 2 + 1 + 16;

#[test]
fn a_message_of_a_handshake_may_be_in_parts_but_nothing_may_come_between() {
    let update = [KEY_UPDATE, 0, 0, 1, 0];
    for cut in 1..update.len() {
        let (first, rest) = update.split_at(cut);
        let mut forger = Forger::new(SUITES[4]);
        let told = forger.sends(&[(CONTENT, b"a"), (HANDSHAKE, first), (HANDSHAKE, rest)]);
        assert_eq!(told, (Ok(b"a".to_vec()), 0));
        assert_eq!(layer(&mut forger.server).key_updates, 1);
        let mut forger = Forger::new(SUITES[4]);
        let told = forger.sends(&[(HANDSHAKE, first), (CONTENT, b"a")]);
        assert_eq!(told, (Err(Failure::Protocol), OF_ALERT_13));
    }
}

#[test]
fn what_is_no_key_update_ends_the_connection_before_it_is_gathered() {
    let broken: [&[u8]; 8] = [
        &[],
        // Two in one record, another length, another value, tickets of a client, a second handshake.
        &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0],
        &[KEY_UPDATE, 0, 0, 2],
        &[KEY_UPDATE, 0, 0, 1, 2],
        &[NEW_SESSION_TICKET, 0, 0, 9],
        &[1, 0, 0, 9],
        &[KEY_UPDATE, 0xff, 0xff, 0xff],
        &[KEY_UPDATE, 0, 0, 1, 0, 0],
    ];
    for message in broken {
        let mut forger = Forger::new(SUITES[3]);
        let told = forger.sends(&[(HANDSHAKE, message)]);
        assert!(
            matches!(told, (Err(_), OF_ALERT_13)),
            "{message:?} {told:?}"
        );
        assert!(layer(&mut forger.server).message.len() <= 16);
    }
}

#[test]
fn another_handshake_is_refused_once_and_not_twice() {
    for suite in &SUITES[..3] {
        let mut forger = Forger::new(*suite);
        let hello = [1, 0, 0, 40];
        let told = forger.sends(&[(HANDSHAKE, &hello), (CONTENT, b"goes on")]);
        assert_eq!(told.0, Ok(b"goes on".to_vec()));
        assert!(told.1 > 0, "a warning");
        let told = forger.sends(&[(HANDSHAKE, &hello)]);
        assert_eq!(told.0, Err(Failure::Protocol));
        // What a client never sends.
        let mut forger = Forger::new(*suite);
        let told = forger.sends(&[(HANDSHAKE, &[0, 0, 0, 0])]);
        assert_eq!(told.0, Err(Failure::Protocol));
    }
}

#[test]
fn warnings_are_borne_some_times_and_the_end_is_the_end() {
    for (suite, warning) in [
        (SUITES[0], [1, 90]),
        (SUITES[3], [1, 90]),
        (SUITES[0], [1, 100]),
    ] {
        let mut forger = Forger::new(suite);
        for _ in 0..WARNINGS_MAX {
            assert_eq!(forger.sends(&[(ALERT, &warning)]), (Ok(Vec::new()), 0));
        }
        let (told, answered) = forger.sends(&[(ALERT, &warning)]);
        assert!(told.is_err());
        assert_eq!(answered, 0, "who has ended it isn't told");
        let mut forger = Forger::new(suite);
        let told = forger.sends(&[(CONTENT, b"last"), (ALERT, &CLOSE_NOTIFY), (CONTENT, b"x")]);
        assert_eq!(told, (Ok(b"last".to_vec()), 0));
        assert!(forger.server.is_peer_closed());
    }
    for alert in [&[2, 80][..], &[2], &[1, 0, 0], &[]] {
        let mut forger = Forger::new(SUITES[3]);
        assert!(forger.sends(&[(ALERT, alert)]).0.is_err(), "{alert:?}");
    }
}

#[test]
fn records_without_content_and_of_other_types() {
    for suite in SUITES {
        let mut forger = Forger::new(suite);
        let told = forger.sends(&[
            (CONTENT, b""),
            (CONTENT, b"a"),
            (CONTENT, b""),
            (CONTENT, b"b"),
        ]);
        assert_eq!(told, (Ok(b"ab".to_vec()), 0), "{suite:?}");
        // As many in a row as nobody needs.
        let mut forger = Forger::new(suite);
        for _ in 0..EMPTY_MAX {
            assert_eq!(forger.sends(&[(CONTENT, b"")]), (Ok(Vec::new()), 0));
        }
        let (told, _) = forger.sends(&[(CONTENT, b"")]);
        assert_eq!(told, Err(Failure::Protocol), "{suite:?}");
        for kind in [0, 20, 24, 255] {
            let mut forger = Forger::new(suite);
            let (told, _) = forger.sends(&[(kind, b"\x01")]);
            assert!(told.is_err(), "{kind} {suite:?}");
        }
        // More than a record may have (RFC 8446 §5.2).
        let mut forger = Forger::new(suite);
        let (told, _) = forger.sends(&[(CONTENT, &[0; (1 << 14) + 1])]);
        assert_eq!(told, Err(Failure::Protocol), "{suite:?}");
    }
}
