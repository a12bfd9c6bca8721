//! Smuggling through a proxy: a backend finds exactly the requests that the client was answered for.

use super::backend::{Backend, ok};
use super::{plain, proxy};
use crate::support::{Client, Response, on_both};

/// What must never arrive as a request of its own.
const POISON: &str = "GET /poison HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";

/// Answers with a number for each request, so that none can be taken for another's.
fn counting() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request() {
            let body = format!("{} {}", request.method, request.target);
            connection.send(ok(&body));
        }
    })
}

/// All answers to these bytes.
fn answers(client: &mut Client, bytes: &[u8]) -> Vec<Response> {
    let _ = client.try_send(bytes);
    client.end_input();
    let mut answers = Vec::new();
    while let Ok(response) = client.try_response() {
        answers.push(response);
    }
    answers
}

#[test]
fn what_is_framed_in_two_ways_reaches_no_backend() {
    on_both(|engine| {
        let backend = counting();
        let server = plain(engine, &backend);
        let length = POISON.len();
        let chunk = format!("{length:x}\r\n{POISON}\r\n0\r\n\r\n");
        let cases = [
            // CL.TE and TE.CL.
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{POISON}",
                length + 5
            ),
            format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunk}"),
            // TE.TE.
            format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: xchunked\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{POISON}"),
            format!("Transfer-Encoding: identity\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            // Folded lines and bare line ends.
            format!("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!(
                "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{POISON}"
            ),
            format!("X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!("X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{POISON}"),
            format!("X: y\0\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            // Two lengths, or one that is read in two ways.
            format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            format!("Content-Length: 0, {length}\r\n\r\n{POISON}"),
            format!("Content-Length: {length}, {length}\r\n\r\n{POISON}"),
            format!("Content-Length: +{length}\r\n\r\n{POISON}"),
            format!("Content-Length: 0x10\r\n\r\n{POISON}"),
            format!("Content-Length: 1 0\r\n\r\n{POISON}"),
            format!("Content-Length: -1\r\n\r\n{POISON}"),
            format!("Content-Length: 18446744073709551616\r\n\r\n{POISON}"),
            format!("Content-Length :{length}\r\n\r\n{POISON}"),
            // Another Host.
            format!("Host: b\r\nContent-Length: {length}\r\n\r\n{POISON}"),
        ];
        for fields in &cases {
            let request = format!("POST /front HTTP/1.1\r\nHost: a\r\n{fields}");
            let answers = answers(&mut server.connect(), request.as_bytes());
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            // A coding that nobody has here is 501 (RFC 9112 §6.1).
            assert!(
                statuses == [400] || statuses == [501],
                "{fields:?}: {statuses:?}"
            );
        }
        assert_eq!(backend.connections(), 0, "nothing has arrived");
    });
}

#[test]
fn chunks_that_are_read_in_two_ways_are_no_request_to_anybody() {
    on_both(|engine| {
        let backend = counting();
        let server = plain(engine, &backend);
        let length = POISON.len();
        for chunks in [
            format!("0\n\n{POISON}"),
            format!("0\r\r\n\r\n{POISON}"),
            format!("+0\r\n\r\n{POISON}"),
            format!("0x0\r\n\r\n{POISON}"),
            format!("-1\r\n\r\n{POISON}"),
            format!("10000000000000000\r\n\r\n{POISON}"),
            format!("FFFFFFFFFFFFFFFF\r\n\r\n{POISON}"),
            format!("\r\n0\r\n\r\n{POISON}"),
            format!("1;a\nb\r\nX\r\n0\r\n\r\n{POISON}"),
            format!("1;a\rb\r\nX\r\n0\r\n\r\n{POISON}"),
            format!("3\r\nabcdef\r\n0\r\n\r\n{POISON}"),
            format!("1\r\nXY0\r\n\r\n{POISON}"),
            format!("{length:x} \r\n{POISON}\r\n0 \r\n\r\n{POISON}"),
            format!("0\r\nbad line\r\n\r\n{POISON}"),
            format!("0\r\n X: folded\r\n\r\n{POISON}"),
            format!("1;{}\r\nX\r\n0\r\n\r\n{POISON}", "e".repeat(300)),
        ] {
            let request = format!(
                "POST /front HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            );
            let answers = answers(&mut server.connect(), request.as_bytes());
            assert!(answers.len() <= 1, "{chunks:?}: {answers:?}");
            for answer in &answers {
                assert!(answer.status == 400 || answer.status == 502, "{answer:?}");
            }
        }
        // A coding that was broken is never a whole request: none was read to its end.
        assert_eq!(backend.requests(), []);
    });
}

#[test]
fn a_body_that_looks_like_a_request_is_a_body() {
    on_both(|engine| {
        let backend = counting();
        let server = plain(engine, &backend);
        let length = POISON.len();
        let mut count = 0;
        for method in ["POST", "GET", "DELETE", "OPTIONS", "PUT", "FROB"] {
            for fields in [
                format!("Content-Length: {length}\r\n\r\n{POISON}"),
                format!("Content-Length: 0{length}\r\n\r\n{POISON}"),
                format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{POISON}\r\n0\r\n\r\n"),
                format!(
                    "Transfer-Encoding: Chunked\r\n\r\n000{length:X};a=b\r\n{POISON}\r\n00\r\n\r\n"
                ),
                format!("Connection: Content-Length\r\nContent-Length: {length}\r\n\r\n{POISON}"),
                format!(
                    "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
                     {length:x}\r\n{POISON}\r\n0\r\n\r\n"
                ),
                format!("Connection: close, Host\r\nContent-Length: {length}\r\n\r\n{POISON}"),
            ] {
                let mut client = server.connect();
                client.send(format!("{method} /front HTTP/1.1\r\nHost: a\r\n{fields}"));
                let response = client.response();
                assert_eq!(response.text(), format!("{method} /front"), "{fields:?}");
                count += 1;
                let request = backend.last();
                assert_eq!(request.text(), POISON, "{method} {fields:?}");
                if !response.closes() {
                    assert_eq!(client.get("/after").text(), "GET /after");
                    count += 1;
                }
            }
        }
        let requests = backend.requests();
        assert_eq!(requests.len(), count);
        assert!(requests.iter().all(|request| request.target != "/poison"));
    });
}

#[test]
fn an_upload_that_was_refused_early_leaves_no_request_behind() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(mut request) = connection.head() {
                // Answered before its body, which follows on the same connection.
                connection.send(ok(&request.target));
                if connection.body(&mut request).is_none() {
                    return;
                }
            }
        });
        let server = plain(engine, &backend);
        for _ in 0..10 {
            let mut client = server.connect();
            let length = POISON.len();
            client.send(format!(
                "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            ));
            assert_eq!(client.response().text(), "/early");
            let sent = client.try_send(format!("{POISON}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
            // It may have been closed instead.
            if sent.is_ok()
                && let Ok(response) = client.try_response()
            {
                assert_eq!(response.text(), "/next");
            }
            let mut other = server.connect();
            assert_eq!(other.get("/other").text(), "/other");
        }
        assert!(backend.requests().iter().all(|r| r.target != "/poison"));
    });
}

#[test]
fn nothing_a_client_writes_becomes_a_line_of_its_own() {
    on_both(|engine| {
        let backend = counting();
        let lines = "request_headers = { X-Source = \"edge\" }\n[site.\"*\".routes]\n\
                     \"/strip/*\" = { strip_prefix = true }\n\
                     \"/rewrite/*\" = { rewrite = \"/to/{path}\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let injected = "%0d%0aX-Injected:%201%0d%0a%0d%0aGET%20/poison%20HTTP/1.1";
        let mut refused = 0;
        for target in [
            format!("/a{injected}"),
            format!("/a?{injected}"),
            format!("/strip/{injected}"),
            format!("/rewrite/{injected}"),
            format!("/rewrite/x?{injected}"),
            "/a%00b".to_owned(),
            "/a%ff".to_owned(),
            "/a\u{7f}b".to_owned(),
            "/a b".to_owned(),
            "/a\tb".to_owned(),
            "/a\u{e9}".to_owned(),
            "/a#b".to_owned(),
            "//evil.example/x".to_owned(),
            "/\\evil".to_owned(),
            "/rewrite//evil.example/x".to_owned(),
            "/strip//evil.example/x".to_owned(),
            "/rewrite/%2e%2e/%2e%2e/etc".to_owned(),
            "/rewrite/..%2f..%2fetc".to_owned(),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answers = answers(&mut server.connect(), request.as_bytes());
            assert_eq!(answers.len(), 1, "{target}: {answers:?}");
            match answers[0].status {
                200 => {
                    let last = backend.last();
                    assert!(!last.has("X-Injected"), "{last:?}");
                    assert!(!last.target.starts_with("//"), "{last:?}");
                    assert!(!last.target.contains("/../"), "{last:?}");
                }
                400 | 404 => refused += 1,
                status => panic!("{target}: {status}"),
            }
        }
        assert!(refused >= 4, "{refused}");
        for host in [
            "a\r\n X: y",
            "a b",
            "a\tb",
            "a/b",
            "a@b",
            "a,b",
            "a?b",
            "a#b",
            "a\\b",
            "",
            "a:port",
            "a:99999",
            "[::1",
            "a\r\nHost: b",
            "<script>",
        ] {
            let before = backend.requests().len();
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answers = answers(&mut server.connect(), request.as_bytes());
            assert_eq!(answers.len(), 1, "{host:?}: {answers:?}");
            assert_eq!(answers[0].status, 400, "{host:?}");
            assert_eq!(backend.requests().len(), before, "{host:?}");
        }
        for field in [
            "X: a\rb",
            "X: a\0b",
            "X\0: a",
            "X y: a",
            "X\t: a",
            ": a",
            "X: \x1b[0m",
        ] {
            let request =
                format!("GET /f HTTP/1.1\r\nHost: a\r\n{field}\r\nConnection: close\r\n\r\n");
            let answers = answers(&mut server.connect(), request.as_bytes());
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            assert_eq!(statuses, [400], "{field:?}");
        }
        // The backend's own parser has read every request that came, and none was another's.
        assert!(
            backend
                .requests()
                .iter()
                .all(|r| r.must("X-Source") == "edge")
        );
    });
}

#[test]
fn a_response_can_not_be_split_either() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let request = connection.request().expect("a request");
            connection.send(match request.target.as_str() {
                "/lf" => "HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n",
                "/cr" => "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b=c\r\nContent-Length: 0\r\n\r\n",
                "/name" => "HTTP/1.1 200 OK\r\nX Y: a\r\nContent-Length: 0\r\n\r\n",
                _ => "HTTP/1.1 200 O\nK: x\r\nContent-Length: 0\r\n\r\n",
            });
            connection.rest();
        });
        let server = plain(engine, &backend);
        for target in ["/lf", "/cr", "/name", "/reason"] {
            let response = server.connect().get(target);
            assert_eq!(response.status, 502, "{target}: {response:?}");
            assert_eq!(response.field("Set-Cookie"), None);
        }
        assert_eq!(backend.requests().len(), 4, "each of them was answered");
    });
}
