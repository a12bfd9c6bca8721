//! Methods, target forms, sites and routes, and the fields that every response has.

use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::framing::simple;
use crate::support::{Client, PATIENCE, Setup, Tree, on_both, wait_until};

#[test]
fn head_is_get_without_the_content() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", vec![b'L'; 300 << 10]);
        tree.write("empty", "");
        tree.write("d/a.txt", "a");
        let config = format!(
            "[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\nlist = true\n\
             [site.\"*\".routes]\n\"=/ok\" = {{ respond = 200, body = \"ok\" }}\n",
            tree.root()
        );
        let server = Setup::run(engine, &config).start();
        let mut client = server.connect();
        for target in [
            "/ok",
            "/large.bin",
            "/empty",
            "/d",
            "/missing",
            "/d/a.txt",
            "/d/",
        ] {
            let get = client.get(target);
            let head = client.request("HEAD", target, "");
            assert_eq!(head.status, get.status, "{target}");
            let mut fields = get.fields.clone();
            // A second may have passed, and a content of unknown length need not be made for HEAD.
            fields.retain(|(name, _)| name != "Date");
            let mut others = head.fields.clone();
            others.retain(|(name, _)| name != "Date");
            assert_eq!(others, fields, "{target}");
        }
    });
}

#[test]
fn options_says_what_is_allowed() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        for target in ["*", "/1.txt", "/"] {
            let response = client.request("OPTIONS", target, "");
            assert_eq!((response.status, response.body.len()), (204, 0), "{target}");
            for method in ["GET", "HEAD", "OPTIONS"] {
                assert!(response.lists("Allow", method), "{target}: {response:?}");
            }
        }
    });
}

#[test]
fn methods_that_files_do_not_have_are_405_and_name_those_they_have() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "get", "FROB"] {
            let response = client.request(method, "/1.txt", "");
            assert_eq!(response.status, 405, "{method}");
            assert!(response.lists("Allow", "GET"), "{method}");
        }
        let response = client.request("TRACE", "/ok", "Cookie: secret\r\n");
        assert_eq!(response.status, 405);
        assert!(!response.text().contains("secret"));
        client.send("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n");
        assert_eq!(client.response().status, 405);
        assert_eq!(
            std::fs::read(tree.path("1.txt")).expect("it is there"),
            b"file 1"
        );
    });
}

const SITES: &str = "\
[site.\"a.test\"]
aliases = [\"*.a.test\"]
listen = [\"127.0.0.1:0\"]
respond = 200
body = \"a\"
headers = { X-Site = \"a\", X-Both = \"site\" }
[site.\"a.test\".routes]
\"/p/*\" = { respond = 200, body = \"prefix\", headers = { X-Both = \"route\", X-Site = \"\" } }
\"/p/long/*\" = { respond = 200, body = \"longer prefix\" }
\"=/p/exact\" = { respond = 200, body = \"exact\" }
\"*.php\" = { respond = 410, body = \"suffix\" }
\"~^/item/(?<id>[0-9]+)$\" = { redirect = \"/items/{id}\", status = 308 }
\"/old/*\" = { redirect = \"/new/{path}\", status = 301 }
\"=/when\" = [
  { when = { method = [\"DELETE\"] }, respond = 403, body = \"no\" },
  { when = { header = { Accept = \"~json\" } }, respond = 200, body = \"{}\", content_type = \"application/json\" },
  { when = { query = { v = \"2\" } }, respond = 200, body = \"two\" },
  { respond = 200, body = \"otherwise\" },
]
[site.\"b.test\"]
listen = [\"127.0.0.1:0\"]
respond = 200
body = \"b\"
";

/// Asks for a target under a host name.
fn ask(client: &mut Client, host: &str, target: &str) -> crate::support::Response {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.response()
}

#[test]
fn the_host_chooses_the_site() {
    on_both(|engine| {
        let server = Setup::run(engine, SITES).start();
        let mut client = server.connect();
        for (host, body) in [
            ("a.test", "a"),
            ("A.TEST", "a"),
            ("a.test:1234", "a"),
            ("a.test.", "a"),
            ("www.a.test", "a"),
            ("b.test", "b"),
        ] {
            assert_eq!(ask(&mut client, host, "/").text(), body, "{host}");
        }
        for host in ["c.test", "xa.test", "www.b.test", "127.0.0.1", "[::1]:80"] {
            let response = ask(&mut client, host, "/");
            assert_eq!(response.status, 421, "{host:?}");
        }
        // The target's own authority wins over Host (RFC 9112 §3.2.2).
        assert_eq!(ask(&mut client, "a.test", "http://b.test/").text(), "b");
        assert_eq!(ask(&mut client, "a.test", "http://B.Test:99?x").text(), "b");
        assert_eq!(
            ask(&mut client, "nowhere.test", "http://a.test/").text(),
            "a"
        );
    });
}

#[test]
fn the_most_specific_route_answers() {
    on_both(|engine| {
        let server = Setup::run(engine, SITES).start();
        let mut client = server.connect();
        for (target, body) in [
            ("/", "a"),
            ("/p", "prefix"),
            ("/p/", "prefix"),
            ("/px", "a"),
            ("/p/x/y", "prefix"),
            ("/p/long/x", "longer prefix"),
            ("/p/longer", "prefix"),
            ("/p/exact", "exact"),
            ("/p/exact/", "prefix"),
            ("/p/x?y=/p/long/", "prefix"),
            ("/%70/x", "prefix"),
            ("/x/../p/x", "prefix"),
            ("//p//x", "prefix"),
            ("/when", "otherwise"),
            ("/when?v=2", "two"),
            ("/when?v=22", "otherwise"),
        ] {
            assert_eq!(ask(&mut client, "a.test", target).text(), body, "{target}");
        }
        assert_eq!(ask(&mut client, "a.test", "/x/index.php").status, 410);
        let response = client.request("GET", "http://a.test/when", "Accept: text/json\r\n");
        assert_eq!(response.must("Content-Type"), "application/json");
        let response = client.request("DELETE", "http://a.test/when", "");
        assert_eq!((response.status, response.text()), (403, "no"));
    });
}

#[test]
fn redirects_say_where_to() {
    on_both(|engine| {
        let server = Setup::run(engine, SITES).start();
        let mut client = server.connect();
        for (target, status, location) in [
            ("/old/a/b", 301, "/new/a/b"),
            ("/item/42", 308, "/items/42"),
            // What is decoded for the match is encoded again: nothing splits the response.
            ("/old/a%0d%0aX-Evil:%20b", 301, "/new/a%0D%0AX-Evil:%20b"),
        ] {
            let response = ask(&mut client, "a.test", target);
            assert_eq!(response.status, status, "{target}");
            assert_eq!(response.must("Location"), location, "{target}");
            assert!(response.field("X-Evil").is_none());
        }
        assert_eq!(ask(&mut client, "a.test", "/item/x").text(), "a");
    });
}

#[test]
fn fields_merge_down_and_an_empty_value_removes() {
    on_both(|engine| {
        let server = Setup::run(engine, SITES).start();
        let mut client = server.connect();
        let site = ask(&mut client, "a.test", "/");
        assert_eq!((site.must("X-Site"), site.must("X-Both")), ("a", "site"));
        let route = ask(&mut client, "a.test", "/p/x");
        assert_eq!(
            (route.field("X-Site"), route.must("X-Both")),
            (None, "route")
        );
        let other = ask(&mut client, "a.test", "/p/long/x");
        assert_eq!((other.must("X-Site"), other.must("X-Both")), ("a", "site"));
    });
}

#[test]
fn the_date_is_the_time() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        let before = SystemTime::now();
        let response = client.get("/ok");
        let after = SystemTime::now();
        let date = httpdate::parse_http_date(response.must("Date")).expect("an HTTP date");
        // Of the second that it was, or the one before.
        let earliest = before - Duration::from_secs(2);
        assert!(
            (earliest..=after).contains(&date),
            "{before:?} {date:?} {after:?}"
        );
    });
}

#[test]
fn pages_of_other_origins_may_read_what_cors_allows() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.json", "{}")]);
        let server = crate::support::server::serve(engine, &tree, &["--cors=https://app.example"]);
        let mut client = server.connect();
        let allowed = client.get_with("/a.json", "Origin: https://app.example\r\n");
        assert_eq!(
            allowed.must("Access-Control-Allow-Origin"),
            "https://app.example"
        );
        for origin in ["https://evil.example", "https://app.example.evil", "null"] {
            let response = client.get_with("/a.json", &format!("Origin: {origin}\r\n"));
            assert_eq!(
                response.field("Access-Control-Allow-Origin"),
                None,
                "{origin}"
            );
            assert!(response.lists("Vary", "Origin"));
        }
        let preflight = client.request(
            "OPTIONS",
            "/a.json",
            "Origin: https://app.example\r\nAccess-Control-Request-Method: GET\r\n",
        );
        assert_eq!(preflight.status, 204);
        assert!(preflight.lists("Access-Control-Allow-Methods", "GET"));
    });
}

#[test]
fn it_listens_on_ipv6_and_unix_sockets() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let path = tree.outside().join("web.sock");
        let unix = format!("unix:{}", path.display());
        let ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
        let mut arguments = vec!["-l", unix.as_str()];
        if ipv6 {
            arguments.extend(["-l", "[::1]:0"]);
        }
        let mut server = Setup::serve(engine, tree.root())
            .arguments(&arguments)
            .listeners(1 + arguments.len() / 2)
            .start();
        for address in server.addresses() {
            let mut client = Client::connect(address);
            assert_eq!(client.get("/a.txt").text(), "hello", "{address:?}");
        }
        server.signal(Signal::KILL);
        server.exit_code();
        // The kernel takes a ring apart after the end of its process, and its sockets with it.
        wait_until("the socket is dead", PATIENCE, || {
            UnixStream::connect(&path).is_err()
        });
        // A socket file that a dead server left behind is in nobody's way.
        let server = Setup::serve(engine, tree.root())
            .arguments(&["-l", &unix])
            .listeners(2)
            .start();
        for address in server.addresses() {
            assert_eq!(Client::connect(address).get("/a.txt").text(), "hello");
        }
    });
}

#[test]
fn several_workers_share_the_connections() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = Setup::serve(engine, tree.root()).workers(2).start();
        let mut clients: Vec<Client> = (0..50).map(|_| server.connect()).collect();
        for _ in 0..3 {
            for client in &mut clients {
                assert_eq!(client.get("/a.txt").text(), "hello");
            }
        }
    });
}
