//! Request smuggling: bytes of a body never become the next request, whatever shape the framing has.

use crate::framing::simple;
use crate::support::{Tree, on_both};

/// What must never be answered. Its answer would have status 418.
const POISON: &str = "GET /poison HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn no_shape_of_framing_makes_a_body_a_request() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let length = POISON.len();
        let chunk = format!("{length:x}\r\n{POISON}\r\n0\r\n\r\n");
        let cases = [
            // CL.TE: the one in front counts bytes, the one behind chunks, and the reverse.
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{POISON}",
                length + 5
            ),
            format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunk}"),
            format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
            // TE.TE: a coding that only one of the two recognises.
            format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Transfer-Encoding : chunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Transfer-Encoding:\tchunked\x0b\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("X: y\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Transfer-Encoding:\r\n chunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("\u{20}Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            // Two lengths, or one that is read in two ways.
            format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Content-Length: {length}\r\nContent-Length: 0\r\n\r\n{POISON}"),
            format!("Content-Length: 0, {length}\r\n\r\n{POISON}"),
            format!("Content-Length: +0\r\n\r\n{POISON}"),
            format!("Content-Length: 0x0\r\n\r\n{POISON}"),
            // Chunk lines that are read in two ways.
            format!("Transfer-Encoding: chunked\r\n\r\n0\n\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nX\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\nX\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n1\r\nXY0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\nbad line\r\n\r\n{POISON}"),
            format!(
                "Transfer-Encoding: chunked\r\n\r\n1;{}\r\nX\r\n0\r\n\r\n{POISON}",
                "e".repeat(300)
            ),
            // An expectation whose body may or may not follow the early answer.
            format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{POISON}"),
        ];
        for fields in cases {
            let mut client = server.connect();
            client.send(format!("POST /ok HTTP/1.1\r\nHost: a\r\n{fields}"));
            let response = client
                .try_response()
                .unwrap_or_else(|error| panic!("{fields:?}: {error}"));
            assert!(
                [200, 400].contains(&response.status),
                "{fields:?}: {response:?}"
            );
            client.end_input();
            let (rest, _) = client.rest();
            assert!(
                rest.is_empty(),
                "{fields:?}: a second answer: {:?}",
                String::from_utf8_lossy(&rest)
            );
        }
    });
}

#[test]
fn bodies_of_methods_that_need_none_are_bodies_all_the_same() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        // CL.0: the body of a request to something that reads no bodies.
        for (method, target) in [
            ("GET", "/ok"),
            ("GET", "/1.txt"),
            ("HEAD", "/1.txt"),
            ("OPTIONS", "/1.txt"),
            ("POST", "/1.txt"),
            ("POST", "/missing"),
            ("DELETE", "/"),
            ("GET", "/1.txt?a"),
            ("TRACE", "/1.txt"),
            ("FROB", "/1.txt"),
        ] {
            let mut client = server.connect();
            client.send(format!(
                "{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{POISON}\
                 GET /2.txt HTTP/1.1\r\nHost: a\r\n\r\n",
                POISON.len()
            ));
            let first = match method {
                "HEAD" => client.head_response(),
                _ => client.response(),
            };
            assert_ne!(first.status, 418, "{method} {target}");
            if first.closes() {
                client.end();
            } else {
                assert_eq!(client.response().text(), "file 2", "{method} {target}");
            }
        }
    });
}
