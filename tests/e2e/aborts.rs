//! Clients that leave at every stage: nothing of them stays, and the server serves on.

use std::time::Duration;

use crate::support::{Client, PATIENCE, Server, Setup, Tree, noise, on_both, wait_until};

/// Stages at which a client may leave.
const STAGES: &[&str] = &[
    "",
    "G",
    "GET /large.bin HT",
    "GET /large.bin HTTP/1.1\r\n",
    "GET /large.bin HTTP/1.1\r\nHost: a\r\n\r",
    "GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\nGET /large.bin HTTP/1.1\r\nHost: a\r\n\r\nGET /a",
    "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",
    "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nsome of it",
    "POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\nsome of it",
    "POST /ok HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "GET /ok HTTP/1.1\r\nbroken\r\n\r\nGET /ok",
    "GET /list/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /large.bin HTTP/1.1\r\nHost: a\r\nRange: bytes=0-99999,200000-999999,-5\r\n\r\n",
];

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    Close,
    Reset,
    HalfClose,
    /// As soon as something of the answer has come, with the rest unread.
    Midway,
}

fn leave(server: &Server, stage: &str, how: Leave) {
    let mut client = Client::connect_with(server.address(), |socket| {
        socket.set_recv_buffer_size(8192).expect("SO_RCVBUF");
    });
    client.send(stage);
    match how {
        Leave::Close => drop(client),
        Leave::Reset => client.abort(),
        Leave::HalfClose => {
            client.end_input();
            client.abort();
        }
        Leave::Midway => {
            if stage.ends_with("\r\n\r\n") && stage.starts_with("GET") {
                client.await_bytes(1);
            }
            client.abort();
        }
    }
}

fn all_stages(server: &Server) {
    for stage in STAGES {
        for how in [Leave::Close, Leave::Reset, Leave::HalfClose, Leave::Midway] {
            leave(server, stage, how);
        }
    }
}

#[test]
fn clients_that_leave_at_any_stage_leave_nothing_behind() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello"), ("list/x", "x")]);
        let content = noise(2 << 20);
        tree.write("large.bin", &content);
        // Were connections to leak, this few would soon be all.
        let config = format!(
            "[server]\nmax_conns = 100\n\
             [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nroot = {:?}\nlist = true\n\
             [site.\"*\".routes]\n\"=/ok\" = {{ respond = 200, body = \"ok\" }}\n",
            tree.root()
        );
        let mut server = Setup::run(engine, &config).start();
        let check = |client: &mut Client| {
            assert_eq!(client.get("/a.txt").text(), "hello");
            assert!(client.get("/large.bin").body == content);
            assert_eq!(client.get("/list/").status, 200);
        };
        // What the cache holds open, it holds open from here on.
        let mut steady = server.connect();
        check(&mut steady);
        all_stages(&server);
        check(&mut steady);
        let mut baseline = server.descriptors();
        wait_until("the first round is over", PATIENCE, || {
            std::thread::park_timeout(Duration::from_millis(100));
            let before = std::mem::replace(&mut baseline, server.descriptors());
            before == baseline
        });
        for _ in 0..10 {
            all_stages(&server);
        }
        check(&mut steady);
        assert!(server.ended().is_none());
        let mut now = 0;
        wait_until("descriptors are given back", PATIENCE, || {
            now = server.descriptors();
            now <= baseline
        });
        let clients: Vec<Client> = (0..90)
            .map(|_| {
                let mut client = server.connect();
                check(&mut client);
                client
            })
            .collect();
        check(&mut steady);
        drop(clients);
    });
}

#[test]
fn connections_that_never_say_anything_do_no_harm() {
    on_both(|engine| {
        let tree = Tree::with(&[("a.txt", "hello")]);
        let server = Setup::serve(engine, tree.root()).start();
        let silent: Vec<Client> = (0..300).map(|_| server.connect()).collect();
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").text(), "hello");
        drop(silent);
        assert_eq!(client.get("/a.txt").text(), "hello");
    });
}
