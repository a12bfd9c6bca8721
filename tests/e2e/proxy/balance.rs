//! How requests are spread over servers, and the states that a configuration gives them.

use std::collections::BTreeMap;

use super::backend::{Backend, Gate, Refusing, ok};
use super::{Engine, Server, Setup, tables, upstream};
use crate::support::{Client, PATIENCE, on_both, wait_until};

/// Servers that answer with their letter.
fn servers() -> [Backend; 3] {
    ["a", "b", "c"].map(Backend::naming)
}

/// A server in front of these three, each with these keys.
fn with_keys(engine: Engine, servers: &[Backend; 3], keys: [&str; 3], table: &str) -> Server {
    Setup::run(engine, &tables(&list(servers, keys), table, "")).start()
}

fn list(servers: &[Backend; 3], keys: [&str; 3]) -> String {
    let entries: Vec<String> = servers
        .iter()
        .zip(keys)
        .map(|(server, keys)| format!("{{ address = {:?}{keys} }}", server.name()))
        .collect();
    format!("[{}]", entries.join(", "))
}

/// Who answers, request by request.
fn answers(client: &mut Client, count: usize) -> String {
    let answer = |_| {
        let response = client.get("/");
        assert_eq!(response.status, 200, "{response:?}");
        response.text().to_owned()
    };
    (0..count).map(answer).collect()
}

fn counts(answers: &str) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    for server in answers.chars() {
        *counts.entry(server).or_default() += 1;
    }
    counts
}

#[test]
fn by_turns_each_server_has_its_share() {
    on_both(|engine| {
        let servers = servers();
        let server = with_keys(engine, &servers, ["", "", ""], "");
        let mut client = server.connect();
        let answers = answers(&mut client, 9);
        assert_eq!(answers[..3], answers[3..6], "always in the same order");
        assert_eq!(answers[..3], answers[6..]);
        assert_eq!(counts(&answers[..3]).len(), 3, "{answers}");
        for server in &servers {
            assert_eq!(server.connections(), 1, "one client after the other");
        }
    });
}

#[test]
fn weights_are_shares_and_do_not_come_in_bursts() {
    on_both(|engine| {
        let servers = servers();
        let keys = [", weight = 5", "", ", weight = 2"];
        let server = with_keys(engine, &servers, keys, "");
        let answers = answers(&mut server.connect(), 80);
        let expected = BTreeMap::from([('a', 50), ('b', 10), ('c', 20)]);
        assert_eq!(counts(&answers), expected);
        assert!(!answers.contains("aaaaa"), "{answers}");
    });
}

#[test]
fn a_backup_answers_only_while_nobody_else_does() {
    on_both(|engine| {
        let refusing = Refusing::new();
        let backup = Backend::naming("backup");
        let servers = format!(
            "[{:?}, {{ address = {:?}, backup = true }}]",
            refusing.name(),
            backup.name()
        );
        let server = Setup::run(engine, &tables(&servers, "", "")).start();
        let mut client = server.connect();
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), "backup");
        }
        let good = Backend::naming("good");
        let servers = servers.replace(refusing.name(), good.name());
        let server = Setup::run(engine, &tables(&servers, "", "")).start();
        let mut client = server.connect();
        let before = backup.requests().len();
        for _ in 0..10 {
            assert_eq!(client.get("/").text(), "good");
        }
        assert_eq!(backup.requests().len(), before);
    });
}

#[test]
fn the_same_key_comes_to_the_same_server() {
    on_both(|engine| {
        let servers = servers();
        let table = "balance = { algorithm = \"hash\", by = \"header X-User\" }";
        let server = with_keys(engine, &servers, ["", "", ""], table);
        let mut seen = String::new();
        for user in 0..30 {
            let fields = format!("X-User: user-{user}\r\n");
            let first = server.connect().get_with("/", &fields).text().to_owned();
            for _ in 0..3 {
                let again = server.connect().get_with("/other", &fields);
                assert_eq!(again.text(), first, "user {user}");
            }
            seen.push_str(&first);
        }
        assert_eq!(counts(&seen).len(), 3, "{seen}");
        let table = "balance = \"hash\"";
        let server = with_keys(engine, &servers, ["", "", ""], table);
        let all = answers(&mut server.connect(), 10);
        assert_eq!(counts(&all).len(), 1, "one client address: {all}");
    });
}

#[test]
fn a_cookie_binds_a_client_to_its_server() {
    const TABLE: &str = "balance = { algorithm = \"sticky\", cookie = \"srv\", \
                         secret = \"0123456789abcdef0123\" }";
    on_both(|engine| {
        let servers = servers();
        let server = with_keys(engine, &servers, ["", "", ""], TABLE);
        let mut client = server.connect();
        let mut cookies = BTreeMap::new();
        for _ in 0..3 {
            let response = client.get("/");
            let cookie = response.must("Set-Cookie");
            assert!(cookie.starts_with("srv="), "{cookie}");
            assert!(cookie.contains("HttpOnly"), "{cookie}");
            assert!(!cookie.contains("127.0.0.1"), "{cookie}");
            let pair = cookie.split(';').next().expect("a pair").to_owned();
            cookies.insert(response.text().to_owned(), pair);
        }
        assert_eq!(cookies.len(), 3, "{cookies:?}");
        for (name, cookie) in &cookies {
            for _ in 0..3 {
                let response = client.get_with("/", &format!("Cookie: x=y; {cookie}\r\n"));
                assert_eq!(response.text(), name);
                assert_eq!(response.field("Set-Cookie"), None, "it has it");
            }
        }
        // Nobody else makes one.
        let forged = client.get_with("/", "Cookie: srv=00000000000000000000000000000000\r\n");
        assert!(forged.field("Set-Cookie").is_some());
        // A server that is drained still has those that are bound to it.
        let keys = [", state = \"drain\"", "", ""];
        let config = tables(&list(&servers, keys), TABLE, "");
        server.write_config(&config);
        server.must(&["reload"]);
        let mut client = server.connect();
        assert!(!answers(&mut client, 6).contains('a'));
        let bound = format!("Cookie: {}\r\n", cookies["a"]);
        assert_eq!(client.get_with("/", &bound).text(), "a");
    });
}

#[test]
fn what_is_drained_or_down_gets_nothing_new() {
    on_both(|engine| {
        let servers = servers();
        let keys = [", state = \"drain\"", ", state = \"down\"", ""];
        let server = with_keys(engine, &servers, keys, "");
        let mut client = server.connect();
        assert_eq!(answers(&mut client, 5), "ccccc");
        // Blue, green: the states are swapped by a reload.
        let keys = ["", "", ", state = \"drain\""];
        server.write_config(&tables(&list(&servers, keys), "", ""));
        server.must(&["reload"]);
        let after = answers(&mut client, 6);
        assert_eq!(counts(&after), BTreeMap::from([('a', 3), ('b', 3)]));
        // Nobody left is no fault of theirs.
        let down = ", state = \"down\"";
        server.write_config(&tables(&list(&servers, [down; 3]), "", ""));
        server.must(&["reload"]);
        let response = client.get("/");
        assert_eq!(response.status, 503);
        assert!(!response.text().contains("127.0.0.1"));
    });
}

#[test]
fn requests_in_flight_end_where_they_began_when_their_server_is_drained() {
    on_both(|engine| {
        let gate = Gate::default();
        let at_backend = gate.clone();
        let slow = Backend::start(move |connection| {
            while connection.request().is_some() {
                at_backend.wait();
                connection.send(ok("slow"));
            }
        });
        let other = Backend::naming("other");
        let config = |state: &str| {
            let servers = format!(
                "[{{ address = {:?}{state} }}, {:?}]",
                slow.name(),
                other.name()
            );
            tables(&servers, "", "")
        };
        let server = Setup::run(engine, &config("")).start();
        // It may be the other one's turn first.
        let mut clients = [server.connect(), server.connect()];
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        slow.await_requests(1);
        server.write_config(&config(", state = \"drain\""));
        server.must(&["reload"]);
        for _ in 0..4 {
            assert_eq!(server.connect().get("/").text(), "other");
        }
        gate.open();
        let mut answers = clients.map(|mut client| client.response().text().to_owned());
        answers.sort();
        assert_eq!(answers, ["other", "slow"]);
    });
}

#[test]
fn the_least_busy_server_is_chosen_where_that_is_asked_for() {
    on_both(|engine| {
        let gate = Gate::default();
        let script = |name: &'static str, gate: Gate| {
            Backend::start(move |connection| {
                while let Some(request) = connection.request() {
                    if request.target == "/slow" {
                        gate.wait();
                    }
                    connection.send(ok(name));
                }
            })
        };
        let backends = [script("a", gate.clone()), script("b", gate.clone())];
        for balance in ["least-conn", "p2c"] {
            let names: Vec<&str> = backends.iter().map(Backend::name).collect();
            let table = format!("balance = {balance:?}");
            let server = upstream(engine, &names, &table, "");
            let before: usize = backends.iter().map(|b| b.requests().len()).sum();
            let mut waiting = server.connect();
            waiting.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
            wait_until("it is there", PATIENCE, || {
                backends.iter().map(|b| b.requests().len()).sum::<usize>() > before
            });
            let others = answers(&mut server.connect(), 6);
            gate.open();
            let busy = waiting.response();
            if balance == "least-conn" {
                assert!(!others.contains(busy.text()), "{others}");
            }
            assert_eq!(others.len(), 6);
        }
    });
}

#[test]
fn names_are_resolved_and_a_name_that_is_not_stops_no_start() {
    on_both(|engine| {
        let good = Backend::naming("good");
        let port = good.name().rsplit(':').next().expect("a port");
        let table = "resolve = { family = \"ipv4\" }";
        let by_name = format!("localhost:{port}");
        let server = upstream(engine, &[&by_name], table, "");
        wait_until("the name is resolved", PATIENCE, || {
            server.connect().get("/").status == 200
        });
        let unknown = format!("no-such-host.invalid:{port}");
        let server = upstream(engine, &[&unknown, good.name()], "", "");
        for _ in 0..4 {
            assert_eq!(server.connect().get("/").text(), "good");
        }
        let server = upstream(engine, &[&unknown], "", "");
        let response = server.connect().get("/");
        assert!((502..=504).contains(&response.status), "{response:?}");
        assert!(!response.text().contains("invalid"), "{response:?}");
    });
}
