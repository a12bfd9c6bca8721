//! Limits: each one at its default or a small value, one below and one beyond it, and the time
//! limits with times short enough for a test.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::framing::simple;
use crate::support::{Client, End, Engine, PATIENCE, Server, Setup, Tree, on_both, wait_until};

/// A server of `/ok` and files with these lines in `[server]` and its tables.
fn limited(engine: Engine, tree: &Tree, server: &str) -> Server {
    let config = format!(
        "{server}\n[site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\n\
         [site.\"*\".routes]\n\"=/ok\" = {{ respond = 200, body = \"ok\" }}\n",
        tree.root()
    );
    Setup::run(engine, &config).start()
}

/// The status of a request on a connection of its own, which must close when it is refused.
#[track_caller]
fn status(server: &Server, request: &str) -> u16 {
    let mut client = server.connect();
    client.send(request);
    let response = client.response();
    if response.status >= 400 {
        assert!(response.closes());
        assert_eq!(client.end(), End::Closed);
    }
    response.status
}

/// A request whose request line has this many bytes without its end.
fn with_line(length: usize) -> String {
    let filler = length - "GET /ok? HTTP/1.1".len();
    format!("GET /ok?{} HTTP/1.1\r\nHost: a\r\n\r\n", "q".repeat(filler))
}

/// A request whose header section has about this many bytes: its field lines with their ends.
fn with_section(length: usize) -> String {
    let filler = length - "Host: a\r\nX: \r\n".len();
    format!(
        "GET /ok HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(filler)
    )
}

/// A request with this many fields.
fn with_fields(count: usize) -> String {
    format!(
        "GET /ok HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: y\r\n".repeat(count - 1)
    )
}

#[test]
fn sizes_are_limited_by_default() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        assert_eq!(status(&server, &with_line(8 << 10)), 200);
        assert_eq!(status(&server, &with_line((8 << 10) + 1)), 414);
        assert_eq!(status(&server, &with_line(500 << 10)), 414);
        // Whether the empty line counts is nobody's concern.
        assert_eq!(status(&server, &with_section((32 << 10) - 2)), 200);
        assert_eq!(status(&server, &with_section((32 << 10) + 1)), 431);
        assert_eq!(status(&server, &with_section(500 << 10)), 431);
        assert_eq!(status(&server, &with_fields(100)), 200);
        assert_eq!(status(&server, &with_fields(101)), 431);
        assert_eq!(status(&server, &with_fields(5000)), 431);
    });
}

#[test]
fn sizes_are_limited_as_configured() {
    on_both(|engine| {
        let tree = Tree::new();
        let limits = "[server.limits]\nrequest_line = \"300B\"\nheader_section = \"400B\"\n\
                      header_fields = 3\n";
        let server = limited(engine, &tree, limits);
        assert_eq!(status(&server, &with_line(300)), 200);
        assert_eq!(status(&server, &with_line(301)), 414);
        assert_eq!(status(&server, &with_section(398)), 200);
        assert_eq!(status(&server, &with_section(401)), 431);
        assert_eq!(status(&server, &with_fields(3)), 200);
        assert_eq!(status(&server, &with_fields(4)), 431);
    });
}

#[test]
fn limits_that_were_reached_are_counted_and_named_at_the_end() {
    on_both(|engine| {
        let tree = Tree::new();
        let mut server = limited(engine, &tree, "[server.timeouts]\nheader = \"2s\"\n");
        for _ in 0..3 {
            assert_eq!(status(&server, &with_line(10 << 10)), 414);
        }
        assert_eq!(status(&server, "GET /ok HTTP/1.1\r\n"), 408);
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), Some(0));
        let log = server.stderr();
        for (name, times) in [
            ("request line", "times=3"),
            ("time to a whole header section", "times=1"),
        ] {
            let told = |line: &str| line.contains(name) && line.contains(times);
            assert!(log.lines().any(told), "{name}: {log}");
        }
    });
}

#[test]
fn a_line_without_an_end_is_refused_while_it_comes() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        for (start, expected) in [("GET /", 414), ("GET / HTTP/1.1\r\nHost: a\r\nX: ", 431)] {
            let mut client = server.connect();
            client.send(start);
            client.send("a".repeat(40 << 10));
            assert_eq!(client.response().status, expected);
            assert_eq!(client.end(), End::Closed);
        }
    });
}

#[test]
fn a_name_that_no_file_system_takes_is_just_missing() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = simple(engine, &tree);
        let mut client = server.connect();
        for path in ["a".repeat(300), "a".repeat(5000), "a/".repeat(4000)] {
            assert_eq!(client.get(&format!("/{path}")).status, 404);
        }
    });
}

#[test]
fn a_head_has_to_come_in_time() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server.timeouts]\nheader = \"300ms\"\n");
        for start in [
            "G",
            "GET /ok HT",
            "GET /ok HTTP/1.1\r\n",
            "GET /ok HTTP/1.1\r\nHost: a\r\nX",
        ] {
            let mut client = server.connect();
            let begin = Instant::now();
            client.send(start);
            let response = client.response();
            assert_eq!(
                (response.status, response.closes()),
                (408, true),
                "{start:?}"
            );
            assert!(begin.elapsed() > Duration::from_millis(250), "{start:?}");
            assert_eq!(client.end(), End::Closed);
        }
        // On a connection that has served, too.
        let mut client = server.connect();
        assert_eq!(client.get("/ok").text(), "ok");
        client.send("GET /ok HTTP/1.1\r\nHo");
        assert_eq!(client.response().status, 408);
        // One that sends nothing at all is not answered, and does not stay.
        let (bytes, end) = server.connect().rest();
        assert!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408 "));
        assert_eq!(end, End::Closed);
    });
}

#[test]
fn sending_a_byte_now_and_then_buys_no_time() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server.timeouts]\nheader = \"400ms\"\n");
        let mut client = server.connect();
        let begin = Instant::now();
        client.send("GET /ok HTTP/1.1\r\nHost: a\r\n");
        while client.is_silent_for(Duration::from_millis(20)) {
            let _ = client.try_send("X");
            assert!(begin.elapsed() < Duration::from_secs(5), "slowloris");
        }
        assert_eq!(client.response().status, 408);
    });
}

#[test]
fn an_idle_connection_is_closed() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server.timeouts]\nidle = \"1s\"\n");
        let mut client = server.connect();
        let begin = Instant::now();
        assert_eq!(client.get("/ok").text(), "ok");
        assert_eq!(client.end(), End::Closed);
        assert!(begin.elapsed() > Duration::from_millis(950));
        // A request begins the time anew.
        let mut client = server.connect();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            assert_eq!(client.get("/ok").text(), "ok");
            assert!(client.is_silent_for(Duration::from_millis(50)));
        }
    });
}

#[test]
fn the_number_of_requests_of_a_connection_is_limited() {
    on_both(|engine| {
        let tree = Tree::new();
        let limits = "[server.limits]\nrequests_per_connection = 3\n";
        let server = limited(engine, &tree, limits);
        let mut client = server.connect();
        client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5));
        for number in 1..=3 {
            let response = client.response();
            assert_eq!((response.text(), response.closes()), ("ok", number == 3));
        }
        assert_eq!(client.end(), End::Closed);
    });
}

#[test]
fn a_body_that_does_not_come_ends_the_connection() {
    on_both(|engine| {
        let tree = Tree::new();
        let timeouts = "[server.timeouts]\nprogress = \"300ms\"\nprogress_rate = \"1000B\"\n";
        let server = limited(engine, &tree, timeouts);
        for framing in [
            "Content-Length: 1000\r\n\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        ] {
            let mut client = server.connect();
            client.send(format!("POST /ok HTTP/1.1\r\nHost: a\r\n{framing}"));
            assert!([200, 408].contains(&client.response().status));
            let begin = Instant::now();
            let (rest, _) = client.rest();
            assert!(rest.is_empty());
            assert!(begin.elapsed() < Duration::from_secs(5));
        }
    });
}

#[test]
fn a_body_that_does_not_come_holds_nobody_up_where_no_progress_is_asked_for() {
    on_both(|engine| {
        let tree = Tree::new();
        let timeouts = "[server.timeouts]\nheader = \"200ms\"\nprogress_rate = \"0B\"\n";
        let server = limited(engine, &tree, timeouts);
        let mut watcher = server.connect();
        assert_eq!(watcher.get("/ok").text(), "ok");
        let mut client = server.connect();
        client.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
        assert_eq!(client.response().status, 200);
        // Longer than any deadline that was set before the body.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(600) {
            assert_eq!(watcher.get("/ok").text(), "ok");
            assert!(watcher.is_silent_for(Duration::from_millis(20)));
        }
        client.send("def");
        assert_eq!(client.get("/ok").text(), "ok", "the rest was waited for");
    });
}

#[test]
fn a_reader_that_does_not_read_is_reset() {
    on_both(|engine| {
        let tree = Tree::new();
        tree.write("large.bin", vec![b'L'; 16 << 20]);
        let timeouts = "[server.timeouts]\nprogress = \"1s\"\nprogress_rate = \"1000B\"\n";
        let server = limited(engine, &tree, timeouts);
        // The cache may hold the file: ask once before counting.
        assert_eq!(server.connect().get("/large.bin").body.len(), 16 << 20);
        let mut watcher = server.connect();
        assert_eq!(watcher.get("/ok").text(), "ok");
        let mut client = Client::connect_with(server.address(), |socket| {
            socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        });
        let begin = Instant::now();
        client.send("GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n");
        // The kernel tells a reset even to somebody who doesn't read.
        wait_until("the slow reader is reset", 2 * PATIENCE, || {
            client.socket().take_error().expect("SO_ERROR").is_some()
        });
        assert!(begin.elapsed() > Duration::from_millis(950));
        // Others never noticed, and a fast one still gets all.
        assert_eq!(watcher.get("/ok").text(), "ok");
        assert_eq!(watcher.get("/large.bin").body.len(), 16 << 20);
    });
}

#[test]
fn at_the_connection_limit_idle_ones_make_room() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server]\nmax_conns = 3\n");
        let mut clients: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/ok").text(), "ok");
        }
        let mut another = server.connect();
        assert_eq!(another.get("/ok").text(), "ok", "room is made");
        assert_eq!(
            clients[0].end(),
            End::Closed,
            "the one that idled longest went"
        );
        assert_eq!(another.get("/ok").text(), "ok");
    });
}

#[test]
fn at_the_connection_limit_busy_ones_go_on_and_new_ones_wait() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server]\nmax_conns = 3\n");
        let mut busy: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut busy {
            // One request and half of another: busy from here on.
            client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\nGET /ok HTTP/1.1\r\nHost: a\r\n");
            assert_eq!(client.response().text(), "ok");
        }
        let mut waiting = server.connect();
        waiting.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
        for client in &mut busy {
            client.send("\r\nGET /ok HTTP/1.1\r\nHost: a\r\nX: ");
            assert_eq!(client.response().text(), "ok", "existing ones go on");
        }
        assert!(waiting.is_open(), "it waits in the backlog");
        busy.remove(0).abort();
        assert_eq!(waiting.response().text(), "ok");
        for client in &mut busy {
            client.send("y\r\n\r\n");
            assert_eq!(client.response().text(), "ok");
        }
    });
}

#[test]
fn at_the_connection_limit_those_that_become_idle_make_room() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server]\nmax_conns = 3\n");
        let mut busy: Vec<Client> = (0..3).map(|_| server.connect()).collect();
        for client in &mut busy {
            client.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\nGET /ok HTTP/1.1\r\nHost: a\r\n");
            assert_eq!(client.response().text(), "ok");
        }
        let mut waiting = server.connect();
        waiting.send("GET /ok HTTP/1.1\r\nHost: a\r\n\r\n");
        for client in &mut busy {
            client.send("\r\n");
            assert_eq!(client.response().text(), "ok");
        }
        // All are idle now, and would be for 75 seconds: nobody waits that long.
        assert_eq!(waiting.response().text(), "ok");
        let gone = busy
            .iter_mut()
            .filter_map(|client| (!client.is_open()).then_some(()));
        assert!(gone.count() < 3, "no more room is made than is needed");
    });
}

#[test]
fn a_crowd_that_comes_at_once_is_answered_by_and_by() {
    on_both(|engine| {
        let tree = Tree::new();
        let server = limited(engine, &tree, "[server]\nmax_conns = 20\n");
        let before = server.descriptors();
        // All of them are in the backlog before the server sees the first.
        server.signal(Signal::STOP);
        let mut crowd: Vec<Client> = (0..200)
            .map(|number| {
                let close = if number % 2 == 0 {
                    "Connection: close\r\n"
                } else {
                    ""
                };
                let mut client = server.connect();
                client.send(format!("GET /ok HTTP/1.1\r\nHost: a\r\n{close}\r\n"));
                client
            })
            .collect();
        server.signal(Signal::CONT);
        for client in &mut crowd {
            assert_eq!(client.response().text(), "ok");
            // One or two may be about to be closed.
            let open = server.descriptors() - before;
            assert!(open <= 25, "{open} descriptors for 20 connections");
        }
    });
}
