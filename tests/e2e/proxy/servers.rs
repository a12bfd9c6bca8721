//! `beltway server` and what `status` tells of upstreams: servers drained and taken back without a
//! reload, and why one is out.

use std::collections::BTreeSet;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::backend::{Backend, Connection, Gate, Refusing, answer, ok};
use super::{Engine, Server, Setup, tables, upstream, upstream_config};
use crate::support::{Client, PATIENCE, on_both, wait_for, wait_until};

const STICKY: &str = "balance = { algorithm = \"sticky\", cookie = \"srv\", \
                      secret = \"0123456789abcdef0123\" }";

/// Answers with its name; `/slow` when the gate is opened; switches where that is asked for, and gives
/// back what comes.
fn named(name: &'static str, gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(move |connection: &mut Connection| {
        while let Some(request) = connection.request() {
            match request.target.as_str() {
                "/slow" => gate.wait(),
                "/chat" => {
                    connection.send(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
                    );
                    loop {
                        match connection.bytes() {
                            bytes if bytes.is_empty() => return,
                            bytes => connection.send(bytes),
                        };
                    }
                }
                _ => {}
            }
            connection.send(ok(name));
        }
    })
}

/// Who answers clients that nothing binds, each name once.
fn answering(server: &Server) -> BTreeSet<String> {
    let answer = |_| {
        let response = server.connect().get("/");
        assert_eq!(response.status, 200, "{response:?}");
        response.text().to_owned()
    };
    (0..8).map(answer).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// What `server list` tells of the server of this name.
fn told(server: &Server, name: &str) -> Value {
    let output = server.must(&["server", "list", "app", "--json"]);
    let list: Value = serde_json::from_str(&output.stdout).expect("JSON");
    let servers = list["upstreams"][0]["servers"].as_array().expect("servers");
    let found = servers.iter().find(|it| it["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {list}")).clone()
}

/// Sends a request that the gate holds up, and waits until it is at one of these.
fn slow(server: &Server, backends: &[&Backend]) -> Client {
    let count = || backends.iter().map(|b| b.requests().len()).sum::<usize>();
    let before = count();
    let mut client = server.connect();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("it is there", PATIENCE, || count() > before);
    client
}

#[test]
fn a_drained_server_gets_nothing_new_and_ends_what_it_has() {
    on_both(|engine| {
        let gate = Gate::default();
        let (a, b) = (named("a", &gate), named("b", &gate));
        let server = upstream(engine, &[a.name(), b.name()], STICKY, "");
        // A client that is bound to it, a request and a tunnel.
        let mut bound = server.connect();
        let cookie = wait_for("a cookie of it", PATIENCE, || {
            let response = bound.get("/");
            let cookie = response.must("Set-Cookie").split(';').next()?.to_owned();
            (response.text() == "a").then(|| format!("Cookie: {cookie}\r\n"))
        });
        let mut running = server.connect();
        running.send(format!("GET /slow HTTP/1.1\r\nHost: a\r\n{cookie}\r\n"));
        let mut tunnel = server.connect();
        tunnel.send(format!(
            "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n{cookie}\r\n"
        ));
        assert_eq!(tunnel.response().status, 101);
        wait_until("both are there", PATIENCE, || {
            told(&server, a.name())["in_flight"] == 2
        });
        let before = told(&server, a.name());
        assert_eq!(
            (&before["state"], &before["connections"]),
            (&"up".into(), &2.into())
        );

        let output = server.must(&["server", "drain", "app", a.name()]);
        assert!(output.stdout.contains("drains"), "{output:?}");
        assert_eq!(answering(&server), names(["b"]));
        assert_eq!(
            bound.get_with("/", &cookie).text(),
            "a",
            "it is bound to it"
        );
        tunnel.send("still here");
        assert_eq!(tunnel.exactly(10), b"still here");
        gate.open();
        assert_eq!(running.response().text(), "a");
        wait_until("nothing but the tunnel is left", PATIENCE, || {
            let now = told(&server, a.name());
            now["in_flight"] == 1 && now["connections"] == 1 && now["idle"] == 0
        });
        let now = told(&server, a.name());
        assert_eq!(
            (&now["state"], &now["admin"], &now["configured"]),
            (&"drain".into(), &"drain".into(), &"up".into())
        );
        let text = server.must(&["status"]).stdout;
        assert!(text.contains("upstream app: 1 of 2 servers up"), "{text}");
        assert!(
            text.contains("by `beltway server`, configured up"),
            "{text}"
        );

        // Down is for those, too, that are bound to it.
        server.must(&["server", "down", "app", a.name()]);
        assert_eq!(bound.get_with("/", &cookie).text(), "b");
        tunnel.send("still here");
        assert_eq!(tunnel.exactly(10), b"still here");
        server.must(&["server", "up", "app", a.name()]);
        assert_eq!(answering(&server), names(["a", "b"]));
        assert_eq!(told(&server, a.name())["state"], "up");
    });
}

#[test]
fn idle_connections_to_what_is_drained_are_closed_on_every_core() {
    on_both(|engine| {
        let (ended, gate) = (Gate::default(), Gate::default());
        let of_script = (ended.clone(), gate.clone());
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.request() {
                if request.target == "/slow" {
                    of_script.1.wait();
                }
                connection.send(ok("a"));
            }
            of_script.0.open();
        });
        let text = upstream_config(&[backend.name()], "", "");
        // A core has no room for all of them.
        let text = format!("[server]\nmax_conns = 16\n{text}");
        let server = Setup::run(engine, &text).workers(2).start();
        let mut clients: Vec<Client> = (0..12).map(|_| slow(&server, &[&backend])).collect();
        let worker = server.status()["generations"][0]["workers"][0].clone();
        for core in worker["cores"].as_array().expect("cores") {
            assert!(core["connections"].as_u64() >= Some(3), "{worker}");
        }
        gate.open_for(clients.len());
        for client in &mut clients {
            assert_eq!(client.response().text(), "a");
        }
        wait_until("all are idle", PATIENCE, || {
            told(&server, backend.name())["connections"] == 0
        });
        let output = server.must(&["server", "down", "app", backend.name()]);
        assert!(
            output.stdout.contains("warning: no server of app is up"),
            "{output:?}"
        );
        for _ in 0..backend.connections() {
            ended.wait();
        }
        assert_eq!(server.connect().get("/").status, 503);
        server.must(&["server", "up", "app", backend.name()]);
        assert_eq!(server.connect().get("/").text(), "a");
    });
}

/// Kills a worker, and waits until another one is in its place.
fn kill(server: &Server, worker: u32) {
    let before = server.workers("serving").len();
    let pid = Pid::from_raw(worker.cast_signed()).expect("a process id");
    kill_process(pid, Signal::KILL).expect("it runs");
    wait_until("another one serves", PATIENCE, || {
        let now = server.workers("serving");
        now.len() == before && !now.contains(&worker)
    });
}

#[test]
fn a_word_outlives_reload_worker_and_upgrade_until_the_configuration_speaks() {
    on_both(|engine| {
        let (a, b) = (Backend::naming("a"), Backend::naming("b"));
        let config = |keys: &str, rest: &str| {
            let servers = format!("[{{ address = {:?}{keys} }}, {:?}]", a.name(), b.name());
            format!("{rest}\n{}", tables(&servers, "", ""))
        };
        let server = Setup::run(engine, &config("", "")).start();
        assert_eq!(answering(&server), names(["a", "b"]));
        server.must(&["server", "drain", "app", a.name()]);
        let only_b = |what: &str| {
            assert_eq!(answering(&server), names(["b"]), "{what}");
            assert_eq!(told(&server, a.name())["state"], "drain", "{what}");
        };
        only_b("at once");
        server.must(&["reload"]);
        only_b("a reload of the same");
        server.write_config(&config(", weight = 3", ""));
        server.must(&["reload"]);
        only_b("a reload that changes the server, and not its state");
        kill(&server, server.worker());
        only_b("another worker");
        server.must(&["upgrade"]);
        only_b("an upgrade");
        server.write_config(&config("", "[server]\nprocesses = 2"));
        let output = server.must(&["reload"]);
        assert!(output.stdout.contains("generation"), "{output:?}");
        only_b("another generation");
        // Back, and to another state, by the configuration.
        server.write_config(&config(", state = \"down\"", "[server]\nprocesses = 2"));
        server.must(&["reload"]);
        let now = told(&server, a.name());
        assert_eq!(
            (&now["state"], &now["admin"]),
            (&"down".into(), &"down".into())
        );
        wait_until("the log says so", PATIENCE, || {
            server.stderr().contains("takes back")
        });
        server.write_config(&config("", "[server]\nprocesses = 2"));
        server.must(&["reload"]);
        assert_eq!(
            answering(&server),
            names(["a", "b"]),
            "nothing is left of it"
        );
        // And the other way round: a word stands above what the configuration says.
        server.write_config(&config(", state = \"down\"", "[server]\nprocesses = 2"));
        server.must(&["reload"]);
        server.must(&["server", "up", "app", a.name()]);
        assert_eq!(answering(&server), names(["a", "b"]));
        kill(&server, server.workers("serving")[0]);
        assert_eq!(answering(&server), names(["a", "b"]));
    });
}

#[test]
fn who_waits_in_line_goes_to_the_server_that_comes_back() {
    on_both(|engine| {
        let gate = Gate::default();
        let (a, b) = (named("a", &gate), named("b", &gate));
        let table = "max_conns = 1";
        let server = upstream(engine, &[a.name(), b.name()], table, "");
        server.must(&["server", "drain", "app", b.name()]);
        let mut first = slow(&server, &[&a]);
        let mut second = server.connect();
        second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("it waits", PATIENCE, || {
            server.status()["upstreams"][0]["waiting"] == 1
        });
        server.must(&["server", "up", "app", b.name()]);
        assert_eq!(second.response().text(), "b");
        gate.open();
        assert_eq!(first.response().text(), "a");
    });
}

#[test]
fn a_reload_that_drains_closes_idle_connections_too() {
    on_both(|engine| {
        let (a, b) = (Backend::naming("a"), Backend::naming("b"));
        let config = |keys: &str| {
            let servers = format!("[{{ address = {:?}{keys} }}, {:?}]", a.name(), b.name());
            tables(&servers, "", "")
        };
        let server = Setup::run(engine, &config("")).start();
        assert_eq!(answering(&server), names(["a", "b"]));
        assert_eq!(told(&server, a.name())["idle"], 1);
        server.write_config(&config(", state = \"drain\""));
        server.must(&["reload"]);
        let now = told(&server, a.name());
        assert_eq!((&now["idle"], &now["tries"]), (&0.into(), &4.into()));
        assert_eq!(told(&server, b.name())["idle"], 1);
    });
}

#[test]
fn draining_workers_go_by_a_word_too_and_count() {
    on_both(|engine| {
        let gate = Gate::default();
        let (a, b) = (named("a", &gate), named("b", &gate));
        let config = |server: &str| {
            let text = upstream_config(&[a.name(), b.name()], "", "");
            format!("[server]\n{server}\n{text}")
        };
        let server = Setup::run(engine, &config("")).start();
        // Both at work in a worker that drains, and an idle client of it that asks once more.
        let mut running = [slow(&server, &[&a, &b]), slow(&server, &[&a, &b])];
        let mut idle = [server.connect(), server.connect()];
        for client in &mut idle {
            assert_eq!(client.get("/").status, 200);
        }
        server.write_config(&config("processes = 2"));
        server.must(&["reload"]);
        assert_eq!(server.workers("draining").len(), 1);
        assert_eq!(
            told(&server, a.name())["in_flight"],
            1,
            "of the one that drains"
        );
        assert_eq!(told(&server, a.name())["workers"], 2);
        server.must(&["server", "drain", "app", a.name()]);
        for client in &mut idle {
            assert_eq!(client.get("/").text(), "b");
        }
        gate.open_for(2);
        let mut answers = running.each_mut().map(|it| it.response().text().to_owned());
        answers.sort();
        assert_eq!(answers, ["a", "b"]);
    });
}

#[test]
fn status_tells_why_a_server_is_out() {
    on_both(|engine| {
        let closing = Backend::start(|connection| {
            connection.request();
            connection.close();
        });
        let ill = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                connection.send(match request.target.as_str() {
                    "/healthz" => answer(503, "", "no"),
                    _ => ok("ill"),
                });
            }
        });
        let good = Backend::naming("good");
        // Ejected for what requests meet.
        let table = "passive_health = { failures = 2, eject = \"60s\", share = 50 }";
        let server = upstream(engine, &[closing.name(), good.name()], table, "");
        let mut client = server.connect();
        for _ in 0..8 {
            assert_eq!(client.get("/").text(), "good");
        }
        let out = told(&server, closing.name());
        assert_eq!(
            (&out["state"], &out["failures"]),
            (&"ejected".into(), &2.into())
        );
        let reason = out["reason"].as_str().expect("a reason");
        assert!(
            reason.contains("in a row") && reason.contains("connection lost"),
            "{out}"
        );
        assert!(
            (50..=60).contains(&out["back_in_s"].as_u64().unwrap()),
            "{out}"
        );
        let status = server.status();
        assert_eq!(status["upstreams"][0]["retries"]["made"], 2, "{status}");
        let text = server.must(&["server", "list"]).stdout;
        assert!(
            text.contains("ejected") && text.contains("back in"),
            "{text}"
        );
        // The administrator knows better.
        server.must(&["server", "up", "app", closing.name()]);
        assert_eq!(told(&server, closing.name())["state"], "up");

        // Failing its probe; and a name that nobody knows.
        let unknown = "no-such-host.invalid:80";
        // Time enough for an answer: why it is out is said by the probe that has found it so.
        let table = "health = { path = \"/healthz\", interval = \"2s\", fall = 1 }";
        let names = [ill.name(), good.name(), unknown];
        let server = upstream(engine, &names, table, "");
        wait_until("it is found ill", PATIENCE, || {
            told(&server, ill.name())["state"] == "failing"
        });
        assert_eq!(told(&server, ill.name())["reason"], "probe: status 503");
        wait_until("its name is not resolved", PATIENCE, || {
            told(&server, unknown)["state"] == "unresolved"
        });
        assert_eq!(told(&server, unknown)["address"], Value::Null);
        // Drained, and ill all the same.
        server.must(&["server", "drain", "app", ill.name()]);
        let out = told(&server, ill.name());
        let output = server.must(&["server", "up", "app", ill.name()]);
        assert!(
            output
                .stdout
                .contains("left out for now: probe: status 503"),
            "{output:?}"
        );
        assert_eq!(
            (&out["state"], &out["reason"]),
            (&"drain".into(), &"probe: status 503".into())
        );
    });
}

#[test]
fn status_tells_of_breaker_line_and_limits() {
    on_both(|engine| {
        let refusing = Refusing::new();
        let table = "passive_health = false\n\
                     breaker = { error_rate = 50, min_requests = 5, open = \"60s\" }";
        let server = upstream(engine, &[refusing.name()], table, "");
        let of = |server: &Server| server.status()["upstreams"][0].clone();
        assert_eq!((of(&server)["breaker"]["open"].clone()), 0);
        for _ in 0..10 {
            server.connect().get("/");
        }
        let breaker = of(&server)["breaker"].clone();
        assert_eq!(
            (&breaker["open"], &breaker["cores"]),
            (&1.into(), &1.into())
        );
        let text = server.must(&["status"]).stdout;
        assert!(
            text.contains("OPEN on 1 of 1 core, tries again in"),
            "{text}"
        );

        let gate = Gate::default();
        let backend = named("a", &gate);
        let servers = format!("[{{ address = {:?}, max_conns = 1 }}]", backend.name());
        let server = Setup::run(engine, &tables(&servers, "", "")).start();
        let mut clients = vec![slow(&server, &[&backend])];
        clients.extend((0..2).map(|_| {
            let mut client = server.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        }));
        wait_until("two wait", PATIENCE, || of(&server)["waiting"] == 2);
        let told = told(&server, backend.name());
        assert_eq!(
            (&told["in_flight"], &told["max_conns"]),
            (&1.into(), &1.into())
        );
        gate.open();
        for client in &mut clients {
            assert_eq!(client.response().text(), "a");
        }
        assert_eq!(of(&server)["waiting"], 0);
    });
}

#[test]
fn what_several_cores_and_processes_do_is_summed() {
    const CLIENTS: usize = 12;
    on_both(|engine| {
        let gate = Gate::default();
        let (a, b) = (named("a", &gate), named("b", &gate));
        let text = upstream_config(&[a.name(), b.name()], "", "");
        for processes in [1, 2] {
            // Neither a core nor a process has room for all of them.
            let text = format!("[server]\nprocesses = {processes}\nmax_conns = 16\n{text}");
            let server = Setup::run(engine, &text).workers(2).start();
            let sum = |key: &str| -> u64 {
                let of = |it: &Backend| told(&server, it.name())[key].as_u64().unwrap();
                of(&a) + of(&b)
            };
            let mut clients: Vec<Client> = (0..CLIENTS).map(|_| slow(&server, &[&a, &b])).collect();
            assert_eq!((sum("in_flight"), sum("connections")), (12, 12));
            assert_eq!(sum("workers"), 2 * processes);
            gate.open_for(CLIENTS);
            for client in &mut clients {
                assert_eq!(client.response().status, 200);
            }
            wait_until("all are idle", PATIENCE, || sum("idle") == 12);
            assert_eq!((sum("in_flight"), sum("connections")), (0, 0));
            assert_eq!((sum("tries"), sum("failures")), (12, 0));
            // A word is heard by all of them.
            server.must(&["server", "down", "app", a.name()]);
            let before = a.requests().len();
            for _ in 0..CLIENTS {
                assert_eq!(server.connect().get("/").text(), "b");
            }
            assert_eq!(a.requests().len(), before);
        }
    });
}

#[test]
fn what_is_not_there_is_told_with_what_there_is() {
    let server = Setup::run(
        Engine::Epoll,
        "[upstream.app]\nservers = [\"127.0.0.1:1\", \"127.0.0.1:2\", \"localhost:3\"]\n\
         [site.\"*\"]\nlisten = [\"127.0.0.1:0\"]\nproxy = \"app\"\n\
         [site.\"*\".routes]\n\"/own/*\" = { proxy = \"127.0.0.1:9\" }\n",
    )
    .start();
    for (arguments, told) in [
        (
            &["server", "drain", "shop", "x"][..],
            &["no upstream `shop`", "app"][..],
        ),
        (&["server", "list", "shop"], &["no upstream `shop`", "app"]),
        (
            &["server", "drain", "app", "127.0.0.1:4"],
            &[
                "no server `127.0.0.1:4`",
                "127.0.0.1:1, 127.0.0.1:2, localhost:3",
            ],
        ),
        (
            &["server", "drain", "app", "127.0.0.1"],
            &["more than one server", "127.0.0.1:1, 127.0.0.1:2"],
        ),
        (
            &["server", "drain", "app", "localhost:3 (127.0.0.1:3)"],
            &["one of the addresses", "`localhost:3`"],
        ),
    ] {
        let output = server.control(arguments);
        assert_eq!(output.code, Some(1), "{output:?}");
        for part in told {
            assert!(output.stderr.contains(part), "{part}: {output:?}");
        }
    }
    for usage in [&["server", "off", "app", "x"][..], &["server", "up", "app"]] {
        assert_eq!(server.control(usage).code, Some(2));
    }
    // A route's own servers are an upstream, too; and names are found by their host.
    server.must(&["server", "drain", "127.0.0.1:9", "127.0.0.1:9"]);
    let output = server.must(&["server", "down", "app", "localhost", "--json"]);
    let reply: Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(
        (&reply["ok"], &reply["server"]),
        (&true.into(), &"localhost:3".into())
    );
    let list = server.must(&["server", "list"]).stdout;
    for part in ["upstream app:", "upstream 127.0.0.1:9:", "localhost:3"] {
        assert!(list.contains(part), "{part}: {list}");
    }
}
