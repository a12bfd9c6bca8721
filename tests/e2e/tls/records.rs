//! Records behind the handshake, as nobody makes them who means well, and as somebody may who does.

use super::keys::{SUITES, by_suite, is_answered, request, speaking};
use super::*;
use crate::support::records::{
    ALERT, BAD_RECORD_MAC, CHANGE_CIPHER_SPEC, CLOSE_NOTIFY, DATA, DECODE_ERROR, HANDSHAKE,
    RECORD_MAX, RECORD_OVERFLOW, Records, UNEXPECTED_MESSAGE, USER_CANCELED, header,
};

const NAME: &str = "a.example";

/// A connection by each cipher suite of each version.
fn by_each_suite(server: &Server, pem: &Pem, mut test: impl FnMut(Records, bool)) {
    for (version, suite) in SUITES {
        let config = by_suite(pem, version, suite);
        let is_tls13 = version.version == ProtocolVersion::TLSv1_3;
        test(
            Records::connect(tcp(server.address()), &config, NAME),
            is_tls13,
        );
    }
}

/// One connection of each version.
fn by_each_version(server: &Server, pem: &Pem, mut test: impl FnMut(Records, bool)) {
    for (version, is_tls13) in [(&TLS13, true), (&TLS12, false)] {
        let config = trusting(&[pem], &[version]);
        test(
            Records::connect(tcp(server.address()), &config, NAME),
            is_tls13,
        );
    }
}

/// How many whole answers to requests for the small file these bytes are; nothing else may be there but the
/// begin of one more.
fn answers(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    loop {
        let begin = b"HTTP/1.1 200 OK\r\n";
        let compared = bytes.len().min(begin.len());
        assert_eq!(bytes[..compared], begin[..compared], "after {count}");
        let text = String::from_utf8_lossy(bytes);
        let Some(end) = text.find("\r\n\r\ncontent") else {
            return count;
        };
        bytes = &bytes[end + 11..];
        count += 1;
        if bytes.is_empty() {
            return count;
        }
    }
}

#[test]
fn records_may_be_cut_at_each_byte() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        by_each_suite(&server, &pem, |mut client, _| {
            let mut cut = 0;
            loop {
                // The request is in two records.
                let mut records = client.seal(DATA, &request[..20]);
                records.extend(client.seal(DATA, &request[20..]));
                client.send_raw(&records[..cut]);
                client.send_raw(&records[cut..]);
                is_answered(&mut client);
                cut += 1;
                if cut == records.len() {
                    break;
                }
            }
            client.end();
            assert_eq!(client.rest(), (Vec::new(), Some(CLOSE_NOTIFY)));
        });
    });
}

#[test]
fn small_empty_and_padded_records_are_as_good_as_any() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        by_each_suite(&server, &pem, |mut client, is_tls13| {
            // A byte in each record, in as few writes as possible.
            let bytes = request.repeat(40);
            let records: Vec<u8> = bytes
                .iter()
                .flat_map(|byte| client.seal(DATA, &[*byte]))
                .collect();
            client.send_raw(&records);
            (0..40).for_each(|_| is_answered(&mut client));
            // Nothing in many of them, though not in more than 32 in a row.
            let mut records = Vec::new();
            for part in request.chunks(2) {
                for _ in 0..32 {
                    records.extend(client.seal(DATA, b""));
                }
                records.extend(client.seal(DATA, part));
            }
            client.send_raw(&records);
            is_answered(&mut client);
            if !is_tls13 {
                return;
            }
            // As much of nothing as a record has room for: content, type and zeros are 2^14 + 1 bytes.
            for padding in [1, 2, 255, 256, 10_000, RECORD_MAX - request.len()] {
                let record = client.seal_padded(DATA, &request, padding);
                client.send_raw(&record);
                is_answered(&mut client);
            }
            let mut records = client.seal_padded(DATA, b"", RECORD_MAX);
            records.extend(client.seal_padded(DATA, &request, 3));
            client.send_raw(&records);
            is_answered(&mut client);
            // So are those of other types.
            let mut records = client.seal_padded(HANDSHAKE, &[24, 0, 0, 1, 0], 500);
            client.renew();
            records.extend(client.seal(DATA, &request));
            records.extend(client.seal_padded(ALERT, &[1, CLOSE_NOTIFY], 77));
            client.send_raw(&records);
            is_answered(&mut client);
            assert_eq!(client.rest(), (Vec::new(), Some(CLOSE_NOTIFY)));
        });
    });
}

#[test]
fn who_sends_nothing_without_end_runs_out_of_time() {
    on_both(|engine| {
        let timeouts = "timeouts = { header = \"2s\", idle = \"2s\" }\n";
        let (_tree, pem, server, _) = speaking(engine, timeouts);
        for (begun, renews) in [
            (&b""[..], false),
            (b"GET /a.txt HTTP/1.1\r\n", false),
            (b"GET /a.txt HTTP/1.1\r\n", true),
        ] {
            by_each_version(&server, &pem, |mut client, is_tls13| {
                if renews && !is_tls13 {
                    return;
                }
                if !begun.is_empty() {
                    client.send(begun);
                }
                let begin = std::time::Instant::now();
                let mut served = 0;
                while begin.elapsed() < PATIENCE {
                    let records: Vec<u8> = (0..500).flat_map(|_| client.seal(DATA, b"")).collect();
                    if client.try_send_raw(&records).is_err() {
                        break;
                    }
                    // What it says meanwhile isn't read.
                    if served < 3 {
                        let mut other = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
                        assert_eq!(other.get(NAME, "/a.txt").1, b"content");
                        served += 1;
                    }
                }
                assert!(begin.elapsed() < PATIENCE, "it is never ended");
            });
        }
    });
}

#[test]
fn a_record_beyond_measure_is_refused() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let long = |length: usize| {
            let mut head = format!("GET /a.txt HTTP/1.1\r\nHost: {NAME}\r\nX: ").into_bytes();
            head.resize(length - 4, b'x');
            head.extend(b"\r\n\r\n");
            head
        };
        by_each_suite(&server, &pem, |mut client, _| {
            // The largest: HTTP finds it too long, TLS doesn't.
            client.send(&long(RECORD_MAX));
            let (head, _) = read_response(&mut client);
            assert!(head.starts_with("HTTP/1.1 "), "{head}");
        });
        by_each_suite(&server, &pem, |mut client, _| {
            let record = client.seal(DATA, &long(RECORD_MAX + 1));
            client.send_raw(&record);
            assert_eq!(client.rest(), (Vec::new(), Some(RECORD_OVERFLOW)));
        });
        by_each_suite(&server, &pem, |mut client, _| {
            // By its header alone.
            client.send_raw(&header(DATA, RECORD_MAX + 2049));
            assert_eq!(client.rest(), (Vec::new(), Some(RECORD_OVERFLOW)));
        });
        by_each_version(&server, &pem, |mut client, is_tls13| {
            if is_tls13 {
                // One zero too many.
                let record = client.seal_padded(DATA, b"", RECORD_MAX + 1);
                client.send_raw(&record);
                assert_eq!(client.rest(), (Vec::new(), Some(RECORD_OVERFLOW)));
            }
        });
    });
}

#[test]
fn what_was_changed_on_its_way_is_never_answered() {
    const GOOD: usize = 10;
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        // Where something is changed, counted from the end.
        for changed in [1, 17, 30] {
            by_each_suite(&server, &pem, |mut client, _| {
                // The changed one comes last: what tells of it can't get lost.
                let mut batch: Vec<u8> = (0..GOOD)
                    .flat_map(|_| client.seal(DATA, &request))
                    .collect();
                batch.extend(client.seal(DATA, &request));
                let at = batch.len() - changed;
                batch[at] ^= 0x10;
                client.send_raw(&batch);
                let (content, alert) = client.rest();
                assert_eq!(alert, Some(BAD_RECORD_MAC));
                assert!(answers(&content) <= GOOD);
            });
            by_each_version(&server, &pem, |mut client, _| {
                // Others stand behind it.
                let mut batch = Vec::new();
                for at in 0..2 * GOOD {
                    batch.extend(client.seal(DATA, &request));
                    if at == GOOD {
                        let place = batch.len() - changed;
                        batch[place] ^= 1;
                    }
                }
                client.send_raw(&batch);
                let (content, alert) = client.rest();
                assert!(alert.is_none_or(|alert| alert == BAD_RECORD_MAC));
                assert!(answers(&content) <= GOOD);
            });
        }
    });
}

#[test]
fn records_come_once_and_in_order() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        by_each_suite(&server, &pem, |mut client, _| {
            let record = client.seal(DATA, &request);
            client.send_raw(&record);
            is_answered(&mut client);
            // The same once more.
            client.send_raw(&record);
            assert_eq!(client.rest(), (Vec::new(), Some(BAD_RECORD_MAC)));
        });
        by_each_suite(&server, &pem, |mut client, _| {
            let first = client.seal(DATA, &request[..9]);
            let second = client.seal(DATA, &request[9..]);
            client.send_raw(&[second, first].concat());
            let (content, alert) = client.rest();
            assert!(content.is_empty() && alert.is_none_or(|alert| alert == BAD_RECORD_MAC));
        });
        by_each_suite(&server, &pem, |mut client, _| {
            // One is left out.
            let _ = client.seal(DATA, &request);
            client.send(&request);
            assert_eq!(client.rest(), (Vec::new(), Some(BAD_RECORD_MAC)));
        });
    });
}

#[test]
fn a_record_of_a_type_that_is_not_due_ends_the_connection() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "timeouts = { idle = \"10s\" }\n");
        // In the clear: what says that it ends, what says that something is wrong, and what else there is.
        for (what, plain) in [
            ("close_notify", &[ALERT, 3, 3, 0, 2, 1, CLOSE_NOTIFY][..]),
            ("a fatal alert", &[ALERT, 3, 3, 0, 2, 2, 40]),
            ("ChangeCipherSpec", &[CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1]),
            ("a handshake", &[HANDSHAKE, 3, 3, 0, 4, 0, 0, 0, 0]),
            ("heartbeat", &[24, 3, 3, 0, 3, 1, 0x40, 0]),
            ("no type", &[99, 3, 3, 0, 1, 0]),
            ("nothing", &[DATA, 3, 3, 0, 0]),
            ("another version", &[DATA, 2, 0, 0, 1, 0]),
            ("SSL 2", &[0x80, 0x2e, 1, 0, 2]),
            (
                "less than a tag",
                &[
                    DATA, 3, 3, 0, 15, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5,
                ],
            ),
        ] {
            by_each_version(&server, &pem, |mut client, is_tls13| {
                client.send_raw(plain);
                let (content, alert) = client.rest();
                assert_eq!(content, b"", "{what}");
                let expected = [
                    UNEXPECTED_MESSAGE,
                    BAD_RECORD_MAC,
                    DECODE_ERROR,
                    RECORD_OVERFLOW,
                    70,
                ];
                let alert = alert.unwrap_or_else(|| panic!("{what}, {is_tls13}: nothing is told"));
                assert!(expected.contains(&alert), "{what}, {is_tls13}: {alert}");
            });
        }
        // Sealed, and out of place.
        for (what, kind, content) in [
            ("ChangeCipherSpec", CHANGE_CIPHER_SPEC, &[1][..]),
            ("heartbeat", 24, &[1, 0x40, 0]),
            ("no type", 99, b"x"),
            ("half an alert", ALERT, &[1]),
            ("an empty alert", ALERT, &[]),
            ("an empty handshake", HANDSHAKE, &[]),
        ] {
            by_each_version(&server, &pem, |mut client, is_tls13| {
                let record = client.seal(kind, content);
                client.send_raw(&record);
                let (content, alert) = client.rest();
                assert_eq!(content, b"", "{what}");
                let expected = [UNEXPECTED_MESSAGE, DECODE_ERROR];
                let alert = alert.unwrap_or_else(|| panic!("{what}, {is_tls13}: nothing is told"));
                assert!(expected.contains(&alert), "{what}, {is_tls13}: {alert}");
            });
        }
        by_each_version(&server, &pem, |mut client, is_tls13| {
            if is_tls13 {
                // Zeros alone: no type anywhere (RFC 8446 §5.4).
                for length in [0, 1, 100] {
                    let mut client = Records::connect(
                        tcp(server.address()),
                        &trusting(&[&pem], &[&TLS13]),
                        NAME,
                    );
                    let record = client.seal_inner(DATA, &vec![0; length]);
                    client.send_raw(&record);
                    let (content, alert) = client.rest();
                    assert_eq!(content, b"");
                    assert_eq!(alert, Some(UNEXPECTED_MESSAGE), "{length}");
                }
                // What is sealed looks like data, whatever it is (RFC 8446 §5.2).
                let record = client.seal_inner(HANDSHAKE, b"x\x17");
                client.send_raw(&record);
                let (content, alert) = client.rest();
                assert!(content.is_empty() && alert.is_some());
            }
        });
        let mut other = Client::connect(&server, &trusting(&[&pem], BOTH), NAME);
        assert_eq!(other.get(NAME, "/a.txt").1, b"content");
    });
}

#[test]
fn warnings_are_few_and_errors_are_the_end() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        by_each_suite(&server, &pem, |mut client, is_tls13| {
            // TLS 1.3 knows but this one, TLS 1.2 also others (no_renegotiation).
            let warning = if is_tls13 { USER_CANCELED } else { 100 };
            let mut records = client.seal(ALERT, &[1, warning]);
            records.extend(client.seal(DATA, &request));
            client.send_raw(&records);
            is_answered(&mut client);
            let flood: Vec<u8> = (0..10)
                .flat_map(|_| client.seal(ALERT, &[1, warning]))
                .collect();
            client.send_raw(&flood);
            assert_eq!(client.rest().0, b"");
        });
        // Whatever the client finds wrong: no end is told, also where an answer is under way.
        for description in [BAD_RECORD_MAC, 40, 80, 48, 255] {
            by_each_version(&server, &pem, |mut client, _| {
                client.send(&super::keys::request("/large.bin"));
                client.read_exact(&mut [0; 100_000]).unwrap();
                let record = client.seal(ALERT, &[2, description]);
                client.send_raw(&record);
                assert_ne!(client.rest().1, Some(CLOSE_NOTIFY));
            });
        }
    });
}

#[test]
fn what_follows_an_end_is_of_nobody() {
    on_both(|engine| {
        let (_tree, pem, server, _) = speaking(engine, "");
        let request = request("/a.txt");
        by_each_suite(&server, &pem, |mut client, _| {
            let mut records = client.seal(DATA, &request);
            records.extend(client.seal(ALERT, &[1, CLOSE_NOTIFY]));
            records.extend(client.seal(DATA, &request));
            client.send_raw(&records);
            let (content, alert) = client.rest();
            assert_eq!(answers(&content), 1);
            assert!(alert.is_none_or(|alert| alert == CLOSE_NOTIFY), "{alert:?}");
        });
    });
}
