//! Which fields, which path and which Host a backend sees, and what of its answer a client does.

use super::backend::{Backend, answer, ok};
use super::message::Request;
use super::{Setup, plain, proxy, site, upstream};
use crate::support::{PATIENCE, Server, on_both, wait_until};

/// What the backend sees of a GET with these fields.
fn seen(server: &Server, backend: &Backend, target: &str, fields: &str) -> Request {
    let response = server.connect().get_with(target, fields);
    assert_eq!(response.status, 200, "{fields:?}: {response:?}");
    backend.last()
}

#[test]
fn what_a_client_says_of_itself_is_not_believed() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = plain(engine, &backend);
        let fields = "X-Forwarded-For: 192.0.2.66\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: evil.example\r\nX-Real-IP: 192.0.2.66\r\n\
                      X-Forwarded-Port: 1\r\nForwarded: for=192.0.2.66;proto=https\r\n";
        for fields in ["", fields] {
            let request = seen(&server, &backend, "/", fields);
            assert_eq!(request.must("X-Forwarded-For"), "127.0.0.1");
            assert_eq!(request.must("X-Forwarded-Proto"), "http");
            assert_eq!(request.must("X-Forwarded-Host"), "localhost");
            assert_eq!(
                request.must("Forwarded"),
                "for=127.0.0.1;host=localhost;proto=http"
            );
            assert_eq!(request.must("Via"), "1.1 beltway");
            assert_eq!(request.must("Host"), "localhost");
            let text = String::from_utf8(request.raw).expect("ASCII");
            assert!(
                !text.contains("192.0.2.66") && !text.contains("evil"),
                "{text}"
            );
        }
    });
}

#[test]
fn what_a_listed_peer_says_is_believed_and_told() {
    on_both(|engine| {
        let backend = Backend::echo();
        let config = format!(
            "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n{}",
            site(&format!("proxy = {:?}", backend.name()))
        );
        let server = Setup::run(engine, &config).start();
        let fields = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: shop.example\r\n";
        let request = seen(&server, &backend, "/", fields);
        assert_eq!(request.must("X-Forwarded-For"), "192.0.2.7, 127.0.0.1");
        assert_eq!(request.must("X-Forwarded-Proto"), "https");
        assert_eq!(request.must("X-Forwarded-Host"), "shop.example");
        assert!(request.must("Forwarded").starts_with("for=192.0.2.7;"));
        let request = seen(
            &server,
            &backend,
            "/",
            "Forwarded: for=192.0.2.8;proto=https\r\n",
        );
        assert_eq!(request.must("X-Forwarded-For"), "192.0.2.8, 127.0.0.1");
        assert_eq!(request.must("X-Forwarded-Proto"), "https");
    });
}

#[test]
fn fields_of_the_connection_end_at_the_proxy_both_ways() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while connection.request().is_some() {
                let fields = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                              Proxy-Connection: keep-alive\r\nX-End: 2\r\nUpgrade: h2c\r\n\
                              Proxy-Authenticate: Basic\r\nTE: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
                              Server: app\r\n";
                connection.send(answer(200, fields, "x"));
            }
        });
        let server = plain(engine, &backend);
        let fields = "Connection: keep-alive, X-Hop, Cookie, Content-Length, Host\r\nX-Hop: 1\r\n\
                      Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy: http://evil\r\n\
                      Proxy-Authorization: Basic x\r\nTE: gzip\r\nTrailer: X-End\r\nUpgrade: h2c\r\n\
                      HTTP2-Settings: AAAA\r\nCookie: a=b\r\nX_Under: 1\r\nX-End: 2\r\n";
        let mut client = server.connect();
        let response = client.get_with("/", fields);
        let request = backend.last();
        for gone in [
            "Connection",
            "X-Hop",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy",
            "Proxy-Authorization",
            "TE",
            "Trailer",
            "Upgrade",
            "HTTP2-Settings",
            "X_Under",
            "Content-Length",
        ] {
            assert!(!request.has(gone), "{gone}: {request:?}");
        }
        assert_eq!(request.must("X-End"), "2");
        assert_eq!(request.must("Cookie"), "a=b", "nobody may take it away");
        for gone in [
            "X-Hop",
            "Keep-Alive",
            "Proxy-Connection",
            "Upgrade",
            "Proxy-Authenticate",
            "TE",
        ] {
            assert_eq!(response.field(gone), None, "{response:?}");
        }
        assert_eq!(response.must("X-End"), "2");
        assert_eq!(response.must("Server"), "app");
        assert_eq!(response.must("Via"), "1.1 beltway");
        let cookies: Vec<&str> = response.values("Set-Cookie").collect();
        assert_eq!(cookies, ["a=b", "c=d"]);
    });
}

#[test]
fn fields_are_set_appended_and_removed_by_the_configuration() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                let fields = "X-Powered-By: PHP\r\nX-Keep: 1\r\nVary: A\r\n";
                connection.send(answer(200, fields, &request.target));
            }
        });
        let lines = "request_headers = { X-Source = \"edge\", Accept-Encoding = \"\", \"+X-More\" = \"2\" }\n\
                     headers = { X-Powered-By = \"\", X-Frame-Options = \"DENY\" }\n\
                     [site.\"*\".routes]\n\
                     \"/api/*\" = { request_headers = { X-Api = \"1\" } }";
        let server = proxy(engine, &[backend.name()], lines);
        let fields = "X-Source: client\r\nAccept-Encoding: gzip\r\nX-More: 1\r\n";
        for (target, api) in [("/", None), ("/api/x", Some("1"))] {
            let response = server.connect().get_with(target, fields);
            assert_eq!(response.field("X-Powered-By"), None);
            assert_eq!(response.must("X-Frame-Options"), "DENY");
            assert_eq!(response.must("X-Keep"), "1");
            let request = backend.last();
            assert_eq!(request.must("X-Source"), "edge");
            assert!(!request.has("Accept-Encoding"));
            let more: Vec<&str> = request.values("X-More").collect();
            assert_eq!(more, ["1", "2"]);
            assert_eq!(request.field("X-Api"), api);
        }
    });
}

#[test]
fn paths_are_passed_on_in_one_spelling_stripped_or_rewritten() {
    on_both(|engine| {
        let backend = Backend::echo();
        let lines = "[site.\"*\".routes]\n\
                     \"/billing/*\" = { strip_prefix = true }\n\
                     \"/deep/api/*\" = { strip_prefix = \"/deep\" }\n\
                     \"/old/*\" = { rewrite = \"/new/v1/{path}\" }\n\
                     \"/fixed\" = { rewrite = \"/other?x=y\" }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        for (target, expected) in [
            ("/", "/"),
            ("/a/b?c=d&e", "/a/b?c=d&e"),
            ("/a?", "/a?"),
            ("/a/../b/./c", "/b/c"),
            ("/a%20b/%C3%A9", "/a%20b/%C3%A9"),
            ("/%61", "/a"),
            ("/a?q=%0d%0aX:%20y", "/a?q=%0d%0aX:%20y"),
            ("/billing/invoices/7?x", "/invoices/7?x"),
            ("/billing/", "/"),
            ("/billing/%2e%2e/billing/x", "/x"),
            ("/deep/api/x", "/api/x"),
            ("/old/a/b?q=1", "/new/v1/a/b?q=1"),
            ("/old/a%20b", "/new/v1/a%20b"),
            ("http://localhost/abs?x", "/abs?x"),
        ] {
            let response = client.get(target);
            assert_eq!(
                (response.status, response.text()),
                (200, expected),
                "{target}"
            );
        }
        assert!(client.get("/fixed").text().starts_with("/other?x=y"));
    });
}

#[test]
fn host_is_kept_or_the_one_of_the_upstream_or_a_given_one() {
    on_both(|engine| {
        let backend = Backend::echo();
        for (lines, expected) in [
            ("", "shop.example:81"),
            ("upstream_host = \"keep\"", "shop.example:81"),
            ("upstream_host = \"upstream\"", backend.name()),
            ("upstream_host = \"app.internal\"", "app.internal"),
        ] {
            let server = proxy(engine, &[backend.name()], lines);
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: Shop.Example:81\r\n\r\n");
            assert_eq!(client.response().status, 200);
            let request = backend.last();
            assert_eq!(request.must("Host"), expected, "{lines}");
            assert_eq!(request.must("X-Forwarded-Host"), "shop.example:81");
            // The target has the last word (RFC 9112 §3.2.2).
            client.send("GET http://other.example/x HTTP/1.1\r\nHost: shop.example\r\n\r\n");
            assert_eq!(client.response().text(), "/x");
            assert_eq!(backend.last().must("X-Forwarded-Host"), "other.example");
        }
    });
}

#[test]
fn a_proxy_header_tells_the_backend_who_the_client_is() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(connection.exactly(1));
            }
            let line = String::from_utf8(line).expect("ASCII");
            while connection.request().is_some() {
                connection.send(ok(line.trim_end()));
            }
        });
        let lines = "send_proxy_protocol = \"v1\"";
        let server = proxy(engine, &[backend.name()], lines);
        for n in 1..=3 {
            let mut client = server.connect();
            let local = client.socket().local_addr().expect("a name");
            let port = local.as_socket().expect("TCP").port();
            for _ in 0..2 {
                let response = client.get("/");
                let words: Vec<&str> = response.text().split(' ').collect();
                assert_eq!(words[..4], ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"]);
                assert_eq!(words[4], port.to_string(), "it is this client's connection");
            }
            assert!(backend.connections() >= n, "clients don't share them");
        }
    });
}

#[test]
fn a_proxy_header_of_version_2_is_binary() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            let head = connection.exactly(16);
            assert_eq!(head[..12], *b"\r\n\r\n\0\r\nQUIT\n");
            assert_eq!(head[12], 0x21, "version 2, PROXY");
            assert_eq!(head[13], 0x11, "TCP over IPv4");
            let length = u16::from_be_bytes([head[14], head[15]]);
            let rest = connection.exactly(length.into());
            assert_eq!(rest[..8], [127, 0, 0, 1, 127, 0, 0, 1]);
            let port = u16::from_be_bytes([rest[8], rest[9]]);
            while connection.request().is_some() {
                connection.send(ok(&port.to_string()));
            }
        });
        let lines = "send_proxy_protocol = \"v2\"";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        let local = client.socket().local_addr().expect("a name");
        let port = local.as_socket().expect("TCP").port();
        assert_eq!(client.get("/").text(), port.to_string());
    });
}

#[test]
fn probes_begin_with_a_header_that_names_nobody() {
    on_both(|engine| {
        for (version, probe) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", LOCAL)] {
            let backend = Backend::start(move |connection| {
                let mut header = connection.exactly(14);
                let is_probe = probe.starts_with(&header);
                // Of all others it is enough that it is one, and longer.
                header.extend(connection.exactly(probe.len() - header.len()));
                if !is_probe && header.starts_with(b"PROXY TCP4 ") {
                    while !header.ends_with(b"\r\n") {
                        header.extend(connection.exactly(1));
                    }
                } else if !is_probe && header.starts_with(b"\r\n\r\n") {
                    connection.exactly(header[15].into());
                } else {
                    assert_eq!(header, probe, "a probe");
                }
                while let Some(request) = connection.request() {
                    let healthy = is_probe == (request.target == "/healthz");
                    connection.send(match healthy {
                        true => ok("well"),
                        false => answer(503, "", "who is that?"),
                    });
                }
            });
            let table = "health = { path = \"/healthz\", interval = \"100ms\", \
                         timeout = \"100ms\", fall = 1 }";
            let lines = format!("send_proxy_protocol = {version:?}");
            let server = upstream(engine, &[backend.name()], table, &lines);
            let probes = || {
                let requests = backend.requests();
                let probes = requests.iter().filter(|it| it.target == "/healthz");
                probes.count()
            };
            wait_until("it was asked some times", PATIENCE, || probes() > 3);
            // One of them may have been late; without the header none is ever good.
            let what = format!("{version}: it is found well, and answers");
            wait_until(&what, PATIENCE, || {
                let response = server.connect().get("/");
                (response.status, response.text()) == (200, "well")
            });
        }
    });
}

/// A block of version 2 for LOCAL, without addresses.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[test]
fn proxy_alone_needs_no_file() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = Setup::proxy(engine, backend.name())
            .arguments(&["-H", "X-Source: edge"])
            .start();
        let request = seen(&server, &backend, "/a", "");
        assert_eq!(
            (request.target.as_str(), request.must("X-Source")),
            ("/a", "edge")
        );
    });
}

#[test]
fn methods_that_are_no_business_of_a_backend_end_here() {
    on_both(|engine| {
        let backend = Backend::echo();
        let server = plain(engine, &backend);
        for request in [
            "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        ] {
            let mut client = server.connect();
            client.send(request);
            let status = client.response().status;
            assert!([400, 405, 501].contains(&status), "{request:?}: {status}");
        }
        assert_eq!(backend.connections(), 0);
    });
}

#[test]
fn a_proxy_header_of_a_listed_peer_is_believed() {
    on_both(|engine| {
        let backend = Backend::echo();
        let lines = "proxy_protocol = { from = [\"127.0.0.0/8\"] }";
        let server = proxy(engine, &[backend.name()], lines);
        let mut client = server.connect();
        client.send("PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "/a");
        assert_eq!(backend.last().must("X-Forwarded-For"), "192.0.2.7");
        let mut client = server.connect();
        client.send("GET /b HTTP/1.1\r\nHost: a\r\n\r\n");
        let answered = client.try_response();
        assert!(answered.is_err() || answered.is_ok_and(|r| r.status == 400));
        assert_eq!(backend.requests().len(), 1);
    });
}

#[test]
fn long_heads_pass_both_ways() {
    on_both(|engine| {
        let field = |n: usize| format!("X-{n}: {}\r\n", "v".repeat(300));
        let fields: String = (0..90).map(field).collect();
        let of_answer = fields.clone();
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.request() {
                connection.send(answer(200, &of_answer, &request.target));
            }
        });
        let server = plain(engine, &backend);
        let mut client = server.connect();
        let target = format!("/{}", "p".repeat(3000));
        for _ in 0..3 {
            let response = client.get_with(&target, &fields);
            assert_eq!((response.status, response.text()), (200, target.as_str()));
            let request = backend.last();
            for n in 0..90 {
                let name = format!("X-{n}");
                assert_eq!(request.must(&name).len(), 300);
                assert_eq!(response.must(&name).len(), 300);
            }
        }
        assert_eq!(backend.connections(), 1);
    });
}
