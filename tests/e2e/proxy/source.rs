//! The local address that backends are connected to from.

use super::backend::{Backend, ok};
use super::{Setup, upstream_config};
use crate::support::{PATIENCE, on_both, wait_until};

/// Answers with the address that the connection has come from.
fn telling() -> Backend {
    Backend::start(|connection| {
        while connection.request().is_some() {
            connection.send(ok(&connection.peer().to_string()));
        }
    })
}

#[test]
fn backends_see_the_address_that_was_said() {
    on_both(|engine| {
        let backend = telling();
        let config = |table: &str| upstream_config(&[backend.name()], table, "");
        // The confined worker has to be allowed what this takes.
        let server = Setup::run(engine, &config("source = \"127.0.0.9\"")).start();
        assert_eq!(server.connect().get("/").text(), "127.0.0.9");
        let worker = server.worker();
        server.write_config(&config("source = [\"::1\", \"127.0.0.10\"]"));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/").text(), "127.0.0.10");
        assert_eq!(server.worker(), worker, "in place");
        // For servers of the other family it means nothing.
        server.write_config(&config("source = \"::1\""));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/").text(), "127.0.0.1");
    });
}

#[test]
fn a_worker_without_the_right_to_bind_is_replaced_by_one_that_has_it() {
    on_both(|engine| {
        let backend = telling();
        let config = |table: &str| upstream_config(&[backend.name()], table, "");
        let server = Setup::run(engine, &config("")).start();
        assert_eq!(server.connect().get("/").text(), "127.0.0.1");
        server.write_config(&config("source = \"127.0.0.9\""));
        server.must(&["reload"]);
        assert_eq!(server.connect().get("/").text(), "127.0.0.9");
        // What it may do beside that is as little as before.
        let reply = server.ask_must("probe");
        let attempts = reply["data"].as_array().expect("attempts");
        for what in ["bind a port", "listen"] {
            let attempt = attempts.iter().find(|attempt| attempt["what"] == what);
            let attempt = attempt.unwrap_or_else(|| panic!("{what}: {reply}"));
            assert_eq!(attempt["refused"], true, "{attempt}");
        }
    });
}

#[test]
fn probes_come_from_there_too() {
    on_both(|engine| {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                let from = connection.peer().to_string();
                connection.send(match request.target.as_str() {
                    "/healthz" if from != "127.0.0.9" => super::backend::answer(503, "", &from),
                    _ => ok(&from),
                });
            }
        });
        let table = "source = \"127.0.0.9\"\n\
                     health = { path = \"/healthz\", interval = \"100ms\", timeout = \"100ms\" }";
        let config = upstream_config(&[backend.name()], table, "");
        let server = Setup::run(engine, &config).start();
        let probes = || {
            let requests = backend.requests();
            let probes = requests
                .iter()
                .filter(|request| request.target == "/healthz");
            probes.count()
        };
        wait_until("it was asked some times", PATIENCE, || probes() > 4);
        // Some of them may have been late; from elsewhere none is ever good.
        wait_until("it is found well, and answers", PATIENCE, || {
            server.connect().get("/").text() == "127.0.0.9"
        });
    });
}

#[test]
fn an_address_of_another_host_is_told_at_the_start_and_at_each_connection() {
    on_both(|engine| {
        let backend = telling();
        // For documentation alone (RFC 5737).
        let config = upstream_config(&[backend.name()], "source = \"192.0.2.1\"", "");
        let server = Setup::run(engine, &config).start();
        wait_until("the start says so", PATIENCE, || {
            let log = server.stderr();
            log.contains("`source` is not an address of this host now") && log.contains("192.0.2.1")
        });
        let response = server.connect().get("/");
        assert_eq!(response.status, 503);
        assert!(!response.text().contains("192.0.2.1"), "{response:?}");
        wait_until("the log has the reason", PATIENCE, || {
            let log = server.stderr();
            log.contains("192.0.2.1 is not an address of this host: check `source`")
        });
        assert_eq!(backend.connections(), 0);
    });
}
