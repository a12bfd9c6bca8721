//! HTTP/1.1 framing over a real socket: what is refused, what keeps the connection, and that
//! requests are found wherever the stream is cut (RFC 9112).

use crate::support::{End, Engine, Server, Setup, Tree, on_both};

/// A server that answers `/ok` itself, with any method, and `/0` to `/15` by files.
pub(crate) fn simple(engine: Engine, tree: &Tree) -> Server {
    for number in 0..16 {
        tree.write(&format!("{number}.txt"), format!("file {number}"));
    }
    let config = format!(
        "[site.\"*\"]\n\
         listen = [\"127.0.0.1:0\"]\n\
         root = {:?}\n\
         [site.\"*\".routes]\n\
         \"=/ok\" = {{ respond = 200, body = \"ok\" }}\n\
         \"=/poison\" = {{ respond = 418, body = \"poison\" }}\n",
        tree.root()
    );
    Setup::run(engine, &config).start()
}

/// Sends `request` on a connection of its own, followed by a request that must not be answered, and
/// checks for one response of `status` and an orderly end.
#[track_caller]
fn refused(server: &Server, request: &[u8], status: u16) {
    let name = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let mut client = server.connect();
    client.send(request);
    let response = client
        .try_response()
        .unwrap_or_else(|error| panic!("{name:?}: {error}"));
    assert_eq!(response.status, status, "{name:?}");
    assert!(response.closes(), "{name:?} must close");
    // The server may be done with the connection already: then this fails, which is as good.
    let _ = client.try_send("GET /poison HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.end(), End::Closed, "{name:?}");
}

/// Sends `request` and another one behind it in the same write; both must be answered, the first
/// with `status`.
#[track_caller]
fn kept(server: &Server, request: &[u8], status: u16) {
    let name = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let mut client = server.connect();
    let mut bytes = request.to_vec();
    bytes.extend_from_slice(b"GET /3.txt HTTP/1.1\r\nHost: a\r\n\r\n");
    client.send(bytes);
    let response = if request.starts_with(b"HEAD") {
        client.head_response()
    } else {
        client.response()
    };
    assert_eq!(response.status, status, "{name:?}");
    assert!(!response.closes(), "{name:?} must keep the connection");
    assert_eq!(client.response().text(), "file 3", "behind {name:?}");
}

#[test]
fn malformed_heads_are_refused_and_close() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let cases: &[(&str, u16)] = &[
            // Line ends.
            ("GET /ok HTTP/1.1\nHost: a\n\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\rHost: a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\n\rGET", 400),
            // Field lines.
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
                400,
            ),
            ("GET /ok HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX(Y: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
            // Request lines.
            ("GET  /ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (" GET /ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            ("GET\t/ok\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /o k HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("G(T /ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok#top HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("CONNECT /ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET ftp://a/ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http://u:p@a/ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok http/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /ok HTTP/1.11\r\nHost: a\r\n\r\n", 400),
            // Versions.
            ("GET /ok\r\n", 505),
            ("GET /ok HTTP/0.9\r\n\r\n", 505),
            ("GET /ok HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET /ok HTTP/3\r\nHost: a\r\n\r\n", 505),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            // Host.
            ("GET /ok HTTP/1.1\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost:\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400),
            ("GET /ok HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
            ("GET http://a/ok HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET /ok HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            // Expectations.
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nExpect: something\r\n\r\n",
                417,
            ),
        ];
        for (request, status) in cases {
            refused(&server, request.as_bytes(), *status);
        }
    });
}

#[test]
fn malformed_body_framing_is_refused_and_closes() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        for (fields, status) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5, 5\r\n", 400),
            ("Content-Length: 5,6\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: -5\r\n", 400),
            ("Content-Length: 5 5\r\n", 400),
            ("Content-Length: 0x5\r\n", 400),
            ("Content-Length: 5a\r\n", 400),
            ("Content-Length: 5.0\r\n", 400),
            ("Content-Length: \r\n", 400),
            ("Content-Length: 18446744073709551616\r\n", 400),
            ("Content-Length: 00000000000000000005\r\n", 400),
            ("Content-Length: 99999999999999999999999\r\n", 400),
            ("Transfer-Encoding: gzip\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: chunked, identity\r\n", 400),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                400,
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                400,
            ),
            ("Transfer-Encoding: \"chunked\"\r\n", 400),
            ("Transfer-Encoding: chunked;q=1\r\n", 400),
            ("Transfer-Encoding: xchunked\r\n", 400),
            ("Transfer-Encoding: \x0bchunked\r\n", 400),
            ("Transfer-Encoding:\r\n", 400),
            ("Transfer-Encoding : chunked\r\n", 400),
            ("Transfer-Encoding\r\n : chunked\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ] {
            let request = format!("POST /ok HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            refused(&server, request.as_bytes(), status);
        }
        let request = "POST /ok HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        refused(&server, request.as_bytes(), 400);
        let request = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 1\r\n\r\nx";
        refused(&server, request.as_bytes(), 400);
    });
}

#[test]
fn what_is_unusual_but_valid_keeps_the_connection() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        for request in [
            "GET /ok HTTP/1.1\r\nHost: a\r\n\r\n",
            // An empty line before the request line (RFC 9112 §2.2).
            "\r\nGET /ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /ok HTTP/1.1\r\nHOST:a\r\n\r\n",
            "GET /ok HTTP/1.1\r\nHost: \t a \t\r\nX:\r\n\r\n",
            "GET /ok HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET /ok HTTP/1.1\r\nX: \u{fc}\u{1f600}\r\nHost: a\r\n\r\n",
            "GET http://b/ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET HTTP://B:80/ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /ok?a=/../b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /x/../%6fk HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET //.//ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "HEAD /ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /",
            "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nGET /",
            "GET /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /",
            "HEAD /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /",
            "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\ntransfer-encoding: ChunkeD\r\n\r\n\
             5\r\nGET /\r\n00A\r\n0123456789\r\n0\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             1;name=\"value\";x\r\nX\r\n0;last\r\nTrailer-Field: x\r\n\r\n",
            "GET /ok HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: foo, keep-alive\r\n\r\n",
        ] {
            kept(&server, request.as_bytes(), 200);
        }
    });
}

#[test]
fn connections_stay_open_or_close_as_asked() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        for (request, keep_alive) in [
            ("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n", true),
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                false,
            ),
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n",
                false,
            ),
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n",
                false,
            ),
            (
                "GET /ok HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n\r\n",
                false,
            ),
            ("GET /ok HTTP/1.0\r\n\r\n", false),
            ("GET /ok HTTP/1.0\r\nHost: a\r\n\r\n", false),
            ("GET /ok HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            (
                "GET /ok HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
                false,
            ),
        ] {
            let mut client = server.connect();
            client.send(request);
            let response = client.response();
            assert_eq!(response.text(), "ok", "{request:?}");
            assert_eq!(response.closes(), !keep_alive, "{request:?}");
            if keep_alive {
                let http_10 = request.contains("HTTP/1.0");
                assert_eq!(response.lists("Connection", "keep-alive"), http_10);
                assert_eq!(client.get("/ok").text(), "ok", "{request:?}");
            } else {
                assert_eq!(client.end(), End::Closed, "{request:?}");
            }
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", vec![b'L'; 300 << 10]);
        let server = simple(engine, &tree);
        let mut client = server.connect();
        for round in 0..20 {
            let batch: String = (0..16)
                .map(|number| match (round, number) {
                    (1, 7) => "GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                    (2, 7) => "GET /missing HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
                    _ => format!("GET /{number}.txt HTTP/1.1\r\nHost: a\r\n\r\n"),
                })
                .collect();
            client.send(batch);
            for number in 0..16 {
                let response = client.response();
                match (round, number) {
                    (1, 7) => assert_eq!(response.body.len(), 300 << 10),
                    (2, 7) => assert_eq!(response.status, 404),
                    _ => assert_eq!(response.text(), format!("file {number}")),
                }
            }
        }
        assert!(client.is_open());
    });
}

#[test]
fn what_was_asked_before_a_broken_request_is_answered() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        client.send(
            "GET /0.txt HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /1.txt HTTP/1.1\r\nHost: a\r\n\r\n\
             GET /2.txt HTTP/1.1\r\nHost : a\r\n\r\n\
             GET /3.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert_eq!(client.response().text(), "file 0");
        assert_eq!(client.response().text(), "file 1");
        assert_eq!(client.response().status, 400);
        assert_eq!(client.end(), End::Closed);
    });
}

#[test]
fn what_follows_a_request_that_closes_is_not_answered() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        client.send(
            "GET /0.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\
             GET /1.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert_eq!(client.response().text(), "file 0");
        assert_eq!(client.end(), End::Closed);
    });
}

#[test]
fn a_client_that_ends_its_direction_gets_its_answers() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", vec![b'L'; 2 << 20]);
        let server = simple(engine, &tree);
        let mut client = server.connect();
        client.send(
            "GET /0.txt HTTP/1.1\r\nHost: a\r\n\r\nGET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        client.end_input();
        assert_eq!(client.response().text(), "file 0");
        assert_eq!(client.response().body.len(), 2 << 20);
        assert_eq!(client.end(), End::Closed);
    });
}

/// Requests whose bytes cover the scanner, the parser and both kinds of body.
const SEQUENCE: &str = "GET /1.txt HTTP/1.1\r\nHost: a\r\n\r\n\
    POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nGET / HTT\
    POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
    4;x\r\nabcd\r\n0\r\nT: u\r\n\r\n\
    GET /2.txt HTTP/1.1\r\nHost: a\r\n\r\n";

fn check_sequence(client: &mut crate::support::Client) {
    for text in ["file 1", "ok", "ok", "file 2"] {
        assert_eq!(client.response().text(), text);
    }
}

#[test]
fn requests_are_found_wherever_the_stream_is_cut() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        client.socket().set_tcp_nodelay(true).expect("nodelay");
        for cut in 1..SEQUENCE.len() {
            let (first, second) = SEQUENCE.split_at(cut);
            client.send(first);
            // A whole request in the first part is answered without the second: waiting for that
            // makes sure that the server has seen the cut.
            if cut >= SEQUENCE.find("POST").expect("it is there") {
                client.await_bytes(1);
            }
            client.send(second);
            check_sequence(&mut client);
        }
        for byte in SEQUENCE.bytes() {
            client.send([byte]);
        }
        check_sequence(&mut client);
    });
}

#[test]
fn a_body_that_nobody_reads_is_drained_within_its_bound() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        // 64 KiB is the default bound.
        let mut client = server.connect();
        client.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n");
        for _ in 0..64 {
            client.send([b'x'; 1024]);
        }
        let response = client.response();
        assert_eq!((response.text(), response.closes()), ("ok", false));
        assert_eq!(client.get("/5.txt").text(), "file 5");

        client.send("POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..30 {
            client.send("400\r\n");
            client.send([b'x'; 1024]);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.response().text(), "ok");
        assert_eq!(client.get("/5.txt").text(), "file 5");
    });
}

#[test]
fn a_larger_body_closes_the_connection_without_losing_the_answer() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        client.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n");
        // The answer is there before the body is. A server that closed now would reset the
        // connection while the body comes, and the answer would be lost (RFC 9112 §9.6).
        for _ in 0..600 {
            client.send([b'x'; 1000]);
        }
        let response = client.response();
        assert_eq!(response.text(), "ok");
        assert!(response.closes());
        assert_eq!(client.end(), End::Closed);
    });
}

#[test]
fn one_hundred_continue_is_sent_only_when_the_body_will_be_read() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        for target in ["/ok", "/1.txt", "/missing"] {
            let mut client = server.connect();
            client.send(format!(
                "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\
                 Expect: 100-continue\r\n\r\n"
            ));
            // Nothing here reads bodies: the final status comes at once, and because the client may
            // or may not send the body now, the connection ends.
            let response = client.response();
            assert!(response.status >= 200, "{target}: {response:?}");
            assert!(response.closes(), "{target}");
            assert_eq!(client.end(), End::Closed, "{target}");
        }
        // Without a body there is nothing to expect.
        let mut client = server.connect();
        let response = client.get_with("/ok", "Expect: 100-continue\r\n");
        assert_eq!(response.text(), "ok");
    });
}
